"""A server in a thread, with the certificate of whoever connects in the scope of each request; and clients to match.

For the relays alone: the aggregator's takes connections by mutual TLS inside the mesh, a party's takes its own SuperNode's
on loopback. The sealed services are served as every other one (cli/serving.py).
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import socket
import ssl
import threading
from typing import Any, Final, cast

import uvicorn

from cloister.errors import NetworkError
from cloister.federated.relay import PEER

START_SECONDS: Final = 10.0


class ThreadedServer:
    """Serves ``app`` on ``listener`` from the moment of its making until it is closed."""

    def __init__(self, app: Any, listener: socket.socket, context: ssl.SSLContext, *, name: str) -> None:
        config = uvicorn.Config(
            app, http=_with_peer(), access_log=False, log_level="warning", lifespan="auto", loop="asyncio",
            ws="none", server_header=False,
            date_header=False, timeout_keep_alive=120, timeout_graceful_shutdown=2,
            ssl_context_factory=lambda _config, _default: context,
        )  # fmt: skip
        self._server = uvicorn.Server(config)
        # Signals are the process's own; a server in a thread takes none.
        self._server.install_signal_handlers = lambda: None  # type: ignore[attr-defined, unused-ignore]
        self._server.capture_signals = contextlib.nullcontext  # type: ignore[method-assign, assignment, unused-ignore]
        self.loop: asyncio.AbstractEventLoop | None = None
        self.port: int = listener.getsockname()[1]
        self._thread = threading.Thread(target=self._run, args=(listener,), name=name, daemon=True)
        self._thread.start()
        for _ in range(int(START_SECONDS / 0.02)):
            if self._server.started:
                return
            if not self._thread.is_alive():
                break
            self._thread.join(0.02)
        raise NetworkError(f"{name} did not start")

    def close(self) -> None:
        self._server.should_exit = True
        self._thread.join(START_SECONDS)

    def _run(self, listener: socket.socket) -> None:
        async def serve() -> None:
            self.loop = asyncio.get_running_loop()
            await self._server.serve(sockets=[listener])

        asyncio.run(serve())


def listen(host: str, port: int) -> socket.socket:
    """A bound TCP socket. Raises :class:`NetworkError`."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    found = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        found.bind((host, port))
    except OSError as error:
        found.close()
        raise NetworkError(
            f"cannot listen on {host} port {port} ({error.strerror})", todo="choose another port"
        ) from None
    return found


def peer_certificate(scope: Any) -> bytes | None:
    """DER of the certificate with which the other side of this request's connection proved itself."""
    found: bytes | None = scope.get("extensions", {}).get(PEER)
    return found


@functools.cache
def _with_peer() -> type[Any]:
    from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol  # noqa: PLC0415

    class WithPeer(HttpToolsProtocol):
        """Tells the application whose connection it is."""

        def on_message_begin(self) -> None:
            super().on_message_begin()
            secured = self.transport.get_extra_info("ssl_object")
            der = None if secured is None else secured.getpeercert(binary_form=True)
            self.scope["extensions"] = cast("dict[str, dict[object, object]]", {PEER: der})

    return WithPeer
