"""Which HTTP parser serves: httptools where it is installed (it takes a third less time for each chunk sent), else h11.

h11 bounds what a client may send before a head is complete. httptools takes a head, a trailer or a chunk's extensions
without end, and any number of requests ahead of their answers. Here it is bounded: whoever sends more than
:data:`MAX_HEAD` bytes without getting on, or over :data:`MAX_AHEAD` requests ahead, gets a 400 and is cut off.
"""

from __future__ import annotations

import functools
from importlib.util import find_spec
from typing import Any, Final

MAX_HEAD: Final = 64 * 1024
"""Bytes."""
MAX_AHEAD: Final = 16
"""Requests of one connection that wait for the answer to the one before."""


def http_protocol() -> Any:
    """What uvicorn is told as ``http``."""
    return bounded_httptools() if find_spec("httptools") else "h11"


@functools.cache
def bounded_httptools() -> type[Any]:
    """uvicorn's protocol on httptools, with the bound. Raises ImportError where httptools is missing."""
    from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

    class Bounded(HttpToolsProtocol):
        """Counts what came since the last complete head, piece of a body or end of a message."""

        _idle = 0

        def data_received(self, data: bytes) -> None:
            self._idle += len(data)
            before = self._idle
            super().data_received(data)
            # What got on has set the count back.
            if self._idle == before > MAX_HEAD and not self.transport.is_closing():
                self.send_400_response("Request head too large")

        def on_headers_complete(self) -> None:
            self._idle = 0
            if len(self.pipeline) >= MAX_AHEAD:
                raise ValueError("too many requests ahead")  # the parser's own error to who called it
            super().on_headers_complete()

        def on_body(self, body: bytes) -> None:
            self._idle = 0
            super().on_body(body)

        def on_message_complete(self) -> None:
            self._idle = 0
            super().on_message_complete()

    return Bounded
