"""Small models of every convertible kind, with random weights, as Hugging Face folders; and their tokenizers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

TEXTS = (
    "Hello world",
    " leading and trailing  ",
    "two  spaces   three    four\ttab\n\nnewlines\r\n end",
    "numbers 1234567 3.14159 2026-11-28 0x1F",
    "naïve café — “quotes” … élan",
    "混合的中文文本，标点。还有ひらがな与한국어",
    "emoji 😀👩‍👩‍👧 🏳️‍🌈 flags 🇩🇪",
    "don't I'LL we've it's",
    "def f(x):\n    return x**2  # comment\n",
    "العربية עברית हिन्दी ไทย",
    "\u200bzero width and \u00a0 no-break",
    "",
    "a",
    "ALL CAPS and MixedCase_with_underscores",
    "!!!???... --- ===> <= @#$%^&*()",
)
"""Texts that are hard to cut."""

QWEN2_RULE = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
LLAMA3_RULE = QWEN2_RULE.replace(r"|\p{N}| ?", r"|\p{N}{1,3}| ?")


def byte_level_tokenizer(
    rule: str = "gpt-2", *, size: int = 600, whole_words: bool = False, begin: bool = False
) -> Any:
    """A byte-level BPE tokenizer taught on the texts, splitting by ``rule``."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    tokenizer = Tokenizer(models.BPE(ignore_merges=whole_words))
    tokenizer.pre_tokenizer = {
        "gpt-2": lambda: pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        "starcoder": lambda: pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        ),
        "qwen2": lambda: pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(QWEN2_RULE), "isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        ),
        "llama-bpe": lambda: pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(LLAMA3_RULE), "isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        ),
    }[rule]()
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(list(TEXTS) * 3, trainer)
    if begin:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", 0)]
        )
    return tokenizer


def write_tokenizer(target: Path, tokenizer: Any, **settings: Any) -> None:
    tokenizer.save(str(target / "tokenizer.json"))
    usual = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|im_end|>"}
    (target / "tokenizer_config.json").write_text(json.dumps({**usual, **settings}))


def write_model(
    target: Path, kind: str, *, vocabulary: int = 600, tokenizer: Any = None, **changes: Any
) -> Path:
    """A model of the type ``kind`` as the new folder ``target``: 3 layers, 256 wide, random 32-bit weights."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    sizes: dict[str, Any] = {
        "vocab_size": vocabulary, "hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 3,
        "num_attention_heads": 8, "num_key_value_heads": 2, "head_dim": 32, "max_position_embeddings": 512,
        "rms_norm_eps": 1e-5, "tie_word_embeddings": False, "pad_token_id": 0, "bos_token_id": 0, "eos_token_id": 2,
    }  # fmt: skip
    if kind == "phi3":
        del sizes["head_dim"]
    config = AutoConfig.for_model(kind, **{**sizes, **changes})
    torch.manual_seed(7)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            # Strong enough that each part shows in the logits; norms and biases too.
            spread = 0.2 if parameter.dim() == 1 else 1.6 * parameter.shape[-1] ** -0.5
            parameter.copy_(
                torch.randn(parameter.shape) * spread + (1.0 if name.endswith("norm.weight") else 0.0)
            )
    model.save_pretrained(target)
    write_tokenizer(target, tokenizer or byte_level_tokenizer(size=vocabulary))
    return target


def write_chatglm(target: Path, glm: Path) -> Path:
    """The same weights as ``glm``, a folder of the type ``glm``, in the layout of THUDM's ChatGLM2 and ChatGLM3."""
    import torch
    from safetensors.torch import load_file, save_file

    target.mkdir()
    config = json.loads((glm / "config.json").read_text())
    weights = load_file(glm / "model.safetensors")
    found = {
        "transformer.embedding.word_embeddings.weight": weights["model.embed_tokens.weight"],
        "transformer.encoder.final_layernorm.weight": weights["model.norm.weight"],
        "transformer.output_layer.weight": weights["lm_head.weight"],
        "transformer.rotary_pos_emb.inv_freq": torch.ones(8),
    }
    names = {
        "input_layernorm.weight": "input_layernorm.weight",
        "self_attn.o_proj.weight": "self_attention.dense.weight",
        "post_attention_layernorm.weight": "post_attention_layernorm.weight",
        "mlp.gate_up_proj.weight": "mlp.dense_h_to_4h.weight",
        "mlp.down_proj.weight": "mlp.dense_4h_to_h.weight",
    }
    for layer in range(config["num_hidden_layers"]):
        source, to = f"model.layers.{layer}", f"transformer.encoder.layers.{layer}"
        for name, other in names.items():
            found[f"{to}.{other}"] = weights[f"{source}.{name}"]
        for part in ("weight", "bias"):
            parts = [weights[f"{source}.self_attn.{letter}_proj.{part}"] for letter in "qkv"]
            found[f"{to}.self_attention.query_key_value.{part}"] = torch.cat(parts)
    save_file({name: tensor.contiguous() for name, tensor in found.items()}, target / "model.safetensors")
    (target / "config.json").write_text(
        json.dumps(
            {
                "model_type": "chatglm", "architectures": ["ChatGLMModel"], "num_layers": config["num_hidden_layers"],
                "hidden_size": config["hidden_size"], "ffn_hidden_size": config["intermediate_size"],
                "num_attention_heads": config["num_attention_heads"], "kv_channels": config["head_dim"],
                "multi_query_attention": True, "multi_query_group_num": config["num_key_value_heads"],
                "padded_vocab_size": config["vocab_size"], "seq_length": 512, "layernorm_epsilon": 1e-5,
                "rmsnorm": True, "add_bias_linear": False, "add_qkv_bias": True, "post_layer_norm": True,
                "apply_residual_connection_post_layernorm": False, "tie_word_embeddings": False,
            }
        )
    )  # fmt: skip
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (target / name).write_bytes((glm / name).read_bytes())
    return target


def write_demo_model(target: Path) -> Path:
    """The packaged demonstration model as Hugging Face has models, its weights as 32-bit floats."""
    import gguf
    import numpy as np
    from safetensors.numpy import save_file
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    from cloister.inference.demo_model import demo_model

    target.mkdir()
    reader = gguf.GGUFReader(demo_model())
    told = {key: field.contents() for key, field in reader.fields.items()}
    heads = {"attn_q": told["llama.attention.head_count"], "attn_k": told["llama.attention.head_count_kv"]}
    names = {
        "attn_norm": "input_layernorm", "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj",
        "attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj", "ffn_norm": "post_attention_layernorm",
        "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj",
    }  # fmt: skip
    outer = {"token_embd.weight": "model.embed_tokens.weight", "output_norm.weight": "model.norm.weight"}
    found = {}
    for tensor in reader.tensors:
        rows = np.asarray(gguf.quants.dequantize(tensor.data, tensor.tensor_type), np.float32)
        if tensor.name in outer:
            found[outer[tensor.name]] = rows
            continue
        _, layer, part, _ = tensor.name.split(".")
        if part in heads:
            rows = rows.reshape(heads[part], -1, 2, rows.shape[-1]).swapaxes(1, 2).reshape(rows.shape)
        found[f"model.layers.{layer}.{names[part]}.weight"] = np.ascontiguousarray(rows)
    save_file(found, target / "model.safetensors", metadata={"format": "pt"})
    tokens = told["tokenizer.ggml.tokens"]
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": len(tokens),
        "hidden_size": told["llama.embedding_length"], "intermediate_size": told["llama.feed_forward_length"],
        "num_hidden_layers": told["llama.block_count"], "num_attention_heads": heads["attn_q"],
        "num_key_value_heads": heads["attn_k"], "max_position_embeddings": told["llama.context_length"],
        "rms_norm_eps": told["llama.attention.layer_norm_rms_epsilon"], "rope_theta": told["llama.rope.freq_base"],
        "tie_word_embeddings": True, "bos_token_id": 0, "eos_token_id": 2, "dtype": "float32",
    }  # fmt: skip
    (target / "config.json").write_text(json.dumps(config))
    numbers = {token: number for number, token in enumerate(tokens)}
    merges = [tuple(merge.split(" ")) for merge in told["tokenizer.ggml.merges"]]
    tokenizer = Tokenizer(models.BPE(vocab=numbers, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in tokens[:3]])
    write_tokenizer(target, tokenizer, chat_template=told["tokenizer.chat_template"])
    return target
