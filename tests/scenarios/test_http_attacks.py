"""Attacks on the HTTP parser under the gateway, before anything is sealed: heads without end, requests ahead of answers."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
import uvicorn

from cloister.cli.http_protocol import MAX_AHEAD, MAX_HEAD, bounded_httptools
from real_parts import absent
from sealed_service import listen

try:
    import httptools  # noqa: F401 -- whether it is there is what is asked
except ImportError:
    absent("httptools is not installed (pip install 'cloister[server]')")

PATIENCE = 20
"""Seconds that a server may do nothing."""
HEAD = b"POST /echo HTTP/1.1\r\nhost: h\r\n"


@pytest.fixture(params=[bounded_httptools(), "h11"], ids=["httptools", "h11"])
def address(request: pytest.FixtureRequest) -> Iterator[tuple[str, int]]:
    """A server that echoes bodies, on each parser that may serve."""

    async def echo(scope: Any, receive: Any, send: Any) -> None:
        body, more = b"", True
        while more:
            message = await receive()
            body, more = body + message.get("body", b""), message.get("more_body", False)
        await send(
            {
                "type": "http.response.start",
                "status": 200,
                "headers": [(b"content-length", b"%d" % len(body))],
            }
        )
        await send({"type": "http.response.body", "body": body})

    listener = listen()
    config = uvicorn.Config(
        echo,
        http=request.param,
        log_level="critical",
        lifespan="off",
        ws="none",
        h11_max_incomplete_event_size=MAX_HEAD,
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    yield listener.getsockname()[:2]
    server.should_exit = True
    thread.join(10)
    listener.close()


def answers(address: tuple[str, int], *parts: bytes) -> bytes:
    """Everything that comes back until the server closes."""
    received = b""
    with socket.create_connection(address, timeout=PATIENCE) as connection:
        try:
            for part in parts:
                connection.sendall(part)
            while data := connection.recv(1 << 16):
                received += data
        except (OSError, TimeoutError):
            pass
    return received


@pytest.mark.parametrize(
    "flood",
    [
        pytest.param((HEAD, *[b"x-a: " + b"b" * 1000 + b"\r\n"] * 1024), id="a head without end"),
        pytest.param((HEAD + b"x-a: ", *[b"b" * 1024] * 1024), id="a field without end"),
        pytest.param((b"POST /", *[b"b" * 1024] * 1024), id="a target without end"),
        pytest.param(
            (HEAD + b"transfer-encoding: chunked\r\n\r\n0\r\n", *[b"x-a: " + b"b" * 1000 + b"\r\n"] * 1024),
            id="a trailer without end",
        ),
        pytest.param(
            (HEAD + b"transfer-encoding: chunked\r\n\r\n1;a=", *[b"b" * 1024] * 1024),
            id="a chunk's extension without end",
        ),
    ],
)
def test_what_never_gets_on_is_cut_off(address: tuple[str, int], flood: tuple[bytes, ...]) -> None:
    began = time.monotonic()
    received = answers(address, *flood)
    assert b" 200 " not in received
    assert time.monotonic() - began < PATIENCE


def test_a_long_body_in_small_chunks_is_no_attack(address: tuple[str, int]) -> None:
    chunks = [b"400\r\n" + b"b" * 1024 + b"\r\n"] * 256
    parts = (HEAD + b"transfer-encoding: chunked\r\nconnection: close\r\n\r\n", *chunks, b"0\r\n\r\n")
    assert answers(address, *parts).endswith(b"b" * 256 * 1024)


def test_a_flood_of_requests_ahead_of_their_answers_is_bounded(address: tuple[str, int]) -> None:
    request = HEAD + b"content-length: 0\r\n\r\n"
    last = HEAD + b"connection: close\r\ncontent-length: 0\r\n\r\n"
    received = answers(address, request * 1999 + last)
    few = answers(address, request * 3 + last)
    assert few.count(b" 200 ") == 4
    # h11 reads one after the other; httptools would hold them all.
    assert received.count(b" 200 ") in (*range(MAX_AHEAD + 2), 2000)
