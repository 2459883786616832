"""The broker's clock: Unix seconds that never go back, and not before what was verified to have been.

The host owns the clock of its guests. Its floor is the newest issue date among verified endorsements and the time of
the newest tree head, so a clock that is turned back revives no session, window or certificate that the broker has
seen the end of.
"""

from __future__ import annotations

import threading
from collections.abc import Callable


class RisingClock:
    """``now`` gives Unix seconds; what this gives is never less than it gave before. Thread-safe."""

    def __init__(self, now: Callable[[], int]) -> None:
        self._now = now
        self._floor = 0
        self._lock = threading.Lock()

    def __call__(self) -> int:
        """Unix seconds."""
        return self.raise_to(self._now())

    def raise_to(self, floor: int) -> int:
        """It is at least ``floor``: the time from now on."""
        with self._lock:
            self._floor = max(self._floor, floor)
            return self._floor
