"""The gateway's side of a sealed answer: what the application sends, padded, on a cadence, sealed in order.

The first data goes out at once, and so does the first after a long pause. Otherwise writes are collected and sent
at the ticks of a cadence, so that neither the size nor the moment of a token shows; the end goes out at once.
An answer that its application does not finish gets no final chunk: the client sees that it was cut. Everything
after the client has left, or has not read for long, is refused (OSError, as ASGI 2.4 says), so that applications
stop.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable

from cloister.channel import bhttp, headers, padding
from cloister.channel.asgi import Message, Send
from cloister.channel.cadence import Cadence
from cloister.channel.ohttp import CHUNKED_RESPONSE_TYPE, RESPONSE_TYPE, ResponseSealer
from cloister.channel.patience import Patience
from cloister.channel.receipts import HEADER as RECEIPT
from cloister.errors import OversizedChunk

DEFAULT_CADENCE = 0.025
"""Seconds between two flushes."""
GRACE = 0.002
"""Seconds after "at once" at which more is sent of what an application says in one breath, as role and first token."""
BREATH = 16
"""Turns of the event loop that "at once" waits: what an application writes without waiting, or an error, comes first."""
PAUSE = 10
"""Ticks without data after which the cadence begins anew."""
HIGH_WATER = 64 * 1024
"""Bytes that are collected before a write waits for the network."""
MAX_UNCHUNKED = 1 << 20
"""Bytes of an answer in RFC 9458's form, which is one chunk."""


class SealedResponse:
    """The ``send`` of one dispatched request. Lives in one event loop."""

    def __init__(
        self,
        send: Send,
        sealer: ResponseSealer,
        *,
        padded: bool,
        cadence: Cadence,
        send_seconds: float,
        receipt: Callable[[int, bytes], bytes] | None = None,
    ) -> None:
        """``receipt`` makes the answer's receipt of its status and the SHA-256 of its data."""
        self.started = False
        """Whether the application has begun its answer."""
        self.finished = False
        self.gone = asyncio.Event()
        """Set when the client has left."""
        self.over = asyncio.Event()
        """Set when the client has left or has the whole answer: nothing more can be received."""
        self._patience = Patience(send, send_seconds, self.leave)
        self._sealer = sealer
        self._padded = padded
        self._cadence = cadence
        self._composer: padding.ResponseComposer | None = None
        self._receipt = receipt
        self._status = 0
        self._hash = hashlib.sha256()
        self._pending = bytearray()
        self._opened = False
        self._begun = 0.0
        self._flushed = 0.0
        self._scheduled = False
        self._due = asyncio.Event()
        self._flusher: asyncio.Task[None] | None = None
        self._turn = asyncio.Lock()

    async def send(self, message: Message) -> None:
        """The application's ``send``."""
        if self.gone.is_set():
            raise OSError("the client has left")
        if message["type"] == "http.response.start":
            self._start(message)
        elif message["type"] == "http.response.body":
            final = not message.get("more_body", False)
            if self._write(message.get("body", b""), final=final):
                await self._flush(final=final)

    def leave(self) -> None:
        """The client has left."""
        self.gone.set()
        self.over.set()

    async def stop(self) -> None:
        """No flush runs after this."""
        self._patience.stop()
        if self._flusher is not None:
            self._flusher.cancel()
            await asyncio.gather(self._flusher, return_exceptions=True)

    @property
    def unsent(self) -> bool:
        """Whether nothing of an answer has left yet."""
        return not self._opened

    def forget(self) -> None:
        """Drop an unsent answer, so that another can be given in its place. Call :meth:`stop` before."""
        if self._opened:
            raise RuntimeError("part of the answer has left already")
        self.started = False
        self.finished = False
        self._composer = None
        self._pending.clear()
        self._hash = hashlib.sha256()

    def _start(self, message: Message) -> None:
        if self.started:
            raise RuntimeError("the application began its answer twice")
        fields = headers.across((bytes(name), bytes(value)) for name, value in message.get("headers", ()))
        if self._padded:
            kept = tuple(field for field in fields if field[0] != b"content-length")
            fields = (*kept, (padding.PADDING_HEADER, padding.PADDING_VERSION))
        head = bhttp.response_head(bhttp.Response(status=message["status"], headers=fields))
        self._status = message["status"]
        self._composer = padding.ResponseComposer(head, padded=self._padded)
        self.started = True

    def _write(self, data: bytes, *, final: bool) -> bool:
        """Collect ``data``; True if it has to be sent before the application goes on."""
        if self._composer is None or self.finished:
            raise RuntimeError("the application sent a body outside of its answer")
        self._pending += data
        if self._receipt is not None:
            self._hash.update(data)
        if not self._sealer.chunked:
            if len(self._pending) > MAX_UNCHUNKED:
                raise OversizedChunk(f"an answer in one chunk is over {MAX_UNCHUNKED} bytes")
            return final
        if final or len(self._pending) > HIGH_WATER:
            return True
        if data and not self._scheduled:
            self._schedule()
        return False

    def _schedule(self) -> None:
        """Decide when what is collected goes out: the moment depends on when things went out before, on no length."""
        self._scheduled = True
        loop = asyncio.get_running_loop()
        now = loop.time()
        if not self._opened or now - self._flushed > PAUSE * self._cadence.seconds:
            self._begun = now
            self._wake_after(BREATH)
        elif now - self._begun < GRACE:
            loop.call_at(self._begun + GRACE, self._wake)
        else:
            self._cadence.at_tick(self._wake)

    def _wake_after(self, turns: int) -> None:
        if turns:
            asyncio.get_running_loop().call_soon(self._wake_after, turns - 1)
        else:
            self._wake()

    def _wake(self) -> None:
        if self.finished or self.gone.is_set():
            return
        self._due.set()
        if self._flusher is None:
            self._flusher = asyncio.get_running_loop().create_task(self._keep_flushing())

    async def _keep_flushing(self) -> None:
        """Flush whenever it is due; what is written during a flush is due again."""
        while not self.finished:
            await self._due.wait()
            self._due.clear()
            self._scheduled = False
            try:
                await self._flush(final=False)
            except OSError:  # the server knows before us that the client has left
                self.leave()
                return

    async def _flush(self, *, final: bool) -> None:
        async with self._turn:
            if self.finished:
                return
            data = bytes(self._pending)
            self._pending.clear()
            if not data and not final:
                return
            self.finished = final
            body = self._sealed(data, final=final)
            self._flushed = asyncio.get_running_loop().time()
            if not self._opened:
                self._opened = True
                await self._patience.send(self._outer_start())
                body = self._sealer.header + body
            await self._patience.send({"type": "http.response.body", "body": body, "more_body": not final})
            if final:
                self.over.set()

    def _sealed(self, data: bytes, *, final: bool) -> bytes:
        composer = self._composer
        assert composer is not None  # noqa: S101 -- _write checked it
        trailers: tuple[tuple[bytes, bytes], ...] = ()
        if final and self._receipt is not None:
            trailers = ((RECEIPT, self._receipt(self._status, self._hash.digest())),)
        plaintexts = composer.compose(data, final=final, trailers=trailers)
        if not self._sealer.chunked:
            plaintexts = [b"".join(plaintexts)]
        if len(plaintexts) == 1:
            return self._sealer.seal(plaintexts[0], final=final)
        last = len(plaintexts) - 1
        return b"".join(
            self._sealer.seal(plaintext, final=final and number == last)
            for number, plaintext in enumerate(plaintexts)
        )

    def _outer_start(self) -> Message:
        media_type = CHUNKED_RESPONSE_TYPE if self._sealer.chunked else RESPONSE_TYPE
        fields = [
            (b"content-type", media_type.encode("ascii")),
            (b"cache-control", b"no-store"),
            (b"incremental", b"?1"),
            (b"x-accel-buffering", b"no"),  # nginx would otherwise collect the stream
        ]
        return {"type": "http.response.start", "status": 200, "headers": fields}
