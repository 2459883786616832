"""One request to an upstream, on a connection of its own: read by a thread, waited for by another that can break it off.

Redirects are not followed, proxies of the environment not asked, compressed answers not read. Times and sizes are
bounded: the time until the connection stands, until the first event, and from one whole event to the next.
"""

from __future__ import annotations

import contextlib
import queue
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self

import httpx2

from cloister.errors import InferenceError
from cloister.inference.api_errors import RequestRefused, overloaded
from cloister.inference.engines.upstream_address import UpstreamAddress
from cloister.inference.engines.upstream_events import DONE, MAX_EVENT, Events, decoded

ASK_SECONDS: Final = 0.25
"""How often a request that waits looks whether it is still wanted."""
_WAITING: Final = 32
"""Pieces of an answer that are read ahead."""
_QUOTED: Final = 300
_RETRY_SECONDS: Final = 5
_CODES: Final = frozenset({"context_length_exceeded", "invalid_value", "unsupported", "content_filter"})


@dataclass(frozen=True, slots=True)
class Bounds:
    """What one exchange may take."""

    connect: float = 5.0
    """Seconds until the connection stands."""
    first: float = 600.0
    """Seconds until the first event: the prompt is read meanwhile, behind others perhaps."""
    between: float = 120.0
    """Seconds from one event to the next."""
    size: int = 64 << 20
    """Bytes of an answer."""


@dataclass(frozen=True, slots=True)
class _Head:
    status: int
    kind: str
    encoded: bool


class _End:
    """Behind the last piece."""


class Exchange:
    """A context: the request is sent when it begins, and broken off, if it still runs, when it ends."""

    def __init__(
        self,
        address: UpstreamAddress,
        path: str,
        body: bytes | None,
        *,
        bounds: Bounds,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """``body`` is JSON to post; None to get ``path``."""
        self._address = address
        self._path = path
        self._body = body
        self._bounds = bounds
        self._clock = clock
        self._read: queue.Queue[_Head | bytes | _End | InferenceError] = queue.Queue(_WAITING)
        self._socket: socket.socket | None = None
        self._deadline = 0.0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="cloister-upstream", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        if self._socket is not None:
            # Closing alone would not wake a thread that reads.
            with contextlib.suppress(OSError):
                self._socket.shutdown(socket.SHUT_RDWR)
        self._thread.join(self._bounds.connect + 1)

    def events(self, wanted: Callable[[], bool]) -> Iterator[bytes]:
        """The data of each event, up to the last; ends early where nothing is ``wanted``.

        Raises RequestRefused and InferenceError.
        """
        head = self._head(wanted)
        if head is None:
            return
        if head.status != 200:
            raise _refusal(head.status, self._rest(wanted))
        if head.kind != "text/event-stream":
            raise InferenceError("the upstream does not stream its answer")
        events = Events()
        self._deadline = self._clock() + self._bounds.first
        for part in self._parts(wanted):
            for data in events.feed(part):
                if data == DONE:
                    return
                yield data
                self._deadline = self._clock() + self._bounds.between
        if wanted():
            raise InferenceError("the upstream broke off an answer")

    def answer(self, wanted: Callable[[], bool] = lambda: True) -> bytes:
        """A whole answer in JSON. Raises as ``events``."""
        head = self._head(wanted)
        if head is None:
            raise InferenceError("the upstream was not waited for")
        data = self._rest(wanted)
        if head.status != 200:
            raise _refusal(head.status, data)
        if head.kind != "application/json":
            raise InferenceError("the upstream does not answer in JSON")
        return data

    def _head(self, wanted: Callable[[], bool]) -> _Head | None:
        self._deadline = self._clock() + self._bounds.first
        found = self._next(wanted)
        if found is None:
            return None
        if not isinstance(found, _Head):
            raise InferenceError("the upstream gave no answer")
        if found.encoded:
            raise InferenceError("the upstream compresses its answers, which was not asked for")
        return found

    def _parts(self, wanted: Callable[[], bool]) -> Iterator[bytes]:
        size = 0
        while isinstance(part := self._next(wanted), bytes):
            size += len(part)
            if size > self._bounds.size:
                raise InferenceError("the upstream's answer is over its bound")
            yield part

    def _rest(self, wanted: Callable[[], bool]) -> bytes:
        self._deadline = self._clock() + self._bounds.between
        data = bytearray()
        for part in self._parts(wanted):
            data += part
        return bytes(data)

    def _next(self, wanted: Callable[[], bool]) -> _Head | bytes | _End | None:
        while True:
            if self._clock() > self._deadline:
                raise InferenceError("the upstream was silent for too long")
            try:
                found = self._read.get(timeout=ASK_SECONDS)
            except queue.Empty:
                if not wanted():
                    return None
                continue
            if isinstance(found, InferenceError):
                raise found
            return found

    def _run(self) -> None:
        if self._address.socket is not None and not Path(self._address.socket).is_socket():
            self._put(InferenceError("the upstream cannot be asked: its socket is not there"))
            return
        limit = self._bounds.first + self._bounds.between
        # A host of its own: what stands in the environment could lead elsewhere.
        transport = httpx2.HTTPTransport(uds=self._address.socket, trust_env=False)
        try:
            with (
                httpx2.Client(
                    transport=transport,
                    trust_env=False,
                    follow_redirects=False,
                    timeout=httpx2.Timeout(limit, connect=self._bounds.connect),
                ) as client,
                client.stream(
                    "GET" if self._body is None else "POST",
                    self._address.url + self._path,
                    content=self._body,
                    headers={"accept-encoding": "identity", "content-type": "application/json"},
                    extensions={"trace": self._trace},
                ) as response,
            ):
                kind = response.headers.get("content-type", "").partition(";")[0].strip().lower()
                self._put(_Head(response.status_code, kind, "content-encoding" in response.headers))
                for part in response.iter_raw():
                    if not self._put(part):
                        return
            self._put(_End())
        except Exception as error:  # whatever the library raises, of which only the name is told
            self._put(InferenceError(f"the upstream cannot be asked: {type(error).__name__}"))

    def _put(self, found: _Head | bytes | _End | InferenceError) -> bool:
        while not self._over.is_set():
            with contextlib.suppress(queue.Full):
                self._read.put(found, timeout=ASK_SECONDS)
                return True
        return False

    def _trace(self, event: str, found: dict[str, Any]) -> None:
        if event.endswith(("connect_tcp.complete", "connect_unix_socket.complete")):
            self._socket = found["return_value"].get_extra_info("socket")


def _refusal(status: int, data: bytes) -> InferenceError:
    """An answer that is none. What the upstream says goes to who asked, in a refusal, and into no log."""
    if status in (429, 503):
        return overloaded(_RETRY_SECONDS)
    if status in (400, 413, 422):
        message, code = _said(data)
        return RequestRefused(f"The upstream refuses the request: {message}", code=code)
    return InferenceError(f"the upstream answers with status {status}")


def _said(data: bytes) -> tuple[str, str | None]:
    try:
        found = decoded(data, dict, limit=MAX_EVENT)
    except InferenceError:
        return "it gives no reason", None
    error = found.get("error", found)
    detail = error if isinstance(error, dict) else {"message": error}
    message = str(detail.get("message", "it gives no reason"))[:_QUOTED]
    kinds = (
        {detail.get("code"), detail.get("type")}
        if isinstance(detail.get("code"), str)
        else {detail.get("type")}
    )
    if "exceed_context_size_error" in kinds or "maximum context length" in message:
        return message, "context_length_exceeded"
    return message, next((code for code in sorted(map(str, kinds)) if code in _CODES), None)
