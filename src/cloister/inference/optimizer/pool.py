"""Candidates that are open at the same time: paused between their turns, closed where memory is wanted for another."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Protocol


class Trial(Protocol):
    """What :class:`~cloister.inference.optimizer.trial_process.TrialProcess` offers."""

    def ask(self, do: str, deadline: float, **request: Any) -> Mapping[str, Any]: ...

    def pause(self) -> None: ...

    def close(self) -> None: ...


class Pool:
    """Open trials by name."""

    def __init__(self, start: Callable[[], Trial], free_memory: Callable[[], int]) -> None:
        self._start = start
        self._free_memory = free_memory
        self._open: dict[str, Trial] = {}

    def get(self, name: str) -> Trial | None:
        return self._open.get(name)

    def start(self, name: str) -> Trial:
        """A new trial under ``name``."""
        trial = self._open[name] = self._start()
        return trial

    def pause(self) -> None:
        """Have all of them take no processor."""
        for trial in self._open.values():
            trial.pause()

    def keep(self, names: Collection[str]) -> None:
        """Close all others."""
        for name in [name for name in self._open if name not in names]:
            self.drop(name)

    def make_room(self, needed: int, standing: Sequence[str]) -> None:
        """Close trials, the last of ``standing`` first, until ``needed`` bytes are free or none is open."""
        places = {name: place for place, name in enumerate(standing)}
        for name in sorted(self._open, key=lambda name: -places.get(name, len(places))):
            if self._free_memory() >= needed:
                return
            self.drop(name)

    def drop(self, name: str) -> None:
        trial = self._open.pop(name, None)
        if trial is not None:
            trial.close()

    def close(self) -> None:
        self.keep(())
