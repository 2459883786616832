"""Which kernel multiplies how many rows: measured on this machine for a shape, once, and then looked up.

The choice is pure: a table of times in, kernels and row counts out. A kernel costs memory for its own packing of the
weights, so a further one is kept only where it is clearly faster.
"""

from __future__ import annotations

import bisect
import functools
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Final

import torch

from cloister.inference.lowbit.kernels import Kernel, KernelName

ROWS: Final = (1, 4, 16, 64, 512)
"""Row counts that are measured: decoding of one and of some streams, and prompts."""
WORTH: Final = 0.9
"""A further packing has to take at most this share of the time for some row count."""
CLEARLY: Final = 0.95
"""Another kernel takes over from a row count on where it takes at most this share of the time; less is noise."""
_CALM: Final = 5
"""Trials in a row that were no faster than the best before: then it is the best."""
_TRIALS: Final = 15
_FLUSH: Final = 96 << 20
"""Bytes read between two trials: weights come from memory when a whole model runs, not from the cache."""

Times = Mapping[KernelName, Mapping[int, float]]
"""Seconds by kernel and row count."""


@dataclass(frozen=True, slots=True)
class Choice:
    """Up to which row count which kernel multiplies; the last one has no bound."""

    bounds: tuple[int, ...]
    """Rising; one fewer than kernels."""
    kernels: tuple[KernelName, ...]

    def kernel(self, rows: int) -> KernelName:
        return self.kernels[bisect.bisect_left(self.bounds, rows)]


def choose(times: Times, first: Collection[KernelName], *, further: bool) -> Choice:
    """``first`` are the kernels of which the fastest at one row is taken; ``further``: others may be added to it."""
    rows = sorted(next(iter(times.values())))
    kept = [min(first, key=lambda name: times[name][rows[0]])]
    while further:
        best = {count: min(times[name][count] for name in kept) for count in rows}
        gains = {
            name: min(times[name][count] / best[count] for count in rows)
            for name in times
            if name not in kept
        }
        added = min(gains, key=gains.__getitem__, default=None)
        if added is None or gains[added] > WORTH:
            break
        kept.append(added)
    bounds: list[int] = []
    chosen: list[KernelName] = []
    for position, count in enumerate(rows):
        fastest = min(kept, key=lambda name: times[name][count])
        if not chosen:
            chosen.append(fastest)
        elif times[fastest][count] < CLEARLY * times[chosen[-1]][count]:
            # Between two measured counts the kernels cross somewhere: half way, as sizes go.
            bounds.append(max(rows[position - 1], int((rows[position - 1] * count) ** 0.5)))
            chosen.append(fastest)
    return Choice(tuple(bounds), tuple(chosen))


def measure(
    kernels: Mapping[KernelName, Kernel], inputs: int, *, clock: Callable[[], float] = time.perf_counter
) -> Times:
    """The least of some trials for each kernel and row count; a second or so for a large layer.

    Another process that has a core for a moment slows single trials many times over, so these go on until no better comes.
    """
    draw = torch.Generator().manual_seed(2)
    flush = torch.zeros(_FLUSH // 4)
    found: dict[KernelName, dict[int, float]] = {name: {} for name in kernels}
    with torch.no_grad():
        for count in ROWS:
            rows = torch.randn(count, inputs, generator=draw)
            for name, kernel in kernels.items():
                kernel.multiply(rows)
                found[name][count] = _least(functools.partial(kernel.multiply, rows), flush.sum, clock)
    return found


def _least(compute: Callable[[], object], forget: Callable[[], object], clock: Callable[[], float]) -> float:
    """Seconds of the quickest trial; ``forget`` empties the cache before each."""
    best, calm = float("inf"), 0
    for _ in range(_TRIALS):
        forget()
        start = clock()
        compute()
        taken = clock() - start
        calm = 0 if taken < CLEARLY * best else calm + 1
        best = min(best, taken)
        if calm == _CALM:
            break
    return best
