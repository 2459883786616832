"""What can happen to a tree: seven operations, and their canonical bytes in a journal's record.

Pure. Files go by number, names by the number of the folder they are in. Refuses an operation that is unknown, cut off or
out of its bounds. What an operation does is state.py's. Format: docs/spec/sealed-tree.md.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, TypeAlias

from cloister.errors import FormatError
from cloister.sealing.tree.fields import (
    OBJECT_ID_SIZE,
    BytesReader,
    Reader,
    name_bytes,
    target_bytes,
    time_bytes,
)
from cloister.sealing.tree.segment_map import ENTRY_SIZE


@dataclass(frozen=True, slots=True)
class MakeFile:
    """A new, empty file. Its contents, if it ever has some, lie in the object of this id (16 bytes)."""

    number: int
    parent: int
    name: str
    mode: int
    time_ns: int
    object_id: bytes


@dataclass(frozen=True, slots=True)
class MakeDirectory:
    """A new, empty folder."""

    number: int
    parent: int
    name: str
    mode: int
    time_ns: int


@dataclass(frozen=True, slots=True)
class MakeLink:
    """A new symbolic link."""

    number: int
    parent: int
    name: str
    target: str
    time_ns: int


@dataclass(frozen=True, slots=True)
class Remove:
    """A file, a link or an empty folder goes away."""

    parent: int
    name: str
    time_ns: int


@dataclass(frozen=True, slots=True)
class Move:
    """Something gets another place; what was there goes away."""

    parent: int
    name: str
    new_parent: int
    new_name: str
    time_ns: int


@dataclass(frozen=True, slots=True)
class SetAttributes:
    """Permission bits and times."""

    number: int
    mode: int
    modified_ns: int
    changed_ns: int


@dataclass(frozen=True, slots=True)
class SetContents:
    """A file's contents: first all segments from ``kept`` on are forgotten, then runs are pointed at slots."""

    number: int
    kept: int
    size: int
    modified_ns: int
    changed_ns: int
    runs: tuple[tuple[int, bytes], ...]
    """First segment and entries (segment_map.py) of consecutive segments, in rising order."""


Operation: TypeAlias = MakeFile | MakeDirectory | MakeLink | Remove | Move | SetAttributes | SetContents

_FILE, _DIRECTORY, _LINK, _REMOVE, _MOVE, _ATTRIBUTES, _CONTENTS = range(1, 8)
MAX_RUNS: Final = 1 << 20


def encode(operation: Operation) -> bytes:  # noqa: PLR0911 -- one for each operation
    """Its canonical bytes. Raises :class:`~cloister.errors.FormatError`."""
    match operation:
        case MakeFile(number, parent, name, mode, time_ns, object_id):
            if len(object_id) != OBJECT_ID_SIZE:
                raise FormatError("an object's id has 16 bytes")
            made = _made(_FILE, number, parent, name, time_ns)
            return made + mode.to_bytes(2) + object_id
        case MakeDirectory(number, parent, name, mode, time_ns):
            return _made(_DIRECTORY, number, parent, name, time_ns) + mode.to_bytes(2)
        case MakeLink(number, parent, name, target, time_ns):
            return _made(_LINK, number, parent, name, time_ns) + target_bytes(target)
        case Remove(parent, name, time_ns):
            return bytes([_REMOVE]) + parent.to_bytes(8) + name_bytes(name) + time_bytes(time_ns)
        case Move(parent, name, new_parent, new_name, time_ns):
            old = parent.to_bytes(8) + name_bytes(name)
            new = new_parent.to_bytes(8) + name_bytes(new_name)
            return bytes([_MOVE]) + old + new + time_bytes(time_ns)
        case SetAttributes(number, mode, modified_ns, changed_ns):
            times = time_bytes(modified_ns) + time_bytes(changed_ns)
            return bytes([_ATTRIBUTES]) + number.to_bytes(8) + mode.to_bytes(2) + times
        case SetContents(number, kept, size, modified_ns, changed_ns, runs):
            times = time_bytes(modified_ns) + time_bytes(changed_ns)
            start = bytes([_CONTENTS]) + number.to_bytes(8) + kept.to_bytes(4) + size.to_bytes(8)
            return start + times + encode_runs(runs)


def _made(code: int, number: int, parent: int, name: str, time_ns: int) -> bytes:
    return bytes([code]) + number.to_bytes(8) + parent.to_bytes(8) + name_bytes(name) + time_bytes(time_ns)


def encode_runs(runs: tuple[tuple[int, bytes], ...]) -> bytes:
    """Their number, then each: first segment, how many, entries."""
    parts = [len(runs).to_bytes(4)]
    for first, entries in runs:
        parts += [first.to_bytes(4), (len(entries) // ENTRY_SIZE).to_bytes(4), entries]
    return b"".join(parts)


def decode_all(data: bytes) -> list[Operation]:
    """All operations of a record. Raises :class:`~cloister.errors.FormatError`."""
    reader = BytesReader(data)
    operations = []
    while reader.left:
        operations.append(_decode(reader))
    return operations


def _decode(reader: BytesReader) -> Operation:  # noqa: PLR0911 -- one for each operation
    code = reader.number(1)
    if code in (_FILE, _DIRECTORY, _LINK):
        number, parent, name, time_ns = reader.number(8), reader.number(8), reader.name(), reader.time()
        if code == _LINK:
            return MakeLink(number, parent, name, reader.target(), time_ns)
        mode = _mode(reader)
        if code == _DIRECTORY:
            return MakeDirectory(number, parent, name, mode, time_ns)
        return MakeFile(number, parent, name, mode, time_ns, reader.take(OBJECT_ID_SIZE))
    if code == _REMOVE:
        return Remove(reader.number(8), reader.name(), reader.time())
    if code == _MOVE:
        old_parent, old_name = reader.number(8), reader.name()
        return Move(old_parent, old_name, reader.number(8), reader.name(), reader.time())
    if code == _ATTRIBUTES:
        return SetAttributes(reader.number(8), _mode(reader), reader.time(), reader.time())
    if code == _CONTENTS:
        number, kept, size = reader.number(8), reader.number(4), reader.number(8)
        modified_ns, changed_ns = reader.time(), reader.time()
        return SetContents(number, kept, size, modified_ns, changed_ns, decode_runs(reader))
    raise FormatError(f"there is no operation {code}")


def _mode(reader: Reader) -> int:
    mode = reader.number(2)
    if mode > 0o7777:
        raise FormatError("a mode has more than its permission bits")
    return mode


def decode_runs(reader: Reader) -> tuple[tuple[int, bytes], ...]:
    """As :func:`encode_runs` wrote them. Raises :class:`~cloister.errors.FormatError`."""
    count = reader.number(4)
    if count > MAX_RUNS:
        raise FormatError("a file has more runs of segments than it can have")
    runs = []
    end = -1
    for _ in range(count):
        first, length = reader.number(4), reader.number(4)
        if first < end or not length:
            raise FormatError("runs of segments overlap, or one is empty")
        runs.append((first, reader.take(length * ENTRY_SIZE)))
        end = first + length
    return tuple(runs)
