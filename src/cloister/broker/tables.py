"""The broker's database: four tables over SQLAlchemy, SQLite by default, PostgreSQL for several replicas.

Nothing that is read from here is believed: records are compared with the state tree, entries with the log tree,
sealed bodies authenticate (journal.py, resources.py). This module only opens, migrates and maps the database's
errors; its schema changes by Alembic's migrations, never by hand.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.pool import ConnectionPoolEntry

from cloister.broker.audit import damaged
from cloister.errors import KeystoreError, KeystoreUnavailable, UsageError

DATABASE: Final = "broker.sqlite"
BUSY_SECONDS: Final = 10
IDLE_SECONDS: Final = 30
POOL: Final = 8
SCHEMA: Final = "0001"
"""The newest migration: what this release reads and writes."""

metadata = sa.MetaData()


class _Exact(sa.types.TypeDecorator[Any]):
    """SQLite keeps what it is given, whatever its type: what comes out is of its column's type, or somebody touched it."""

    impl: Any = sa.LargeBinary
    cache_ok = True
    expected: type = bytes

    def process_result_value(self, value: Any, dialect: sa.Dialect) -> Any:
        if type(value) is not self.expected:
            raise damaged("a value in the database is of another type than its column")
        return value


class Binary(_Exact):
    """Bytes."""

    cache_ok = True


class Number(_Exact):
    """An integer of 64 bits."""

    impl: Any = sa.BigInteger
    cache_ok = True
    expected = int


class Text(_Exact):
    """A short text."""

    impl: Any = sa.String
    cache_ok = True
    expected = str


state = sa.Table(
    "state",
    metadata,
    sa.Column("one", sa.Integer, sa.CheckConstraint("one = 1"), primary_key=True, autoincrement=False),
    sa.Column("id", Text(64), nullable=False),
    sa.Column("document", Binary, nullable=False),
)
"""One row: how the state key is opened (state_key.py)."""

head = sa.Table(
    "head",
    metadata,
    sa.Column("one", sa.Integer, sa.CheckConstraint("one = 1"), primary_key=True, autoincrement=False),
    sa.Column("size", Number, nullable=False),
    sa.Column("signed", Binary, nullable=False),
    sa.Column("cosigned", Binary, nullable=False),
)
"""One row: the newest signed head, and the newest one that witnesses co-signed. Writers lock it."""

entries = sa.Table(
    "entries",
    metadata,
    sa.Column("number", Number, primary_key=True, autoincrement=False),
    sa.Column("body", Binary, nullable=False),
)
"""The audit log: canonical JSON, one row an entry, only ever appended."""

records = sa.Table(
    "records",
    metadata,
    sa.Column("kind", Text(16), primary_key=True),
    sa.Column("name", Text(255), primary_key=True),
    sa.Column("version", Number, nullable=False),
    sa.Column("slot", Number, nullable=False, unique=True),
    sa.Column("body", Binary, nullable=False),
    sa.Column("wrapped", Binary, nullable=False),
)
"""What stands now: manifests, rules, resources, keys, counters, trees. A slot is a leaf of the state tree."""

evidence = sa.Table(
    "evidence",
    metadata,
    sa.Column("digest", Text(64), primary_key=True),
    sa.Column("time", Number, nullable=False, index=True),
    sa.Column("body", Binary, nullable=False),
)
"""Bundles that attestations were granted on, for who audits; the newest ones are kept."""


def sqlite_url(directory: Path) -> str:
    """The address of the database in a state directory."""
    return f"sqlite+pysqlite:///{(directory / DATABASE).absolute()}"


def open_database(url: str) -> sa.Engine:
    """An engine for ``url`` (``sqlite+pysqlite:///…`` or ``postgresql+psycopg://…``). Raises :class:`UsageError`."""
    try:
        parsed = sa.make_url(url)
    except sa.exc.ArgumentError:
        raise UsageError(
            "the database's address is not a URL", todo="write postgresql://user@host/name"
        ) from None
    if parsed.drivername == "postgresql":
        parsed = parsed.set(drivername="postgresql+psycopg")
    if parsed.drivername == "sqlite+pysqlite":
        engine = sa.create_engine(parsed, pool_size=POOL, connect_args={"timeout": BUSY_SECONDS})
        sa.event.listen(engine, "connect", _prepare_sqlite)
        sa.event.listen(engine, "begin", _begin_sqlite)
        return engine
    if parsed.drivername == "postgresql+psycopg":
        return sa.create_engine(
            parsed,
            pool_size=POOL,
            pool_pre_ping=True,
            connect_args={
                "connect_timeout": BUSY_SECONDS,
                "options": f"-c lock_timeout={BUSY_SECONDS}s -c statement_timeout=60s"
                # A replica that stands still in a transaction would stop all others.
                f" -c idle_in_transaction_session_timeout={IDLE_SECONDS}s",
            },
        )
    raise UsageError(
        f"a broker's state is in SQLite or PostgreSQL, not {parsed.drivername}",
        todo="write postgresql://user@host/name, or name a state directory",
    )


@contextlib.contextmanager
def reading(engine: sa.Engine) -> Iterator[sa.Connection]:
    """A connection in one read transaction. Raises :class:`KeystoreUnavailable` or :class:`KeystoreError`."""
    with mapped(), engine.connect() as connection:
        if engine.dialect.name == "postgresql":  # one snapshot; SQLite's transactions are that anyway
            connection.execution_options(isolation_level="REPEATABLE READ")
        with connection.begin():
            yield connection


@contextlib.contextmanager
def writing(engine: sa.Engine) -> Iterator[sa.Connection]:
    """A connection in one write transaction, the only one at a time. Raises as :func:`reading`."""
    with mapped(), engine.connect() as connection:
        connection.execution_options(cloister_write=True)
        with connection.begin():
            yield connection


def migrate(engine: sa.Engine) -> None:
    """Bring the schema to this release's, from nothing or from an older one.

    Raises :class:`UsageError` for a newer one, and as :func:`writing`.
    """
    from alembic import command  # noqa: PLC0415 -- only who makes or opens a state needs it
    from alembic.config import Config  # noqa: PLC0415

    if (version := schema_version(engine)) > SCHEMA:
        raise UsageError(f"this state has schema {version}, newer than this release's {SCHEMA}")
    configuration = Config()
    configuration.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    with writing(engine) as connection:
        if connection.dialect.name == "postgresql":
            connection.execute(sa.text("SELECT pg_advisory_xact_lock(:key)"), {"key": 0x636C6F69})
        configuration.attributes["connection"] = connection
        command.upgrade(configuration, "head")


def exists(engine: sa.Engine) -> bool:
    """Is there a state in this database?"""
    with reading(engine) as connection:
        return (
            sa.inspect(connection).has_table("state")
            and connection.execute(sa.select(state.c.one)).first() is not None
        )


def schema_version(engine: sa.Engine) -> str:
    """The migration the database is at; empty before the first."""
    with reading(engine) as connection:
        if not sa.inspect(connection).has_table("alembic_version"):
            return ""
        return str(connection.execute(sa.text("SELECT version_num FROM alembic_version")).scalar() or "")


def make_directory(directory: Path) -> None:
    """A state directory that only its owner can change (0700), with an empty database file in it (0600).

    Raises :class:`UsageError` where others can write: who can, could lead the broker to other files.
    """
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        require_private(directory)
        os.close(os.open(directory / DATABASE, os.O_CREAT | os.O_WRONLY | os.O_NOFOLLOW, 0o600))
    except OSError as error:
        raise UsageError(f"cannot make a broker's state in {directory} ({error.strerror})") from None


def require_private(directory: Path) -> None:
    """Raise :class:`UsageError` unless only its owner can write to ``directory``."""
    if directory.stat().st_mode & 0o022:
        raise UsageError(
            f"others can write to the state directory {directory}", todo=f"run: chmod 700 {directory}"
        )


@contextlib.contextmanager
def mapped() -> Iterator[None]:
    """Turn the database's errors into ours."""
    try:
        yield
    except (sa.exc.OperationalError, sa.exc.InterfaceError, sa.exc.TimeoutError) as error:
        raise KeystoreUnavailable(
            f"the broker's database does not answer ({_cause(error)})",
            todo="nothing was changed; check that it runs, that the disk is not full, and ask again",
        ) from None
    except sa.exc.SQLAlchemyError as error:
        raise KeystoreError(
            f"the broker's database cannot be used ({_cause(error)})", todo="restore a backup"
        ) from None


def _cause(error: Exception) -> str:
    # The driver's text may quote values of a statement: its class says enough.
    return type(getattr(error, "orig", None) or error).__name__


def _prepare_sqlite(connection: sqlite3.Connection, _entry: ConnectionPoolEntry) -> None:
    connection.isolation_level = None  # transactions are begun by us, below
    for pragma in (
        "journal_mode=WAL",
        "synchronous=FULL",
        "trusted_schema=OFF",
        "secure_delete=ON",
        "cell_size_check=ON",
    ):
        connection.execute(f"PRAGMA {pragma}")


def _begin_sqlite(connection: sa.Connection) -> None:
    write: Any = connection.get_execution_options().get("cloister_write")
    connection.exec_driver_sql("BEGIN IMMEDIATE" if write else "BEGIN")
