"""ggml's blocks of 256 numbers, Q4_K, Q5_K and Q6_K: small blocks whose scales are themselves integers of 6 or 8 bits.

Q4_K and Q5_K hold ``scale * integer - minimum`` for each 32 numbers. Both are found by weighted least squares over a row of
tries, as ggml does it (``make_qkx2_quants``); the larger a number, the more its error counts. Q6_K holds ``scale *
integer`` for each 16 (``make_qx_quants``, weighted by the square). Refused: what ``blocks`` refuses.
Source: ggml's ``ggml-common.h`` (layout of the blocks) and ``ggml-quants.c`` (what they mean).
"""

from __future__ import annotations

from functools import partial
from typing import Final

import numpy as np

from cloister.inference.conversion.blocks import (
    BlockType,
    Bytes,
    Floats,
    columns,
    dot,
    halves,
    inverse,
    least_squares,
)

_TRIES: Final = tuple(np.float32(0.25 * step - 1.0) for step in range(9))
"""Added to the number of levels, over the span of a block: below 0 the integers do not use it all, above it they are cut."""
_ALIKE: Final = np.float32(1e-5)
_Q6_STEPS: Final = tuple(np.float32(32 + step) for step in (-0.9, -0.4, 0.0, 0.4, 0.9))


def _q45_k(data: Floats, *, levels: int) -> Bytes:
    count = data.size // 256
    values = columns(data, 32)
    scales, minima = _lines(values, levels)
    scales, minima = scales.reshape(count, 8), minima.reshape(count, 8)
    scale = halves(scales.max(axis=1) / np.float32(63))
    minimum = halves(minima.max(axis=1) / np.float32(63))
    small_scales = _sixths(scales, scale.astype(np.float32))
    small_minima = _sixths(minima, minimum.astype(np.float32))
    slope = (scale.astype(np.float32)[:, None] * small_scales).reshape(-1)
    offset = (minimum.astype(np.float32)[:, None] * small_minima).reshape(-1)
    codes = np.clip(np.rint((values + offset) * inverse(slope)), 0, levels).astype(np.uint8)
    # (count, 4, 2, 32): each 64 numbers become the low and the high halves of 32 bytes.
    pairs = codes.T.reshape(count, 4, 2, 32)
    out = [
        scale[:, None].view(np.uint8),
        minimum[:, None].view(np.uint8),
        _packed(small_scales, small_minima),
    ]
    if levels > 15:
        shifts = np.arange(8, dtype=np.uint8).reshape(1, 4, 2, 1)
        out.append(np.bitwise_or.reduce((pairs >> np.uint8(4)) << shifts, axis=(1, 2)))
        pairs = pairs & np.uint8(15)
    out.append((pairs[:, :, 0] | (pairs[:, :, 1] << np.uint8(4))).reshape(count, 128))
    return np.concatenate(out, axis=1).reshape(-1)


def _lines(values: Floats, levels: int) -> tuple[Floats, Floats]:
    """For each column, scale and minimum (both at least 0) with ``scale * (0..levels) - minimum`` near ``values``."""
    square = dot(values, values)
    weights = np.abs(values) + np.sqrt(square / np.float32(len(values)))
    weighted = weights * values
    sum_w, sum_x, sum_xx = weights.sum(axis=0), weighted.sum(axis=0), dot(weighted, values)
    low = np.minimum(values.min(axis=0), np.float32(0))
    above = values - low
    span = inverse(above.max(axis=0))
    best = np.full(values.shape[1], np.inf, np.float32)
    scales, minima = np.zeros_like(low), -low
    integers, product = np.empty_like(values), np.empty_like(values)
    for step in _TRIES:
        np.multiply(above, span * (np.float32(levels) + step), out=integers)
        np.rint(integers, out=integers)
        np.clip(integers, 0, levels, out=integers)
        sum_xl = dot(weighted, integers)
        np.multiply(weights, integers, out=product)
        sum_l, sum_ll = product.sum(axis=0), dot(product, integers)
        turned = sum_w * sum_ll - sum_l * sum_l
        # All integers alike: only rounding is left of the difference, and one number tells of no line.
        alike = turned <= _ALIKE * sum_w * sum_ll
        turned = inverse(turned)
        slope = (sum_w * sum_xl - sum_x * sum_l) * turned
        shift = (sum_ll * sum_x - sum_l * sum_xl) * turned
        over = (shift > 0) | alike
        slope = np.where(over, sum_xl * inverse(sum_ll), slope)
        shift = np.where(over, np.float32(0), shift)
        error = (
            sum_xx + slope * slope * sum_ll + shift * shift * sum_w
            + 2 * (slope * shift * sum_l - slope * sum_xl - shift * sum_x)
        )  # fmt: skip
        better = (error < best) & (slope > 0)
        np.copyto(best, error, where=better)
        np.copyto(scales, slope, where=better)
        np.copyto(minima, -shift, where=better)
    return scales, minima


def _sixths(numbers: Floats, unit: Floats) -> Bytes:
    """As multiples 0..63 of each row's unit."""
    return np.asarray(np.clip(np.rint(numbers * inverse(unit)[:, None]), 0, 63), np.float32).astype(np.uint8)


def _packed(scales: Bytes, minima: Bytes) -> Bytes:
    """Eight pairs of 6 bits in 12 bytes: four pairs whole, whose free two bits hold the tops of the other four."""
    first, second = slice(0, 4), slice(4, 8)
    high, low, six, four = np.uint8(4), np.uint8(15), np.uint8(6), np.uint8(4)
    return np.concatenate(
        [
            scales[:, first] | ((scales[:, second] >> high) << six),
            minima[:, first] | ((minima[:, second] >> high) << six),
            (scales[:, second] & low) | ((minima[:, second] & low) << four),
        ],
        axis=1,
    )


def _q6_k(data: Floats) -> Bytes:
    count = data.size // 256
    values = columns(data, 16)
    scales = least_squares(values, _Q6_STEPS, 32, values * values).reshape(count, 16)
    high, low = scales.max(axis=1), scales.min(axis=1)
    unit = halves(np.where(high > -low, high, low) / np.float32(-128))
    small = np.clip(np.rint(scales * inverse(unit.astype(np.float32))[:, None]), -128, 127).astype(np.int8)
    slope = (unit.astype(np.float32)[:, None] * small).reshape(-1)
    codes = (np.clip(np.rint(values * inverse(slope)), -32, 31) + np.float32(32)).astype(np.uint8)
    # (count, 2, 4, 32): each 128 numbers are four rows of 32.
    rows = codes.T.reshape(count, 2, 4, 32)
    nibbles = rows & np.uint8(15)
    low_bits = (nibbles[:, :, :2] | (nibbles[:, :, 2:] << np.uint8(4))).reshape(count, 128)
    shifts = np.array([0, 2, 4, 6], np.uint8).reshape(1, 1, 4, 1)
    high_bits = np.bitwise_or.reduce((rows >> np.uint8(4)) << shifts, axis=2).reshape(count, 64)
    return np.concatenate(
        [low_bits, high_bits, small.view(np.uint8), unit[:, None].view(np.uint8)], axis=1
    ).reshape(-1)


Q4_K: Final = BlockType("Q4_K", 12, 256, 144, partial(_q45_k, levels=15))
Q5_K: Final = BlockType("Q5_K", 13, 256, 176, partial(_q45_k, levels=31))
Q6_K: Final = BlockType("Q6_K", 14, 256, 210, _q6_k)
