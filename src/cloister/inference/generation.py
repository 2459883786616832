"""From the engine's threads to the event loop, and back: bounded both ways.

An engine blocks a thread per running request. As many run at once as the engine has slots; a bounded number waits,
the rest is refused at once. Chunks cross in a bounded buffer: a client that does not read holds up its own thread
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

from cloister.inference.api_errors import RequestRefused, overloaded
from cloister.inference.engines import Engine, Kind

MAX_WAITING: Final = 256
MAX_BUFFERED: Final = 512
"""Chunks of one request between engine and client."""
GATHER_SECONDS: Final = 0.004
URGENT_CHUNKS: Final = 2
"""The first chunks of a stream (its role, its first token) do not wait to be gathered."""
STALL_SECONDS: Final = 60.0
"""How long a full buffer is waited for before the client counts as gone."""

Chunk = Mapping[str, Any]


class Bell:
    """Wakes tasks of ``loop`` from other threads.

    What is not urgent is gathered for ``GATHER_SECONDS`` and wakes the loop once: tokens of several streams come out
    of the engine together, and a loop that wakes for each competes with the engine for processors.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._lock = threading.Lock()
        self._waiting: list[asyncio.Event] = []

    def ring(self, event: asyncio.Event, *, urgent: bool) -> None:
        with self._lock:
            self._waiting.append(event)
            if len(self._waiting) > 1 and not urgent:
                return
        # A closed loop means that the process is going down, and nobody waits.
        with suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._wake if urgent else self._wake_later)

    def _wake_later(self) -> None:
        self._loop.call_later(GATHER_SECONDS, self._wake)

    def _wake(self) -> None:
        with self._lock:
            waiting, self._waiting = self._waiting, []
        for event in waiting:
            event.set()


class ChunkBuffer:
    """One request's chunks: filled by the engine's thread, emptied by one task of the bell's loop."""

    def __init__(self, bell: Bell, *, limit: int = MAX_BUFFERED, stall: float = STALL_SECONDS) -> None:
        self._bell = bell
        self._limit = limit
        self._stall = stall
        self._chunks: deque[Chunk] = deque()
        self._change = threading.Condition()
        self._filled = asyncio.Event()
        self._count = 0
        self._ended = False
        self._error: BaseException | None = None
        self._unwanted = False

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
            self._bell.ring(self._filled, urgent=self._count <= URGENT_CHUNKS)
        return False

    def end(self, error: BaseException | None) -> None:
        """On the engine's thread: nothing more comes; ``error`` is raised behind the last chunk."""
        with self._change:
            self._ended = True
            self._error = self._error or error
        self._bell.ring(self._filled, urgent=True)

    def abandon(self) -> None:
        """On the loop: nobody reads any more."""
        with self._change:
            self._unwanted = True
            self._chunks.clear()
            self._change.notify_all()

    async def __aiter__(self) -> AsyncIterator[Chunk]:
        while True:
            await self._filled.wait()
            with self._change:
                chunks, ended = tuple(self._chunks), self._ended
                self._chunks.clear()
                self._filled.clear()
                self._change.notify_all()
            for chunk in chunks:
                yield chunk
            if ended:
                if self._error is not None:
                    raise self._error
                return

    def _has_room(self) -> bool:
        return self._unwanted or len(self._chunks) < self._limit


class Generations:
    """Admission to an engine: ``slots`` at once, ``max_waiting`` behind them, first come, first served."""

    def __init__(self, engine: Engine, *, max_waiting: int = MAX_WAITING) -> None:
        self._engine = engine
        self._slots = asyncio.Semaphore(engine.slots)
        self._max_waiting = max_waiting
        self._waiting = 0
        self._running: set[ChunkBuffer] = set()
        self._bell: Bell | None = None
        self._threads = ThreadPoolExecutor(engine.slots, thread_name_prefix="cloister-engine")

    @property
    def running(self) -> int:
        """Requests that hold a slot now."""
        return len(self._running)

    @asynccontextmanager
    async def chunks(self, kind: Kind, request: Mapping[str, Any]) -> AsyncIterator[AsyncIterator[Chunk]]:
        """The chunks of one request, as the engine makes them; leaving the block stops the engine.

        Raises RequestRefused or InferenceError, also while iterating.
        """

        def work(buffer: ChunkBuffer) -> None:
            self._engine.generate(kind, request, buffer.put)

        async with self._admitted(work) as buffer:
            yield aiter(buffer)

    async def embed(self, requests: Sequence[Mapping[str, Any]]) -> list[Chunk]:
        """The answers to embeddings requests, one after the other in one slot. Raises as ``chunks``."""

        def work(buffer: ChunkBuffer) -> None:
            for request in requests:
                if buffer.put({}) or buffer.put(self._engine.embed(request)):
                    return

        async with self._admitted(work) as buffer:
            return [answer async for answer in buffer]

    def close(self) -> None:
        """Let go of every running request; the threads end at their next chunk."""
        for buffer in tuple(self._running):
            buffer.abandon()
        self._threads.shutdown(wait=False, cancel_futures=True)

    @asynccontextmanager
    async def _admitted(self, work: Callable[[ChunkBuffer], None]) -> AsyncIterator[ChunkBuffer]:
        if self._slots.locked() and self._waiting >= self._max_waiting:
            raise overloaded()
        self._waiting += 1
        try:
            await self._slots.acquire()
        finally:
            self._waiting -= 1
        loop = asyncio.get_running_loop()
        self._bell = self._bell or Bell(loop)
        buffer = ChunkBuffer(self._bell)

        def run() -> None:
            error: BaseException | None = None
            try:
                work(buffer)
            except BaseException as raised:  # handed to the task that waits, which raises it
                error = raised
            buffer.end(error)

        def release(_: object) -> None:
            self._running.discard(buffer)
            self._slots.release()

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
