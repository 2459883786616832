"""Asking several witnesses: enough of them, within a bounded time, and no fork on anybody's mere word."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from starlette.applications import Starlette
from starlette.routing import Mount

from app_server import served
from cloister.broker.tree_head import (
    Cosignature,
    ForkFound,
    RollbackFound,
    SignedHead,
    cosign,
    require_cosignatures,
)
from cloister.broker.witness import Conflict, NewestRequest, forget, state_newest
from cloister.broker.witness_app import create_witness
from cloister.broker.witness_client import WitnessClient, ask_newest, gather
from cloister.broker.witness_memory import Witness, read_memory, write_memory
from cloister.encoding import encode_json
from cloister.errors import NetworkError
from witness_parts import NOW, Log, signer, witness_keys

NAMES = ("anna", "ben", "cleo")
NONCE = b"n" * 32


class Site:
    """Three honest witnesses of one log."""

    def __init__(self, root: Path, stack: ExitStack) -> None:
        self.log = Log(8)
        self.keys = witness_keys(*NAMES)
        self.witnesses: dict[str, Witness] = {}
        for name in NAMES:
            (root / name).mkdir()
            self.witnesses[name] = Witness(root / name, signer(name), {self.log.id: self.log.public})
        # Three applications behind one port: only their addresses matter here.
        routes = [Mount(f"/{name}", create_witness(self.witnesses[name])) for name in NAMES]
        url = stack.enter_context(served(Starlette(routes=routes)))
        self.clients = [WitnessClient(name, f"{url}/{name}", self.keys[name]) for name in NAMES]

    def gather(self, log: Log | None = None, *, size: int | None = None, **options: object) -> SignedHead:
        log = log or self.log
        arguments = {"threshold": 2, "timeout": 5.0, "consistency": log.tree.consistency, **options}
        return gather(self.clients, log.head(size), **arguments)  # type: ignore[arg-type]

    def replaced(self, name: str, url: str) -> None:
        """That witness is somewhere else."""
        self.clients = [
            WitnessClient(name, url, one.key) if one.name == name else one for one in self.clients
        ]


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    with ExitStack() as stack:
        yield Site(tmp_path, stack)


@contextmanager
def answering(answer: Callable[[str], tuple[int, bytes]]) -> Iterator[str]:
    """A server that says whatever it is told to say, at any path."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["content-length"]))
            status, body = answer(self.path)
            self.send_response(status)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@contextmanager
def silent() -> Iterator[str]:
    """Takes connections and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"


def closed_port() -> str:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return f"http://127.0.0.1:{listener.getsockname()[1]}"


def test_enough_witnesses_cosign_a_log_that_grows(site: Site) -> None:
    for size in (1, 5, 8):
        signed = site.gather(size=size, threshold=3)
        assert require_cosignatures(signed, keys=site.keys, threshold=3) == set(NAMES)


def test_witnesses_that_stand_at_different_sizes_are_each_shown_their_own_proof(site: Site) -> None:
    site.witnesses["anna"].cosign(site.log.request(0, 3))
    site.witnesses["ben"].cosign(site.log.request(0, 6))
    for known in (0, 3, 8):
        assert len(site.gather(threshold=3, known=known).cosignatures) == 3


def test_one_witness_that_is_away_is_not_needed(site: Site) -> None:
    site.replaced("ben", closed_port())
    assert {one.key for one in site.gather().cosignatures} == {site.keys["anna"].text, site.keys["cleo"].text}


def test_too_few_witnesses_are_an_error_that_names_the_others(site: Site) -> None:
    site.replaced("anna", closed_port())
    site.replaced("cleo", closed_port())
    with pytest.raises(NetworkError, match=r"1 witnesses answered, and 2 must: .*anna.*cleo"):
        site.gather()
    with pytest.raises(NetworkError, match=r"1 witnesses answered, and 2 must: .*anna.*cleo"):
        ask_newest(site.clients, log=site.log.id, nonce=NONCE, threshold=2, timeout=5)


def test_a_witness_that_says_nothing_is_waited_for_a_bounded_time(site: Site) -> None:
    with silent() as one, silent() as other:
        site.replaced("anna", one)
        began = time.monotonic()
        site.gather(timeout=60.0)
        assert (
            time.monotonic() - began < 30
        )  # enough have answered: the rest gets a moment, not the whole time
        site.replaced("ben", other)
        with pytest.raises(NetworkError, match="anna"):
            site.gather(timeout=0.3)


@contextmanager
def pouring(piece: bytes, pause: float) -> Iterator[tuple[str, list[int]]]:
    """Answers with ``piece`` again and again, for ever; yields its address and how many bytes it got rid of."""
    stop, poured = threading.Event(), [0]

    def pour(listener: socket.socket) -> None:
        with suppress(OSError), listener.accept()[0] as connection:
            connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
            while not stop.wait(pause):
                try:
                    connection.sendall(piece)
                except OSError:
                    return
                poured[0] += len(piece)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=pour, args=(listener,))
        thread.start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}", poured
        stop.set()
        with suppress(OSError):
            listener.shutdown(socket.SHUT_RDWR)  # who still waits for a connection
        thread.join()


def test_a_witness_that_drips_its_answer_is_waited_for_a_bounded_time(site: Site) -> None:
    def asked(client: WitnessClient) -> object:
        return client.newest(log=site.log.id, nonce=NONCE, timeout=0.3)

    def asked_with_others(client: WitnessClient) -> object:
        return ask_newest([client], log=site.log.id, nonce=NONCE, threshold=1, timeout=0.3)

    for ask in (asked, asked_with_others):
        with pouring(b" ", 0.02) as (url, _):
            client = WitnessClient("anna", url, site.keys["anna"])
            with pytest.raises(NetworkError, match="anna"):
                ask(client)


def test_a_witness_that_answers_without_end_is_read_up_to_a_bound(site: Site) -> None:
    with pouring(b" " * 4096, 0.0) as (url, poured):
        client = WitnessClient("anna", url, site.keys["anna"])
        with pytest.raises(NetworkError, match="too long"):
            client.newest(log=site.log.id, nonce=NONCE, timeout=30)
    assert (
        poured[0] < 32 << 20
    )  # what the sockets' buffers hold on top of 128 KiB, and not half a minute's worth


def test_another_history_is_found_by_the_first_witness_that_saw_it(site: Site) -> None:
    site.gather(threshold=3)
    for fork in (Log(8, mark="fork "), Log(5).grow(7, mark="fork ")):
        with pytest.raises(ForkFound) as caught:
            site.gather(fork)
        assert fork.tree.root().hex() in caught.value.what
        assert site.log.tree.root().hex() in caught.value.what


def test_an_older_copy_is_found(site: Site) -> None:
    site.gather(threshold=3)
    with pytest.raises(RollbackFound, match=r"seen 8 entries .* has 5"):
        site.gather(size=5)


def test_a_clock_that_went_back_is_found(site: Site) -> None:
    site.gather(threshold=3)
    later = site.log.copy().grow()
    with pytest.raises(RollbackFound, match="clock"):
        gather(
            site.clients,
            later.head(time=NOW),
            consistency=later.tree.consistency,
            threshold=2,
            timeout=5,
        )


def test_the_newest_is_what_each_witness_cosigned(site: Site) -> None:
    site.witnesses["anna"].cosign(site.log.request(0, 3))
    site.witnesses["ben"].cosign(site.log.request(0, 8))
    newest = ask_newest(site.clients, log=site.log.id, nonce=NONCE, threshold=3, timeout=5)
    assert {name: one.size for name, one in newest.items()} == {"anna": 3, "ben": 8, "cleo": 0}
    assert newest["ben"].root == site.log.tree.root().hex()


def test_a_witness_whose_owner_went_back_to_another_history_does_not_cosign_and_proves_no_fork(
    site: Site, tmp_path: Path
) -> None:
    site.gather(threshold=3)
    memory = read_memory(tmp_path / "anna", site.log.id)
    assert memory is not None
    for size, root in ((5, "0" * 64), (7, "0" * 64)):
        directory = tmp_path / f"back at {size}"
        directory.mkdir()
        write_memory(directory, site.log.id, forget(memory, size=size, root=root, now=NOW))
        with served(
            create_witness(Witness(directory, signer("anna"), {site.log.id: site.log.public}))
        ) as url:
            site.replaced("anna", url)
            assert len(site.gather(site.log.copy().grow(size)).cosignatures) == 2
            with pytest.raises(NetworkError, match="does not co-sign"):
                site.gather(site.log.copy().grow(size + 1), threshold=3)


# -- a witness, or somebody on the way to it, that lies -----------------------------------------------------------------


def conflict(log: Log, size: int, newest: SignedHead | None, *, log_key: str = "") -> tuple[int, bytes]:
    return 409, encode_json(
        Conflict(
            type="urn:cloister:problem:witness-fork",
            title="fork",
            status=409,
            detail="fork",
            size=size,
            root="0" * 64,
            log_key=log_key or log.public.hex(),
            newest=newest,
        )
    )


def stranger(log: Log) -> tuple[int, bytes]:
    return 200, encode_json(cosign(log.head().head, signer("mallory")))


def forged(log: Log) -> tuple[int, bytes]:
    mallory = cosign(log.head().head, signer("mallory"))
    return 200, encode_json(Cosignature(key=witness_keys("anna")["anna"].text, signature=mallory.signature))


def unsigned(log: Log) -> SignedHead:
    longer = log.copy().grow(5).head()
    return SignedHead(head=longer.head, signature=bytes(64))


OTHER = Log(20, name="another log")
LIES: dict[str, Callable[[Log], tuple[int, bytes]]] = {
    "a stranger's co-signature": stranger,
    "a co-signature under another's name": forged,
    "a co-signature of another head": lambda log: (
        200,
        encode_json(cosign(log.head(5).head, signer("anna"))),
    ),
    "another witness's co-signature": lambda log: (200, encode_json(cosign(log.head().head, signer("ben")))),
    "a fork without any head": lambda log: conflict(log, 3, None),
    "a fork further on without any head": lambda log: conflict(log, 3000, None),
    "a fork below nothing": lambda log: conflict(log, -1, None),
    "a longer log that the log did not sign": lambda log: conflict(log, 13, unsigned(log)),
    "a longer log that is another": lambda log: conflict(log, 20, OTHER.head(), log_key=OTHER.public.hex()),
    "a longer log that is another, under our key": lambda log: conflict(log, 20, OTHER.head()),
    "a log key that is none": lambda log: conflict(log, 3, log.head(3), log_key="no key"),
    "no answer at all": lambda _: (500, b""),
    "a refusal that is none": lambda _: (409, b"{}"),
    "something else": lambda _: (200, b"<html>"),
    "an endless answer": lambda _: (200, b" " * 1_000_000),
    "a redirection": lambda _: (307, b""),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_lie_counts_for_nothing_and_accuses_nobody(site: Site, lie: str) -> None:
    with answering(lambda _: LIES[lie](site.log)) as url:
        site.replaced("anna", url)
        assert {one.key for one in site.gather().cosignatures} == {
            site.keys["ben"].text,
            site.keys["cleo"].text,
        }
        with pytest.raises(NetworkError, match="2 witnesses answered, and 3 must"):
            site.gather(threshold=3)


def test_a_witness_that_moves_on_with_each_answer_is_given_up(site: Site) -> None:
    asked: list[str] = []

    def answer(path: str) -> tuple[int, bytes]:
        asked.append(path)
        return conflict(site.log, len(asked), None)

    with answering(answer) as url:
        site.replaced("anna", url)
        with pytest.raises(NetworkError, match="settle"):
            site.gather(threshold=3)
    assert len(asked) < 8


def test_an_answer_that_was_recorded_before_does_not_name_the_newest(site: Site) -> None:
    site.witnesses["anna"].cosign(site.log.request(0, 3))
    old = state_newest(
        site.witnesses["anna"].memory(site.log.id),
        NewestRequest(log=site.log.id, nonce=b"o" * 32),
        signer("anna"),
    )
    site.witnesses["anna"].cosign(site.log.request(3, 8))
    with answering(lambda _: (200, encode_json(old))) as url:
        site.replaced("anna", url)
        newest = ask_newest(site.clients, log=site.log.id, nonce=NONCE, threshold=2, timeout=5)
        assert set(newest) == {"ben", "cleo"}
        with pytest.raises(NetworkError, match="another question"):
            ask_newest(site.clients, log=site.log.id, nonce=NONCE, threshold=3, timeout=5)


def test_an_address_that_is_none_is_a_witness_that_does_not_answer(site: Site) -> None:
    for url in ("ftp://127.0.0.1", "http://", "127.0.0.1:1", "http://[::1"):
        site.replaced("anna", url)
        assert len(site.gather().cosignatures) == 2
