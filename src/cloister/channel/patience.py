"""How long a client may take to make room for more of its answer.

A time limit around each of many quick sends costs more than the sends. So a timer is set once in a while and looks whether a
send waits, and since when; one that has waited too long has its task cancelled: the answer is given up, and whoever wrote
is told that the client does not read.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from cloister.channel.asgi import Message, Send


class Patience:
    """``send`` bounded by ``seconds``. One send at a time; lives in one event loop."""

    def __init__(self, send: Send, seconds: float, give_up: Callable[[], None]) -> None:
        self._send = send
        self._seconds = seconds
        self._give_up = give_up
        self._waiting: asyncio.Task[None] | None = None
        self._since = 0.0
        self._gave_up = False
        self._timer: asyncio.TimerHandle | None = None

    async def send(self, message: Message) -> None:
        """Raises OSError when the client made no room for ``seconds``; ``give_up`` was called then."""
        loop = asyncio.get_running_loop()
        self._since = loop.time()
        self._waiting = asyncio.current_task()
        if self._timer is None:
            self._timer = loop.call_later(self._seconds, self._look)
        try:
            await self._send(message)
        except asyncio.CancelledError:
            if not self._gave_up or self._waiting is None or self._waiting.uncancel() > 0:
                raise  # somebody else wants the task to end, too
            raise OSError("the client does not read") from None
        finally:
            self._waiting = None

    def stop(self) -> None:
        """Nothing is sent any more."""
        if self._timer is not None:
            self._timer.cancel()

    def _look(self) -> None:
        self._timer = None
        if self._waiting is None:
            return
        loop = asyncio.get_running_loop()
        left = self._since + self._seconds - loop.time()
        if left > 0:
            self._timer = loop.call_later(left, self._look)
            return
        self._gave_up = True
        self._give_up()
        self._waiting.cancel()
