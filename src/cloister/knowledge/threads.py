"""The room's own threads: what waits for the index or counts a prompt holds up nobody who asks for evidence or a model.

Searches are admitted like requests to an engine: a few at once, in turns by who asks, and beyond a queue refused.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Final, ParamSpec, TypeVar

from cloister.inference.admission import Admission

P = ParamSpec("P")
T = TypeVar("T")
THREADS: Final = 4
SEARCHES: Final = 2
"""At once: they share one index and the processors of the engine."""


class Threads:
    """For one event loop."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(THREADS, thread_name_prefix="cloister-knowledge")
        self._admission = Admission(SEARCHES)

    async def run(self, work: Callable[P, T], *args: P.args, **settings: P.kwargs) -> T:
        """What ``work`` returns, beside the loop."""
        return await asyncio.get_running_loop().run_in_executor(self._pool, partial(work, *args, **settings))

    async def in_turn(self, tenant: bytes | None, work: Callable[[], T]) -> T:
        """As :meth:`run`, when it is this tenant's turn. Raises RequestRefused where too many wait."""
        place = await self._admission.enter(tenant)
        working = asyncio.get_running_loop().run_in_executor(self._pool, work)
        # The turn ends with the work, and not with who left meanwhile.
        working.add_done_callback(lambda _: self._admission.leave(place))
        return await asyncio.shield(working)
