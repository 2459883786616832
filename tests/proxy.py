"""What stands between: a recording HTTP/1.1 proxy on a real socket that can also meddle. Standard library only.

Without a meddler it passes every piece on as it arrives and notes direction, size and first bytes: that is all
that a network, load balancer or host sees of a sealed exchange. A :class:`Meddler` may change requests, answer in
place of the service, or rewrite answers: the attacks of the tests. From a command line (it prints what it sees):

    python tests/proxy.py --listen 9000 --target 127.0.0.1:8000
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import socket
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field, replace


@dataclass(frozen=True)
class Seen:
    """One piece of a body as it passed."""

    direction: str
    """``up`` to the service, ``down`` to the client."""
    path: str
    size: int
    first: bytes
    """At most 32 bytes."""


@dataclass(frozen=True)
class Message:
    """A request or an answer, whole. ``start`` is the request line or status line."""

    start: str
    fields: tuple[tuple[str, str], ...]
    body: bytes = b""

    @property
    def path(self) -> str:
        return self.start.split(" ")[1]

    def field(self, name: str) -> str | None:
        return next((value for key, value in self.fields if key.lower() == name), None)


class Meddler:
    """Passes everything on unchanged; attacks override one of the two."""

    def request(self, request: Message) -> Message | None:
        """What is sent on. ``None`` cuts the connection."""
        return request

    def instead(self, request: Message) -> Message | None:
        """An answer in place of the service's, if any."""
        return None

    def response(self, request: Message, response: Message) -> Message | None:
        """What the client gets. ``None`` cuts the connection after the head."""
        return response


@dataclass
class Proxy:
    """A listening proxy in a thread of its own; ``meddler`` may be set and removed while it runs."""

    target: tuple[str, int]
    port: int = 0
    meddler: Meddler | None = None
    on_seen: Callable[[Seen], None] | None = None
    seen: list[Seen] = field(default_factory=list)
    messages: list[tuple[Message, Message]] = field(default_factory=list)
    """Whole exchanges, when a meddler is set."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def sizes(self, direction: str, path: str) -> list[int]:
        """Sizes of the pieces that passed, in order."""
        return [seen.size for seen in self.seen if (seen.direction, seen.path) == (direction, path)]

    @contextlib.contextmanager
    def running(self) -> Iterator[Proxy]:
        """Serve until the block ends."""
        listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", self.port))
        self.port = listener.getsockname()[1]
        loop = asyncio.new_event_loop()
        ready, ends = threading.Event(), asyncio.Event()

        async def main() -> None:
            server = await asyncio.start_server(self._client, sock=listener)
            ready.set()
            await ends.wait()
            server.close()
            tasks = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

        def serve() -> None:
            try:
                loop.run_until_complete(main())
                loop.run_until_complete(loop.shutdown_asyncgens())
            finally:
                loop.close()

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        ready.wait(10)
        try:
            yield self
        finally:
            loop.call_soon_threadsafe(ends.set)
            thread.join(10)

    async def _client(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while (request := await _read_message(reader)) is not None:
                if not await self._exchange(request, reader, writer):
                    break
        except (OSError, asyncio.IncompleteReadError, ValueError):
            pass
        finally:
            writer.close()

    async def _exchange(
        self, request: Message, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> bool:
        """One request and its answer; whether the client's connection stays."""
        self._note("up", request.path, request.body)
        meddler = self.meddler
        if meddler is None:
            return await self._pass_on(request, reader, writer)
        forged = meddler.instead(request)
        if forged is None:
            altered = meddler.request(request)
            if altered is None:
                return False
            response = await self._ask(altered)
            self.messages.append((request, response))
            forged = meddler.response(request, response)
        if forged is None:
            return False
        self._note("down", request.path, forged.body)
        writer.write(_encode(forged))
        await writer.drain()
        return True

    async def _ask(self, request: Message) -> Message:
        """The service's whole answer."""
        upstream, up = await asyncio.open_connection(*self.target)
        try:
            up.write(_encode(request))
            start, fields = await _read_head(upstream)
            parts = [part async for part in _read_body(upstream, fields, request.start.startswith("HEAD"))]
            return Message(start, fields, b"".join(parts))
        finally:
            up.close()

    async def _pass_on(
        self, request: Message, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> bool:
        """Piece by piece, as it arrives; a client that leaves takes the upstream connection with it."""
        upstream, up = await asyncio.open_connection(*self.target)
        gone = asyncio.create_task(reader.read(1))
        gone.add_done_callback(lambda _: up.close())
        try:
            up.write(_encode(request))
            start, fields = await _read_head(upstream)
            kept = [pair for pair in fields if pair[0].lower() not in ("content-length", "transfer-encoding")]
            head = Message(start, (*kept, ("transfer-encoding", "chunked"), ("connection", "close")))
            writer.write(_encode_head(head))
            async for part in _read_body(upstream, fields, request.start.startswith("HEAD")):
                self._note("down", request.path, part)
                writer.write(b"%x\r\n%b\r\n" % (len(part), part))
                await writer.drain()
            writer.write(b"0\r\n\r\n")
            await writer.drain()
        finally:
            gone.cancel()
            up.close()
        return False

    def _note(self, direction: str, path: str, data: bytes) -> None:
        seen = Seen(direction, path, len(data), data[:32])
        self.seen.append(seen)
        if self.on_seen is not None:
            self.on_seen(seen)


def with_body(message: Message, body: bytes) -> Message:
    """The same message around another body."""
    return replace(message, body=body)


async def _read_head(reader: asyncio.StreamReader) -> tuple[str, tuple[tuple[str, str], ...]]:
    text = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    start, *lines = text[:-4].split("\r\n")
    pairs = [line.partition(":") for line in lines]
    return start, tuple((name, value.strip()) for name, _, value in pairs)


async def _read_message(reader: asyncio.StreamReader) -> Message | None:
    try:
        start, fields = await _read_head(reader)
    except asyncio.IncompleteReadError:
        return None
    request = Message(start, fields)
    if request.field("content-length") is None and request.field("transfer-encoding") is None:
        return request
    return replace(request, body=b"".join([part async for part in _read_body(reader, fields, False)]))


async def _read_body(
    reader: asyncio.StreamReader, fields: tuple[tuple[str, str], ...], empty: bool
) -> AsyncIterator[bytes]:
    """The pieces of a body, without its transfer coding."""
    names = {name.lower(): value for name, value in fields}
    if empty:
        return
    if names.get("transfer-encoding", "").lower() == "chunked":
        while size := int(await reader.readline(), 16):
            yield await reader.readexactly(size)
            await reader.readexactly(2)
        await reader.readline()
    elif "content-length" in names:
        left = int(names["content-length"])
        while left:
            part = await reader.read(min(left, 65536))
            if not part:
                raise asyncio.IncompleteReadError(b"", left)
            left -= len(part)
            yield part
    else:
        while part := await reader.read(65536):
            yield part


def _encode_head(message: Message) -> bytes:
    lines = [message.start, *(f"{name}: {value}" for name, value in message.fields)]
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")


def _encode(message: Message) -> bytes:
    kept = tuple(
        pair for pair in message.fields if pair[0].lower() not in ("content-length", "transfer-encoding")
    )
    fields = (*kept, ("content-length", str(len(message.body))))
    return _encode_head(replace(message, fields=fields)) + message.body


def _main() -> None:
    parser = argparse.ArgumentParser(description="Show what the network between sees.")
    parser.add_argument("--listen", type=int, required=True)
    parser.add_argument("--target", required=True, help="host:port")
    options = parser.parse_args()
    host, _, port = options.target.rpartition(":")

    def show(seen: Seen) -> None:
        sys.stdout.write(f"{seen.direction:4} {seen.path} {seen.size:6} bytes  {seen.first[:16].hex()}…\n")
        sys.stdout.flush()

    with (
        Proxy((host, int(port)), port=options.listen, on_seen=show).running(),
        contextlib.suppress(KeyboardInterrupt),
    ):
        threading.Event().wait()


if __name__ == "__main__":
    _main()
