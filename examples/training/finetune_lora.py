"""Fine-tune a language model on questions and answers with LoRA.

    python finetune_lora.py --model llama --data answers --output out

`--data` holds JSON lines (or Parquet) with the columns `question` and `text`. A checkpoint is written every few steps;
started again with the same `--output`, training goes on from the last one. The adapter ends in `--output`.
"""

import argparse
from pathlib import Path

import torch
from datasets import load_dataset
from peft import LoraConfig, get_peft_model
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    DataCollatorForLanguageModeling,
    Trainer,
    TrainingArguments,
    set_seed,
)


def last_checkpoint(output: Path) -> Path | None:
    """The newest checkpoint that was written to its end: the trainer's state comes last."""
    states = [state for state in output.glob("checkpoint-*/trainer_state.json") if state.stat().st_size]
    return max(
        (state.parent for state in states), key=lambda found: int(found.name.split("-")[1]), default=None
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", required=True, help="folder (or hub name) of the base model")
    parser.add_argument("--data", required=True, help="folder of the data set")
    parser.add_argument("--output", required=True, help="folder for checkpoints and the adapter")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--save-steps", type=int, default=50)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--length", type=int, default=256, help="tokens of one example")
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    options = parser.parse_args()

    set_seed(17)
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    model = AutoModelForCausalLM.from_pretrained(options.model, dtype=torch.float32)
    lora = LoraConfig(
        r=options.rank,
        lora_alpha=2 * options.rank,
        target_modules=["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
        task_type="CAUSAL_LM",
    )
    model = get_peft_model(model, lora)
    model.print_trainable_parameters()

    dataset = load_dataset(options.data, split="train")
    print(f"{len(dataset)} examples")

    def tokenize(batch):
        texts = [
            f"{question}\n{text}" for question, text in zip(batch["question"], batch["text"], strict=True)
        ]
        return tokenizer(texts, truncation=True, max_length=options.length)

    dataset = dataset.map(tokenize, batched=True, remove_columns=dataset.column_names)

    trainer = Trainer(
        model=model,
        args=TrainingArguments(
            output_dir=options.output,
            max_steps=options.steps,
            per_device_train_batch_size=options.batch,
            learning_rate=options.learning_rate,
            save_steps=options.save_steps,
            save_total_limit=2,
            logging_steps=options.save_steps,
            report_to=[],
        ),
        train_dataset=dataset,
        data_collator=DataCollatorForLanguageModeling(tokenizer, mlm=False),
    )
    last = last_checkpoint(Path(options.output))
    if last:
        print(f"resuming from {last.name}", flush=True)
    trainer.train(resume_from_checkpoint=str(last) if last else None)
    trainer.save_model(options.output)
    print(f"done: step {trainer.state.global_step}, adapter in {options.output}")


if __name__ == "__main__":
    main()
