"""The socket between workload and ClientApp: one request, one reply; who breaks off or lies does not stop the next one."""

from __future__ import annotations

import contextlib
import socket
import stat
import struct
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloister.errors import FormatError, UpdateRefused
from cloister.federated.exchange import Request
from cloister.federated.flower.workshop import MAX_CONTENT, MAX_HEAD, Answer, Work, Workshop, ask_workshop

REQUEST = Request("train", "5e" * 16, 3, "ab" * 32, b"model")
HEAD = b'{"kind":"train","run":"r","round":1,"model":"m"}'


def echo(request: Request) -> Answer:
    return Answer(request.content, request.number, {"loss": 0.5})


@contextlib.contextmanager
def serving(work: Work = echo) -> Iterator[str]:
    # A Unix socket's path is short, and pytest's folders are not.
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "workshop"
        shop = Workshop(path, work)
        try:
            yield str(path)
        finally:
            shop.close()


@pytest.fixture(scope="module")
def shop() -> Iterator[str]:
    with serving() as path:
        yield path


def test_a_request_reaches_the_workload_and_its_answer_comes_back() -> None:
    heard: list[Request] = []

    def work(request: Request) -> Answer:
        heard.append(request)
        return Answer(b"update", 7, {"loss": 0.25}, "")

    with serving(work) as path:
        assert ask_workshop(path, REQUEST) == Answer(b"update", 7, {"loss": 0.25})
    assert heard == [REQUEST]


@given(
    content=st.binary(max_size=1000),
    number=st.integers(0, 10_000),
    kind=st.text(max_size=20),
    run=st.text(max_size=20),
)
def test_whatever_is_asked_comes_back(shop: str, content: bytes, number: int, kind: str, run: str) -> None:
    answer = ask_workshop(shop, Request(kind, run, number, "m", content))
    assert answer == Answer(content, number, {"loss": 0.5})


def test_a_model_of_many_pieces_comes_back_whole(shop: str) -> None:
    content = bytes(range(256)) * 80_000  # 20 MB
    assert ask_workshop(shop, Request("train", "r", 1, "m", content)).content == content


def test_requests_at_once_are_answered_one_after_another() -> None:
    working, most, lock = [0], [0], threading.Lock()

    def work(request: Request) -> Answer:
        with lock:
            working[0] += 1
            most[0] = max(most[0], working[0])
        threading.Event().wait(0.02)
        with lock:
            working[0] -= 1
        return echo(request)

    with serving(work) as path:
        found: list[Answer] = []
        threads = [
            threading.Thread(
                target=lambda n=n: found.append(ask_workshop(path, Request("train", "r", n, "m")))
            )  # type: ignore[misc]
            for n in range(4)
        ]
        for one in threads:
            one.start()
        for one in threads:
            one.join(10)
    assert sorted(one.examples for one in found) == [0, 1, 2, 3]
    assert most == [1]


def test_only_its_own_user_reaches_it(shop: str) -> None:
    assert stat.S_IMODE(Path(shop).stat().st_mode) == 0o600


def test_what_the_task_refuses_is_told_and_what_it_breaks_on_is_not() -> None:
    """A library's message may hold a party's words."""

    def work(request: Request) -> Answer:
        if request.kind == "refused":
            raise UpdateRefused("the request is of another run", todo="nothing")
        raise ValueError("a patient's name in an exception")

    with serving(work) as path:
        refused = ask_workshop(path, Request("refused", "r", 1, "m"))
        broken = ask_workshop(path, Request("broken", "r", 1, "m"))
    assert refused == Answer(b"", 0, {}, "the request is of another run")
    assert broken == Answer(b"", 0, {}, "the task failed with ValueError")


def lengths(head: int, content: int) -> bytes:
    return struct.pack(">IQ", head, content)


@pytest.mark.parametrize(
    "sent",
    [
        pytest.param(b"", id="nothing"),
        pytest.param(lengths(10, 10)[:5], id="cut inside its lengths"),
        pytest.param(lengths(len(HEAD), 5) + HEAD[:-3], id="cut inside its head"),
        pytest.param(lengths(len(HEAD), 5) + HEAD + b"mo", id="cut inside its content"),
        pytest.param(lengths(len(HEAD), MAX_CONTENT) + HEAD + b"mo", id="the longest content, cut at once"),
        pytest.param(lengths(MAX_HEAD + 1, 0) + HEAD, id="a head over its bound"),
        pytest.param(lengths(2**32 - 1, 2**64 - 1), id="the largest lengths"),
        pytest.param(lengths(len(HEAD), MAX_CONTENT + 1) + HEAD, id="content over its bound"),
        pytest.param(lengths(2, 0) + b"{}", id="a head without anything"),
        pytest.param(lengths(4, 0) + b"\x80\x04K\x01", id="a pickle as its head"),
        pytest.param(lengths(len(HEAD) + 9, 0) + HEAD[:-1] + b',"more":1}', id="a field more"),
    ],
)
def test_who_breaks_off_or_lies_is_dropped_and_the_next_is_served(shop: str, sent: bytes) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(10)
        connection.connect(shop)
        connection.sendall(sent)
        connection.shutdown(socket.SHUT_WR)
        with contextlib.suppress(ConnectionResetError):
            assert connection.recv(100) == b""  # closed without an answer
    assert ask_workshop(shop, REQUEST).content == b"model"


def test_who_does_not_wait_for_its_answer_stops_nobody(shop: str) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.connect(shop)
        connection.sendall(lengths(len(HEAD), 3 << 20) + HEAD + bytes(3 << 20))
    assert ask_workshop(shop, REQUEST).content == b"model"


def said(answer: bytes) -> Callable[[socket.socket], None]:
    def run(listener: socket.socket) -> None:
        connection, _ = listener.accept()
        with connection:
            head, content = struct.unpack(">IQ", connection.recv(12, socket.MSG_WAITALL))
            connection.recv(head + content, socket.MSG_WAITALL)
            connection.sendall(answer)

    return run


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param(b"", id="nothing"),
        pytest.param(lengths(2, 0) + b"{}", id="without anything in it"),
        pytest.param(lengths(MAX_HEAD + 1, 0), id="a head over its bound"),
        pytest.param(lengths(2, MAX_CONTENT + 1), id="content over its bound"),
        pytest.param(lengths(40, 0) + b'{"examples":1,', id="cut"),
        pytest.param(
            lengths(43, 0) + b'{"error":"","examples":"many","metrics":{}}', id="examples that are no number"
        ),
    ],
)
def test_a_clientapp_takes_no_answer_that_is_none(answer: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder, socket.socket(socket.AF_UNIX) as listener:
        path = f"{folder}/workshop"
        listener.bind(path)
        listener.listen()
        thread = threading.Thread(target=said(answer), args=(listener,))
        thread.start()
        with pytest.raises(FormatError):
            ask_workshop(path, REQUEST)
        thread.join(10)


def test_a_workshop_that_is_closed_takes_no_further_request() -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "workshop"
        shop = Workshop(path, echo)
        assert ask_workshop(str(path), REQUEST).content == b"model"
        threading.Event().wait(0.1)  # until it waits for the next one
        shop.close()
        with pytest.raises(OSError, match="refused"):
            ask_workshop(str(path), REQUEST)
        shop.close()  # again is nothing


def test_where_the_socket_cannot_be_made_there_is_no_workshop(shop: str) -> None:
    with pytest.raises(OSError, match="in use"):
        Workshop(Path(shop), echo)
