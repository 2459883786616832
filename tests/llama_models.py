"""The TinyLlamas checkpoint as Hugging Face has models: config.json, model.safetensors and a tokenizer.

The same weights as in ``tinyllamas_gguf``, so that what ``transformers`` computes and what llama.cpp computes can be
compared word for word. llama2.c rotates neighbouring pairs, ``transformers`` rotates halves: rows of the query and
key projections are moved accordingly.
"""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np

from shared_data import data

_ENCODED = "tinyllamas/stories260K.bin"
_VOCABULARY = "tinyllamas/tok512.vocab"


def write_llama(target: Path) -> Path:
    """Write the checkpoint as the new folder ``target`` (F32, 1 MB), loadable by ``from_pretrained``."""
    from safetensors.numpy import save_file

    target.mkdir()
    raw = data(_ENCODED).read_bytes()
    dim, hidden, layers, heads, kv_heads, vocabulary, length = struct.unpack_from("<7i", raw)
    floats = np.frombuffer(raw, dtype="<f4", offset=28)
    kv_dim = dim // heads * kv_heads
    cursor = 0

    def take(*shape: int) -> np.ndarray:
        nonlocal cursor
        size = int(np.prod(shape))
        part = floats[cursor : cursor + size].reshape(shape)
        cursor += size
        return part

    tensors = {"model.embed_tokens.weight": take(vocabulary, dim)}
    stacked = {
        "input_layernorm": take(layers, dim),
        "self_attn.q_proj": take(layers, dim, dim),
        "self_attn.k_proj": take(layers, kv_dim, dim),
        "self_attn.v_proj": take(layers, kv_dim, dim),
        "self_attn.o_proj": take(layers, dim, dim),
        "post_attention_layernorm": take(layers, dim),
        "mlp.gate_proj": take(layers, hidden, dim),
        "mlp.down_proj": take(layers, dim, hidden),
        "mlp.up_proj": take(layers, hidden, dim),
    }
    for name, tensor in stacked.items():
        for layer in range(layers):
            rows = tensor[layer]
            if name == "self_attn.q_proj":
                rows = _halves(rows, heads)
            elif name == "self_attn.k_proj":
                rows = _halves(rows, kv_heads)
            tensors[f"model.layers.{layer}.{name}.weight"] = np.ascontiguousarray(rows)
    tensors["model.norm.weight"] = take(dim)
    save_file(
        {name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()},
        target / "model.safetensors",
        metadata={"format": "pt"},
    )
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": dim,
        "intermediate_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "vocab_size": vocabulary,
        "max_position_embeddings": length,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "tie_word_embeddings": True,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "dtype": "float32",
    }
    (target / "config.json").write_text(json.dumps(config, indent=1))
    _write_tokenizer(target, vocabulary, length)
    return target


def greedy(model: Any, tokens: list[int], count: int) -> list[int]:
    """The ``count`` likeliest next tokens, one after another, computed without a cache."""
    import torch

    with torch.no_grad():
        found = list(tokens)
        for _ in range(count):
            logits = model(input_ids=torch.tensor([found]), use_cache=False).logits[0, -1]
            found.append(int(logits.argmax()))
    return found[len(tokens) :]


def strong_adapter(base: Path, target: Path, **changes: Any) -> Path:
    """A LoRA adapter for ``base`` as ``peft`` saves one, random, and strong enough to change what the model says."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    settings: dict[str, Any] = {
        "r": 4,
        "lora_alpha": 8,
        "target_modules": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
        "task_type": "CAUSAL_LM",
    }
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base), LoraConfig(**{**settings, **changes}))
    draw = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=draw) * 0.05)
    model.save_pretrained(target)
    return target


def _halves(rows: np.ndarray, heads: int) -> np.ndarray:
    """Rows of a projection: neighbouring pairs of each head become its first and second half."""
    head = rows.shape[0] // heads
    return rows.reshape(heads, head // 2, 2, -1).swapaxes(1, 2).reshape(rows.shape)


def _write_tokenizer(target: Path, vocabulary: int, length: int) -> None:
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, processors

    lines = data(_VOCABULARY).read_text(encoding="utf-8").split("\n")[:vocabulary]
    pieces = [line.rsplit("\t", 1)[0] for line in lines]
    scores = [float(line.rsplit("\t", 1)[1]) for line in lines]
    numbers = {piece: number for number, piece in enumerate(pieces)}
    merges: list[tuple[float, int, str, str]] = []
    for piece, number in numbers.items():
        for cut in range(1, len(piece) if number >= 259 else 0):
            left, right = piece[:cut], piece[cut:]
            if left in numbers and right in numbers:
                merges.append((-scores[number], numbers[left], left, right))
    tokenizer = Tokenizer(
        models.BPE(
            vocab=numbers,
            merges=[(left, right) for _, _, left, right in sorted(merges)],
            unk_token="<unk>",
            byte_fallback=True,
            fuse_unk=True,
        )
    )
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", 1)]
    )
    tokenizer.add_special_tokens([AddedToken(name, special=True) for name in ("<unk>", "<s>", "</s>")])
    tokenizer.save(str(target / "tokenizer.json"))
    (target / "tokenizer_config.json").write_text(
        json.dumps(
            {
                "tokenizer_class": "PreTrainedTokenizerFast",
                "bos_token": "<s>",
                "eos_token": "</s>",
                "unk_token": "<unk>",
                "pad_token": "</s>",
                "model_max_length": length,
            },
            indent=1,
        )
    )
