"""A model's ``config.json``: the numbers that its tensors must fit and that an engine computes with, each within bounds.

Pure: bytes in, :class:`Shape` out. The file may come from anyone. Refused: model types that this release does not convert
(mixtures of experts, encoders, everything unknown), activations and rotary scalings that the GGUF architecture has no
place for, and numbers that cannot be. Sources: ``transformers`` 5 configurations; THUDM's ``configuration_chatglm.py``;
llama.cpp's converters for the meaning of the keys.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from cloister.encoding import parse_json
from cloister.errors import FormatError, InferenceError
from cloister.inference.conversion.rotation import Rotation, plain_rotation, read_rotation

NAME: Final = "config.json"
MAX_CONFIG: Final = 1 << 20
MAX_LAYERS: Final = 1024
MAX_WIDTH: Final = 1 << 17
MAX_INNER: Final = 1 << 20
MAX_HEADS: Final = 4096
MAX_HEAD_LENGTH: Final = 1024
MAX_VOCABULARY: Final = 1 << 21
MAX_POSITIONS: Final = 1 << 24
MODEL_TYPES: Final = {
    "llama": "llama",
    "mistral": "llama",
    "qwen2": "qwen2",
    "qwen3": "qwen3",
    "phi3": "phi3",
    "glm": "chatglm",
    "chatglm": "chatglm",
}
"""``model_type`` → architecture of the GGUF file."""


@dataclass(frozen=True, slots=True)
class Shape:
    """A decoder's sizes. Lengths in numbers, ``context`` in tokens."""

    model_type: str
    architecture: str
    layers: int
    width: int
    inner: int
    heads: int
    kv_heads: int
    head_length: int
    vocabulary: int
    context: int
    epsilon: float
    rotation: Rotation
    tied: bool
    """Whether the embeddings are the output layer too."""
    window: int | None = None
    """Tokens that a layer looks back; None for all."""
    notes: tuple[str, ...] = ()
    special: Mapping[str, int] | None = None
    """Token numbers that the file names: ``bos``, ``eos``, ``pad``."""


def read_shape(data: bytes) -> Shape:
    """Parse ``config.json``. Raises :class:`FormatError` (bytes) and :class:`InferenceError` (a model we do not convert)."""
    config = parse_json(data, what=NAME, limit=MAX_CONFIG)
    if not isinstance(config, dict):
        raise FormatError(f"{NAME} is not an object")
    kind = config.get("model_type")
    if not isinstance(kind, str) or kind not in MODEL_TYPES:
        shown = "".join(char if char.isprintable() else "?" for char in str(kind)[:60])
        raise InferenceError(
            f"a model of the type {shown} cannot be converted to GGUF here",
            todo=f"convert {', '.join(MODEL_TYPES)}, or serve it with the torch engine",
        )
    if config.get("quantization_config") is not None:
        raise InferenceError("the model is quantised already", todo="convert the model that it was made from")
    return _chatglm(config) if kind == "chatglm" else _decoder(config, kind)


def _decoder(config: Mapping[str, Any], kind: str) -> Shape:
    heads = number(config, "num_attention_heads", 1, MAX_HEADS)
    width = number(config, "hidden_size", 1, MAX_WIDTH)
    if config.get("hidden_act", "silu") not in ("silu", "swish"):
        raise InferenceError("the model's activation is not SiLU, which this conversion needs")
    length = number(config, "head_dim", 2, MAX_HEAD_LENGTH, default=width // heads or 1)
    context = number(config, "max_position_embeddings", 1, MAX_POSITIONS)
    window = _window(config, kind)
    notes: tuple[str, ...] = ()
    if window is not None and window < context:
        notes = (
            f"the context is cut to the model's sliding window of {window} tokens, within which results are the same",
        )
    rotation = read_rotation(config, length, context, kind)
    return Shape(
        model_type=kind,
        architecture=MODEL_TYPES[kind],
        layers=number(config, "num_hidden_layers", 1, MAX_LAYERS),
        width=width,
        inner=number(config, "intermediate_size", 1, MAX_INNER),
        heads=heads,
        kv_heads=_kv_heads(config, "num_key_value_heads", heads),
        head_length=length,
        vocabulary=number(config, "vocab_size", 1, MAX_VOCABULARY),
        context=min(context, window) if notes and window else context,
        epsilon=fraction(config, "rms_norm_eps", 1e-12, 1.0, default=1e-6),
        rotation=rotation,
        tied=flag(config, "tie_word_embeddings", default=False),
        window=window if kind in ("mistral", "phi3") else None,
        notes=notes,
        special=_special(config),
    )


def _chatglm(config: Mapping[str, Any]) -> Shape:
    heads = number(config, "num_attention_heads", 1, MAX_HEADS)
    width = number(config, "hidden_size", 1, MAX_WIDTH)
    for name, wanted in (
        ("rmsnorm", True),
        ("add_bias_linear", False),
        ("post_layer_norm", True),
        ("apply_residual_connection_post_layernorm", False),
        ("multi_query_attention", True),
    ):
        if flag(config, name, default=wanted) is not wanted:
            raise InferenceError(f"a ChatGLM with {name} = {not wanted} has no form in GGUF")
    length = number(config, "kv_channels", 2, MAX_HEAD_LENGTH, default=width // heads or 1)
    if length * heads != width:
        raise InferenceError(f"{NAME} has heads of {length} numbers that do not fill {width}")
    return Shape(
        model_type="chatglm",
        architecture="chatglm",
        layers=number(config, "num_layers", 1, MAX_LAYERS),
        width=width,
        inner=number(config, "ffn_hidden_size", 1, MAX_INNER),
        heads=heads,
        kv_heads=_kv_heads(config, "multi_query_group_num", heads),
        head_length=length,
        vocabulary=number(config, "padded_vocab_size", 1, MAX_VOCABULARY),
        context=number(config, "seq_length", 1, MAX_POSITIONS),
        epsilon=fraction(config, "layernorm_epsilon", 1e-12, 1.0, default=1e-5),
        rotation=plain_rotation(
            length // 2, 10000.0 * fraction(config, "rope_ratio", 1e-3, 1e6, default=1.0)
        ),
        tied=flag(config, "tie_word_embeddings", default=False),
        special=_special(config),
    )


def _kv_heads(config: Mapping[str, Any], name: str, heads: int) -> int:
    found = number(config, name, 1, heads, default=heads)
    if heads % found:
        raise InferenceError(f"{NAME} has {heads} heads, which {found} cannot share")
    return found


def _window(config: Mapping[str, Any], kind: str) -> int | None:
    if config.get("sliding_window") is None:
        return None
    if kind not in ("mistral", "phi3") and not flag(config, "use_sliding_window", default=False):
        return None
    return number(config, "sliding_window", 1, MAX_POSITIONS)


def _special(config: Mapping[str, Any]) -> Mapping[str, int]:
    found = {}
    for name in ("bos", "eos", "pad"):
        value = config.get(f"{name}_token_id")
        first = value[0] if isinstance(value, list) and value else value
        if type(first) is int and 0 <= first < MAX_VOCABULARY:
            found[name] = first
    return found


def number(config: Mapping[str, Any], name: str, low: int, high: int, *, default: int | None = None) -> int:
    """A whole number of a configuration. Raises :class:`FormatError` where it is none from ``low`` to ``high``."""
    value = config.get(name)
    value = default if value is None else value
    if type(value) is not int or not low <= value <= high:
        raise FormatError(f"{NAME} has no {name} from {low} to {high}")
    return value


def fraction(
    config: Mapping[str, Any], name: str, low: float, high: float, *, default: float | None = None
) -> float:
    """As :func:`number`, of any number."""
    value = config.get(name)
    value = default if value is None else value
    if type(value) not in (int, float) or not low <= float(value or 0) <= high:
        raise FormatError(f"{NAME} has no {name} from {low:g} to {high:g}")
    return float(value or 0)


def flag(config: Mapping[str, Any], name: str, *, default: bool) -> bool:
    value = config.get(name)
    if value is None:
        return default
    if not isinstance(value, bool):
        raise FormatError(f"{NAME} has a {name} that is neither true nor false")
    return value
