"""Backups: taken while the broker works, restored elsewhere, carried from one database to the other, cut and damaged; and
what witnesses say to a restored state.
"""

from __future__ import annotations

import base64
import json
import random
import stat
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from starlette.types import ASGIApp, Receive, Scope, Send
from typer.testing import CliRunner

import manifest_parts
from broker_parts import (
    CHEAP,
    NOW,
    PASSPHRASE,
    PATH,
    SECRET,
    Bench,
    OwnersBench,
    all_entries,
    attested,
    owners_manifest,
    served,
    workload,
)
from cloister.broker import custody as custody_module
from cloister.broker import tables
from cloister.broker.backup import back_up, restore
from cloister.broker.clock import RisingClock
from cloister.broker.custody import Custody
from cloister.broker.laptop import Laptop, create_laptop_state
from cloister.broker.tree_head import RollbackFound, log_id
from cloister.broker.witness_app import create_witness
from cloister.broker.witness_memory import Witness
from cloister.cli import broker as broker_commands
from cloister.cli import witness as witness_commands
from cloister.errors import BrokerError, CloisterError, KeystoreError, UsageError
from cloister.manifest.manifest import Witnesses, origin
from postgres import Postgres, postgres_server

Empty = Callable[[], sa.Engine]


def open_laptop(engine: sa.Engine) -> Laptop:
    return Laptop.open_engine(engine, PASSPHRASE, now=lambda: NOW)


@pytest.fixture(scope="module")
def server() -> Iterator[Postgres]:
    with postgres_server() as running:
        yield running


@pytest.fixture
def engines(tmp_path: Path) -> Iterator[Callable[[str], sa.Engine]]:
    """Opens engines, and closes them after the test."""
    opened: list[sa.Engine] = []

    def open_one(url: str) -> sa.Engine:
        opened.append(tables.open_database(url))
        return opened[-1]

    yield open_one
    for engine in opened:
        engine.dispose()


@pytest.fixture
def sqlite(tmp_path: Path, engines: Callable[[str], sa.Engine]) -> Empty:
    numbers = iter(range(1000))
    return lambda: engines(f"sqlite+pysqlite:///{tmp_path}/elsewhere{next(numbers)}")


@pytest.fixture(params=["sqlite", "postgresql"])
def empty(request: pytest.FixtureRequest, engines: Callable[[str], sa.Engine]) -> Empty:
    """Makes empty databases of one kind."""
    if request.param == "sqlite":
        made: Empty = request.getfixturevalue("sqlite")
        return made
    running: Postgres = request.getfixturevalue("server")
    return lambda: engines(running.create(f"empty_{random.getrandbits(64)}"))


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    """A state with something of everything: two resources, one of them destroyed, a counted rule, evidence."""
    made = Bench(tmp_path / "state")
    tee = workload()
    made.put()
    made.put("models/key/gone")
    made.laptop.destroy("models/key/gone")
    made.allow(tee, releases=5)
    attempt = attested(made, tee)
    assert attempt.get() == SECRET
    made.laptop.rotate_key("models")
    return made


def engine_of(bench: Bench | OwnersBench) -> sa.Engine:
    return tables.open_database(tables.sqlite_url(bench.directory))


def content(engine: sa.Engine) -> dict[str, list[Any]]:
    """Every row of every table."""
    with tables.reading(engine) as connection:
        return {
            table.name: sorted((tuple(row) for row in connection.execute(sa.select(table))), key=repr)
            for table in tables.metadata.sorted_tables
        }


def test_a_backup_that_is_taken_while_the_broker_works_is_one_moment_of_it(
    empty: Empty, tmp_path: Path
) -> None:
    engine = empty()
    create_laptop_state(engine, PASSPHRASE, cost=CHEAP, now=lambda: NOW)
    laptop = open_laptop(engine)
    over = threading.Event()

    def work(number: int) -> None:
        own = open_laptop(engine)  # another process, as far as the database knows
        for turn in range(10_000):
            if over.is_set():
                return
            own.put(f"models/key/{number}-{turn % 3}", f"{number} {turn}".encode())

    laptop.put("models/key/first", b"there from the beginning")
    threads = [threading.Thread(target=work, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    try:
        sizes = [laptop.state.journal.size]
        for number in range(3):
            while (size := len(all_entries(laptop.state.journal))) < sizes[-1] + 8:
                pass
            sizes.append(size)
            back_up(engine, tmp_path / f"backup{number}")
    finally:
        over.set()
        for thread in threads:
            thread.join()
    whole = all_entries(laptop.state.journal)
    for number in range(3):
        elsewhere = empty()
        restore(elsewhere, tmp_path / f"backup{number}")
        restored = open_laptop(elsewhere)  # checks log, state tree and head against each other
        entries = all_entries(restored.state.journal)
        assert sizes[number + 1] <= len(entries) <= len(whole)
        assert entries == whole[: len(entries)]
        assert restored.state.resources.read("models/key/first") == (1, b"there from the beginning")
        for path in restored.state.journal.names("resource"):
            assert restored.state.resources.read(path) is not None
        restored.put("models/key/after", b"it goes on")


def test_a_state_goes_from_sqlite_to_postgresql_and_back_and_is_the_same(
    bench: Bench, server: Postgres, engines: Callable[[str], sa.Engine], sqlite: Empty, tmp_path: Path
) -> None:
    first, there, back = engine_of(bench), engines(server.create("moved")), sqlite()
    rows = back_up(first, tmp_path / "one")
    assert restore(there, tmp_path / "one") == rows
    assert back_up(there, tmp_path / "two") == rows
    assert restore(back, tmp_path / "two") == rows
    first_lines, second_lines = ((tmp_path / name).read_bytes().splitlines() for name in ("one", "two"))
    assert sorted(first_lines) == sorted(second_lines)
    assert content(first) == content(there) == content(back)
    for engine in (there, back):
        laptop = open_laptop(engine)
        assert laptop.state.resources.read(PATH) == (1, SECRET)
        assert all_entries(laptop.state.journal) == bench.entries()
    first.dispose()


def test_the_commands_back_up_and_restore_and_never_overwrite(bench: Bench, tmp_path: Path) -> None:
    def run(*words: object) -> tuple[int, str]:
        result = CliRunner().invoke(broker_commands.app, [str(word) for word in words])
        return result.exit_code, result.output

    file, elsewhere = tmp_path / "backup", tmp_path / "elsewhere"
    assert run("backup", "--state", bench.directory, "--out", file)[0] == 0
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    before = file.read_bytes()
    assert run("backup", "--state", bench.directory, "--out", file)[0]
    assert file.read_bytes() == before
    assert run("restore", file, "--state", elsewhere)[0] == 0
    assert stat.S_IMODE((elsewhere / tables.DATABASE).stat().st_mode) == 0o600
    assert Laptop.open(elsewhere, PASSPHRASE).state.resources.read(PATH) == (1, SECRET)
    assert run("restore", file, "--state", elsewhere)[0]
    assert run("restore", file, "--state", bench.directory)[0]
    assert Laptop.open(elsewhere, PASSPHRASE).state.resources.read(PATH) == (1, SECRET)


def test_a_backup_holds_no_secret_in_the_clear(bench: Bench, tmp_path: Path) -> None:
    back_up(engine_of(bench), tmp_path / "backup")
    data = (tmp_path / "backup").read_bytes()
    key = bench.laptop.state.key_for_peer()
    for secret in (SECRET, PASSPHRASE, key):
        for form in (secret, secret.hex().encode(), base64.b64encode(secret).rstrip(b"=")):
            assert form not in data
            for line in data.splitlines():
                for value in json.loads(line).get("row", ()):
                    if isinstance(value, str):
                        assert form not in value.encode()
                        assert form not in decoded(value)


def decoded(value: str) -> bytes:
    try:
        return base64.b64decode(value, validate=True)
    except ValueError:
        return b""


# -- damage ---------------------------------------------------------------------------------------------------------------


def edited(lines: list[bytes], number: int, change: Callable[[dict[str, Any]], None]) -> list[bytes]:
    document = json.loads(lines[number])
    change(document)
    return [
        *lines[:number],
        json.dumps(document, separators=(",", ":"), sort_keys=True).encode(),
        *lines[number + 1 :],
    ]


def row_of(lines: list[bytes], table: str) -> int:
    return next(number for number, line in enumerate(lines) if json.loads(line).get("table") == table)


def value(table: str, column: int, new: Any) -> Callable[[list[bytes]], list[bytes]]:
    def damage(lines: list[bytes]) -> list[bytes]:
        return edited(lines, row_of(lines, table), lambda row: row["row"].__setitem__(column, new))

    return damage


DAMAGES: dict[str, Callable[[list[bytes]], list[bytes]]] = {
    "nothing at all": lambda lines: [],
    "only the opening": lambda lines: lines[:1],
    "without the opening": lambda lines: lines[1:],
    "without the closing": lambda lines: lines[:-1],
    "the opening twice": lambda lines: [lines[0], *lines],
    "the closing twice": lambda lines: [*lines, lines[-1]],
    "a row after the closing": lambda lines: [*lines, lines[1]],
    "a row left out": lambda lines: [*lines[:3], *lines[4:]],
    "a row twice": lambda lines: [*lines[:3], lines[2], *lines[3:]],
    "a row twice, counted": lambda lines: recounted([*lines[:3], lines[2], *lines[3:]]),
    "a blank line": lambda lines: [*lines[:3], b"", *lines[3:]],
    "a line of something else": lambda lines: [*lines[:3], b'{"part":"other"}', *lines[3:]],
    "another schema": lambda lines: edited(lines, 0, lambda opening: opening.update(schema="0002")),
    "another format": lambda lines: edited(lines, 0, lambda opening: opening.update(format="other")),
    "a table that is not there": lambda lines: edited(
        lines, 2, lambda row: row.update(table="alembic_version")
    ),
    "a row too short": lambda lines: edited(lines, row_of(lines, "records"), lambda row: row["row"].pop()),
    "a row too long": lambda lines: edited(lines, row_of(lines, "records"), lambda row: row["row"].append(1)),
    "a field too many": lambda lines: edited(lines, 2, lambda row: row.update(more=1)),
    "a number as a text": value("entries", 0, "0"),
    "a number with a fraction": value("entries", 0, 0.5),
    "a number that no column holds": value("records", 3, 1 << 63),
    "a truth in place of a number": value("entries", 0, True),
    "nothing in place of a number": value("entries", 0, None),
    "bytes that are not base64": value("entries", 1, "!!"),
    "bytes that are a list": value("entries", 1, [1, 2]),
    "a text that is a number": value("records", 0, 5),
}


def recounted(lines: list[bytes]) -> list[bytes]:
    return edited(lines, len(lines) - 1, lambda closing: closing.update(rows=len(lines) - 2))


def assert_nothing_was_restored(engine: sa.Engine) -> None:
    assert not tables.exists(engine)
    assert not any(content(engine).values())


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_backup_restores_nothing(damage: str, bench: Bench, empty: Empty, tmp_path: Path) -> None:
    back_up(engine_of(bench), tmp_path / "backup")
    lines = (tmp_path / "backup").read_bytes().splitlines()
    (tmp_path / "damaged").write_bytes(b"".join(line + b"\n" for line in DAMAGES[damage](lines)))
    engine = empty()
    with pytest.raises((UsageError, KeystoreError)):
        restore(engine, tmp_path / "damaged")
    assert_nothing_was_restored(engine)
    restore(engine, tmp_path / "backup")  # and nothing stands in the way of the whole one
    assert open_laptop(engine).state.resources.read(PATH) == (1, SECRET)


def test_a_backup_that_is_cut_short_anywhere_restores_nothing(
    bench: Bench, sqlite: Empty, tmp_path: Path
) -> None:
    back_up(engine_of(bench), tmp_path / "backup")
    data = (tmp_path / "backup").read_bytes()
    dice = random.Random(1)
    ends = [number + 1 for number, byte in enumerate(data) if byte == ord("\n")]
    cuts = sorted({0, 1, len(data) - 1, *ends[:-1], *(dice.randrange(len(data)) for _ in range(40))})
    engine = sqlite()
    for cut in cuts:
        (tmp_path / "cut").write_bytes(data[:cut])
        with pytest.raises(UsageError, match="nothing was restored"):
            restore(engine, tmp_path / "cut")
        assert_nothing_was_restored(engine)


def test_a_bit_that_flipped_in_a_backup_never_goes_unseen(
    bench: Bench, sqlite: Empty, tmp_path: Path
) -> None:
    back_up(engine_of(bench), tmp_path / "backup")
    data = (tmp_path / "backup").read_bytes()
    before, digests = bench.entries(), [entry.evidence for entry in bench.told("attestation")]
    dice = random.Random(2)
    unseen = 0
    for _ in range(60):
        flipped = bytearray(data)
        flipped[dice.randrange(len(data))] ^= 1 << dice.randrange(8)
        (tmp_path / "flipped").write_bytes(flipped)
        engine = sqlite()
        try:
            restore(engine, tmp_path / "flipped")
        except (UsageError, KeystoreError):
            assert_nothing_was_restored(engine)
            continue
        try:
            laptop = open_laptop(engine)
            assert laptop.state.resources.read(PATH) == (1, SECRET)
            assert all_entries(laptop.state.journal) == before
            assert [laptop.state.journal.evidence(digest) is not None for digest in digests] == [True]
        except (BrokerError, CloisterError):
            continue
        unseen += 1
    # What is left is the time that a piece of evidence is kept by, and base64 bits that carry nothing.
    assert unseen <= 2


# -- witnesses ------------------------------------------------------------------------------------------------------------


def until(true: Callable[[], bool], seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.02)


class Late:
    """A witness that starts when the log that it is for is known."""

    app: ASGIApp | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self.app is None:
            await send({"type": "http.response.start", "status": 503, "headers": []})
            await send({"type": "http.response.body", "body": b""})
            return
        await self.app(scope, receive, send)


def test_witnesses_refuse_a_restored_older_state_until_each_was_told_to_forget(
    tmp_path: Path, sqlite: Empty, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(custody_module, "RETRY_SECONDS", 0.05)
    wanda, late = manifest_parts.owner("wanda"), Late()
    genesis = owners_manifest(witnesses=Witnesses(keys={"wanda": wanda.key}, threshold=1))
    memory = tmp_path / "wanda"
    memory.mkdir(mode=0o700)
    with served(late) as url:
        bench = OwnersBench(tmp_path / "state", genesis, witnesses={"wanda": url})
        log_key = bytes.fromhex(bench.custody.progress().log_key)
        logs = {log_id(log_key): log_key}
        late.app = create_witness(Witness(memory, wanda, logs))
        until(lambda: bench.custody.opened)
        shares = bench.share_out()
        bench.have_done("put", PATH, SECRET)
        bench.allow(releases=2)
        size = bench.state.journal.size
        root = bench.state.journal.root(size).hex()
        attempt = attested(bench, workload())
        assert attempt.get() == SECRET  # a counted release: the witness has seen it
        engine = engine_of(bench)
        rows = back_up(engine, tmp_path / "backup")
        assert attempt.get() == SECRET
        newest = bench.state.journal.size
        engine.dispose()

        def restored() -> Custody:
            elsewhere = sqlite()
            assert restore(elsewhere, tmp_path / "backup") == rows
            clock, pinned = RisingClock(lambda: NOW), origin(genesis)
            return Custody(elsewhere, clock=clock, origin=pinned, witnesses={"wanda": url})

        custody = restored()
        custody.offer(shares["alice"])
        with pytest.raises(RollbackFound, match=f"wanda has seen {newest}"):
            custody.offer(shares["bob"])
        assert not custody.opened

        # Who restores lawfully has a head from before the backup, and tells each witness's owner.
        custody = restored()
        told = f"forget --state {memory} --log {log_key.hex()} --to-size {size} --root {root} --yes"
        result = CliRunner().invoke(witness_commands.app, told.split())
        assert result.exit_code == 0, result.output
        late.app = create_witness(Witness(memory, wanda, logs))  # started again
        custody.offer(shares["alice"])
        custody.offer(shares["bob"])
        assert custody.opened
        # The second of two, once more: that is what a restore costs.
        bench.custody, bench.desk = custody, OwnersBench.desk_over(custody)
        assert attested(bench, workload()).get() == SECRET
