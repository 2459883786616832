"""Weights as blocks of few bits, in ggml's formats: from rows of 32-bit floats to the bytes that a GGUF file holds.

The formats leave open how a block's scale is found. Here Q4_0 tries a row of scales for each block and keeps the one with
the least squared error; plain rounding, which takes the largest weight for the scale, is further from the model. Work goes
in pieces that stay in a processor's cache, one block per column, so that numpy's own loops run over many blocks at once and
without the interpreter's lock. Refused: numbers that are not finite, and those that the format's 16-bit scale cannot reach.
Source: ggml's ``ggml-common.h`` (layout of the blocks) and ``ggml-quants.c`` (what they mean).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, TypeAlias

import numpy as np
import numpy.typing as npt

from cloister.errors import InferenceError

Floats: TypeAlias = npt.NDArray[np.float32]
Bytes: TypeAlias = npt.NDArray[np.uint8]

PIECE: Final = 1 << 16
"""Numbers quantised in one go: a few arrays of them fit into 1 MiB of cache."""
_LARGEST_HALF: Final = 65504.0
_TINY: Final = np.float32(1e-30)
Q4_0_STEPS: Final = tuple(np.float32(8.0 + step) for step in (-1.2, -0.7, -0.2, 0.3, 0.8))
"""On which step the largest weight of a block is tried to lie; beyond 8 it is cut to that."""


@dataclass(frozen=True, slots=True)
class BlockType:
    """A way to store numbers: ``length`` of them in ``size`` bytes."""

    name: str
    number: int
    """ggml's number of the type."""
    length: int
    size: int
    encode: Callable[[Floats], Bytes]
    """(count * length,) floats → (count * size,) bytes."""

    def bytes_of(self, elements: int) -> int:
        return elements // self.length * self.size


def encoded(data: Floats, kind: BlockType) -> Bytes:
    """All of ``data`` (flat, a multiple of the block's length) as bytes. Raises :class:`InferenceError`."""
    largest = float(np.abs(data).max(initial=0.0))
    if not largest <= np.finfo(np.float32).max:
        raise InferenceError(
            "the model holds weights that are no finite numbers", todo="copy the model again"
        )
    if largest > _LARGEST_HALF and kind not in (F32, BF16):
        raise InferenceError(
            "the model holds weights too large for 16-bit floats",
            todo="convert it to bf16, which reaches them",
        )
    out = np.empty(kind.bytes_of(data.size), np.uint8)
    for start in range(0, data.size, PIECE):
        part = data[start : start + PIECE]
        place = kind.bytes_of(start)
        out[place : place + kind.bytes_of(part.size)] = kind.encode(part)
    return out


def columns(data: Floats, length: int) -> Floats:
    """(length, blocks): one block per column."""
    return np.ascontiguousarray(data.reshape(-1, length).T)


def halves(numbers: Floats) -> npt.NDArray[np.float16]:
    """As 16-bit floats: scales, which are no larger than the weights."""
    return numbers.astype(np.float16)


def inverse(numbers: Floats) -> Floats:
    """1 / x, and 0 where x is 0."""
    return np.divide(np.float32(1), numbers, out=np.zeros_like(numbers), where=np.abs(numbers) > _TINY)


def dot(first: Floats, second: Floats) -> Floats:
    """Of each column, the sum of the products."""
    return np.asarray(np.einsum("ij,ij->j", first, second), np.float32)


def signed_extremes(columns_: Floats) -> Floats:
    """Of each column, the number that is furthest from zero, with its sign."""
    high, low = columns_.max(axis=0), columns_.min(axis=0)
    return np.asarray(np.where(high > -low, high, low), np.float32)


def least_squares(
    values: Floats, steps: tuple[np.float32, ...], levels: int, weights: Floats | None = None
) -> Floats:
    """A scale for each column, so that ``scale * integers`` of ``-levels .. levels - 1`` is near ``values``.

    Each of ``steps`` is tried as the integer at which the extreme of a column lies; the best by (weighted) squared error
    is kept, with the scale that fits its integers best. Source of the idea: ggml's ``make_qx_quants``.
    """
    extremes = -inverse(signed_extremes(values))
    weighted = values if weights is None else values * weights
    best = np.full(values.shape[1], -1, np.float32)
    scales = np.zeros(values.shape[1], np.float32)
    integers, product = np.empty_like(values), np.empty_like(values)
    for step in steps:
        np.multiply(values, extremes * step, out=integers)
        np.rint(integers, out=integers)
        np.clip(integers, -levels, levels - 1, out=integers)
        along = dot(weighted, integers)
        heavy = integers if weights is None else np.multiply(integers, weights, out=product)
        square = dot(heavy, integers)
        # The error is the sum of squares less along² / square; so the larger that is, the better.
        scale = along * inverse(square)
        gain = scale * along
        better = gain > best
        np.copyto(best, gain, where=better)
        np.copyto(scales, scale, where=better)
    return scales


def _f32(data: Floats) -> Bytes:
    return data.astype("<f4").view(np.uint8)


def _f16(data: Floats) -> Bytes:
    return halves(data).view(np.uint8)


def _bf16(data: Floats) -> Bytes:
    bits = data.view(np.uint32)
    # To nearest, ties to even; finite numbers only get this far, so that a carry ends at infinity at the worst.
    rounded = bits + (np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1)))
    return (rounded >> np.uint32(16)).astype("<u2").view(np.uint8)


def _q8_0(data: Floats) -> Bytes:
    blocks = data.reshape(-1, 32)
    scales = halves(np.abs(blocks).max(axis=1) / np.float32(127))
    integers = np.rint(blocks * inverse(scales.astype(np.float32))[:, None])
    out = np.empty((len(blocks), 34), np.uint8)
    out[:, :2] = scales[:, None].view(np.uint8)
    out[:, 2:] = np.clip(integers, -127, 127).astype(np.int8).view(np.uint8)
    return out.reshape(-1)


def _q4_0(data: Floats) -> Bytes:
    values = columns(data, 32)
    scales = halves(least_squares(values, Q4_0_STEPS, 8))
    integers = np.rint(values * inverse(scales.astype(np.float32)))
    codes = (np.clip(integers, -8, 7) + np.float32(8)).astype(np.uint8)
    out = np.empty((values.shape[1], 18), np.uint8)
    out[:, :2] = scales[:, None].view(np.uint8)
    out[:, 2:] = (codes[:16] | (codes[16:] << np.uint8(4))).T
    return out.reshape(-1)


F32: Final = BlockType("F32", 0, 1, 4, _f32)
F16: Final = BlockType("F16", 1, 1, 2, _f16)
BF16: Final = BlockType("BF16", 30, 1, 2, _bf16)
Q8_0: Final = BlockType("Q8_0", 8, 32, 34, _q8_0)
Q4_0: Final = BlockType("Q4_0", 2, 32, 18, _q4_0)
