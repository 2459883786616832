"""The keys of a GGUF file that say how a model computes. Source: ggml's docs/gguf.md and llama.cpp's ``llama-arch.cpp``."""

from __future__ import annotations

from typing import Final

from cloister.inference.conversion.configuration import Shape
from cloister.inference.conversion.container import ALIGNMENT, Pairs
from cloister.inference.conversion.quantisation import FILE_TYPES, Quantisation

_QUANTISATION_VERSION: Final = 2


def model_pairs(pairs: Pairs, shape: Shape, quantisation: Quantisation, name: str) -> None:
    """Add all keys but those of the tokenizer."""
    kind, rotation = shape.architecture, shape.rotation
    pairs.text("general.architecture", kind)
    pairs.text("general.type", "model")
    pairs.text("general.name", name)
    pairs.count_of("general.alignment", ALIGNMENT)
    pairs.count_of("general.file_type", FILE_TYPES[quantisation])
    pairs.count_of("general.quantization_version", _QUANTISATION_VERSION)
    for key, value in (
        ("vocab_size", shape.vocabulary),
        ("context_length", shape.context),
        ("embedding_length", shape.width),
        ("block_count", shape.layers),
        ("feed_forward_length", shape.inner),
        ("attention.head_count", shape.heads),
        ("attention.head_count_kv", shape.kv_heads),
        ("attention.key_length", shape.head_length),
        ("attention.value_length", shape.head_length),
        ("rope.dimension_count", rotation.dimensions),
    ):
        pairs.count_of(f"{kind}.{key}", value)
    if shape.window is not None:
        pairs.count_of(f"{kind}.attention.sliding_window", shape.window)
    pairs.number(f"{kind}.attention.layer_norm_rms_epsilon", shape.epsilon)
    pairs.number(f"{kind}.rope.freq_base", rotation.base)
    if rotation.scaling is not None:
        pairs.text(f"{kind}.rope.scaling.type", rotation.scaling)
        pairs.number(f"{kind}.rope.scaling.factor", rotation.factor)
        if rotation.original is not None:
            pairs.count_of(f"{kind}.rope.scaling.original_context_length", rotation.original)
        for key, number in (rotation.yarn or {}).items():
            pairs.number(f"{kind}.rope.scaling.{key}", number)
