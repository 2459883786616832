"""Who gets a slot next: a bounded queue, one key after the other, and honest refusals when it is full.

Requests wait in a line for each tenant (an API key; where nobody is asked for keys, all are one), and free slots go round
the lines, so that who asks much waits behind itself and not before others. A tenant fills at most a share of the queue and
is told 429 beyond it; when the whole queue is full everybody is told 503. Both say when to come back, from how long recent
requests held their slots. Nothing is said to whoever waits. Lives in one event loop.
"""

from __future__ import annotations

import asyncio
import math
import statistics
import time
from collections import deque
from collections.abc import Callable
from typing import Final

from cloister.inference.api_errors import key_waits_too_much, overloaded

MAX_WAITING: Final = 256
SHARE: Final = 0.25
"""Of the queue, for one tenant."""
MIN_RETRY: Final = 1
MAX_RETRY: Final = 60
"""Seconds that a refusal may ask for."""
_RECENT: Final = 64
"""Finished requests by which the next ones are judged."""

Tenant = bytes | None


class Admission:
    """``slots`` at once, ``max_waiting`` behind them, of which one tenant has at most ``share``."""

    def __init__(
        self,
        slots: int,
        *,
        max_waiting: int = MAX_WAITING,
        share: float = SHARE,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._slots = slots
        self._free = slots
        self._max_waiting = max_waiting
        self._most = max(1, int(max_waiting * share))
        self._clock = clock
        self._lines: dict[Tenant, deque[asyncio.Future[None]]] = {}
        """Only lines in which somebody waits; the first is served next."""
        self._waiting = 0
        self._recent: deque[float] = deque(maxlen=_RECENT)
        self._since: dict[object, float] = {}

    @property
    def waiting(self) -> int:
        """Requests without a slot yet."""
        return self._waiting

    async def enter(self, tenant: Tenant) -> object:
        """Wait for a slot; what is returned gives it back to :meth:`leave`. Raises RequestRefused (429, 503)."""
        if not self._free:
            await self._wait(tenant)
        else:
            self._free -= 1
        place = object()
        self._since[place] = self._clock()
        return place

    def leave(self, place: object) -> None:
        """Give a slot back. Again without effect."""
        since = self._since.pop(place, None)
        if since is not None:
            self._recent.append(self._clock() - since)
            self._pass_on()

    async def _wait(self, tenant: Tenant) -> None:
        line = self._lines.get(tenant)
        if tenant is not None and line is not None and len(line) >= self._most:
            raise key_waits_too_much(self._retry_after(len(line) * len(self._lines)))
        if self._waiting >= self._max_waiting:
            raise overloaded(self._retry_after(self._waiting))
        if line is None:
            line = self._lines[tenant] = deque()
        turn = asyncio.get_running_loop().create_future()
        line.append(turn)
        self._waiting += 1
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self._pass_on()  # the slot came in the same moment: it is the next one's
            elif turn in line:
                self._forget(tenant, line, turn)
            raise

    def _pass_on(self) -> None:
        while self._lines:
            tenant, line = next(iter(self._lines.items()))
            turn = line[0]
            self._forget(tenant, line, turn)
            if line:  # to the end of the round
                self._lines[tenant] = self._lines.pop(tenant)
            if not turn.done():
                turn.set_result(None)
                return
        self._free += 1

    def _forget(self, tenant: Tenant, line: deque[asyncio.Future[None]], turn: asyncio.Future[None]) -> None:
        line.remove(turn)
        self._waiting -= 1
        if not line:
            del self._lines[tenant]

    def _retry_after(self, ahead: int) -> int:
        """Seconds until ``ahead`` requests will have had a slot."""
        now = self._clock()
        each = statistics.median(self._recent or [now - since for since in self._since.values()] or [0.0])
        return max(MIN_RETRY, min(MAX_RETRY, math.ceil(each * ahead / self._slots)))
