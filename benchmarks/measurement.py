"""Figures that can be believed on a machine that drifts: interleaved rounds, ratios within a round, intervals.

What is compared is measured in turn, round after round, and the order changes each round, so that a machine that slows
down slows all of them. The first round warms up and does not count. A ratio is formed within each round. Reported are
the median and a 95 % interval: Student's t, of the mean of the logarithms where all values are positive, since rates and
ratios vary by factors. Few rounds give wide intervals, and that is meant to be seen.
No thresholds here: timings are never asserted.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, TypeVar

T = TypeVar("T")

_T_95: Final = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131, 2.120,
    2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042,
)  # fmt: skip
"""Two-sided 95 % quantiles of Student's t for 1 to 30 degrees of freedom."""
_NORMAL_95: Final = 1.96


@dataclass(frozen=True, slots=True)
class Estimate:
    """A median of ``count`` rounds and the 95 % interval around it; the interval is None for a single round."""

    median: float
    low: float | None
    high: float | None
    count: int


def estimate(values: Sequence[float]) -> Estimate:
    """The median of ``values`` with its interval. Raises ValueError where there are none or one is not finite."""
    if not values or not all(math.isfinite(value) for value in values):
        raise ValueError("an estimate needs at least one value, and finite ones")
    middle = statistics.median(values)
    if len(values) == 1:
        return Estimate(middle, None, None, 1)
    factors = min(values) > 0
    scaled = [math.log(value) for value in values] if factors else values
    mean = statistics.fmean(scaled)
    half = t_95(len(values) - 1) * statistics.stdev(scaled) / math.sqrt(len(values))
    low, high = mean - half, mean + half
    if factors:  # two rounds that differ much know next to nothing, and need not overflow to say so
        low, high = math.exp(max(low, -700)), math.exp(min(high, 700))
    # The interval is the mean's; the median stands inside it in what is shown.
    return Estimate(middle, min(low, middle), max(high, middle), len(values))


def ratio(above: Sequence[float], below: Sequence[float]) -> Estimate:
    """The estimate of above/below, formed round by round. Raises ValueError where the rounds differ in number."""
    return estimate([a / b for a, b in zip(above, below, strict=True)])


def difference(left: Sequence[float], right: Sequence[float]) -> Estimate:
    """The estimate of left − right, formed round by round."""
    return estimate([a - b for a, b in zip(left, right, strict=True)])


def t_95(degrees: int) -> float:
    """The two-sided 95 % quantile of Student's t."""
    return _T_95[degrees - 1] if degrees <= len(_T_95) else _NORMAL_95


def percentile(values: Sequence[float], percent: float) -> float:
    """By linear interpolation between closest ranks, as ``statistics.quantiles(method="inclusive")`` does."""
    ordered = sorted(values)
    place = (len(ordered) - 1) * percent / 100
    below = math.floor(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (place - below)


def slope(times: Sequence[float], values: Sequence[float]) -> float:
    """Of the least-squares line, in units of ``values`` per unit of ``times``; 0 for fewer than two points."""
    if len(times) < 2:
        return 0.0
    return statistics.linear_regression(times, values).slope


def order(names: Sequence[str], number: int) -> tuple[str, ...]:
    """Who is measured when in round ``number``: each round begins with another, and every second goes backwards."""
    start = number // 2 % len(names)
    turned = (*names[start:], *names[:start])
    return turned if number % 2 == 0 else turned[::-1]


def interleaved(
    sides: Mapping[str, Callable[[], T]],
    rounds: int,
    *,
    warm_up: int = 1,
    done: Callable[[], None] = lambda: None,
) -> dict[str, list[T]]:
    """``rounds`` samples of each side, in turn; ``done`` is called after each, also of those that warm up."""
    samples: dict[str, list[T]] = {name: [] for name in sides}
    for number in range(-warm_up, rounds):
        for name in order(tuple(sides), number):
            found = sides[name]()
            if number >= 0:
                samples[name].append(found)
            done()
    return samples
