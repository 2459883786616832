"""A LoRA adapter as ``peft`` saves one: ``adapter_config.json`` and ``adapter_model.safetensors``, parsed, nothing run.

An adapter is believed to do what its two numbers say: to a weight ``W`` of the base model it adds
``alpha / r * B @ A`` (``alpha / sqrt(r) * B @ A`` where it is rank-stabilised). A setting that means anything else (DoRA,
biases, whole modules saved, ranks of their own, a base model that was changed at the start) is refused by name, and so is
one that this release does not know, unless it is empty. Source: peft 0.21, ``LoraConfig`` and ``LoraLayer``.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from cloister.encoding import parse_json
from cloister.errors import FormatError, InferenceError
from cloister.inference.safetensors_table import Tensor, read_tensors

CONFIG_NAME: Final = "adapter_config.json"
WEIGHTS_NAME: Final = "adapter_model.safetensors"
MAX_CONFIG: Final = 1 << 20
MAX_WEIGHTS: Final = 4 << 30
MAX_RANK: Final = 1024
MAX_ALPHA: Final = 1e6

MODULES: Final = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
"""The linear layers of a LLaMA block, by ``transformers``' names."""

_TENSOR: Final = re.compile(
    r"base_model\.model\.model\.layers\.(0|[1-9][0-9]{0,3})\."
    r"(?:self_attn\.(?=[qkvo]_)|mlp\.(?=[gud]))([a-z]+_proj)\.lora_(A|B)\.weight"
)
_STARTS: Final = (True, False, "gaussian", "orthogonal", "eva", None)
"""Ways to draw the first weights that leave the base model as it was. PiSSA, OLoRA, CorDA and LoftQ change it."""
_READ: Final = frozenset(
    {
        "peft_type", "task_type", "r", "lora_alpha", "use_rslora", "bias", "fan_in_fan_out",
        "init_lora_weights", "target_modules",
    }
)  # fmt: skip
_WITHOUT_EFFECT: Final = frozenset(
    {
        "auto_mapping", "base_model_name_or_path", "corda_config", "eva_config", "exclude_modules", "inference_mode",
        "layers_pattern", "layers_to_transform", "lora_dropout", "lora_ga_config", "megatron_config",
        "megatron_core", "peft_version", "qalora_group_size", "revision", "runtime_config",
    }
)  # fmt: skip
"""They say how it was trained, where, or which layers have tensors; the tensors themselves are here."""


@dataclass(frozen=True, slots=True)
class Pair:
    """What is added to one weight: ``scale * B @ A``."""

    a: Tensor
    """(r, inputs)"""
    b: Tensor
    """(outputs, r)"""


@dataclass(frozen=True, slots=True)
class LoraAdapter:
    """A whole adapter."""

    rank: int
    scale: float
    pairs: Mapping[tuple[int, str], Pair]
    """(layer from 0, one of ``MODULES``) → what is added to its weight."""


def parse_adapter(config: bytes, weights: memoryview) -> LoraAdapter:
    """Parse both files. The tensors are views of ``weights``.

    Raises :class:`FormatError` (not an adapter) and :class:`InferenceError` (one that cannot be served).
    """
    settings = parse_json(config, what=CONFIG_NAME, limit=MAX_CONFIG)
    if not isinstance(settings, dict):
        raise FormatError(f"{CONFIG_NAME} is not an object")
    rank, scale = _strength(settings)
    _check_settings(settings)
    halves: dict[tuple[int, str], dict[str, Tensor]] = {}
    for name, tensor in read_tensors(weights, what=WEIGHTS_NAME).items():
        found = _TENSOR.fullmatch(name)
        if found is None or found[2] not in MODULES:
            shown = "".join(char if char.isprintable() else "?" for char in name[:120])
            raise InferenceError(
                f"the adapter changes {shown}, which cannot be served",
                todo=f"train with target_modules out of: {', '.join(MODULES)}",
            )
        halves.setdefault((int(found[1]), found[2]), {})[found[3]] = tensor
    if not halves:
        raise FormatError(f"{WEIGHTS_NAME} holds no tensors")
    pairs = {place: _pair(place, both, rank) for place, both in sorted(halves.items())}
    targets = settings.get("target_modules")
    if isinstance(targets, list) and not {module for _, module in pairs} <= set(map(str, targets)):
        raise FormatError(f"{WEIGHTS_NAME} changes modules that {CONFIG_NAME} does not name")
    return LoraAdapter(rank=rank, scale=scale, pairs=pairs)


def _strength(settings: Mapping[str, Any]) -> tuple[int, float]:
    if settings.get("peft_type") != "LORA":
        raise InferenceError("the adapter is not a LoRA", todo="only peft_type LORA is served")
    rank, alpha = settings.get("r"), settings.get("lora_alpha")
    if type(rank) is not int or not 1 <= rank <= MAX_RANK:
        raise FormatError(f"{CONFIG_NAME} has a rank that is no number from 1 to {MAX_RANK}")
    if type(alpha) not in (int, float) or not 0 < float(alpha or 0) <= MAX_ALPHA:
        raise FormatError(f"{CONFIG_NAME} has a lora_alpha that is no number up to {MAX_ALPHA:.0f}")
    stabilised = settings.get("use_rslora", False)
    if not isinstance(stabilised, bool):
        raise FormatError(f"{CONFIG_NAME} has a use_rslora that is neither true nor false")
    return rank, float(alpha or 0) / (math.sqrt(rank) if stabilised else rank)


def _check_settings(settings: Mapping[str, Any]) -> None:
    if settings.get("task_type") not in (None, "CAUSAL_LM"):
        raise InferenceError("the adapter is for another task than CAUSAL_LM")
    if settings.get("bias", "none") != "none":
        raise InferenceError(
            "the adapter has biases of its own, which cannot be served", todo='train with bias="none"'
        )
    start = settings.get("init_lora_weights")
    if not any(start is known or (isinstance(known, str) and start == known) for known in _STARTS):
        raise InferenceError(
            "the adapter belongs to a base model that its training changed at the start (init_lora_weights)",
            todo="save it with peft's path_initial_model_for_weight_conversion, or merge it",
        )
    for name in sorted(set(settings) - _READ - _WITHOUT_EFFECT | {"fan_in_fan_out"}):
        value = settings.get(name)
        if value is not None and value is not False and value not in ({}, []):
            shown = "".join(char if char.isprintable() else "?" for char in name[:60])
            raise InferenceError(
                f"the adapter was trained with {shown}, which cannot be served",
                todo="train a plain LoRA, or merge the adapter into its base model",
            )


def _pair(place: tuple[int, str], both: Mapping[str, Tensor], rank: int) -> Pair:
    a, b = both.get("A"), both.get("B")
    if a is None or b is None:
        raise FormatError(f"the adapter has half a change of layer {place[0]}, {place[1]}")
    if len(a.shape) != 2 or len(b.shape) != 2 or a.shape[0] != rank or b.shape[1] != rank:
        raise FormatError(f"the adapter's change of layer {place[0]}, {place[1]} is not of rank {rank}")
    return Pair(a=a, b=b)
