"""A broker whose key store goes away at any moment of putting, rotating or releasing: nothing is lost, and trying again is
safe. In front of a real ``moto`` AWS KMS, at every single request; with a real PyKMIP server that is killed; with the
database's disk full or locked.
"""

from __future__ import annotations

import itertools
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import cast

import pytest
import sqlalchemy as sa

from broker_parts import (
    CHEAP,
    NOW,
    PASSPHRASE,
    SECRET,
    Attempt,
    Bench,
    Clock,
    attested,
    call,
    policy_for,
    workload,
)
from cloister.broker import tables
from cloister.broker.app import create_broker
from cloister.broker.clock import RisingClock
from cloister.broker.custody import Custody
from cloister.broker.desk import Desk
from cloister.broker.keystores import Keystore
from cloister.broker.keystores.aws import AwsCredentials, AwsKeystore
from cloister.broker.keystores.kmip import KmipKeystore
from cloister.broker.laptop import Laptop
from cloister.broker.metrics import Metrics
from cloister.broker.protocol import COOKIE, RESOURCE_PATH
from cloister.broker.session import Sessions
from cloister.broker.tables import open_database, sqlite_url
from cloister.broker.token import TokenSigner
from cloister.broker.wire import ListedKey
from cloister.errors import KeystoreError, KeystoreUnavailable
from keystore_attacks import impatient  # noqa: F401 -- a fixture for every test here
from keystore_servers import AwsFront, Unasked
from kmip_server import Identity, KmipServerProcess, TestAuthority
from vendor_services import Closed, Fault, status

CREDENTIALS = AwsCredentials(AwsFront.access_key_id, AwsFront.secret_access_key, "canary/session/token")
MORE = b"M" * 32
_numbers = itertools.count()


class StoredBench(Bench):
    """A broker in laptop mode whose repositories ``r…`` have their keys in one key store."""

    def __init__(self, directory: Path, store: Keystore) -> None:
        self.directory, self.clock = directory, Clock(NOW)
        self.repository = f"r{next(_numbers)}"
        self.path, self.other = f"{self.repository}/key/demo", f"{self.repository}/key/other"
        Laptop.create(directory, PASSPHRASE, cost=CHEAP, now=self.clock)
        self.stores, self.placed = {"there": store}, {self.repository: "there"}
        self.laptop = Laptop.open(
            directory, PASSPHRASE, stores=self.stores, placed=self.placed, now=self.clock
        )
        custody = Custody(
            open_database(sqlite_url(directory)),
            clock=RisingClock(self.clock),
            origin=None,
            stores=self.stores,
            placed=self.placed,
        )
        custody.open_by_passphrase(PASSPHRASE)
        self.sessions = Sessions()
        self.desk = Desk(custody, sessions=self.sessions, tokens=TokenSigner(build="test"), metrics=Metrics())
        self.laptop.allow(self.path, (policy_for(workload()),))

    def fill(self) -> Attempt:
        self.laptop.put(self.path, SECRET)
        self.laptop.put(self.other, MORE)
        return attested(self, workload())

    def content(self, path: str) -> bytes | None:
        read = self.laptop.state.resources.read(path)
        return None if read is None else read[1]


@pytest.fixture(scope="module")
def kms(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AwsFront]:
    with AwsFront(tmp_path_factory.mktemp("aws")) as server:
        yield server


@pytest.fixture(scope="module")
def store(kms: AwsFront) -> AwsKeystore:
    return AwsKeystore("eu-central-1", CREDENTIALS, endpoint=kms.base)


@pytest.fixture
def bench(tmp_path: Path, kms: AwsFront, store: AwsKeystore) -> StoredBench:
    kms.faults.clear()
    return StoredBench(tmp_path / "state", store)


def _keys(bench: StoredBench) -> list[ListedKey]:
    return bench.laptop.administration.keys()


def gone_after(server: AwsFront, requests: int, fault: Fault) -> None:
    """After so many requests nothing is answered any more."""
    server.faults.clear()
    server.fail(".*", *cast("list[Fault]", [None] * requests), *([fault] * 500))


FAULTS: dict[str, Callable[[], Fault]] = {
    "closed before it was done": Unasked,
    "closed after it was done": Closed,
    "overloaded": lambda: status(503),
}


def _until_it_works(
    server: AwsFront, fault: Fault, act: Callable[[], object], after: Callable[[], None]
) -> int:
    """Let the store go away after 0, 1, 2 … requests of ``act``, which is then tried again; how often it was cut short."""
    for requests in range(200):
        gone_after(server, requests, fault)
        before = len(server.requests)
        try:
            act()
        except KeystoreUnavailable as error:
            told = str(error)
            server.faults.clear()
            after()
            assert "\n" not in told
            continue
        asked = len(server.requests) - before
        server.faults.clear()
        assert asked <= requests
        return requests
    raise AssertionError("it never works")


@pytest.mark.parametrize("fault", FAULTS)
def test_the_first_put_of_a_repository_is_whole_or_not_at_all(
    bench: StoredBench, kms: AwsFront, fault: str
) -> None:
    def after() -> None:
        assert bench.content(bench.path) is None
        assert bench.told("resource") == []

    cut = _until_it_works(kms, FAULTS[fault](), lambda: bench.laptop.put(bench.path, SECRET), after)
    assert cut >= 3
    assert bench.content(bench.path) == SECRET
    assert [one.reason for one in bench.told("resource")] == ["version 1 put"]
    assert [one.version for one in _keys(bench)] == [1]
    Laptop.open(bench.directory, PASSPHRASE, stores=bench.stores, placed=bench.placed, now=bench.clock)


@pytest.mark.parametrize("fault", FAULTS)
def test_a_put_keeps_the_old_content_until_the_new_one_is_stored(
    bench: StoredBench, kms: AwsFront, fault: str
) -> None:
    attempt = bench.fill()

    def after() -> None:
        assert attempt.get(bench.path) == SECRET
        assert bench.laptop.state.resources.version(bench.path) == 1

    cut = _until_it_works(kms, FAULTS[fault](), lambda: bench.laptop.put(bench.path, b"n" * 32), after)
    assert cut >= 1
    assert attempt.get(bench.path) == b"n" * 32


@pytest.mark.parametrize("fault", ["closed before it was done", "closed after it was done"])
def test_a_rotation_that_is_cut_short_loses_nothing_and_is_finished_by_the_next(
    bench: StoredBench, kms: AwsFront, fault: str
) -> None:
    attempt = bench.fill()

    def after() -> None:
        assert attempt.get(bench.path) == SECRET
        assert bench.content(bench.other) == MORE
        states = [one.state for one in _keys(bench)]
        assert states.count("active") == 1

    cut = _until_it_works(kms, FAULTS[fault](), lambda: bench.laptop.rotate_key(bench.repository), after)
    assert cut >= 4
    after()
    # Everything is under the newest version now: all the older ones can be shredded.
    keys = _keys(bench)
    for version in range(1, len(keys)):
        bench.laptop.destroy_key(bench.repository, version)
    assert attempt.get(bench.path) == SECRET
    assert bench.content(bench.other) == MORE


@pytest.mark.parametrize("fault", FAULTS)
def test_a_release_without_its_key_store_is_refused_counts_nothing_and_works_again(
    bench: StoredBench, kms: AwsFront, fault: str
) -> None:
    attempt = bench.fill()
    bench.laptop.allow(bench.path, (policy_for(workload()),), releases=1)

    def after() -> None:
        released = {one.uri: one.released for one in bench.laptop.administration.listing()}
        assert released[f"kbs:///{bench.path}"] == 0

    got: list[bytes] = []
    cut = _until_it_works(kms, FAULTS[fault](), lambda: got.append(attempt.get(bench.path)), after)
    assert cut >= 1
    assert got == [SECRET]
    assert [one.outcome for one in bench.told("release")] == ["refused"] * cut + ["accepted"]


def test_a_workload_is_told_that_a_store_does_not_answer_and_nothing_else(
    bench: StoredBench, kms: AwsFront
) -> None:
    attempt = bench.fill()
    gone_after(kms, 0, Unasked())
    reply = call(
        create_broker(bench.desk),
        "GET",
        f"{RESOURCE_PATH}{bench.path}".encode(),
        headers={"cookie": f"{COOKIE}={attempt.session}"},
    )
    assert (reply.status, reply.problem, reply.headers["retry-after"]) == (503, "unavailable", "5")
    assert b"127.0.0.1" not in reply.body
    reasons = "".join(one.reason for one in bench.entries())
    for canary in (AwsFront.access_key_id, AwsFront.secret_access_key, "canary"):
        assert canary not in reply.body.decode()
        assert canary not in reasons


def test_a_key_that_was_destroyed_in_its_store_ends_what_it_wrapped_and_nothing_else(
    bench: StoredBench, store: AwsKeystore
) -> None:
    """An owner of the store can end it without the broker; what the broker holds itself is not touched."""
    attempt = bench.fill()
    bench.laptop.put("mine/key/local", b"l" * 32)
    store.destroy(bench.repository, 1)
    with pytest.raises(KeystoreError) as caught:
        attempt.get(bench.path)
    assert not isinstance(caught.value, KeystoreUnavailable)
    assert bench.content("mine/key/local") == b"l" * 32


def test_the_wrapped_key_of_another_repository_in_the_same_store_opens_nothing(
    bench: StoredBench, tmp_path: Path, store: AwsKeystore
) -> None:
    attempt = bench.fill()
    bench.execute(
        f"UPDATE records SET wrapped = (SELECT wrapped FROM records WHERE name = '{bench.other}' AND kind = 'resource')"  # noqa: S608 -- our own name
        f" WHERE kind = 'resource' AND name = '{bench.path}'"
    )
    with pytest.raises(KeystoreError):
        attempt.get(bench.path)


# -- a real KMIP server that is killed -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def kmip(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[KmipServerProcess, KmipKeystore]]:
    directory = tmp_path_factory.mktemp("kmip")
    authority = TestAuthority(directory / "ca", "ca")
    server = KmipServerProcess(directory / "server", authority, authority.issue("server", server=True))
    server.start()
    client: Identity = authority.issue("broker")
    store = KmipKeystore(
        "127.0.0.1",
        server.port,
        certificate=client.certificate,
        key=client.key,
        ca=authority.file,
        timeout=20.0,
    )
    yield server, store
    store.close()
    server.kill()


def test_a_killed_kmip_server_comes_back_with_everything(
    tmp_path: Path, kmip: tuple[KmipServerProcess, KmipKeystore]
) -> None:
    server, store = kmip
    bench = StoredBench(tmp_path / "state", store)
    attempt = bench.fill()
    assert attempt.get(bench.path) == SECRET
    acts: list[Callable[[], object]] = [
        lambda: bench.laptop.put(bench.path, b"n" * 32),
        lambda: bench.laptop.put(f"{bench.repository}/key/new", b"n" * 32),
        lambda: bench.laptop.rotate_key(bench.repository),
        lambda: bench.laptop.destroy_key(bench.repository, 1),
        lambda: attempt.get(bench.path),
    ]
    server.kill()
    for act in acts:
        with pytest.raises(KeystoreUnavailable):
            act()
    server.start()
    assert (attempt.get(bench.path), bench.content(bench.other)) == (SECRET, MORE)
    bench.laptop.put(bench.path, b"n" * 32)
    assert bench.laptop.rotate_key(bench.repository).rewrapped == 2
    bench.laptop.destroy_key(bench.repository, 1)
    assert (attempt.get(bench.path), bench.content(bench.other)) == (b"n" * 32, MORE)


# -- the broker's own database --------------------------------------------------------------------------------------


def test_a_database_that_somebody_locks_is_unavailable_and_then_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tables, "BUSY_SECONDS", 0.2)
    bench = Bench(tmp_path / "state")
    bench.put()
    bench.allow(workload())
    attempt = attested(bench, workload())
    with closing(sqlite3.connect(bench.directory / tables.DATABASE, isolation_level=None)) as held:
        held.execute("BEGIN IMMEDIATE")
        with pytest.raises(KeystoreUnavailable):
            attempt.get()
        with pytest.raises(KeystoreUnavailable):
            bench.put(content=b"n" * 32)
        held.execute("ROLLBACK")
    assert attempt.get() == SECRET


def test_a_disk_that_is_full_writes_nothing_and_releases_nothing(tmp_path: Path) -> None:
    bench = Bench(tmp_path / "state")
    bench.put()
    bench.allow(workload())
    attempt = attested(bench, workload())
    engine = bench.desk.custody._engine
    with engine.connect() as connection:
        pages = int(connection.exec_driver_sql("PRAGMA page_count").scalar() or 0)
    limited = []

    def limit(connection: sqlite3.Connection, *_: object) -> None:
        limited.append(connection.execute(f"PRAGMA max_page_count={pages}").fetchone())

    engine.dispose()
    sa.event.listen(engine, "connect", limit)
    outcomes = []
    for _ in range(40):  # what is left of the last page takes a few entries
        try:
            outcomes.append(attempt.get())
        except KeystoreUnavailable as error:
            outcomes.append(error.what.encode())
            break
    assert limited
    assert b"does not answer" in outcomes[-1]
    sa.event.remove(engine, "connect", limit)
    engine.dispose()
    assert attempt.get() == SECRET
    numbers = [one.number for one in bench.entries()]
    assert numbers == list(range(len(numbers)))
