"""The three figures that decide: a prompt of 512 tokens read, one answer written, eight answers written at once.

Each side is opened, warmed, measured and closed again in every round, since all of them together would not fit the memory;
rounds are interleaved all the same. A side that cannot be opened is told with its reason and left out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Final

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from benchmarks.measurement import Estimate, estimate, interleaved, ratio
from benchmarks.report import Bar
from benchmarks.samples import Task
from benchmarks.sides import Side, SideFailedError

PREFILL, DECODE, TOGETHER = "prefill", "decode", "8 streams"
COLUMNS: Final = (PREFILL, DECODE, TOGETHER)
PROMPT: Final = 512
STREAMS: Final = 8
console = Console(stderr=True)

Open = Callable[[], AbstractContextManager[Side]]


@dataclass(frozen=True, slots=True)
class Figures:
    """One round of one side. Rates in tokens per second."""

    prefill: float
    decode: float
    together: float
    first: float
    """Seconds to the first token of a prompt of 512."""
    memory: int
    """Bytes held at most by the computing process."""

    def of(self, column: str) -> float:
        return {PREFILL: self.prefill, DECODE: self.decode, TOGETHER: self.together}[column]


def once(side: Side, seed: int) -> Figures:
    """Warm up, then each column once."""
    side.ask(Task(32, 2, 1, seed=seed))
    read = side.ask(Task(PROMPT, 1, 1, seed=seed + 1))
    alone = side.ask(Task(16, 33, 1, seed=seed + 2))
    together = side.ask(Task(16, 49, STREAMS, seed=seed + 3))
    return Figures(read.prefill, alone.decode, together.decode, read.first(50), together.memory)


@dataclass(frozen=True, slots=True)
class Board:
    """What all sides did, round by round."""

    samples: Mapping[str, list[Figures]]
    missing: Mapping[str, str]
    """Side → why it has no figures."""

    def rates(self, name: str, column: str) -> list[float]:
        return [one.of(column) for one in self.samples[name]]

    def estimate(self, name: str, column: str) -> Estimate | None:
        return estimate(self.rates(name, column)) if name in self.samples else None

    def ratio(self, name: str, base: str, column: str) -> Estimate | None:
        if name not in self.samples or base not in self.samples:
            return None
        return ratio(self.rates(name, column), self.rates(base, column))

    def best(self, names: tuple[str, ...], column: str) -> str | None:
        """The quickest of ``names`` in that column, by its median."""
        found = {name: one.median for name in names if (one := self.estimate(name, column)) is not None}
        return max(found, key=lambda name: found[name]) if found else None

    def bar(self, name: str, column: str) -> Bar | None:
        found = self.estimate(name, column)
        return None if found is None else Bar(found.median, found.low, found.high)

    def memory(self, name: str) -> int | None:
        return max(one.memory for one in self.samples[name]) if name in self.samples else None

    def first(self, name: str) -> Estimate | None:
        return estimate([one.first for one in self.samples[name]]) if name in self.samples else None


def measure(sides: Mapping[str, Open], rounds: int) -> Board:
    """Every side in every round; one that fails is left out from then on."""
    missing: dict[str, str] = {}
    seeds = iter(range(0, 1 << 30, 10))

    def of(name: str) -> Callable[[], Figures | None]:
        def one() -> Figures | None:
            if name in missing:
                return None
            try:
                with sides[name]() as side:
                    return once(side, next(seeds))
            except SideFailedError as error:
                missing[name] = str(error)
                console.print(f"{name}: {error}", style="yellow", markup=False)
                return None

        return one

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("rounds", total=rounds * len(sides))
        found = interleaved(
            {name: of(name) for name in sides}, rounds, warm_up=0, done=lambda: progress.advance(task)
        )
    samples = {
        name: [one for one in values if one is not None]
        for name, values in found.items()
        if name not in missing
    }
    return Board(samples, missing)
