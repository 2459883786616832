"""Makes low-bit layers of one precision out of weights: quantises, measures each shape once, packs for the kernels
chosen.

Weights can come one by one, so that a model is never in memory in full precision. Refuses a machine without a single
low-bit kernel.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final, Literal

import torch
from torch import Tensor, nn

from cloister.errors import InferenceError
from cloister.inference.lowbit.huge_pages import gather
from cloister.inference.lowbit.kernels import Kernel, KernelName, pack, takes_int4, usable
from cloister.inference.lowbit.layer import LowBitLinear, Merged, Part
from cloister.inference.lowbit.quantisation import (
    Int4Weights,
    Int8Weights,
    int4_group,
    joined_int4,
    joined_int8,
    quantise_int4,
    quantise_int8,
)
from cloister.inference.lowbit.report import LayerReport, Precision
from cloister.inference.lowbit.selection import Choice, Times, choose, measure
from cloister.inference.lowbit.structure import Linear

Memory = Literal["auto", "small", "fast"]
"""``small``: one packing of each weight. ``fast``: several, each for the row counts that it is best at."""
_INT8: Final[tuple[KernelName, ...]] = ("fbgemm", "onednn")
_MEASURED: Final = 1 << 18
"""Numbers of a layer from which on it matters which kernel multiplies."""


@dataclass(frozen=True, slots=True)
class Quantised:
    """One weight, in each form that some kernel of its layer takes."""

    int8: Int8Weights | None = None
    int4: Int4Weights | None = None


@dataclass
class Builder:
    """Of one model. Not for several threads at once."""

    precision: Precision
    memory: Memory
    room: int
    """Bytes that further packings may take."""
    times: dict[tuple[Precision, int, int], Times] = field(default_factory=dict)
    """By the form of the weights, outputs and inputs."""
    reports: list[LayerReport] = field(default_factory=list)

    def quantise(self, group: Sequence[Linear], weight: Tensor) -> Quantised:
        """``weight`` is of one layer of ``group``."""
        form, outputs, inputs = self._key(group)
        kernels = set(self._candidates(form))
        if (form, outputs, inputs) in self.times:
            kernels = set(self._choice(form, outputs, inputs).kernels)
        elif outputs * inputs < _MEASURED:
            kernels = set(self._first(form))
        size = int4_group(inputs)
        return Quantised(
            int8=quantise_int8(weight) if kernels & set(_INT8) else None,
            int4=quantise_int4(weight, size) if "int4" in kernels and size is not None else None,
        )

    def build(self, group: Sequence[Linear], parts: Sequence[Quantised]) -> LowBitLinear:
        """One layer for all of ``group``, whose weights are ``parts``; without a bias as yet."""
        form, outputs, inputs = self._key(group)
        whole: dict[KernelName, Int8Weights | Int4Weights] = {}
        int8 = [part.int8 for part in parts if part.int8 is not None]
        int4 = [part.int4 for part in parts if part.int4 is not None]
        rows = joined_int8(int8) if len(int8) == len(parts) else None
        short = joined_int4(int4) if len(int4) == len(parts) else None
        # What was stored by another machine may lack a form that is best on this one.
        if rows is None and short is not None and set(self._candidates(form)) & set(_INT8):
            rows = quantise_int8(short.dense())
        size = int4_group(inputs)
        if short is None and rows is not None and form == "int4" and size is not None:
            short = quantise_int4(rows.dense(), size)
        if rows is not None:
            whole |= {name: rows for name in _INT8 if name in usable()}
        if short is not None:
            whole["int4"] = short
        packed: dict[KernelName, Kernel] = {}
        if outputs * inputs >= _MEASURED and (form, outputs, inputs) not in self.times:
            packed = {name: pack(name, whole[name]) for name in self._candidates(form)}
            gather()  # as it will be when the model runs
            self.times[form, outputs, inputs] = measure(packed, inputs)
        choice = self._choice(form, outputs, inputs)
        kernels = {
            name: packed.get(name) or pack(name, whole[name]) for name in dict.fromkeys(choice.kernels)
        }
        made = LowBitLinear(kernels, choice, (outputs, inputs))
        self.room -= sum(kernel.size for kernel in kernels.values()) - min(
            kernel.size for kernel in kernels.values()
        )
        names = tuple(one.name for one in group)
        used: Precision = "int4" if "int4" in kernels else "int8"
        self.reports.append(LayerReport(names, (outputs, inputs), used, choice, made.size))
        return made

    def replace(self, model: nn.Module, group: Sequence[Linear], made: LowBitLinear) -> None:
        """Put ``made`` where the layers of ``group`` are, whose biases it takes."""
        sizes = [one.shape[0] for one in group]
        made.bias = _joined([one.bias for one in group], sizes)
        if len(group) == 1:
            model.set_submodule(group[0].name, made)
            return
        merged = Merged(made, sizes)
        for index, one in enumerate(group):
            model.set_submodule(one.name, Part(merged, index))

    def _key(self, group: Sequence[Linear]) -> tuple[Precision, int, int]:
        outputs, inputs = sum(one.shape[0] for one in group), group[0].shape[1]
        # Errors of the logits' own layer are not averaged out by any other.
        short = self.precision == "int4" and not any(one.head for one in group)
        short = short and "int4" in usable() and all(takes_int4(*one.shape) for one in group)
        return ("int4" if short else "int8"), outputs, inputs

    def _first(self, form: Precision) -> list[KernelName]:
        first: list[KernelName] = ["int4"] if form == "int4" else [name for name in _INT8 if name in usable()]
        if not first:
            raise InferenceError(
                "this processor, or this build of torch, has no low-bit kernels", todo='use precision="bf16"'
            )
        return first

    def _candidates(self, form: Precision) -> list[KernelName]:
        further = [name for name in _INT8 if name in usable()] if self._further else []
        return list(dict.fromkeys([*self._first(form), *further]))

    def _choice(self, form: Precision, outputs: int, inputs: int) -> Choice:
        times = self.times.get((form, outputs, inputs))
        if times is None:
            return Choice((), (self._first(form)[0],))
        return choose(times, self._first(form), further=self._further)

    @property
    def _further(self) -> bool:
        return self.memory != "small" and self.room > 0


def _joined(parts: Sequence[Tensor | None], sizes: Sequence[int]) -> Tensor | None:
    if all(part is None for part in parts):
        return None
    pairs = zip(parts, sizes, strict=True)
    return torch.cat([torch.zeros(size) if part is None else part.detach().float() for part, size in pairs])
