"""Which tensors of a Hugging Face model become which of a GGUF file: names, shapes, order of rows, for each model type.

llama.cpp's ``llama`` turns neighbouring pairs of a query and a key where ``transformers`` turns halves, so rows of those
two move. The shapes follow from ``config.json`` alone: a file whose tensors have others is refused, and so is one that
lacks a tensor or has one that nobody would read.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from cloister.errors import InferenceError
from cloister.inference.conversion.configuration import Shape
from cloister.inference.safetensors_table import Place

_UNREAD: Final = ("rotary_emb.inv_freq", "rotary_pos_emb.inv_freq")
"""Ends of names of tensors that follow from the configuration."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """One tensor of the GGUF file, and the one it is made of."""

    source: str
    target: str
    shape: tuple[int, ...]
    """As ``transformers`` has it: (outputs, inputs), or (numbers,)."""
    heads: int | None = None
    """Set where the halves of each head's rows become neighbouring pairs."""
    layer: int | None = None
    optional: bool = False


def wanted_tensors(shape: Shape, present: Mapping[str, Place]) -> tuple[Wanted, ...]:
    """What to write, in order, checked against what is there. Raises :class:`InferenceError`."""
    names = _chatglm(shape) if shape.model_type == "chatglm" else _decoder(shape)
    found, left = [], set(present)
    for entry in names:
        place = present.get(entry.source)
        left.discard(entry.source)
        if place is None:
            if entry.optional:
                continue
            raise InferenceError(f"the model lacks the tensor {entry.source}", todo="copy the model again")
        if place.shape != entry.shape:
            raise InferenceError(
                f"{entry.source} has the shape {place.shape}, and by config.json it must be {entry.shape}"
            )
        found.append(entry)
    left = {name for name in left if not name.endswith(_UNREAD)}
    if shape.tied:
        left.discard("lm_head.weight")
    if left:
        shown = "".join(char if char.isprintable() else "?" for char in min(left)[:120])
        raise InferenceError(
            f"the model has {len(left)} tensors that a {shape.model_type} has not: {shown}",
            todo="convert the plain model, without adapters or parts of other kinds",
        )
    return tuple(found)


def _decoder(shape: Shape) -> Iterator[Wanted]:
    width, inner = shape.width, shape.inner
    queries, keys = shape.heads * shape.head_length, shape.kv_heads * shape.head_length
    turned = shape.architecture == "llama"
    bias_needed = shape.model_type == "qwen2"
    yield Wanted("model.embed_tokens.weight", "token_embd.weight", (shape.vocabulary, width))
    for layer in range(shape.layers):
        source, target = f"model.layers.{layer}", f"blk.{layer}"

        def part(name: str, to: str, *sides: int, heads: int | None = None, optional: bool = False) -> Wanted:
            return Wanted(f"{source}.{name}", f"{target}.{to}", sides, heads, layer, optional)  # noqa: B023

        yield part("input_layernorm.weight", "attn_norm.weight", width)
        if shape.model_type == "phi3":
            yield part("self_attn.qkv_proj.weight", "attn_qkv.weight", queries + 2 * keys, width)
        else:
            for letter, rows, heads in (
                ("q", queries, shape.heads),
                ("k", keys, shape.kv_heads),
                ("v", keys, None),
            ):
                moved = heads if turned else None
                yield part(
                    f"self_attn.{letter}_proj.weight", f"attn_{letter}.weight", rows, width, heads=moved
                )
                if shape.model_type != "qwen3":
                    yield part(
                        f"self_attn.{letter}_proj.bias", f"attn_{letter}.bias", rows,
                        heads=moved, optional=not bias_needed,
                    )  # fmt: skip
        if shape.model_type == "qwen3":
            yield part("self_attn.q_norm.weight", "attn_q_norm.weight", shape.head_length)
            yield part("self_attn.k_norm.weight", "attn_k_norm.weight", shape.head_length)
        yield part("self_attn.o_proj.weight", "attn_output.weight", width, queries)
        if shape.architecture == "llama":
            yield part("self_attn.o_proj.bias", "attn_output.bias", width, optional=True)
        yield part("post_attention_layernorm.weight", "ffn_norm.weight", width)
        if shape.model_type in ("phi3", "glm"):
            yield part("mlp.gate_up_proj.weight", "ffn_up.weight", 2 * inner, width)
        else:
            yield part("mlp.gate_proj.weight", "ffn_gate.weight", inner, width)
            yield part("mlp.up_proj.weight", "ffn_up.weight", inner, width)
        yield part("mlp.down_proj.weight", "ffn_down.weight", width, inner)
        if shape.architecture == "llama":
            for name, to, rows in (
                ("gate", "ffn_gate", inner),
                ("up", "ffn_up", inner),
                ("down", "ffn_down", width),
            ):
                yield part(f"mlp.{name}_proj.bias", f"{to}.bias", rows, optional=True)
    yield Wanted("model.norm.weight", "output_norm.weight", (width,))
    if not shape.tied:
        yield Wanted("lm_head.weight", "output.weight", (shape.vocabulary, width))


def _chatglm(shape: Shape) -> Iterator[Wanted]:
    width, vocabulary = shape.width, shape.vocabulary
    fused = width + 2 * shape.kv_heads * shape.head_length
    yield Wanted("transformer.embedding.word_embeddings.weight", "token_embd.weight", (vocabulary, width))
    parts: tuple[tuple[str, str, tuple[int, ...], bool], ...] = (
        ("input_layernorm.weight", "attn_norm.weight", (width,), False),
        ("self_attention.query_key_value.weight", "attn_qkv.weight", (fused, width), False),
        ("self_attention.query_key_value.bias", "attn_qkv.bias", (fused,), True),
        ("self_attention.dense.weight", "attn_output.weight", (width, width), False),
        ("post_attention_layernorm.weight", "ffn_norm.weight", (width,), False),
        ("mlp.dense_h_to_4h.weight", "ffn_up.weight", (2 * shape.inner, width), False),
        ("mlp.dense_4h_to_h.weight", "ffn_down.weight", (width, shape.inner), False),
    )
    for layer in range(shape.layers):
        for name, to, sides, optional in parts:
            yield Wanted(
                f"transformer.encoder.layers.{layer}.{name}",
                f"blk.{layer}.{to}",
                sides,
                None,
                layer,
                optional,
            )
    yield Wanted("transformer.encoder.final_layernorm.weight", "output_norm.weight", (width,))
    if not shape.tied:
        yield Wanted("transformer.output_layer.weight", "output.weight", (vocabulary, width))
