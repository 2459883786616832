"""Two replicas on one PostgreSQL, as operators run them: `cloister broker serve --database` in processes of their own, the
second opened by the first; and what happens when one of them, or the database, is killed in the middle.
"""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import httpx2
import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from msgspec import structs

import manifest_parts
from broker_parts import CHEAP, PASSPHRASE, all_entries, owners_manifest
from cloister.appraisal.draft import draft_policy
from cloister.attester.simulated import SimulatedPlatform, SimulatedTee
from cloister.broker import tables
from cloister.broker.audit import Entry, Fact
from cloister.broker.client import BrokerKeys
from cloister.broker.clock import RisingClock
from cloister.broker.configuration import broker_events, owners_configuration
from cloister.broker.custody import Custody
from cloister.broker.laptop import Laptop, create_laptop_state
from cloister.broker.owner_client import OwnerClient
from cloister.broker.service import STATE_KEY_PATH
from cloister.broker.state import read_document
from cloister.broker.state_key import Share
from cloister.channel.transport import connect
from cloister.errors import (
    KeystoreError,
    KeystoreUnavailable,
    NetworkError,
    ReleaseRefused,
    UsageError,
)
from cloister.manifest.manifest import Manifest, Workload, origin
from cloister.manifest.rule import Rule
from cloister.manifest.signed import encode_signed
from postgres import Postgres, postgres_server

CLIENTS = 40
ALLOWED = 25
SECRET = bytes(range(32))
CLOISTER = Path(sys.executable).parent / "cloister"


_engines: list[sa.Engine] = []


def opened(url: str) -> sa.Engine:
    """An engine of its own, as another process has one; closed after the test."""
    engine = tables.open_database(url)
    _engines.append(engine)
    return engine


def wall() -> int:
    return int(time.time())


def policy_of(tee: SimulatedTee, platform: SimulatedPlatform) -> str:
    return draft_policy(
        tee="tdx",
        measurements=tee.measurements,
        events=tee.launch,
        min_tcb_evaluation_number=1,
        simulated_root=platform.root_sha256,
    )


@dataclass
class Cluster:
    """Replicas of one broker, and what their owners and workloads have at hand."""

    directory: Path
    database: str
    platform: SimulatedPlatform = field(init=False)
    genesis: Manifest = field(init=False)
    shares: dict[str, Share] = field(default_factory=dict)
    processes: dict[str, subprocess.Popen[str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.platform = SimulatedPlatform.create(self.directory / "tee", now=wall())
        self.workload = self.platform.tee("tdx")
        plain = owners_manifest(
            workloads={"inference": Workload(policies=(policy_of(self.workload, self.platform),))}
        )
        events = broker_events(owners_configuration(origin(plain)))
        self.policy = policy_of(self.platform.tee("tdx", launch=events), self.platform)
        (self.directory / "broker.toml").write_text(self.policy)
        self.genesis = structs.replace(plain, broker=(self.policy,))
        signed = manifest_parts.signed(self.genesis, *self.genesis.owners)
        (self.directory / "v1.json").write_bytes(encode_signed(signed))

    def start(self, *, peer: str | None = None) -> str:
        """One more replica; its URL."""
        command = [
            *(str(CLOISTER), "broker", "serve", "--database", self.database, "--json"),
            *("--manifest", str(self.directory / "v1.json"), "--simulated-tee", str(self.directory / "tee")),
            *("--port", "0", "--rate", "10000", "--burst", "10000"),
            *(() if peer is None else ("--peer", peer)),
        ]
        with (self.directory / f"log{len(self.processes)}").open("w") as log:
            process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True)
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line:
            process.stdout.close()
            pytest.fail(f"{process.wait(20)}: {Path(log.name).read_text()}")
        url = str(json.loads(line)["listening"])
        self.processes[url] = process
        return url

    def kill(self, url: str) -> None:
        """As kill -9 does, or a host that loses power."""
        process = self.processes[url]
        process.kill()
        process.wait(20)
        assert process.stdout is not None
        process.stdout.close()

    def owner(self, url: str, name: str = "alice") -> OwnerClient:
        return OwnerClient(
            connect(url, policy=self.directory / "broker.toml"), signer=manifest_parts.owner(name)
        )

    def keys(self, url: str, tee: SimulatedTee | None = None) -> BrokerKeys:
        return BrokerKeys(url, policy=self.directory / "broker.toml", attester=tee or self.workload)

    def put(self, url: str, path: str, content: bytes = SECRET) -> None:
        with self.owner(url) as alice:
            alice.submit_order(alice.order("put", path, content), content)

    def allow(self, url: str, path: str, *, releases: int | None = None) -> None:
        with self.owner(url) as alice:
            following = alice.next("rule", path)
            rule = Rule(
                application=self.genesis.application,
                resource=path,
                version=following.version,
                previous=following.previous,
                workloads={"inference": "manifest"},
                policies=(),
                purposes="any",
                window="always",
                releases="unlimited" if releases is None else releases,
            )
            alice.submit_rule(manifest_parts.signed(rule, "alice", "bob"))

    def verified(self) -> list[Entry]:
        """The log as a replica that starts now reads and checks it, with all of the state."""
        custody = Custody(opened(self.database), clock=RisingClock(wall), origin=origin(self.genesis))
        for share in self.shares.values():
            custody.offer(share)
        return all_entries(custody.state.journal)

    def told(self, path: str) -> list[str]:
        """What the log says of accepted releases of ``path``: their numbers."""
        return [
            entry.reason
            for entry in self.verified()
            if (entry.event, entry.outcome, entry.resource) == ("release", "accepted", f"kbs:///{path}")
        ]


@pytest.fixture(autouse=True)
def _connections_are_closed() -> Iterator[None]:
    yield
    while _engines:
        _engines.pop().dispose()


@pytest.fixture(scope="module")
def server() -> Iterator[Postgres]:
    with postgres_server() as running:
        yield running


@pytest.fixture(scope="module")
def cluster(server: Postgres, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """One replica that made the state, whose owners have their shares."""
    made = Cluster(tmp_path_factory.mktemp("cluster"), server.create("cluster"))
    try:
        first = made.start()
        for name in ("alice", "bob"):
            with made.owner(first, name) as client:
                made.shares[name] = client.share()
                client.keep_share(made.shares[name])
        yield made
    finally:
        for process in made.processes.values():
            process.send_signal(signal.SIGTERM)
        for process in made.processes.values():
            process.wait(20)
            assert process.stdout is not None
            process.stdout.close()


@pytest.fixture(scope="module")
def first(cluster: Cluster) -> str:
    return next(iter(cluster.processes))


@pytest.fixture(scope="module")
def second(cluster: Cluster, first: str) -> str:
    return cluster.start(peer=first)


# -- replicas -----------------------------------------------------------------------------------------------------------


def test_a_replica_gets_the_states_key_from_its_peer_and_nobody_else_does(
    cluster: Cluster, first: str, second: str
) -> None:
    with cluster.owner(second) as alice:
        status = alice.status()
    assert status.open
    assert not status.laptop
    reasons = [entry.reason for entry in cluster.verified() if entry.event == "start"]
    assert "opened by a peer broker" in reasons
    assert cluster.told(STATE_KEY_PATH) == [""]

    with cluster.keys(first) as keys, pytest.raises(ReleaseRefused):  # a workload is no broker
        keys.resource(f"kbs:///{STATE_KEY_PATH}")
    assert cluster.told(STATE_KEY_PATH) == [""]


def test_a_replica_of_other_owners_gets_nothing_from_a_peer(cluster: Cluster, first: str) -> None:
    events = broker_events(owners_configuration("11" * 32))
    with (
        cluster.keys(first, cluster.platform.tee("tdx", launch=events)) as keys,
        pytest.raises(ReleaseRefused),
    ):
        keys.resource(f"kbs:///{STATE_KEY_PATH}")
    assert cluster.told(STATE_KEY_PATH) == [""]


def test_what_is_written_on_one_replica_holds_on_the_other_at_the_next_request(
    cluster: Cluster, first: str, second: str
) -> None:
    path, uri = "models/key/seen", "kbs:///models/key/seen"
    with cluster.keys(second) as keys:
        with pytest.raises(ReleaseRefused, match="no-rule"):
            keys.key(uri)
        cluster.put(first, path)
        cluster.allow(first, path)
        assert keys.key(uri) == SECRET
        with cluster.owner(first) as alice, cluster.owner(second, "bob") as bob:
            again = alice.order("put", path, b"n" * 32)
            both = structs.replace(
                again, signatures=(*again.signatures, *bob.order("put", path, b"n" * 32).signatures)
            )
            bob.submit_order(both, b"n" * 32)
        with cluster.keys(first) as others:
            assert others.key(uri) == b"n" * 32
        assert keys.key(uri) == b"n" * 32
        cluster.allow(first, path, releases=1)
        assert keys.key(uri) == b"n" * 32
        with cluster.keys(first) as others, pytest.raises(ReleaseRefused, match="none-left"):
            others.key(uri)


def test_forty_clients_over_two_replicas_get_a_counted_key_exactly_as_often_as_allowed(
    cluster: Cluster, first: str, second: str
) -> None:
    path, uri = "models/key/counted", "kbs:///models/key/counted"
    cluster.put(first, path)
    cluster.allow(second, path, releases=ALLOWED)
    start = threading.Barrier(CLIENTS)

    def one(number: int) -> str:
        with cluster.keys((first, second)[number % 2]) as keys:
            start.wait(60)
            try:
                return "released" if keys.key(uri) == SECRET else "wrong"
            except ReleaseRefused as error:
                return "none left" if "none-left" in error.what else error.what

    with ThreadPoolExecutor(CLIENTS) as pool:
        ended = Counter(pool.map(one, range(CLIENTS)))
    assert ended == {"released": ALLOWED, "none left": CLIENTS - ALLOWED}
    assert cluster.told(path) == [f"release {number}" for number in range(1, ALLOWED + 1)]


# -- things that break ----------------------------------------------------------------------------------------------------


def test_a_replica_killed_between_decision_and_commit_leaves_nothing_and_the_other_goes_on(
    server: Postgres, cluster: Cluster, first: str
) -> None:
    path, uri = "models/key/killed", "kbs:///models/key/killed"
    cluster.put(first, path)
    cluster.allow(first, path, releases=1)
    third = cluster.start(peer=first)
    with (
        server.connect("cluster", autocommit=False) as lock,
        ThreadPoolExecutor(1) as pool,
        cluster.keys(third) as keys,
    ):
        with contextlib.suppress(ReleaseRefused):
            keys.key("kbs:///models/key/none")  # it is attested now
        lock.execute("LOCK TABLE entries IN SHARE MODE")
        asked = pool.submit(keys.key, uri)
        server.until_blocked("cluster", "entries")  # rule read, counter up, entry not yet written
        cluster.kill(third)
        lock.rollback()
        with pytest.raises(NetworkError):
            asked.result(30)
    assert cluster.told(path) == []
    with cluster.keys(first) as keys:
        assert keys.key(uri) == SECRET
        with pytest.raises(ReleaseRefused, match="none-left"):
            keys.key(uri)
    assert cluster.told(path) == ["release 1"]


def test_a_database_that_is_killed_is_an_error_that_passes_and_no_acknowledged_release_is_lost(
    server: Postgres, cluster: Cluster, first: str, second: str
) -> None:
    path, uri = "models/key/restart", "kbs:///models/key/restart"
    cluster.put(first, path)
    cluster.allow(first, path, releases=100_000)
    over = threading.Event()
    got, errors = [0] * 8, [Counter[str]() for _ in range(8)]

    def client(number: int) -> None:
        with cluster.keys((first, second)[number % 2]) as keys:
            while not over.is_set():
                try:
                    assert keys.key(uri) == SECRET
                    got[number] += 1
                except NetworkError as error:
                    errors[number][error.what] += 1
                    time.sleep(0.02)

    def everybody(happened: Callable[[int], object]) -> None:
        until = time.monotonic() + 60
        while not all(happened(number) for number in range(8)):
            assert time.monotonic() < until
            time.sleep(0.05)

    with ThreadPoolExecutor(8) as pool:
        asked = [pool.submit(client, number) for number in range(8)]
        try:
            everybody(lambda number: got[number])
            server.stop("immediate")
            assert httpx2.get(f"{first}/readyz", trust_env=False).status_code == 503
            everybody(lambda number: errors[number])
            then = list(got)
            server.start()
            everybody(lambda number: got[number] > then[number])
        finally:
            over.set()
        for one in asked:
            one.result(60)
    for counted in errors:
        assert set(counted) == {
            "kbs:///models/key/restart: something that the broker needs does not answer (unavailable)"
        }
    with cluster.keys(second) as keys:
        assert keys.key(uri) == SECRET
    numbers = cluster.told(path)
    assert numbers == [f"release {number}" for number in range(1, len(numbers) + 1)]
    # What was committed when the database died may not have been answered; what was answered is there.
    assert 0 <= len(numbers) - (sum(got) + 1) <= len(got)
    assert httpx2.get(f"{first}/readyz", trust_env=False).status_code == 200


def test_two_brokers_that_make_a_state_at_once_make_one(server: Postgres) -> None:
    url = server.create("made_at_once")
    start = threading.Barrier(2)

    def make(_number: int) -> str:
        engine = opened(url)
        start.wait(20)
        try:
            create_laptop_state(engine, PASSPHRASE, cost=CHEAP)
        except (UsageError, KeystoreError) as error:
            return type(error).__name__
        return "made"

    with ThreadPoolExecutor(2) as pool:
        ended = list(pool.map(make, range(2)))
    assert ended.count("made") == 1
    laptop = Laptop.open_engine(opened(url), PASSPHRASE)
    events = [entry.event for entry in all_entries(laptop.state.journal)]
    assert events[0] == "genesis"
    assert events.count("genesis") == 1


def test_a_lock_that_somebody_keeps_is_an_error_and_not_a_wait_for_ever(
    server: Postgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tables, "BUSY_SECONDS", 1)
    url = server.create("kept_lock")
    engine = opened(url)
    create_laptop_state(engine, PASSPHRASE, cost=CHEAP)
    laptop = Laptop.open_engine(engine, PASSPHRASE)
    before = laptop.state.journal.size
    with server.connect("kept_lock", autocommit=False) as lock:
        lock.execute("SELECT * FROM head FOR UPDATE")
        with pytest.raises(KeystoreUnavailable, match="does not answer"):
            laptop.put("models/key/demo", SECRET)
    assert laptop.state.journal.size == before
    assert laptop.put("models/key/demo", SECRET).version == 1


def test_a_replica_that_stands_still_in_a_transaction_is_cut_off_and_the_others_go_on(
    server: Postgres,
) -> None:
    url = server.create("frozen")
    engine = opened(url)
    tables.migrate(engine)
    with engine.connect() as frozen, engine.connect() as other:
        asked = sa.text(
            "SELECT setting::int / 1000 FROM pg_settings WHERE name = 'idle_in_transaction_session_timeout'"
        )
        assert 0 < frozen.execute(asked).scalar_one() <= tables.IDLE_SECONDS
        frozen.execute(sa.text("SET idle_in_transaction_session_timeout = '300ms'"))
        frozen.execute(sa.text("LOCK TABLE head IN ACCESS EXCLUSIVE MODE"))
        other.execute(sa.text("LOCK TABLE head IN ACCESS EXCLUSIVE MODE"))  # waits until the first is cut off
        with pytest.raises(sa.exc.DBAPIError):
            frozen.execute(sa.text("SELECT 1"))
        frozen.invalidate()


# -- the schema -----------------------------------------------------------------------------------------------------------

Database = Callable[[str], sa.Engine]


@pytest.fixture(params=["postgresql", "sqlite"])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> Database:
    """Makes an empty database of this name."""
    if request.param == "sqlite":
        return lambda name: opened(f"sqlite+pysqlite:///{tmp_path}/{name}")
    running: Postgres = request.getfixturevalue("server")
    return lambda name: opened(running.create(f"{name}_{time.monotonic_ns()}"))


def test_the_migrations_lead_from_nothing_to_exactly_the_tables_of_this_release(database: Database) -> None:
    migrated, made = database("migrated"), database("made")
    tables.migrate(migrated)
    tables.migrate(migrated)  # again: nothing to do
    tables.metadata.create_all(made)
    assert tables.schema_version(migrated) == tables.SCHEMA
    with tables.reading(migrated) as connection:
        context = MigrationContext.configure(
            connection, opts={"compare_type": True, "compare_server_default": True}
        )
        assert compare_metadata(context, tables.metadata) == []
    # Alembic compares no check constraints: the whole of what the databases say of themselves, then.
    assert described(migrated) == described(made)


def described(engine: sa.Engine) -> dict[str, object]:
    with tables.reading(engine) as connection:
        seen = sa.inspect(connection)
        return {
            name: [
                [{**column, "type": str(column["type"])} for column in seen.get_columns(name)],
                seen.get_pk_constraint(name),
                sorted(map(str, seen.get_indexes(name))),
                sorted(map(str, seen.get_unique_constraints(name))),
                sorted(map(str, seen.get_check_constraints(name))),
                seen.get_foreign_keys(name),
            ]
            for name in seen.get_table_names()
            if name != "alembic_version"
        }


def test_replicas_that_start_at_once_migrate_once(server: Postgres) -> None:
    url = server.create("migrated_at_once")
    start = threading.Barrier(4)

    def migrate(_number: int) -> None:
        engine = opened(url)
        start.wait(20)
        tables.migrate(engine)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(migrate, range(4)))
    assert tables.schema_version(opened(url)) == tables.SCHEMA


def test_a_state_of_a_newer_release_is_refused_and_not_touched(database: Database) -> None:
    engine = database("newer")
    create_laptop_state(engine, PASSPHRASE, cost=CHEAP)
    with tables.writing(engine) as connection:
        connection.execute(sa.text("UPDATE alembic_version SET version_num = '0002'"))
    custody = Custody(engine, clock=RisingClock(wall), origin=None)
    for attempt in (
        lambda: read_document(engine),
        lambda: tables.migrate(engine),
        lambda: custody.open_by_passphrase(PASSPHRASE),
        lambda: Laptop.open_engine(engine, PASSPHRASE),
    ):
        with pytest.raises(UsageError, match="schema 0002, newer than this release's 0001"):
            attempt()
    assert tables.schema_version(engine) == "0002"


def test_a_journal_of_two_processes_is_one_log(server: Postgres) -> None:
    url = server.create("one_log")
    create_laptop_state(opened(url), PASSPHRASE, cost=CHEAP)
    both = [Laptop.open_engine(opened(url), PASSPHRASE).state.journal for _ in range(2)]
    size = both[0].size
    fact = Fact("unlock", "done", reason="together")
    with ThreadPoolExecutor(8) as pool:
        list(
            pool.map(
                lambda number: both[number % 2].transact(lambda transaction: transaction.log(fact)),
                range(200),
            )
        )
    for journal in both:
        assert len(all_entries(journal)) == size + 200
    assert both[0].root(size + 200) == both[1].root(size + 200)
