"""The journal's rows: statements made once, entries in their order. Nothing that comes from here is believed yet."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Final

import sqlalchemy as sa

from cloister.broker import tables
from cloister.broker.audit import Kind, damaged
from cloister.broker.transaction import Held

PAGE: Final = 4096
"""Rows that are fetched at once when a journal is loaded."""
PAGED: Final = {"yield_per": PAGE}
# Given with a statement: as options of the connection they would stay, and PostgreSQL writes nothing through a cursor.

# Statements are made once: SQLAlchemy takes longer to make one than SQLite to run it.
SIZE: Final = sa.select(tables.head.c.size)
HEAD: Final = sa.select(tables.head.c.size, tables.head.c.signed)
LOCKED_HEAD: Final = HEAD.with_for_update()
NEXT_HEAD: Final = sa.update(tables.head).values(size=sa.bindparam("size"), signed=sa.bindparam("signed"))
NEW_ENTRY: Final = sa.insert(tables.entries)
_THIS: Final = sa.and_(
    tables.records.c.kind == sa.bindparam("b_kind"), tables.records.c.name == sa.bindparam("b_name")
)
_STORED: Final = sa.select(
    tables.records.c.name, tables.records.c.version, tables.records.c.body, tables.records.c.wrapped
)
RECORD: Final = _STORED.where(_THIS)
RECORDS: Final = _STORED.where(
    tables.records.c.kind == sa.bindparam("b_kind"),
    tables.records.c.name.in_(sa.bindparam("b_names", expanding=True)),
)
NEW_RECORD: Final = sa.insert(tables.records)
NEXT_RECORD: Final = (
    sa.update(tables.records)
    .where(_THIS)
    .values(body=sa.bindparam("body"), wrapped=sa.bindparam("wrapped"), version=sa.bindparam("version"))
)


def entry_bodies(connection: sa.Connection, start: int, stop: int | None = None) -> Iterator[bytes]:
    """Entry bodies in their order; a gap in the numbers is damage."""
    query = sa.select(tables.entries.c.number, tables.entries.c.body).where(tables.entries.c.number >= start)
    if stop is not None:
        query = query.where(tables.entries.c.number < stop)
    expected = start
    for number, body in connection.execute(query.order_by(tables.entries.c.number), execution_options=PAGED):
        if number != expected:
            raise damaged(f"audit entry {expected} is missing from the database")
        yield body
        expected += 1


def records(connection: sa.Connection) -> Iterator[tuple[tuple[Kind, str], Held]]:
    """Every record by its slot, its body hashed."""
    columns = tables.records.c
    query = sa.select(columns.kind, columns.name, columns.version, columns.slot, columns.body)
    for kind, name, version, slot, body in connection.execute(
        query.order_by(columns.slot), execution_options=PAGED
    ):
        yield (kind, name), Held(version, slot, hashlib.sha256(body).digest())
