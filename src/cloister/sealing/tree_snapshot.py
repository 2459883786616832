"""A sealed tree as it stands at one moment, measured before anybody has its key, and opened as just that.

The newest journal names every file, every segment's nonce and every segment's tag, so its bytes and the tree's id stand for
all that is in the tree. They are read into memory once; what is measured is what is opened, whatever lies on the disk by
then. Nothing can be written, and a tree that a program has open for writing is refused. Format: docs/spec/sealed-tree.md.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NoReturn

from cloister.encoding import labelled_hash
from cloister.errors import IndexMismatch, TruncatedFile, UsageError
from cloister.sealing import KeySource
from cloister.sealing.envelope import HEADER_SIZE, TREE_SUITE, parse_header
from cloister.sealing.posix import Space
from cloister.sealing.tree import SealedTree
from cloister.sealing.tree.folder import HEADER_NAME
from cloister.sealing.tree.journal import PARTIAL, PREFIX
from cloister.sealing.tree.opening import open_in
from cloister.sealing.tree.storage import FolderStorage, StoredFile

LABEL: Final = "cloister/sealed-tree-snapshot/v1"
MAX_JOURNAL: Final = 256 << 20


@dataclass(frozen=True, slots=True)
class TreeSnapshot:
    """Header and newest journal of the tree in ``directory``."""

    directory: Path
    header: bytes
    journal: str
    """Its name."""
    records: bytes
    digest: bytes
    """32 bytes: :data:`LABEL`, the tree's id, the journal's name and its SHA-256. Another key URI leaves it as it is."""

    def open(self, keys: KeySource) -> SealedTree:
        """Read-only, the caller's to close. Raises as :func:`~cloister.sealing.tree.open_tree`."""
        return open_in(
            _Frozen(self),
            keys,
            writable=False,
            minimum=None,
            recorded=None,
            now_ns=time.time_ns,
            entropy=os.urandom,
            name=str(self.directory),
        )


def take_snapshot(directory: Path) -> TreeSnapshot:
    """Read and measure; nothing is authenticated yet. Raises UsageError and the errors of sealing."""
    with contextlib.closing(FolderStorage(directory)) as storage:
        try:
            header = _whole(storage, HEADER_NAME, HEADER_SIZE)
            journals = [name for name, _ in storage.names() if _is_journal(name)]
            if not journals:
                raise TruncatedFile(f"there is no journal in {directory}", todo="put back the whole tree")
            journal = max(journals)
            records = _whole(storage, journal, MAX_JOURNAL)
        except OSError as error:
            raise UsageError(f"cannot read the sealed tree {directory}: {error.strerror}") from None
    tree = parse_header(header, name=f"the header of {directory}", suite=TREE_SUITE).file_id
    digest = labelled_hash(LABEL, tree, journal.encode(), hashlib.sha256(records).digest())
    return TreeSnapshot(directory, header, journal, records, digest)


def _is_journal(name: str) -> bool:
    return name.startswith(PREFIX) and not name.endswith(PARTIAL)


def _whole(storage: FolderStorage, name: str, limit: int) -> bytes:
    with contextlib.closing(storage.open(name, write=False)) as file:
        size = file.size()
        if size > limit:
            raise IndexMismatch(f"{name} is over its bound of {limit} bytes")
        data = bytearray(size)
        with memoryview(data) as view:
            count = file.read([view], 0)
    return bytes(data[:count])


class _Frozen:
    """The folder, with header and journal as they were."""

    def __init__(self, snapshot: TreeSnapshot) -> None:
        self._snapshot = snapshot
        self._folder = FolderStorage(snapshot.directory)

    def names(self) -> Iterator[tuple[str, bool]]:
        """All names but those of other journals."""
        yield self._snapshot.journal, True
        yield from ((name, plain) for name, plain in self._folder.names() if not name.startswith(PREFIX))

    def open(self, name: str, *, write: bool) -> StoredFile:
        """Raises OSError."""
        if write:
            _refuse()
        if name == self._snapshot.journal:
            return _Memory(self._snapshot.records, None)
        file = self._folder.open(name, write=False)
        return _Memory(self._snapshot.header, file) if name == HEADER_NAME else file

    def create(self, name: str) -> NoReturn:
        """Never."""
        _refuse()

    def rename(self, old: str, new: str) -> NoReturn:
        """Never."""
        _refuse()

    def remove(self, name: str) -> NoReturn:
        """Never."""
        _refuse()

    def sync(self) -> None:
        """Nothing is written."""

    def space(self) -> Space:
        """Of the file system."""
        return self._folder.space()

    def close(self) -> None:
        """Once."""
        self._folder.close()


class _Memory:
    """A file that was read; ``real`` is the one that is locked."""

    def __init__(self, data: bytes, real: StoredFile | None) -> None:
        self._data = data
        self._real = real

    def size(self) -> int:
        """Bytes."""
        return len(self._data)

    def read(self, buffers: Sequence[memoryview], offset: int) -> int:
        """As far as there is something."""
        done = 0
        for buffer in buffers:
            part = self._data[offset + done : offset + done + len(buffer)]
            buffer[: len(part)] = part
            done += len(part)
        return done

    def write(self, buffers: Sequence[bytes | memoryview], offset: int) -> NoReturn:
        """Never."""
        _refuse()

    def truncate(self, size: int) -> NoReturn:
        """Never."""
        _refuse()

    def punch(self, offset: int, length: int) -> NoReturn:
        """Never."""
        _refuse()

    def reserve(self, offset: int, length: int) -> NoReturn:
        """Never."""
        _refuse()

    def sync(self) -> None:
        """Nothing is written."""

    def lock(self, *, alone: bool) -> bool:
        """Of the real file."""
        return self._real is None or self._real.lock(alone=alone)

    def close(self) -> None:
        """Once."""
        if self._real is not None:
            self._real.close()


def _refuse() -> NoReturn:
    raise PermissionError("a snapshot cannot be written")
