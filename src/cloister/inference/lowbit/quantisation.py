"""Weights in few bits: int8 with one scale for each output channel, int4 with a scale and an offset for each group of
inputs.

Pure arithmetic on tensors, in pieces of bounded size. Each scale minimises the squared error of what it stands for,
given the integers that were chosen; for int4 several ranges are tried. Refuses what is not a finite matrix.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from cloister.errors import FormatError

GROUP_SIZES: Final = (128, 64, 32)
"""Inputs that share a scale in int4, in the order of preference; a layer takes the first that divides its inputs."""
_RANGES: Final = (1.0, 0.93, 0.86)
"""Shares of a group's range that int4 tries to cover: cutting off the extremes can make the rest more exact."""
_PIECE: Final = 1 << 17
"""Weights that are computed on at once: PyTorch's threads share them, and their caches hold them. Threads of ours instead,
each with smaller pieces, took two to four times as long: they hand the interpreter's lock to one another at every step."""
_TINY: Final = 1e-12


@dataclass(frozen=True, slots=True)
class Int8Weights:
    """``values`` × ``scales``, row by row."""

    values: Tensor
    """int8, (outputs, inputs), within ±127."""
    scales: Tensor
    """float32, (outputs,)."""

    def dense(self) -> Tensor:
        """float32, (outputs, inputs)."""
        return self.values.float() * self.scales[:, None]


@dataclass(frozen=True, slots=True)
class Int4Weights:
    """(``values`` − 8) × scale + offset, group by group."""

    values: Tensor
    """uint8 from 0 to 15, (outputs, inputs)."""
    scales: Tensor
    """bfloat16, (outputs, inputs / group)."""
    offsets: Tensor
    """bfloat16, (outputs, inputs / group)."""

    @property
    def group(self) -> int:
        """Inputs that share a scale."""
        return self.values.shape[1] // self.scales.shape[1]

    def dense(self) -> Tensor:
        """float32, (outputs, inputs)."""
        grouped = self.values.view(*self.scales.shape, self.group).float().sub_(8)
        return (grouped * self.scales.float()[..., None] + self.offsets.float()[..., None]).view(
            self.values.shape
        )


def quantise_int8(weight: Tensor) -> Int8Weights:
    """One scale for each row of ``weight`` (outputs, inputs). Raises :class:`~cloister.errors.FormatError`."""
    _check(weight)
    outputs, inputs = weight.shape
    values = torch.empty(outputs, inputs, dtype=torch.int8)
    scales = torch.empty(outputs)

    for rows in _pieces(outputs, inputs):
        piece = _finite(weight[rows])
        scale = piece.abs().amax(1, keepdim=True).clamp_(min=_TINY).div_(127)
        whole = piece.div(scale).round_()
        fit = (whole * piece).sum(1) / whole.square().sum(1).clamp_(min=1)
        values[rows] = whole.to(torch.int8)
        scales[rows] = torch.where(fit > 0, fit, scale[:, 0])
    return Int8Weights(values, scales)


def joined_int8(parts: Sequence[Int8Weights]) -> Int8Weights:
    """The rows of all, in order."""
    if len(parts) == 1:
        return parts[0]
    return Int8Weights(torch.cat([one.values for one in parts]), torch.cat([one.scales for one in parts]))


def joined_int4(parts: Sequence[Int4Weights]) -> Int4Weights:
    """The rows of all, in order."""
    if len(parts) == 1:
        return parts[0]
    return Int4Weights(
        torch.cat([one.values for one in parts]),
        torch.cat([one.scales for one in parts]),
        torch.cat([one.offsets for one in parts]),
    )


def int4_group(inputs: int) -> int | None:
    """The group size for so many inputs; None if none divides them."""
    return next((size for size in GROUP_SIZES if inputs % size == 0), None)


def quantise_int4(weight: Tensor, group: int) -> Int4Weights:
    """Groups of ``group`` inputs. Raises :class:`~cloister.errors.FormatError`."""
    _check(weight)
    outputs, inputs = weight.shape
    if inputs % group:
        raise FormatError(f"groups of {group} do not divide {inputs} inputs")
    values = torch.empty(outputs, inputs, dtype=torch.uint8)
    scales = torch.empty(outputs, inputs // group, dtype=torch.bfloat16)
    offsets = torch.empty_like(scales)

    for rows in _pieces(outputs, inputs):
        piece = _finite(weight[rows]).view(-1, inputs // group, group)
        whole, scale, offset = _best_groups(piece)
        values[rows] = whole.view(-1, inputs).to(torch.uint8)
        scales[rows] = scale
        offsets[rows] = offset
    return Int4Weights(values, scales, offsets)


def _best_groups(piece: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Integers (…, group), scales and offsets (…) in bfloat16: of the ranges tried, each group's best."""
    low, high = piece.amin(-1, keepdim=True), piece.amax(-1, keepdim=True)
    middle, mean = (low + high) / 2, piece.mean(-1, keepdim=True)
    best: tuple[Tensor, Tensor, Tensor, Tensor] | None = None
    for share in _RANGES:
        scale = ((high - low) * (share / 15)).clamp_(min=_TINY)
        offset = middle + scale / 2
        for _ in range(2):
            whole = piece.sub(offset).div_(scale).round_().clamp_(-8, 7)
            scale, offset = _fitted(piece, mean, whole, scale, offset)
        short, start = scale.bfloat16(), offset.bfloat16()
        # With the numbers as they are kept, not as they were found.
        scale, offset = short.float(), start.float()
        whole = piece.sub(offset).div_(scale.clamp(min=_TINY)).round_().clamp_(-8, 7)
        error = whole.mul(scale).add_(offset).sub_(piece).square_().sum(-1, keepdim=True)
        found = (whole, short, start, error)
        best = found if best is None else _better(best, found)
    assert best is not None  # noqa: S101 -- there are ranges
    whole, short, start, _ = best
    return whole + 8, short.squeeze(-1), start.squeeze(-1)


def _fitted(
    piece: Tensor, middle: Tensor, whole: Tensor, scale: Tensor, offset: Tensor
) -> tuple[Tensor, Tensor]:
    """The line through (integer, weight) with the least squared error; ``middle`` is the mean weight of each group."""
    mean = whole.mean(-1, keepdim=True)
    spread = whole - mean
    slope = (spread * piece).sum(-1, keepdim=True)
    square = spread.square_().sum(-1, keepdim=True)
    slope = slope.div_(square.clamp(min=_TINY))
    usable = (square > 0.5) & (slope > 0)
    slope = torch.where(usable, slope, scale)
    return slope, torch.where(usable, middle - slope * mean, offset)


def _better(
    one: tuple[Tensor, Tensor, Tensor, Tensor], other: tuple[Tensor, Tensor, Tensor, Tensor]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    take = other[3] < one[3]
    whole, scale, offset, error = (torch.where(take, new, old) for new, old in zip(other, one, strict=True))
    return whole, scale, offset, error


def _pieces(outputs: int, inputs: int) -> list[slice]:
    rows = max(1, _PIECE // inputs)
    return [slice(start, min(start + rows, outputs)) for start in range(0, outputs, rows)]


def _check(weight: Tensor) -> None:
    if weight.dim() != 2 or not weight.is_floating_point() or weight.numel() == 0:
        raise FormatError(
            f"a matrix of numbers is quantised, not {weight.dtype} of shape {tuple(weight.shape)}"
        )


def _finite(piece: Tensor) -> Tensor:
    piece = piece.detach().float()
    # Of numbers that are none the sum is none.
    if not math.isfinite(float(piece.sum())):
        raise FormatError(
            "a weight is not a finite number", todo="the file is damaged, or overflowed in float16"
        )
    return piece.contiguous()
