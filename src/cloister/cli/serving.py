"""What every serving command shares: the simulated TEE said aloud, a port taken before anything costly, a server."""

from __future__ import annotations

import errno
import json
import logging
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cloister.errors import NetworkError, UsageError

if TYPE_CHECKING:
    from cloister.attester.simulated import SimulatedPlatform


def open_platform(directory: Path | None) -> SimulatedPlatform:
    """The simulated platform at ``directory``, announced in red. Raises :class:`UsageError` without one."""
    if directory is None:
        raise UsageError(
            "no TEE was found, and this release attests in the simulated one only",
            todo="pass --simulated-tee DIR (make one with `cloister simulate init DIR`); it protects nothing",
        )
    from rich.console import Console

    from cloister.attester.simulated import SimulatedPlatform

    platform = SimulatedPlatform.load(directory)
    Console(stderr=True).print(
        "SIMULATED TEE: real quotes under a false root; nothing here is protected.",
        style="bold white on red",
        soft_wrap=True,
    )
    return platform


def take_port(host: str, port: int) -> socket.socket:
    """Bind now and listen later, so that an occupied port costs nothing. Raises :class:`NetworkError`."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # The protocol is named: asyncio turns Nagle's algorithm off only for sockets that say they are TCP.
    taken = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        taken.bind((host, port))
    except OSError as error:
        taken.close()
        if error.errno == errno.EADDRINUSE:
            raise NetworkError(
                f"port {port} of {host} is taken", todo="stop what listens there, or pass another --port"
            ) from None
        raise NetworkError(
            f"cannot listen on {host} port {port}: {error.strerror}", todo="check --host and --port"
        ) from None
    return taken


def run_server(app: Any, taken: socket.socket, *, name: str, as_json: bool) -> None:
    """Serve ``app`` until a signal, then stop gracefully. Requests are never logged: paths are in the clear there."""
    import uvicorn

    logging.getLogger("uvicorn.error").setLevel(logging.WARNING)
    host, port = taken.getsockname()[:2]
    url = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"

    def ready() -> None:
        line = json.dumps({"listening": url, "service": name}) if as_json else f"{name}: listening on {url}"
        sys.stdout.write(line + "\n")
        sys.stdout.flush()

    config = uvicorn.Config(
        app,
        access_log=False,
        log_level="warning",
        lifespan="on",
        server_header=False,
        date_header=False,
        timeout_graceful_shutdown=5,
        h11_max_incomplete_event_size=64 * 1024,
    )
    server = _AnnouncingServer(config, ready)
    server.run(sockets=[taken])


def _server_class() -> type[Any]:
    import uvicorn

    class Announcing(uvicorn.Server):
        """Says when it listens, once."""

        def __init__(self, config: uvicorn.Config, ready: Callable[[], None]) -> None:
            super().__init__(config)
            self._ready = ready

        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets=sockets)
            if self.started:
                self._ready()

    return Announcing


def _AnnouncingServer(config: Any, ready: Callable[[], None]) -> Any:  # noqa: N802 -- stands for a class made late
    return _server_class()(config, ready)
