"""Backup and restore of a broker's state: every row of every table, in one file, consistent, the same for both
databases.

What it holds is what the database holds: sealed resources and signed documents, useless without the state key. A
restored state is an old state: witnesses that have seen a newer one refuse it, until their owners decide otherwise
(docs/how-to/key-broker.md).
"""

from __future__ import annotations

import base64
import binascii
import os
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, Final, Literal

import sqlalchemy as sa

from cloister.broker import tables
from cloister.encoding import Record, convert, decode_json, encode_json
from cloister.errors import FormatError, UsageError

FORMAT: Final = "cloister/broker-backup/v1"
MAX_LINE: Final = 1 << 22
ROWS: Final = 500
_TABLES: Final = (tables.state, tables.head, tables.entries, tables.records, tables.evidence)


class Opening(Record, frozen=True, kw_only=True, tag_field="part", tag="opening"):
    """The first line."""

    format: Literal["cloister/broker-backup/v1"] = FORMAT
    schema: str


class Row(Record, frozen=True, kw_only=True, tag_field="part", tag="row"):
    """One row of a table, in the order of its columns; binary ones in base64."""

    table: str
    row: list[Any]


class Closing(Record, frozen=True, kw_only=True, tag_field="part", tag="closing"):
    """The last line: a file without it was cut short."""

    rows: int


_PART: Final[Any] = Opening | Row | Closing


def back_up(engine: sa.Engine, target: Path) -> int:
    """Write a backup of a state that may be in use; the number of rows. Raises :class:`UsageError` if the file exists."""
    draft = target.with_name(f".{target.name}.{os.getpid()}.partial")
    if target.exists():
        raise UsageError(f"{target} exists", todo="choose another name")
    try:
        with os.fdopen(
            os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600), "wb"
        ) as file:
            count = _write(engine, file)
            file.flush()
            os.fsync(file.fileno())
        os.link(draft, target)
    except FileExistsError:
        raise UsageError(f"{target} exists", todo="choose another name") from None
    except OSError as error:
        raise UsageError(f"cannot write {target} ({error.strerror})") from None
    finally:
        draft.unlink(missing_ok=True)
    return count


def restore(engine: sa.Engine, source: Path) -> int:
    """Read a backup into an empty database, all of it or nothing; the number of rows. Raises :class:`UsageError`."""
    tables.migrate(engine)
    if tables.exists(engine):
        raise UsageError("this database holds a broker's state already", todo="restore into an empty one")
    try:
        with source.open("rb") as file, tables.writing(engine) as connection:
            return _read(connection, _lines(file, source))
    except OSError as error:
        raise UsageError(f"cannot read {source} ({error.strerror})") from None


def _write(engine: sa.Engine, file: IO[bytes]) -> int:
    count = 0
    file.write(encode_json(Opening(schema=tables.SCHEMA)) + b"\n")
    with tables.reading(engine) as connection:
        for table in _TABLES:
            for row in connection.execution_options(yield_per=ROWS).execute(sa.select(table)):
                file.write(encode_json(Row(table=str(table.name), row=list(row))) + b"\n")
                count += 1
    file.write(encode_json(Closing(rows=count)) + b"\n")
    return count


def _read(connection: sa.Connection, lines: Iterator[bytes]) -> int:
    first = _decode(next(lines, b""))
    if not isinstance(first, Opening):
        raise _damaged()
    if first.schema != tables.SCHEMA:
        raise UsageError(
            f"the backup is of schema {first.schema}, and this release's is {tables.SCHEMA}",
            todo="restore it with the release that wrote it, then open it with this one",
        )
    by_name = {table.name: table for table in _TABLES}
    for count, line in enumerate(lines):
        part = _decode(line)
        if isinstance(part, Closing) and part.rows == count and next(lines, None) is None:
            return count
        if not isinstance(part, Row) or part.table not in by_name:
            raise _damaged()
        table = by_name[part.table]
        if len(part.row) != len(table.columns):
            raise _damaged()
        values = {
            column.name: _value(column, value) for column, value in zip(table.columns, part.row, strict=True)
        }
        connection.execute(sa.insert(table).values(values))
    raise _damaged()


def _value(column: sa.Column[Any], value: Any) -> str | int | bytes:
    try:
        if isinstance(column.type, tables.Binary):
            return base64.b64decode(convert(value, str, what="backup"), validate=True)
        if isinstance(column.type, tables.Text):
            return convert(value, str, what="backup")
        return convert(value, int, what="backup")
    except (FormatError, binascii.Error, ValueError):
        raise _damaged() from None


def _decode(line: bytes) -> Opening | Row | Closing:
    try:
        part: Opening | Row | Closing = decode_json(line, _PART, what="backup", limit=MAX_LINE)
    except FormatError:
        raise _damaged() from None
    return part


def _damaged() -> UsageError:
    return UsageError(
        "the backup is cut short, damaged or none at all; nothing was restored",
        todo="take another copy of it",
    )


def _lines(file: IO[bytes], source: Path) -> Iterator[bytes]:
    while line := file.readline(MAX_LINE + 1):
        if not line.endswith(b"\n"):
            raise UsageError(f"{source} is cut short or no backup; nothing was restored")
        yield line[:-1]
