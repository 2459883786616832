"""Small models with random weights whose layers are large enough to be quantised, of several families."""

from __future__ import annotations

from pathlib import Path
from typing import Any

VOCABULARY = 512


def llama(**changes: Any) -> Any:
    """A LLaMA of 1.1 M weights in float32, in evaluation mode, the same at every call."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(7)
    settings: dict[str, Any] = {
        "hidden_size": 256,
        "intermediate_size": 384,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": VOCABULARY,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
        "attention_bias": True,
        "tie_word_embeddings": False,
    }
    return LlamaForCausalLM(LlamaConfig(**{**settings, **changes})).eval()


def gpt2() -> Any:
    """A GPT-2, whose layers keep their weights the other way round, and whose logits are tied to its embeddings."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(7)
    return GPT2LMHeadModel(GPT2Config(n_embd=128, n_layer=2, n_head=4, vocab_size=VOCABULARY)).eval()


def bert() -> Any:
    """A BERT: an encoder with a classifier of two classes."""
    import torch
    from transformers import BertConfig, BertForSequenceClassification

    torch.manual_seed(7)
    config = BertConfig(
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        vocab_size=VOCABULARY,
    )
    return BertForSequenceClassification(config).eval()


def t5() -> Any:
    """A T5: an encoder and a decoder that looks at it."""
    import torch
    from transformers import T5Config, T5ForConditionalGeneration

    torch.manual_seed(7)
    config = T5Config(
        d_model=128,
        d_kv=32,
        d_ff=256,
        num_layers=2,
        num_heads=4,
        vocab_size=VOCABULARY,
        decoder_start_token_id=0,
    )
    return T5ForConditionalGeneration(config).eval()


def saved(model: Any, folder: Path) -> Path:
    """The model in a new folder, as ``save_pretrained`` writes it."""
    model.save_pretrained(folder)
    return folder


def logits(model: Any, length: int = 12) -> Any:
    """Of a sequence that is the same at every call."""
    import torch

    draw = torch.Generator().manual_seed(11)
    tokens = torch.randint(3, VOCABULARY, (1, length), generator=draw)
    with torch.no_grad():
        if getattr(model.config, "is_encoder_decoder", False):
            return model(input_ids=tokens, decoder_input_ids=tokens).logits.float()
        return model(input_ids=tokens).logits.float()


def cosine(one: Any, other: Any) -> float:
    """Between two tensors of one shape."""
    import torch

    return float(torch.nn.functional.cosine_similarity(one.flatten(), other.flatten(), 0))
