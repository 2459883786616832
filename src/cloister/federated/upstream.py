"""The other side of a relay: one HTTP server by TLS, over connections that are kept open, asked from threads.

A whole model goes through a relay each round. Bodies are sent and read in threads, from sockets that block: the same takes
three times as much of a processor where an event loop hands on 64 KiB at a time. Everything about an answer is bounded: its
size, its time, its form; one that was cut off is none.
"""

from __future__ import annotations

import asyncio
import ssl
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final

import urllib3

from cloister.errors import FederationError, FormatError

MAX_CONNECTIONS: Final = 32
"""And threads that wait for an answer."""
MAX_BODY: Final = 64 << 20
"""Bytes of one request or answer; Flower cuts large arrays into pieces of 5 MiB."""
SECONDS: Final = 120.0
POOL_SECONDS: Final = 120
PIECE: Final = 1 << 20
Fields = list[tuple[bytes, bytes]]
_FAILURES: Final = (urllib3.exceptions.HTTPError, OSError, ValueError)
"""What urllib3 and what is below it raise."""


def connections(
    address: str, context: ssl.SSLContext, *, name: str | None = None
) -> urllib3.HTTPSConnectionPool:
    """To the server at ``address`` (host and port). ``name`` is what its certificate has to be called, where that is not its
    host. Raises FederationError for what no address is.
    """
    host, _, number = address.rpartition(":")
    host, port = host.strip("[]"), int(number) if number.isascii() and number.isdecimal() else 0
    if not host or not host.isprintable() or not 1 <= port <= 65535:
        raise FederationError(f"the tunnel's address {address[:80]!r} is no HOST:PORT")
    return urllib3.HTTPSConnectionPool(
        host, port, ssl_context=context, server_hostname=name, maxsize=MAX_CONNECTIONS, block=True, retries=False,
        timeout=urllib3.Timeout(connect=SECONDS, read=SECONDS),
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back."""

    status: int
    fields: Fields
    """Names in lower case."""
    body: bytes


class Upstream:
    """Asks by a pool that may be exchanged."""

    def __init__(
        self, pool: urllib3.HTTPConnectionPool, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._pool = pool
        self._clock = clock
        self._slots = asyncio.Semaphore(MAX_CONNECTIONS)

    def use(self, pool: urllib3.HTTPConnectionPool) -> None:
        """Ask by ``pool`` from now on: a renewed certificate. What is under way by the one before comes to its end."""
        before, self._pool = self._pool, pool
        before.close()

    def close(self) -> None:
        """Nothing is asked any more. Threads that still wait keep no process from ending."""
        self._pool.close()

    async def ask(self, path: str, fields: Fields, body: bytes) -> Answer:
        """POST. Raises FormatError for an answer over its bounds, TimeoutError where none comes in time or to its end."""
        loop = asyncio.get_running_loop()
        done: asyncio.Future[Answer] = loop.create_future()

        def tell(set_it: Callable[[Any], None], found: Any) -> None:
            with suppress(RuntimeError):  # the loop is closed, and nobody waits
                loop.call_soon_threadsafe(lambda: None if done.done() else set_it(found))

        def work() -> None:
            try:
                found = self._asked(path, fields, body)
            except _FAILURES as error:
                tell(done.set_exception, TimeoutError(type(error).__name__))
            except BaseException as error:
                tell(done.set_exception, error)
            else:
                tell(done.set_result, found)

        async with self._slots:
            threading.Thread(target=work, name="upstream", daemon=True).start()
            return await done

    def _asked(self, path: str, fields: Fields, body: bytes) -> Answer:
        headers = urllib3.HTTPHeaderDict(
            [(name.decode("latin-1"), value.decode("latin-1")) for name, value in fields]
        )
        until = self._clock() + SECONDS
        answer = self._begun(path, headers, body)
        try:
            content = self._read(answer, until)
        except BaseException:
            answer.close()
            raise
        finally:
            answer.release_conn()  # also of one that was closed: its place in the pool
        back = [
            (name.lower().encode("latin-1"), value.encode("latin-1"))
            for name, value in answer.headers.items()
        ]
        return Answer(answer.status, back, content)

    def _begun(self, path: str, headers: urllib3.HTTPHeaderDict, body: bytes) -> urllib3.BaseHTTPResponse:
        while True:
            pool = self._pool
            try:
                return pool.urlopen(
                    "POST",
                    path,
                    body,
                    headers,
                    redirect=False,
                    preload_content=False,
                    pool_timeout=POOL_SECONDS,
                )
            except urllib3.exceptions.ClosedPoolError:
                if pool is self._pool:  # and not replaced a moment ago
                    raise

    def _read(self, answer: urllib3.BaseHTTPResponse, until: float) -> bytes:
        """To the end that it names: asked on after the last byte, urllib3 raises for one that ended before."""
        if not 200 <= answer.status <= 599:
            raise FormatError("an answer has a status that is none")
        if 300 <= answer.status < 400:
            # Flower would follow it to a path whose answers nobody looks at.
            raise FormatError(
                f"an answer of status {answer.status} leads elsewhere, and this side follows nobody"
            )
        if answer.headers.get("content-encoding", "identity") != "identity":
            raise FormatError("an answer is compressed, which nobody asked for")
        if "content-length" not in answer.headers and not getattr(answer, "chunked", False):
            raise FormatError("an answer does not say where it ends")
        content = bytearray()
        while part := answer.read1(
            PIECE, decode_content=False
        ):  # what is there: a drip does not get round the clock
            content += part
            if len(content) > MAX_BODY:
                raise FormatError(f"an answer is over its bound of {MAX_BODY} bytes")
            if self._clock() > until:
                raise TimeoutError
        return bytes(content)
