"""A journal: one checkpoint, then a record for each commit. What a tree is at any moment is its newest journal.

A record counts when it is on the disk as a whole. A last record that does not authenticate was never acknowledged and is
cut off; one that is followed by a genuine record was damaged later, and is refused. Refuses records out of order, of
another tree, of another history. Format: docs/spec/sealed-tree.md.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

from cloister.errors import FormatError, TamperedFile, TruncatedFile
from cloister.sealing.tree import frames
from cloister.sealing.tree.checkpoint import (
    MAX_HEADS,
    Checkpoint,
    decode_checkpoint,
    encode_checkpoint,
    newest,
)
from cloister.sealing.tree.frames import LAST_PART, MAX_PLAIN, PART, RECORD, FrameHead, open_frame, seal_frame
from cloister.sealing.tree.head import next_link
from cloister.sealing.tree.operations import decode_all
from cloister.sealing.tree.state import State, apply
from cloister.sealing.tree.storage import Storage, StoredFile
from cloister.sealing.tree.tree_keys import TreeKeys
from cloister.sealing.xaes import NONCE_SIZE

PREFIX: Final = "journal-"
PARTIAL: Final = ".partial"
LINK_SIZE: Final = 32
_NOTHING_BEFORE: Final = bytes(32)
_MAX_CANDIDATES: Final = 1000
_RESERVED: Final = 256 << 10
PUT_BACK: Final = "put back the whole tree from one copy"
"""What to do about a tree that is damaged: its files belong together."""


def journal_name(version: int) -> str:
    """Of the journal that begins at this version."""
    return f"{PREFIX}{version:016x}"


class Journal:
    """A journal that is written to. One thread at a time."""

    def __init__(
        self,
        file: StoredFile,
        keys: TreeKeys,
        entropy: Callable[[int], bytes],
        *,
        version: int,
        link: bytes,
        start: int,
        end: int,
    ) -> None:
        self._file = file
        self._keys = keys
        self._entropy = entropy
        self.version = version
        self.link = link
        self.first_version = version
        """At which it begins; the caller says where it is another."""
        self._start = start
        self._end = end
        self._reserved = 0
        self._settled = True
        self._reserve()

    @property
    def recorded_size(self) -> int:
        """Bytes of records."""
        return self._end - self._start

    @property
    def checkpoint_size(self) -> int:
        """Bytes of the checkpoint."""
        return self._start

    @property
    def settled(self) -> bool:
        """Whether the disk is known to hold nothing behind the last record."""
        return self._settled

    def append(self, operations: bytes) -> None:
        """One more record; it is on the disk when this returns. Raises OSError: then it does not count, and if
        :attr:`settled` it can never come back either."""
        self.settle()
        version = self.version + 1
        plain = self.link + operations
        frame = seal_frame(self._keys, RECORD, version, 0, b"", plain, self._entropy(NONCE_SIZE))
        self._settled = False
        try:
            self._file.write([frame], self._end)
            self._file.sync()
        except BaseException:
            with contextlib.suppress(OSError):
                self.settle()
            raise
        self._settled = True
        self._end += len(frame)
        self.version, self.link = version, next_link(self.link, frame)
        self._reserve()

    def _reserve(self) -> None:
        # On a full disk it takes a record to remove a file: there is always room for some.
        if self._end + _RESERVED // 2 > self._reserved:
            self._file.reserve(self._end, _RESERVED)
            self._reserved = self._end + _RESERVED

    def settle(self) -> None:
        """Cut off what a failed :meth:`append` may have left. Raises OSError."""
        if not self._settled:
            self._file.truncate(self._end)
            self._reserved = 0  # cutting off takes what was set aside, too
            self._reserve()
            self._file.sync()
            self._settled = True

    def close(self) -> None:
        """Once."""
        self._file.close()


def write_journal(
    storage: Storage, keys: TreeKeys, checkpoint: Checkpoint, entropy: Callable[[int], bytes]
) -> Journal:
    """A new journal, on the disk under its name when this returns. Raises OSError, and leaves nothing."""
    name = journal_name(checkpoint.version)
    partial = name + PARTIAL
    storage.remove(partial)
    file = storage.create(partial)
    try:
        end = 0
        before = _NOTHING_BEFORE
        for number, (part, last) in enumerate(_with_last(encode_checkpoint(checkpoint))):
            kind = LAST_PART if last else PART
            frame = seal_frame(keys, kind, checkpoint.version, number, before, part, entropy(NONCE_SIZE))
            file.write([frame], end)
            before = hashlib.sha256(frame).digest()
            end += len(frame)
        file.sync()
        storage.rename(partial, name)
        storage.sync()
    except BaseException:
        file.close()
        with contextlib.suppress(OSError):
            storage.remove(partial)
        raise
    return Journal(file, keys, entropy, version=checkpoint.version, link=checkpoint.link, start=end, end=end)


def _with_last(parts: Iterator[bytes]) -> Iterator[tuple[bytes, bool]]:
    held = next(parts)
    for part in parts:
        yield held, False
        held = part
    yield held, True


@dataclass(frozen=True, slots=True)
class Replayed:
    """What a journal says."""

    checkpoint: Checkpoint
    """As of its last record; ``heads`` are those of its checkpoint and of its last records."""
    first_version: int
    start: int
    """Bytes of the checkpoint as it is stored."""
    end: int
    """Bytes up to the end of the last record."""
    torn: bool
    """Whether something follows that never counted."""
    link_asked: bytes | None
    """The chain at the version that was asked about; None where the journal does not know."""


def replay(file: StoredFile, keys: TreeKeys, *, name: str, first_version: int, asked: int | None) -> Replayed:
    """Read a journal and do what it says. Raises errors of sealing, and OSError."""
    return _Replay(file, keys, name).run(first_version, asked)


class _Replay:
    def __init__(self, file: StoredFile, keys: TreeKeys, name: str) -> None:
        self._file = file
        self._keys = keys
        self._name = name
        self._size = file.size()
        self._at = 0

    def run(self, first_version: int, asked: int | None) -> Replayed:
        try:
            checkpoint = decode_checkpoint(self._parts(first_version))
        except FormatError as error:
            raise TamperedFile(f"{self._name} has a checkpoint that is none: {error.what}") from None
        if checkpoint.version != first_version:
            raise TamperedFile(f"{self._name} begins at version {checkpoint.version}")
        start = self._at
        state, version, link = checkpoint.state, checkpoint.version, checkpoint.link
        known = dict(checkpoint.heads) | {version: link}
        link_asked = None if asked is None else known.get(asked)
        torn = False
        while self._at < self._size:
            frame = self._record(version + 1)
            if frame is None:
                torn = True
                break
            self._apply(state, version + 1, link, frame[1])
            version, link = version + 1, next_link(link, frame[0])
            self._at += len(frame[0])
            if version == asked:
                link_asked = link
            known[version] = link
            if len(known) > MAX_HEADS:
                known = newest(known)
        ended = Checkpoint(state, version, link, known)
        return Replayed(ended, first_version, start, self._at, torn, link_asked)

    def _parts(self, version: int) -> Iterator[bytes]:
        before, number, kind = _NOTHING_BEFORE, 0, PART
        while kind == PART:
            try:
                head = frames.parse_head(self._read(self._at, frames.HEAD_SIZE))
            except FormatError:
                raise TamperedFile(f"{self._name} does not begin with a checkpoint", todo=PUT_BACK) from None
            kind = head.kind
            if kind == RECORD or (head.version, head.part) != (version, number):
                raise TamperedFile(f"{self._name} has a checkpoint out of order", todo=PUT_BACK)
            frame = self._read(self._at, head.frame_size)
            if len(frame) < head.frame_size:
                raise TruncatedFile(f"{self._name} ends inside its checkpoint", todo=PUT_BACK)
            yield open_frame(self._keys, head, before, frame, name=self._name)
            before = hashlib.sha256(frame).digest()
            self._at += len(frame)
            number += 1

    def _record(self, version: int) -> tuple[bytes, bytes] | None:
        """The next record as it is stored and as it was sealed; None where only something torn follows."""
        found = self._record_at(self._at)
        if found is not None:
            head, frame, plain = found
            if head.version != version:
                raise TamperedFile(
                    f"{self._name} has version {head.version} where {version} belongs", todo=PUT_BACK
                )
            return frame, plain
        rest = self._size - self._at
        if rest > MAX_PLAIN + frames.START_SIZE + LINK_SIZE:
            raise TamperedFile(f"{self._name} is damaged behind version {version - 1}", todo=PUT_BACK)
        tail = self._read(self._at, rest)
        at = tail.find(frames.MAGIC, 1)
        for _ in range(_MAX_CANDIDATES):
            if at < 0:
                return None
            if self._record_at(self._at + at) is not None:
                break
            at = tail.find(frames.MAGIC, at + 1)
        raise TamperedFile(
            f"{self._name} is damaged behind version {version - 1}, and genuine records follow", todo=PUT_BACK
        )

    def _record_at(self, at: int) -> tuple[FrameHead, bytes, bytes] | None:
        """A genuine record, of whatever version; None where there is none."""
        try:
            head = frames.parse_head(self._read(at, frames.HEAD_SIZE))
        except FormatError:
            return None
        if head.kind != RECORD or head.part or head.frame_size > self._size - at:
            return None
        frame = self._read(at, head.frame_size)
        try:
            return head, frame, open_frame(self._keys, head, b"", frame, name=self._name)
        except TamperedFile:
            return None

    def _apply(self, state: State, version: int, link: bytes, plain: bytes) -> None:
        if plain[:LINK_SIZE] != link:
            raise TamperedFile(f"version {version} in {self._name} follows another history", todo=PUT_BACK)
        try:
            for operation in decode_all(plain[LINK_SIZE:]):
                apply(state, operation)
        except FormatError as error:
            raise TamperedFile(
                f"version {version} in {self._name} cannot follow: {error.what}", todo=PUT_BACK
            ) from None

    def _read(self, at: int, size: int) -> bytes:
        data = bytearray(max(0, min(size, self._size - at)))
        with memoryview(data) as view:
            count = self._file.read([view], at) if data else 0
        return bytes(data[:count])
