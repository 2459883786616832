"""The other side of a relay answers whole or not at all, and one that answers badly takes no room from others."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cloister.channel.tls_context import server_side
from cloister.errors import FormatError
from cloister.federated.flower.processes import Loopback
from cloister.federated.relay import FLEET, MAX_UNDER_WAY, PEER, Relay
from cloister.federated.serving import listen
from cloister.federated.upstream import MAX_CONNECTIONS, Answer, Upstream, connections

LOOPBACK = Loopback.make(Path(tempfile.mkdtemp()))
PULL = FLEET + "pull-messages"
OK = b"HTTP/1.1 200 OK\r\n"


def trusting() -> ssl.SSLContext:
    trust = ssl.create_default_context(cafile=str(LOOPBACK.certificate))
    trust.verify_flags &= ~ssl.VERIFY_X509_STRICT
    return trust


@contextlib.contextmanager
def saying(answer: bytes, *, dribble: float = 0.0) -> Iterator[Callable[..., Upstream]]:
    """A server that answers every connection's first request with these very bytes, and closes."""
    context = server_side()
    context.load_cert_chain(LOOPBACK.certificate, LOOPBACK.key)
    listener, stop, made = listen("127.0.0.1", 0), threading.Event(), []
    listener.listen()

    def serve() -> None:
        with contextlib.suppress(OSError):
            while True:
                taken, _ = listener.accept()
                with contextlib.suppress(OSError), context.wrap_socket(taken, server_side=True) as connection:
                    connection.recv(65536)
                    connection.sendall(answer)
                    while dribble and not stop.wait(dribble):
                        connection.sendall(b"x")

    def upstream(**settings: Any) -> Upstream:
        made.append(Upstream(connections(f"127.0.0.1:{listener.getsockname()[1]}", trusting()), **settings))
        return made[-1]

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield upstream
    finally:
        stop.set()
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join(10)
        for one in made:
            one.close()


def asked(upstream: Upstream) -> Answer:
    return asyncio.run(upstream.ask(PULL, [(b"content-type", b"application/protobuf")], b"?"))


@pytest.mark.parametrize(
    ("answer", "status", "body"),
    [
        pytest.param(OK + b"content-length: 3\r\n\r\nyes", 200, b"yes", id="by its length"),
        pytest.param(OK + b"transfer-encoding: chunked\r\n\r\n3\r\nyes\r\n0\r\n\r\n", 200, b"yes", id="in chunks"),
        pytest.param(OK + b"content-length: 0\r\n\r\n", 200, b"", id="empty"),
        pytest.param(b"HTTP/1.1 500 No\r\ncontent-length: 2\r\n\r\nno", 500, b"no", id="a failure of its own"),
    ],
)  # fmt: skip
def test_a_whole_answer_is_taken_as_it_is(answer: bytes, status: int, body: bytes) -> None:
    with saying(answer) as upstream:
        found = asked(upstream())
    assert (found.status, found.body) == (status, body)


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param(OK + b"content-length: 100\r\n\r\nyes", id="cut off"),
        pytest.param(OK + b"content-length: 100\r\n\r\n", id="cut off before it began"),
        pytest.param(OK + b"content-length: 100\r\n", id="cut off in its head"),
        pytest.param(OK + b"transfer-encoding: chunked\r\n\r\n9\r\nyes", id="a chunk cut off"),
        pytest.param(OK + b"transfer-encoding: chunked\r\n\r\n3\r\nyes\r\n", id="no last chunk"),
        pytest.param(OK + b"transfer-encoding: chunked\r\n\r\nzz\r\nyes\r\n", id="a chunk of no length"),
        pytest.param(b"", id="nothing"),
        pytest.param(b"SSH-2.0-OpenSSH\r\n", id="another protocol"),
    ],
)
def test_an_answer_that_was_cut_off_is_none(answer: bytes) -> None:
    with saying(answer) as upstream, pytest.raises(TimeoutError):
        asked(upstream())


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        pytest.param(OK + b"\r\nyes", "where it ends", id="an end that is not named"),
        pytest.param(b"HTTP/1.1 999 No\r\ncontent-length: 0\r\n\r\n", "status", id="no status"),
        pytest.param(
            b"HTTP/1.1 302 Go\r\nlocation: /\r\ncontent-length: 0\r\n\r\n", "leads elsewhere", id="elsewhere"
        ),
        pytest.param(
            b"HTTP/1.1 307 Go\r\nlocation: /v1/fleet/pull-object\r\ncontent-length: 3\r\n\r\nyes",
            "leads elsewhere",
            id="to a path whose answers nobody looks at",
        ),
        pytest.param(
            OK + b"content-encoding: gzip\r\ncontent-length: 2\r\n\r\nyo", "compressed", id="squeezed"
        ),
    ],
)
def test_an_answer_in_another_form_is_refused_and_leaves_room_for_others(answer: bytes, words: str) -> None:
    with saying(answer) as upstream:
        it = upstream()
        for _ in range(MAX_CONNECTIONS + 2):
            with pytest.raises(FormatError, match=words):
                asked(it)


def test_an_answer_that_drips_is_not_waited_for_without_end() -> None:
    turns = iter(range(0, 100_000, 50))
    with (
        saying(OK + b"content-length: 1000000\r\n\r\n", dribble=0.01) as upstream,
        pytest.raises(TimeoutError),
    ):
        asked(upstream(clock=lambda: float(next(turns))))


def test_one_peer_does_not_take_all_the_room() -> None:
    """Whoever begins many requests and ends none of them: others are answered."""

    async def run() -> tuple[int, int]:
        held = asyncio.Event()

        async def never() -> Any:
            await held.wait()
            return {"type": "http.disconnect"}

        async def at_once() -> Any:
            return {"type": "http.request", "body": b"?", "more_body": False}

        async def ask(certificate: bytes, receive: Any) -> int:
            said: list[Any] = []

            async def send(message: Any) -> None:
                said.append(message)

            scope = {
                "type": "http", "method": "POST", "path": PULL, "query_string": b"", "headers": [],
                "extensions": {PEER: certificate},
            }  # fmt: skip
            await relay(scope, receive, send)
            return said[0]["status"] if said else 0

        greedy = [asyncio.create_task(ask(b"greedy", never)) for _ in range(MAX_UNDER_WAY)]
        await asyncio.sleep(0)
        found = await ask(b"greedy", at_once), await ask(b"another", at_once)
        held.set()
        await asyncio.gather(*greedy)
        return found

    with saying(OK + b"content-length: 3\r\n\r\nyes") as upstream:
        relay = Relay(upstream()._pool, check=lambda _scope: None)
        assert asyncio.run(run()) == (503, 200)
        assert relay._under_way == {}
