"""What of a model is computed in few bits: which modules, under which names, and which of them read the same input.

Looks, and changes nothing. A layer stays as it is where it is small, where its model needs it exact, or where it is
of a kind that computes in its own way; each with the reason in words.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, cast

from torch import Tensor, nn

SMALLEST: Final = 64
"""Inputs and outputs below which a layer is left alone: there is nothing to save."""
_SIBLINGS: Final = (
    ("q_proj", "k_proj", "v_proj"),
    ("query", "key", "value"),
    ("gate_proj", "up_proj"),
    ("w1", "w3"),
    ("wi_0", "wi_1"),
)
"""Names of layers of one module that are called with the same input, one right after another."""
_CROSSING: Final = ("cross", "encoder_attn", "enc_attn", "EncDec")
"""In the path of an attention whose queries and keys have different sources."""


@dataclass(frozen=True, slots=True)
class Linear:
    """A layer to replace."""

    name: str
    module: nn.Module
    turned: bool
    """Whether its weight is (inputs, outputs), as in GPT-2."""
    head: bool
    """Whether it makes the logits."""
    shape: tuple[int, int]
    """(outputs, inputs)."""

    @property
    def weight(self) -> Tensor:
        """(outputs, inputs)."""
        weight = cast(Tensor, self.module.weight)
        return weight.t() if self.turned else weight

    @property
    def bias(self) -> Tensor | None:
        return cast("Tensor | None", self.module.bias)


def linears(model: nn.Module) -> tuple[list[Linear], dict[str, str]]:
    """The layers to replace, and (name → reason) of those that stay."""
    heads = getattr(model, "get_output_embeddings", None)
    head = heads() if callable(heads) else None
    exact = tuple(
        name
        for attribute in ("_keep_in_fp32_modules", "_keep_in_fp32_modules_strict")
        for name in getattr(model, attribute, None) or ()
    )
    found, kept = [], {}
    for name, module in model.named_modules():
        turned = _is_turned(module)
        if not turned and not isinstance(module, nn.Linear):
            continue
        rows, columns = (int(side) for side in cast(Tensor, module.weight).shape)
        linear = Linear(name, module, turned, module is head, (columns, rows) if turned else (rows, columns))
        if not turned and type(module) is not nn.Linear:
            kept[name] = f"it is a {type(module).__name__}"
        elif any(part in exact for part in name.split(".")):
            kept[name] = "its model needs it exact"
        elif min(linear.shape) < SMALLEST:
            kept[name] = f"{linear.shape[1]} × {linear.shape[0]} is too small"
        elif _read_by_parent(model, name):
            kept[name] = "its module reads the weight itself"
        else:
            found.append(linear)
    return found, kept


def siblings(layers: list[Linear], *, crossing: bool) -> Iterator[list[Linear]]:
    """Every layer once, those that read the same input together. ``crossing``: the model's decoder looks at an encoder."""
    table = {layer.name: layer for layer in layers}
    done: set[str] = set()
    for layer in layers:
        if layer.name in done:
            continue
        group = [layer]
        path, _, own = layer.name.rpartition(".")
        for names in _SIBLINGS:
            if own not in names or crossing or any(word in path for word in _CROSSING):
                continue
            beside = [table.get(f"{path}.{name}" if path else name) for name in names]
            whole = [one for one in beside if one is not None]
            if len(whole) == len(names) and len({one.shape[1] for one in whole}) == 1:
                group = whole
        done.update(one.name for one in group)
        yield group


def is_adapted(model: nn.Module) -> bool:
    """Whether adapters of ``peft`` are wrapped around the model or its layers."""
    modules = (model, *model.modules())
    return any(type(module).__module__.partition(".")[0] == "peft" for module in modules)


def _is_turned(module: nn.Module) -> bool:
    kind = type(module)
    return kind.__name__ == "Conv1D" and kind.__module__ == "transformers.pytorch_utils"


def _read_by_parent(model: nn.Module, name: str) -> bool:
    """Selective scans and routers multiply with the weight of a layer that they never call."""
    path, _, own = name.rpartition(".")
    parent = type(model.get_submodule(path)).__name__
    return ("Mamba" in parent or "Mixer" in parent) and own == "dt_proj"
