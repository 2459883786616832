"""What was made of a model, in figures and in words."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from cloister.inference.lowbit.selection import Choice, Times

Precision = Literal["int8", "int4", "bf16", "fp32"]


@dataclass(frozen=True, slots=True)
class LayerReport:
    """One replaced layer, or several that are computed together."""

    names: tuple[str, ...]
    shape: tuple[int, int]
    """(outputs, inputs)."""
    precision: Precision
    choice: Choice
    size: int
    """Bytes of its packings."""


@dataclass(frozen=True, slots=True)
class OptimisationReport:
    """How a model computes now."""

    precision: Precision
    """What was asked for, or chosen."""
    layers: tuple[LayerReport, ...]
    kept: Mapping[str, str]
    """Layers in full precision, and why."""
    norms: int
    """Normalisations in fewer passes."""
    size_before: int
    """Bytes of all weights."""
    size: int
    seconds: float
    times: Mapping[tuple[Precision, int, int], Times]
    """What was measured for each form and shape (outputs, inputs): seconds by kernel and row count."""

    def __str__(self) -> str:
        kinds = Counter(layer.precision for layer in self.layers)
        said = ", ".join(f"{count} × {kind}" for kind, count in sorted(kinds.items())) or "none"
        lines = [
            f"precision {self.precision}: {said}; {len(self.kept)} layers as they were, {self.norms} fused norms",
            f"{self.size_before / 1e6:,.0f} MB → {self.size / 1e6:,.0f} MB in {self.seconds:.1f} s",
        ]
        lines += [f"kept {name}: {why}" for name, why in self.kept.items()]
        return "\n".join(lines)
