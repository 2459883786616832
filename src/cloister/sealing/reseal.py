"""Key rotation in place: the 4096 bytes of each header are written anew, and no byte of a body.

All new headers are made before the first is written, and lie in a journal (reseal_journal.py) until the last is on the
disk; interrupted, the same call finishes it. Refuses a file that is another than its index names (who has the new key
would get the data key of whatever lies there), a journal that somebody else wrote, and a second rotation before the first
is finished. Whoever kept an old header and the old key can still open the body: rotation takes nothing back.
Format: docs/spec/sealed-file.md, "Rewrap".
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from cloister.encoding import encode_json
from cloister.errors import FormatError, IndexMismatch, UsageError, WrongKey
from cloister.sealing import KeySource
from cloister.sealing.descriptors import create_new, open_regular, read_into, write_all
from cloister.sealing.envelope import (
    HEADER_SIZE,
    SUITE,
    TREE_SUITE,
    WRAP_SALT_SIZE,
    Header,
    erase,
    parse_header,
    rewrap,
    unwrap,
)
from cloister.sealing.files import Entropy
from cloister.sealing.index import Index
from cloister.sealing.remembered import RememberedKeys
from cloister.sealing.reseal_journal import JOURNAL_NAME, Change, Journal, read_journal
from cloister.sealing.staging import sync_folder
from cloister.sealing.uri import parse_key_uri
from cloister.sealing.workers import Progress, Tally

TREE_HEADER = "tree"
"""The file of a sealed tree that is its header (docs/spec/sealed-tree.md)."""


@dataclass(frozen=True, slots=True)
class Rotation:
    """What was done, in files."""

    rewrapped: int
    finished: int
    """Of an interrupted rotation, now at its end."""
    there: int
    """Under the new key before."""


def reseal_directory(
    directory: Path,
    index: Index,
    keys: KeySource,
    *,
    new_uri: str,
    new_kek: bytes,
    progress: Progress | None = None,
    entropy: Entropy = os.urandom,
) -> Rotation:
    """Put every file of a sealed directory under another key or URI; the index and its digest stay.

    ``index`` comes from :func:`~cloister.sealing.index.open_index` over ``directory``; ``keys`` answers for the old
    keys, ``new_kek`` is 32 bytes. ``progress`` counts files.
    Raises as :func:`~cloister.sealing.envelope.unwrap`, and :class:`~cloister.errors.UsageError`.
    """
    ids: dict[str, bytes | None] = {entry.file_name: entry.id for entry in index.files.values()}
    task = _Task(directory, directory / JOURNAL_NAME, ids, new_uri, new_kek, lock=directory)
    return task.run(keys, progress=progress, entropy=entropy)


def reseal_file(
    path: Path, keys: KeySource, *, new_uri: str, new_kek: bytes, entropy: Entropy = os.urandom
) -> Rotation:
    """Put one sealed file under another key or URI. Raises as :func:`reseal_directory`."""
    return _alone(path, new_uri, new_kek, SUITE).run(keys, progress=None, entropy=entropy)


def reseal_tree(
    directory: Path, keys: KeySource, *, new_uri: str, new_kek: bytes, entropy: Entropy = os.urandom
) -> Rotation:
    """Put a sealed tree that nobody has open under another key or URI: its header alone. Raises as the others."""
    task = _alone(directory / TREE_HEADER, new_uri, new_kek, TREE_SUITE)
    return task.run(keys, progress=None, entropy=entropy)


def _alone(path: Path, uri: str, kek: bytes, suite: Literal[1, 2]) -> _Task:
    journal = path.with_name(f"{path.name}.{JOURNAL_NAME}")
    # A tree is locked by its header, which every reader and writer of it holds open.
    return _Task(path.parent, journal, {path.name: None}, uri, kek, suite=suite, lock=path)


@dataclass(frozen=True, slots=True, repr=False)
class _Task:
    folder: Path
    journal: Path
    ids: Mapping[str, bytes | None]
    """File name → the id it must have; None where no index says."""
    uri: str
    kek: bytes
    lock: Path
    """What to lock, as other writers do."""
    suite: Literal[1, 2] = SUITE

    def run(self, keys: KeySource, *, progress: Progress | None, entropy: Entropy) -> Rotation:
        try:
            parse_key_uri(self.uri)
        except FormatError as error:
            raise UsageError(error.what, todo=error.todo) from None
        with _locked(self.lock, self.folder):
            finished = self._finish()
            changes, there = self._plan(RememberedKeys(keys), entropy)
            if changes:
                journal = Journal(key=self.uri, suite=self.suite, files=changes)
                self._begin(encode_json(journal))
                tally = Tally(len(changes), progress)
                for name in changes:
                    self._write(name, journal.headers(name)[1])
                    tally.add(1)
                self._end()
        return Rotation(rewrapped=len(changes), finished=finished, there=there - finished)

    def _begin(self, journal: bytes) -> None:
        try:
            with create_new(self.journal, 0o644) as descriptor:
                write_all(descriptor, journal, 0)
                os.fsync(descriptor)
        except BaseException:
            self.journal.unlink(missing_ok=True)
            raise
        sync_folder(self.folder)

    def _finish(self) -> int:
        """Write what an interrupted rotation left unwritten; how many files it was about."""
        journal = read_journal(self.journal)
        if journal is None:
            self.journal.unlink(missing_ok=True)
            return 0
        for name in journal.files:
            if name not in self.ids or journal.suite != self.suite:
                raise IndexMismatch(
                    f"{self.journal.name} is about {name!a}, which the index does not name", todo="remove it"
                )
            self._must_be(name, journal.header(name))
            if journal.key != self.uri or not self._opens(journal.header(name), name):
                raise UsageError(
                    f"a rotation to the key at {journal.key} was interrupted, and comes first",
                    todo="run it again with that key",
                )
        for name in journal.files:
            self._write(name, journal.headers(name)[1])
        self._end()
        return len(journal.files)

    def _plan(self, keys: KeySource, entropy: Entropy) -> tuple[dict[str, Change], int]:
        changes, there = {}, 0
        for name in self.ids:
            header = parse_header(self._read(name), name=name, suite=self.suite)
            self._must_be(name, header)
            if header.key_uri == self.uri and self._opens(header, name):
                there += 1
                continue
            made = rewrap(
                header,
                kek=keys.key(header.key_uri),
                new_uri=self.uri,
                new_kek=self.kek,
                salt=entropy(WRAP_SALT_SIZE),
                name=name,
            )
            changes[name] = Change(
                id=header.file_id, old_key=header.key_uri, old=header.wrapped, new=made.wrapped
            )
        return changes, there

    def _must_be(self, name: str, header: Header) -> None:
        if self.ids[name] not in (None, header.file_id):
            raise IndexMismatch(f"{name} is another file than its index names", todo="get it from its owner")

    def _opens(self, header: Header, name: str) -> bool:
        try:
            erase(unwrap(header, self.kek, name=name))
        except WrongKey:
            return False
        return True

    def _read(self, name: str) -> bytes:
        with open_regular(self.folder / name, UsageError) as descriptor:
            data = bytearray(HEADER_SIZE)
            return bytes(data[: read_into(descriptor, memoryview(data), 0)])

    def _write(self, name: str, header: bytes) -> None:
        path = self.folder / name
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                write_all(descriptor, header, 0)
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        except OSError as error:
            raise UsageError(
                f"cannot write {path}: {error.strerror}", todo="run the same `cloister reseal` again"
            ) from None

    def _end(self) -> None:
        self.journal.unlink()
        sync_folder(self.folder)


@contextlib.contextmanager
def _locked(path: Path, folder: Path) -> Iterator[None]:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise UsageError(f"cannot open {path}: {error.strerror}") from None
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UsageError(f"another process has {path} open", todo="try again when it is done") from None
        yield
    finally:
        os.close(descriptor)
