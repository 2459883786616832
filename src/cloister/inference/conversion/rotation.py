"""Rotary positions: how far each pair of numbers turns per token, and how that is stretched for long texts.

``transformers`` describes it as ``rope_parameters`` (since 5) or ``rope_theta`` and ``rope_scaling`` (before); GGUF as keys
and, where the stretch differs from pair to pair, as a tensor of factors. Refused: kinds of scaling that llama.cpp computes
otherwise or not at all (``dynamic``, ``longrope``). Source: ``transformers``' ``modeling_rope_utils``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from cloister.errors import FormatError, InferenceError

MAX_BASE: Final = 1e12
MAX_FACTOR: Final = 1e4
_PARTIAL: Final = {"glm": 0.5}
"""The share of a head that turns, where the configuration does not say."""


@dataclass(frozen=True, slots=True)
class Rotation:
    """``dimensions`` numbers of each head turn, by angles out of ``base``."""

    dimensions: int
    base: float
    scaling: str | None = None
    """``linear`` or ``yarn``; None for no keys."""
    factor: float = 1.0
    original: int | None = None
    """Tokens of the context before it was stretched."""
    yarn: Mapping[str, float] | None = None
    factors: tuple[float, ...] | None = None
    """What each pair's angle is divided by."""


def plain_rotation(dimensions: int, base: float) -> Rotation:
    return Rotation(dimensions, base)


def read_rotation(config: Mapping[str, Any], head_length: int, context: int, kind: str) -> Rotation:
    """Out of a configuration. Raises :class:`FormatError` and :class:`InferenceError`."""
    found = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if not isinstance(found, dict):
        raise FormatError("config.json has rotary parameters that are no object")
    base = _number(found, "rope_theta", 1.0, MAX_BASE, _number(config, "rope_theta", 1.0, MAX_BASE, 10000.0))
    share = _number(
        found, "partial_rotary_factor", 0.01, 1.0,
        _number(config, "partial_rotary_factor", 0.01, 1.0, _PARTIAL.get(kind, 1.0)),
    )  # fmt: skip
    dimensions = int(head_length * share)
    if dimensions < 2 or dimensions % 2:
        raise InferenceError(
            f"{dimensions} numbers of a head turn with the position: it must be an even count"
        )
    scaling = found.get("rope_type", found.get("type", "default"))
    if scaling in ("default", "mrope"):
        return Rotation(dimensions, base)
    factor = _number(found, "factor", 1.0, MAX_FACTOR, None)
    original = _length(found, config, context)
    if scaling == "linear":
        return Rotation(dimensions, base, "linear", factor, original)
    if scaling == "yarn":
        return Rotation(dimensions, base, "yarn", factor, original, yarn=_yarn(found))
    if scaling == "llama3":
        return Rotation(dimensions, base, factors=_llama3(found, dimensions, base, factor, original))
    shown = "".join(char if char.isprintable() else "?" for char in str(scaling)[:40])
    raise InferenceError(f"the model stretches its context by {shown}, which cannot be converted here")


def _length(found: Mapping[str, Any], config: Mapping[str, Any], context: int) -> int:
    value = found.get(
        "original_max_position_embeddings", config.get("original_max_position_embeddings", context)
    )
    if type(value) is not int or not 1 <= value <= 1 << 24:
        raise FormatError("config.json has no original_max_position_embeddings that can be")
    return value


def _yarn(found: Mapping[str, Any]) -> Mapping[str, float]:
    # llama.cpp's server computes with these whatever a file says.
    for name, usual in (("beta_fast", 32), ("beta_slow", 1), ("mscale", None), ("mscale_all_dim", None)):
        if found.get(name) not in (None, usual):
            raise InferenceError(
                f"the model stretches its context by YaRN with {name} of its own, which cannot be converted here"
            )
    usual_factor = 0.1 * math.log(_number(found, "factor", 1.0, MAX_FACTOR, None)) + 1.0
    attention = _number(found, "attention_factor", 0.01, 100.0, usual_factor)
    # llama.cpp multiplies its own usual factor with this one.
    return {} if abs(attention - usual_factor) < 1e-6 else {"attn_factor": attention / usual_factor}


def _llama3(
    found: Mapping[str, Any], dimensions: int, base: float, factor: float, original: int
) -> tuple[float, ...]:
    low = _number(found, "low_freq_factor", 1e-3, MAX_FACTOR, None)
    high = _number(found, "high_freq_factor", 1e-3, MAX_FACTOR, None)
    if high <= low:
        raise FormatError("config.json has a high_freq_factor that is not above the low one")
    factors = []
    for place in range(0, dimensions, 2):
        turns = original / (2 * math.pi * base ** (place / dimensions))
        smooth = min(1.0, max(0.0, (turns - low) / (high - low)))
        factors.append(1 / ((1 - smooth) / factor + smooth))
    return tuple(factors)


def _number(config: Mapping[str, Any], name: str, low: float, high: float, default: float | None) -> float:
    value = config.get(name)
    value = default if value is None else value
    if type(value) not in (int, float) or not low <= float(value or 0) <= high:
        raise FormatError(f"config.json has no {name} from {low:g} to {high:g}")
    return float(value or 0)
