"""Where values and rounds lie in a chart, and which of them its axes name. Pure numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

SMALLEST: Final = 1e-30
"""Below it all is 0 here."""


@dataclass(frozen=True, slots=True)
class Frame:
    """Where things lie."""

    width: float
    height: float
    left: float
    right: float
    top: float
    bottom: float
    low: float
    high: float
    first: int
    until: int

    def x(self, number: float) -> float:
        span = max(1, self.until - self.first)
        return self.left + (self.width - self.left - self.right) * (number - self.first) / span

    def y(self, value: float) -> float:
        share = (value - self.low) / (self.high - self.low)
        return self.height - self.bottom - (self.height - self.top - self.bottom) * share


def ticks_around(values: Sequence[float], ceiling: float | None, *, most: int) -> tuple[float, ...]:
    """Round numbers around all values, the first and the last being the ends of the axis."""
    low, high = min(values), max(values)
    if low >= 0 and low < high / 2:
        low = 0.0  # a baseline, where it costs little
    if high - low <= max(abs(high) * 1e-9, SMALLEST):
        low, high = (low - abs(low) / 10, high + abs(high) / 10) if abs(high) > SMALLEST else (0.0, 1.0)
    step = _step((high - low) / most)
    begin, end = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    found = tuple(number * step for number in range(begin, end + 1))
    if ceiling is not None and high <= ceiling < found[-1]:
        found = (*found[:-1], ceiling)
    return found


def _step(rough: float) -> float:
    if rough <= 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(rough))
    return next((factor * power for factor in (1, 2, 2.5, 5) if factor * power >= rough), 10 * power)


def rounds_named(frame: Frame, *, most: int) -> list[int]:
    """Rounds that the axis names: the first, whole steps, and the last."""
    step = max(1, math.ceil(_step((frame.until - frame.first) / most)))
    inner = [number for number in range(step, frame.until, step) if number > frame.first]
    kept = [
        number
        for number in inner
        if frame.until - number >= step * 0.6 and number - frame.first >= step * 0.6
    ]
    return sorted({frame.first, *kept, frame.until})
