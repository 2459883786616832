"""How the threads that compute wait for each other: spinning while processors are theirs, asleep where others want them.

A token takes hundreds of parallel parts, one after another. Threads that sleep between them are woken hundreds of times:
eight streams then have a third of the speed. Threads that spin, where another process has a core, burn the time of the one
that they wait for: a tenth is left. libgomp reads how long to spin once, when it is loaded, but it spins briefly whenever
more of its threads exist than processors. So teams of threads that do nothing are kept exactly while our own had to wait
for a processor, which Linux tells of each thread (``schedstat``, sched-stats.rst). Where it does not, they are kept always.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

WINDOW_SECONDS: Final = 0.1
"""Of computing, after which it is asked again whether others want a processor."""
CROWDED: Final = 0.3
"""Share of that time that our threads, together, waited for a processor, from which on they sleep."""
ALONE: Final = 0.1
"""Share under which a window counts as calm."""
CALM_WINDOWS: Final = 20
"""Calm windows in a row after which they spin again."""
_GRAIN: Final = 1 << 16
"""Elements for each thread, at least, for torch to give it a part."""


@dataclass(slots=True)
class Contention:
    """Whether others want the processors. Pure."""

    crowded: bool = False
    _calm: int = 0

    def saw(self, seconds: float, waited: float | None) -> bool:
        """After ``seconds`` of computing our threads ``waited`` (None: nobody knows) for a processor; True: they sleep."""
        if waited is None or waited >= CROWDED * seconds:
            self.crowded, self._calm = True, 0
        elif waited < ALONE * seconds:
            self._calm += 1
            self.crowded = self.crowded and self._calm < CALM_WINDOWS
        else:
            self._calm = 0
        return self.crowded


class Waiting:
    """Of the thread that made it and the OpenMP threads that compute for it. Used by that thread alone."""

    def __init__(
        self, threads: int, processors: int, *, waited: Callable[[], float | None] | None = None
    ) -> None:
        """``waited``: seconds that our threads have waited for a processor since they began."""
        own = threading.get_native_id()
        self._waited = waited or (lambda: waited_of(Path("/proc/self/task"), own))
        self._contention = Contention()
        self._computed = 0.0
        self._before = self._waited()
        # One more than processors, all teams together; whoever computes alone waits for nobody.
        idle = -(-(processors + 1 - threads) // (threads - 1)) if threads > 1 else 0
        self._idle = [_IdleTeam(threads) for _ in range(max(0, idle))]

    def computed(self, seconds: float) -> None:
        """Say that a step took so long; between two steps it is decided how to wait in the next."""
        self._computed += seconds
        if self._computed < WINDOW_SECONDS or not self._idle:
            return
        before, self._before = self._before, self._waited()
        waited = None if before is None or self._before is None else self._before - before
        crowded = self._contention.saw(self._computed, waited)
        self._computed = 0.0
        for team in self._idle:
            team.start() if crowded else team.stop()

    def close(self) -> None:
        """End the idle teams. Idempotent."""
        for team in self._idle:
            team.stop()


class _IdleTeam:
    """A thread that has computed once, with ``threads`` threads of its own that libgomp keeps as long as it lives."""

    def __init__(self, threads: int) -> None:
        self._threads = threads
        self._end = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        if self._thread is None:
            self._end.clear()
            self._thread = threading.Thread(target=self._exist, name="cloister-torch-idle", daemon=True)
            self._thread.start()

    def stop(self) -> None:
        if self._thread is not None:
            self._end.set()
            self._thread.join()
            self._thread = None

    def _exist(self) -> None:
        import torch  # noqa: PLC0415 -- heavy

        torch.zeros(self._threads * _GRAIN).add_(1)
        self._end.wait()


def waited_of(tasks: Path, own: int) -> float | None:
    """Seconds that the thread ``own`` and the process's threads that are not Python's waited for a processor.

    None where Linux does not tell.
    """
    others = {thread.native_id for thread in threading.enumerate()} - {own}
    total, known = 0, False
    try:
        for task in tasks.iterdir():
            if int(task.name) in others:
                continue
            try:
                total += int((task / "schedstat").read_text("ascii").split()[1])
                known = True
            except FileNotFoundError:
                continue  # ended meanwhile, or a kernel that does not count
    except (OSError, ValueError, IndexError):
        return None
    return total / 1e9 if known else None
