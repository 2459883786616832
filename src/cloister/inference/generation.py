"""From the engine's threads to the event loop, and back: bounded both ways.

An engine blocks a thread per running request. As many run at once as the engine has slots; others wait or are refused
(admission.py). Chunks cross in a bounded buffer: a client that does not read holds up its own thread
only, for a bounded time, and never the event loop or other clients. Whoever stops iterating stops the engine at
its next token (or prompt batch), which frees the slot.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from typing import Any, Final

from cloister.inference.admission import MAX_WAITING, Admission
from cloister.inference.api_errors import RequestRefused
from cloister.inference.engines import Engine, Kind

MAX_BUFFERED: Final = 512
"""Chunks of one request between engine and client."""
GATHER_SECONDS: Final = 0.004
URGENT_CHUNKS: Final = 2
"""The first chunks of a stream (its role, its first token) do not wait to be gathered."""
STALL_SECONDS: Final = 60.0
"""How long a full buffer is waited for before the client counts as gone."""

Chunk = Mapping[str, Any]


Moment = Callable[[Callable[[], None]], None]
"""Takes what is to be called once, on the loop, when what is written next can be sent."""


class Bell:
    """Wakes readers in ``loop`` from other threads.

    What is not urgent is gathered until ``moment``, or for ``GATHER_SECONDS``, and wakes the loop once: tokens of several
    streams come out of the engine together, and a loop that wakes for each competes with the engine for processors.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, moment: Moment | None = None) -> None:
        self._loop = loop
        self._moment = moment
        self._lock = threading.Lock()
        self._waiting: list[ChunkBuffer] = []

    def ring(self, buffer: ChunkBuffer, *, urgent: bool) -> None:
        with self._lock:
            self._waiting.append(buffer)
            if len(self._waiting) > 1 and not urgent:
                return
        # A closed loop means that the process is going down, and nobody waits.
        with suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._wake if urgent else self._wake_later)

    def _wake_later(self) -> None:
        if self._moment is None:
            self._loop.call_later(GATHER_SECONDS, self._wake)
        else:
            self._moment(self._wake)

    def _wake(self) -> None:
        with self._lock:
            waiting, self._waiting = self._waiting, []
        for buffer in waiting:
            buffer.wake()


class ChunkBuffer:
    """One request's chunks: filled by the engine's thread, emptied by one task of the bell's loop."""

    def __init__(self, bell: Bell, *, limit: int = MAX_BUFFERED, stall: float = STALL_SECONDS) -> None:
        self._bell = bell
        self._limit = limit
        self._stall = stall
        self._chunks: deque[Chunk] = deque()
        self._change = threading.Condition()
        self._count = 0
        self._ended = False
        self._error: BaseException | None = None
        self._unwanted = False
        self._reader: asyncio.Future[None] | None = None

    def put(self, chunk: Chunk) -> bool:
        """On the engine's thread: True when no more chunks are wanted. An empty chunk only asks that."""
        with self._change:
            if not chunk or self._unwanted:
                return self._unwanted
            if not self._change.wait_for(self._has_room, timeout=self._stall):
                self._unwanted = True
                self._error = RequestRefused("The client did not read", status=408)
            if self._unwanted:
                return True
            self._chunks.append(chunk)
            self._count += 1
            wake = len(self._chunks) == 1
        if wake or self._count <= URGENT_CHUNKS:
            self._bell.ring(self, urgent=self._count <= URGENT_CHUNKS)
        return False

    def end(self, error: BaseException | None) -> None:
        """On the engine's thread: nothing more comes; ``error`` is raised behind the last chunk."""
        with self._change:
            self._ended = True
            self._error = self._error or error
        self._bell.ring(self, urgent=True)

    def abandon(self) -> None:
        """On the loop: nobody reads any more."""
        with self._change:
            self._unwanted = True
            self._chunks.clear()
            self._change.notify_all()

    def wake(self) -> None:
        """On the loop: there is something to read."""
        if self._reader is not None and not self._reader.done():
            self._reader.set_result(None)

    async def __aiter__(self) -> AsyncIterator[Chunk]:
        async for batch in self.batches():
            for chunk in batch:
                yield chunk

    async def batches(self) -> AsyncIterator[Sequence[Chunk]]:
        """What has come since the last batch, each time something has; one reader at a time."""
        while True:
            with self._change:
                chunks, ended = tuple(self._chunks), self._ended
                self._chunks.clear()
                if chunks:
                    self._change.notify_all()
                elif not ended:
                    self._reader = asyncio.get_running_loop().create_future()
            if chunks:
                yield chunks
            elif ended:
                if self._error is not None:
                    raise self._error
                return
            elif self._reader is not None:
                await self._reader

    def _has_room(self) -> bool:
        return self._unwanted or len(self._chunks) < self._limit


class Generations:
    """An engine's work, admitted to its slots."""

    def __init__(self, engine: Engine, *, max_waiting: int = MAX_WAITING) -> None:
        self._engine = engine
        self._admission = Admission(engine.slots, max_waiting=max_waiting)
        self._running: set[ChunkBuffer] = set()
        self._bells: dict[Moment | None, Bell] = {}
        self._threads = ThreadPoolExecutor(engine.slots, thread_name_prefix="cloister-engine")

    @property
    def running(self) -> int:
        """Requests that hold a slot now."""
        return len(self._running)

    @property
    def waiting(self) -> int:
        """Requests that have none yet."""
        return self._admission.waiting

    @asynccontextmanager
    async def chunks(
        self,
        kind: Kind,
        request: Mapping[str, Any],
        *,
        tenant: bytes | None = None,
        moment: Moment | None = None,
    ) -> AsyncIterator[ChunkBuffer]:
        """The chunks of one request, as the engine makes them; leaving the block stops the engine.

        ``tenant`` stands for who asks: for its turn, and for what the engine may keep for it. Behind the first chunks,
        what comes is handed on at ``moment``, or gathered a little. Use one ``moment`` for many requests.
        Raises RequestRefused or InferenceError, also while iterating.
        """

        def work(buffer: ChunkBuffer) -> None:
            self._engine.generate(kind, request, buffer.put, tenant=tenant)

        async with self._admitted(work, tenant, moment) as buffer:
            yield buffer

    async def embed(
        self, requests: Sequence[Mapping[str, Any]], *, tenant: bytes | None = None
    ) -> list[Chunk]:
        """The answers to embeddings requests, one after the other in one slot. Raises as ``chunks``."""

        def work(buffer: ChunkBuffer) -> None:
            for request in requests:
                if buffer.put({}) or buffer.put(self._engine.embed(request)):
                    return

        async with self._admitted(work, tenant) as buffer:
            return [answer async for answer in buffer]

    def close(self) -> None:
        """Let go of every running request; the threads end at their next chunk."""
        for buffer in tuple(self._running):
            buffer.abandon()
        self._threads.shutdown(wait=False, cancel_futures=True)

    @asynccontextmanager
    async def _admitted(
        self, work: Callable[[ChunkBuffer], None], tenant: bytes | None, moment: Moment | None = None
    ) -> AsyncIterator[ChunkBuffer]:
        place = await self._admission.enter(tenant)
        loop = asyncio.get_running_loop()
        bell = self._bells.get(moment)
        if bell is None:
            bell = self._bells[moment] = Bell(loop, moment)
        buffer = ChunkBuffer(bell)

        def run() -> None:
            error: BaseException | None = None
            try:
                work(buffer)
            except BaseException as raised:  # handed to the task that waits, which raises it
                error = raised
            buffer.end(error)

        def release(_: object) -> None:
            self._running.discard(buffer)
            self._admission.leave(place)

        # The slot is given back when the engine's thread is done with it, not when the client leaves.
        try:
            self._running.add(buffer)
            loop.run_in_executor(self._threads, run).add_done_callback(release)
        except RuntimeError:
            release(None)
            raise RequestRefused("The service is shutting down", status=503, code="overloaded") from None
        try:
            yield buffer
        finally:
            buffer.abandon()
