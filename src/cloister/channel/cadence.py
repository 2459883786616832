"""The ticks at which sealed answers are sent: one clock for all answers of a gateway.

Its ticks have nothing to do with when a request came or what is said in it, and one wake of the loop serves every answer
that has something to send. A tick has two halves: first those are called who may want to write (what they would write
earlier would only wait), then what was written is sent. Lives in one event loop at a time; it does not tick for nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

EXTENSION: Final = "cloister.cadence"
"""Key of a scope's ``extensions`` under which an application finds :meth:`Cadence.before_tick`."""
_TURNS: Final = 3
"""Of the event loop, between the halves of a tick."""


class Cadence:
    """Calls back at the next multiple of ``seconds`` on the loop's own clock. What is called must not raise."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._loop: asyncio.AbstractEventLoop | None = None
        self._writers: list[Callable[[], None]] = []
        self._senders: list[Callable[[], None]] = []
        self._armed = False

    def before_tick(self, call: Callable[[], None]) -> None:
        """Call ``call`` once, when the next tick is due: what is written then is sent at it."""
        self._arm()
        self._writers.append(call)

    def at_tick(self, call: Callable[[], None]) -> None:
        """Call ``call`` once, at the next tick, or at this one while it lasts."""
        self._arm()
        self._senders.append(call)

    def _arm(self) -> None:
        loop = asyncio.get_running_loop()
        if loop is not self._loop:  # the one before has ended, and with it whoever waited there
            self._loop, self._writers, self._senders, self._armed = loop, [], [], False
        if not self._armed:
            self._armed = True
            loop.call_at((loop.time() // self.seconds + 1) * self.seconds, self._tick, loop)

    def _tick(self, loop: asyncio.AbstractEventLoop) -> None:
        writers, self._writers = self._writers, []
        for call in writers:
            call()
        self._pass(loop, _TURNS if writers else 0)

    def _pass(self, loop: asyncio.AbstractEventLoop, turns: int) -> None:
        if turns:
            loop.call_soon(self._pass, loop, turns - 1)
            return
        senders, self._senders, self._armed = self._senders, [], False
        for call in senders:
            call()
        if self._writers:  # who asked meanwhile waits for the next tick
            self._arm()
