"""The database: where it may be, what it does not let through, and how its errors are told."""

from __future__ import annotations

import sqlite3
import stat
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from broker_parts import CHEAP, PASSPHRASE, Bench, execute
from cloister.broker import tables
from cloister.broker.laptop import Laptop
from cloister.errors import BrokerError, CloisterError, KeystoreError, KeystoreUnavailable, UsageError


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    bench = Bench(tmp_path / "state")
    bench.put()
    return bench


def engine_of(directory: Path) -> sa.Engine:
    return tables.open_database(tables.sqlite_url(directory))


@pytest.mark.parametrize(
    "url",
    [
        "",
        "no url",
        "mysql://host/name",
        "sqlite:////tmp/x",
        "oracle+cx://x",
        "file:///x",
        "postgresql+asyncpg://h/n",
    ],
)
def test_a_database_that_is_neither_of_the_two_is_refused(url: str) -> None:
    with pytest.raises(UsageError):
        tables.open_database(url)


@pytest.mark.parametrize("url", ["postgresql://user@host/name", "postgresql+psycopg://user@host/name"])
def test_postgresql_is_one_of_the_two(url: str) -> None:
    assert tables.open_database(url).url.drivername == "postgresql+psycopg"


def test_a_database_that_does_not_answer_is_said_to_and_nothing_else() -> None:
    engine = tables.open_database("postgresql://somebody:SECRETWORD@127.0.0.1:1/name")
    with pytest.raises(KeystoreUnavailable) as caught, tables.reading(engine):
        pass
    assert "SECRETWORD" not in str(caught.value) + repr(caught.value)


def test_files_and_directory_are_for_their_owner_alone(bench: Bench) -> None:
    assert stat.S_IMODE(bench.directory.stat().st_mode) == 0o700
    assert all(stat.S_IMODE(path.stat().st_mode) == 0o600 for path in bench.directory.iterdir())


def test_a_state_directory_that_others_can_write_is_refused(bench: Bench, tmp_path: Path) -> None:
    for mode in (0o770, 0o702):
        bench.directory.chmod(mode)
        with pytest.raises(UsageError, match="others can write"):
            Laptop.open(bench.directory, PASSPHRASE)
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o777)
    with pytest.raises(UsageError, match="others can write"):
        Laptop.create(tmp_path / "open", PASSPHRASE, cost=CHEAP)
    assert not any((tmp_path / "open").iterdir())


def test_a_database_that_is_a_link_is_not_made(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_bytes(b"of somebody else")
    (tmp_path / "state").mkdir(mode=0o700)
    (tmp_path / "state" / tables.DATABASE).symlink_to(victim)
    with pytest.raises(UsageError):
        tables.make_directory(tmp_path / "state")
    assert victim.read_bytes() == b"of somebody else"


def test_a_state_is_never_made_twice(bench: Bench) -> None:
    with pytest.raises(UsageError, match="already"):
        Laptop.create(bench.directory, PASSPHRASE, cost=CHEAP)


def test_a_foreign_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / tables.DATABASE).write_bytes(b"not a database, but long enough to look at" * 100)
    tmp_path.chmod(0o700)
    with pytest.raises(KeystoreError):
        Laptop.open(tmp_path, PASSPHRASE)


def test_another_program_s_database_is_no_state(tmp_path: Path) -> None:
    execute(tmp_path, "CREATE TABLE records (x)")
    tmp_path.chmod(0o700)
    with pytest.raises(UsageError, match="no broker's state"):
        Laptop.open(tmp_path, PASSPHRASE)


def test_a_missing_state_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--init"):
        Laptop.open(tmp_path, PASSPHRASE)


def test_a_state_of_a_newer_release_is_not_touched(bench: Bench) -> None:
    execute(bench.directory, "UPDATE alembic_version SET version_num = '9999'")
    with pytest.raises(UsageError, match="newer than this release"):
        Laptop.open(bench.directory, PASSPHRASE)


def test_migrating_again_changes_nothing(bench: Bench) -> None:
    engine = engine_of(bench.directory)
    tables.migrate(engine)
    assert tables.schema_version(engine) == tables.SCHEMA
    assert Laptop.open(bench.directory, PASSPHRASE).state.journal.size == bench.laptop.state.journal.size


def test_the_migrated_schema_is_the_one_that_is_read(bench: Bench) -> None:
    inspector = sa.inspect(engine_of(bench.directory))
    for table in tables.metadata.sorted_tables:
        found = {column["name"] for column in inspector.get_columns(table.name)}
        assert found == {column.name for column in table.columns}


def test_deleted_rows_are_overwritten_and_commits_synced(bench: Bench) -> None:
    with engine_of(bench.directory).connect() as connection:
        values = {
            name: connection.exec_driver_sql(f"PRAGMA {name}").scalar()
            for name in ("secure_delete", "synchronous", "journal_mode", "trusted_schema", "cell_size_check")
        }
    assert values == {
        "secure_delete": 1,
        "synchronous": 2,
        "journal_mode": "wal",
        "trusted_schema": 0,
        "cell_size_check": 1,
    }


def test_a_writer_that_is_kept_waiting_is_told_so_and_changed_nothing(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tables, "BUSY_SECONDS", 0.05)
    laptop = Laptop.open(bench.directory, PASSPHRASE, now=bench.clock)
    size = laptop.state.journal.size
    other = sqlite3.connect(bench.directory / tables.DATABASE, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(KeystoreUnavailable, match="does not answer"):
        laptop.put("models/key/new", b"x")
    other.execute("ROLLBACK")
    other.close()
    assert laptop.state.journal.size == size
    laptop.put("models/key/new", b"x")


DIRTY: dict[str, str] = {
    "bytes as text": "UPDATE records SET body = CAST(body AS TEXT)",
    "bytes as a number": "UPDATE records SET body = 7",
    "a number as text": "UPDATE records SET version = 'one'",
    "a number as a fraction": "UPDATE records SET version = 1.5",
    "a number as bytes": "UPDATE records SET slot = CAST('a' || slot AS BLOB)",
    "a text as bytes": "UPDATE records SET kind = CAST(kind AS BLOB)",
    "the document as text": "UPDATE state SET document = CAST(document AS TEXT)",
    "the head's size as text": "UPDATE head SET size = 'many'",
}


@pytest.mark.parametrize("script", DIRTY.values(), ids=DIRTY.keys())
def test_a_value_of_another_type_is_damage_and_not_a_crash(bench: Bench, script: str) -> None:
    execute(bench.directory, script)
    with pytest.raises(BrokerError):
        Laptop.open(bench.directory, PASSPHRASE)


ERRORS: list[tuple[Any, type[CloisterError]]] = [
    (sa.exc.OperationalError("S", {}, OSError()), KeystoreUnavailable),
    (sa.exc.InterfaceError("S", {}, OSError()), KeystoreUnavailable),
    (sa.exc.TimeoutError(), KeystoreUnavailable),
    (sa.exc.DatabaseError("S", {}, OSError()), KeystoreError),
    (sa.exc.IntegrityError("S", {}, OSError()), KeystoreError),
    (sa.exc.NoSuchTableError(), KeystoreError),
]


@pytest.mark.parametrize(("error", "expected"), ERRORS, ids=lambda value: type(value).__name__)
def test_every_error_of_the_database_becomes_one_of_ours(
    error: Exception, expected: type[CloisterError]
) -> None:
    with pytest.raises(expected) as caught, tables.mapped():
        raise error
    assert type(caught.value) is expected
    assert caught.value.__cause__ is None
