"""Servers for the upstream engine to ask: llama.cpp's own with a small model, and one that answers what a test wrote."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cloister.inference.engines import EngineSettings
from cloister.inference.engines.upstream import UpstreamEngine
from cloister.inference.engines.upstream_exchange import Bounds

_LLAMA = """
import json, sys
from pathlib import Path
from cloister.inference.engines.llamacpp_parameters import server_parameters
params = server_parameters(sys.argv[1], context_length=512, slots=2, threads=1, embedding=True)
import xllamacpp
params.hostnames = [sys.argv[2]]
params.port = 0
params.api_keys = []
params.n_threads_http = 4
server = xllamacpp.Server(params)
print(json.dumps(server.listening_address), flush=True)
sys.stdin.read()
"""

MODELS = b'{"object": "list", "data": [{"id": "m", "object": "model", "extra": 1}]}'
QUICK = Bounds(connect=2.0, first=2.0, between=1.0, size=1 << 20)


@contextmanager
def llama_server(model: Path, host: str) -> Iterator[str]:
    """llama.cpp's server in a process of its own, on ``host`` (a Unix socket's path, or an address of loopback)."""
    process = subprocess.Popen(
        [sys.executable, "-c", _LLAMA, str(model), host],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=dict(os.environ),
    )
    try:
        assert process.stdout is not None
        address = json.loads(process.stdout.readline())
        yield address.replace("unix://", "unix:")
    finally:
        assert process.stdin is not None
        process.stdin.close()
        process.wait(30)
        assert process.stdout is not None
        process.stdout.close()


def response(body: bytes, *, status: str = "200 OK", kind: str = "application/json", more: str = "") -> bytes:
    """A whole HTTP answer."""
    head = f"HTTP/1.1 {status}\r\ncontent-type: {kind}\r\ncontent-length: {len(body)}\r\n{more}\r\n"
    return head.encode() + body


def stream_head(more: str = "") -> bytes:
    """The beginning of a stream that ends with its connection."""
    return f"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n{more}\r\n".encode()


def event(value: Any) -> bytes:
    return b"data: " + json.dumps(value).encode() + b"\n\n"


Script = Callable[[socket.socket], None]


@contextmanager
def written_server(
    answer: Script, *, models: bytes = MODELS, embeddings: bytes | None = None
) -> Iterator[str]:
    """A server on loopback whose answer to a generation ``answer`` sends by itself."""
    listener = socket.create_server(("127.0.0.1", 0))
    asked: list[threading.Thread] = []

    def serve(connection: socket.socket) -> None:
        with connection:
            try:
                data = b""
                while b"\r\n\r\n" not in data:
                    data += connection.recv(65536) or b"\r\n\r\n"
                path = data.split(b" ")[1] if b" " in data else b""
                if path == b"/v1/models":
                    connection.sendall(response(models))
                elif path == b"/v1/embeddings":
                    connection.sendall(embeddings or response(b"{}", status="501 Not Implemented"))
                else:
                    answer(connection)
            except OSError:
                pass  # the engine has broken off, as it should

    def accept() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            connection.settimeout(20)
            thread = threading.Thread(target=serve, args=(connection,), daemon=True)
            thread.start()
            asked.append(thread)

    accepting = threading.Thread(target=accept, daemon=True)
    accepting.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        # A thread in accept() is not woken by closing alone.
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        accepting.join(10)
        for thread in asked:
            thread.join(25)


@contextmanager
def upstream(address: str, *, bounds: Bounds = QUICK, **settings: Any) -> Iterator[UpstreamEngine]:
    """The engine that asks the server at ``address``."""
    wished = EngineSettings(**({"context_length": 256, "slots": 2, "upstream": address} | settings))
    engine = UpstreamEngine.open(None, wished, bounds=bounds)
    try:
        yield engine
    finally:
        engine.close()
