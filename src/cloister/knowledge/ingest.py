"""Documents taken in, one after the other, in a thread of its own: what was begun goes on when who asked for it leaves.

Adding is one transaction, and adding the same content again changes nothing: whoever was cut off asks again.
"""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Final

from cloister.inference.api_errors import RequestRefused
from cloister.knowledge.shelf import Added, Library

MAX_WAITING: Final = 32
"""Documents that wait for their turn."""
MAX_OF_USER: Final = 2
"""Of one user, the one that is being read included."""


@dataclass(frozen=True, slots=True)
class Progress:
    """Passages that are embedded, and how many there are."""

    done: int
    of: int


class Ingest:
    """The one who adds. For one event loop."""

    def __init__(self, library: Library) -> None:
        self._library = library
        self._turn = asyncio.Semaphore(1)
        self._waiting: Counter[str] = Counter()

    async def add(
        self, user: str, collection: str, name: str, take: Callable[[], bytes]
    ) -> AsyncIterator[Progress | Added]:
        """What becomes of the document, its end last; ``take`` gives its content when it is its turn.

        Raises RequestRefused, DocumentRefused, KnowledgeError.
        """
        if self._waiting.total() >= MAX_WAITING or self._waiting[user] >= MAX_OF_USER:
            raise RequestRefused(
                "Too many documents wait to be read; try again in a moment", status=503, code="overloaded", retry_after=10
            )  # fmt: skip
        self._waiting[user] += 1
        try:
            await self._turn.acquire()
        except BaseException:
            self._done(user)
            raise
        told: asyncio.Queue[Progress | Added | BaseException] = asyncio.Queue()
        try:
            self._begin(user, collection, name, take, told)
        except BaseException:
            self._over(user)
            raise
        while True:
            one = await told.get()
            if isinstance(one, BaseException):
                raise one
            yield one
            if isinstance(one, Added):
                return

    def _done(self, user: str) -> None:
        self._waiting[user] -= 1
        if not self._waiting[user]:
            del self._waiting[user]

    def _over(self, user: str) -> None:
        self._done(user)
        self._turn.release()

    def _begin(
        self,
        user: str,
        collection: str,
        name: str,
        take: Callable[[], bytes],
        told: asyncio.Queue[Progress | Added | BaseException],
    ) -> None:
        loop = asyncio.get_running_loop()

        def tell(one: Progress | Added | BaseException) -> None:
            loop.call_soon_threadsafe(told.put_nowait, one)

        def work() -> None:
            try:
                added = self._library.add(
                    collection, name, take(), told=lambda done, of: tell(Progress(done, of))
                )
                last: Added | BaseException = added
            except BaseException as error:  # handed to whoever waits for it
                last = error
            # A closed loop means that the process is going down, and nobody waits.
            try:
                tell(last)
                loop.call_soon_threadsafe(self._over, user)
            except RuntimeError:
                return

        # A daemon: the end of the process does not wait for a long document, which is then not there at all.
        threading.Thread(target=work, name="cloister-ingest", daemon=True).start()
