"""The progress of ``seal``, ``unseal`` and ``verify``: a bar on stderr, for a terminal only, and what it came to."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.progress import Progress as Bar


class Phase:
    """One phase of the work: pass it as ``progress``."""

    def __init__(self, title: str, bar: Bar | None, clock: Callable[[], float]) -> None:
        self._title = title
        self._bar = bar
        self._task: Any = None
        self._clock = clock
        self.begun = clock()
        self.ended = self.begun
        self.bytes = 0

    def __call__(self, done: int, total: int) -> None:
        """``total`` is 0 where nobody knows it."""
        self.bytes = done
        self.ended = self._clock()
        if self._bar is not None:
            if self._task is None:
                self._task = self._bar.add_task(self._title, total=total or None)
            self._bar.update(self._task, completed=done, total=total or None)

    @property
    def seconds(self) -> float:
        """From the phase's begin to its last step."""
        return self.ended - self.begun

    @property
    def mb_per_s(self) -> float:
        """10^6 bytes of plaintext a second."""
        return self.bytes / 1e6 / max(self.seconds, 1e-6)

    def facts(self, prefix: str = "") -> dict[str, float]:
        """For JSON."""
        return {
            f"{prefix}seconds": round(self.seconds, 3),
            f"{prefix}mb_per_s": round(self.mb_per_s, 1),
        }

    def __str__(self) -> str:
        return f"{self.seconds:.2f} s, {self.mb_per_s:,.0f} MB/s"


@contextlib.contextmanager
def progress_bar(title: str, *, quiet: bool) -> Iterator[Phase]:
    """One phase."""
    with progress_bars(title, quiet=quiet) as (phase,):
        yield phase


@contextlib.contextmanager
def progress_bars(
    *titles: str, quiet: bool, clock: Callable[[], float] = time.monotonic
) -> Iterator[tuple[Phase, ...]]:
    """Phases that come one after the other; each begins when it is first called, the first one now."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    console = Console(stderr=True)
    if quiet or not console.is_terminal:
        yield _chained(titles, None, clock)
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(binary_units=True),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True) as bar:
        yield _chained(titles, bar, clock)


class _Following(Phase):
    """A phase that begins where the one before it ended."""

    def __init__(self, title: str, bar: Bar | None, clock: Callable[[], float], before: Phase) -> None:
        super().__init__(title, bar, clock)
        self._before: Phase | None = before

    def __call__(self, done: int, total: int) -> None:
        if self._before is not None:
            self.begun = self._before.ended
            self._before = None
        super().__call__(done, total)


def _chained(titles: tuple[str, ...], bar: Bar | None, clock: Callable[[], float]) -> tuple[Phase, ...]:
    phases = [Phase(titles[0], bar, clock)]
    for title in titles[1:]:
        phases.append(_Following(title, bar, clock, phases[-1]))
    return tuple(phases)
