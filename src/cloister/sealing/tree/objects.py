"""Objects: the files in which sealed segments lie, slot by slot. What authenticates a segment is not here but in the state.

Refuses to hand out a byte that did not authenticate, and to seal two things under one nonce: each seal draws its own. A slot
is as large as a segment; the last segment of a file may be shorter. Format: docs/spec/sealed-tree.md.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Sequence
from typing import Final

from cryptography.exceptions import InvalidTag

from cloister.errors import TamperedFile, TruncatedFile
from cloister.sealing.envelope import framed
from cloister.sealing.segments import TAG_SIZE, Buffer, Writable
from cloister.sealing.tree.segment_map import slot_of
from cloister.sealing.tree.slots import SlotBatch, Slots
from cloister.sealing.tree.state import Node
from cloister.sealing.tree.storage import Storage, StoredFile
from cloister.sealing.tree.tree_keys import LABEL, TreeKeys
from cloister.sealing.xaes import NONCE_SIZE

SUFFIX: Final = ".data"
AT_ONCE: Final = 32
"""Segments that are sealed, written, read or opened in one go."""
_NONCE_END: Final = 4 + NONCE_SIZE


class _Strided(threading.local):
    """Room for sealed segments, each with its tag behind it, so that tags never touch the disk."""

    def __init__(self, segment_size: int) -> None:
        stride = segment_size + TAG_SIZE
        room = memoryview(bytearray(AT_ONCE * stride))
        self.sealed = [room[start : start + stride] for start in range(0, len(room), stride)]
        self.texts = [sealed[:segment_size] for sealed in self.sealed]
        self.tags = [sealed[segment_size:] for sealed in self.sealed]


class Objects:
    """All of a tree."""

    def __init__(
        self, storage: Storage, keys: TreeKeys, segment_size: int, entropy: Callable[[int], bytes]
    ) -> None:
        self.storage = storage
        self.keys = keys
        self.segment_size = segment_size
        self.entropy = entropy
        self.room = _Strided(segment_size)
        self.created = False
        """Whether the folder has names that may not be on the disk yet."""
        self.stored = 0
        """Bytes sealed since somebody set it to 0."""
        self.writable = False
        """Whether objects are opened to be written, too."""

    def remove(self, object_id: bytes) -> None:
        """Nothing points at it any more. Raises OSError."""
        self.storage.remove(object_id.hex() + SUFFIX)


class StoredObject:
    """One object. Everything but :meth:`fetch` is under the tree's lock."""

    __slots__ = ("_cipher", "_file", "_info", "_node", "_objects", "_slots", "name", "pins", "unsynced")

    def __init__(self, objects: Objects, node: Node) -> None:
        """Of ``node``'s contents."""
        object_id = node.object_id
        self._objects = objects
        self._cipher = objects.keys.of_object(object_id)
        self._info = framed(LABEL, objects.keys.tree_id, object_id)
        self._node = node
        self._slots: Slots | None = None
        self._file: StoredFile | None = None
        self.name = object_id.hex() + SUFFIX
        self.unsynced = False
        self.pins = 0
        """While there are some, it stays open."""

    @property
    def slots(self) -> Slots:
        """Counted when they are first needed, which is before the first change of the segment map."""
        if self._slots is None:
            self._slots = Slots(self._node.segments.slots())
        return self._slots

    def file(self, *, write: bool) -> StoredFile:
        """Opened when it is first needed. Raises OSError, and errors of sealing where it is missing or no plain file."""
        if self._file is None:
            storage = self._objects.storage
            try:
                # Of a tree that is written, what was opened to be read is written next.
                self._file = storage.open(self.name, write=write or self._objects.writable)
            except FileNotFoundError:
                if not write:
                    raise TruncatedFile(
                        f"{self.name} is missing", todo="put back the whole tree from one copy"
                    ) from None
                self._file = storage.create(self.name)
                self._objects.created = True
        return self._file

    @property
    def is_open(self) -> bool:
        """Whether it holds a descriptor."""
        return self._file is not None

    def close(self) -> None:
        """It opens again when it is needed. Raises OSError if what was written cannot be synced."""
        if self._file is not None and not self.pins:
            if self.unsynced:
                self._file.sync()
                self.unsynced = False
            self._file.close()
            self._file = None

    def sync(self) -> None:
        """What was written is on the disk when it returns. Any thread, on a pinned object. Raises OSError."""
        if self._file is not None:
            self._file.sync()

    def done(self, batch: SlotBatch, punched: int) -> None:
        """A commit is durable: what came free is given back to the file system, in the middle from so many bytes on."""
        size = self._objects.segment_size
        self.slots.done(batch)
        before = self.slots.count
        self.slots.trim()
        if self._file is None:
            return
        # What is not given back today is given back another day.
        with contextlib.suppress(OSError):
            if self.slots.count < before and self._file.size() > self.slots.count * size:
                self._file.truncate(self.slots.count * size)
            for first, count in self.slots.take_unpunched(max(1, punched // size)):
                self._file.punch(first * size, count * size)

    def let_go(self) -> None:
        """Close, and what was written may be lost: nothing will ever point at it."""
        self.unsynced = False
        self.close()

    def store(self, segments: Sequence[tuple[int, Buffer]]) -> list[bytes]:
        """Seal segments (number, plaintext) into free slots; the entries, in the same order.

        At most 32, each as long as its file wants it. Raises OSError; then no slot is taken.
        """
        objects, room = self._objects, self._objects.room
        file = self.file(write=True)
        slots = self.slots.take(len(segments))
        nonces = objects.entropy(NONCE_SIZE * len(segments))
        entries, texts = [], []
        try:
            for place, (number, plain) in enumerate(segments):
                nonce = nonces[place * NONCE_SIZE : (place + 1) * NONCE_SIZE]
                size = len(plain)
                sealed = room.sealed[place][: size + TAG_SIZE]
                self._cipher.seal_into(nonce, plain, self._info + number.to_bytes(8), sealed)
                texts.append(sealed[:size])
                entries.append(slots[place].to_bytes(4) + nonce + bytes(sealed[size:]))
            self.unsynced = True
            for start, end in _runs(slots, [len(text) for text in texts], objects.segment_size):
                file.write(texts[start:end], slots[start] * objects.segment_size)
        except BaseException:
            for slot in slots:
                self.slots.leave(slot)
            raise
        objects.stored += sum(map(len, texts))
        return entries

    def fetch(self, file: StoredFile, wanted: Sequence[tuple[int, bytes, Writable]]) -> None:
        """Open segments (number, entry, where to; as long as the segment is). Any thread, on a pinned object.

        Raises :class:`~cloister.errors.TruncatedFile`, :class:`~cloister.errors.TamperedFile` and OSError; the buffers hold
        nothing that did not authenticate.
        """
        size, room = self._objects.segment_size, self._objects.room
        for begin in range(0, len(wanted), AT_ONCE):
            part = wanted[begin : begin + AT_ONCE]
            slots = [slot_of(entry) for _, entry, _ in part]
            lengths = [len(out) for _, _, out in part]
            texts = [
                text if length == size else text[:length]
                for text, length in zip(room.texts, lengths, strict=False)
            ]
            for start, end in _runs(slots, lengths, size):
                count = file.read(texts[start:end], slots[start] * size)
                if count != sum(lengths[start:end]):
                    raise TruncatedFile(
                        f"{self.name} ends before segment {part[start][0]} does",
                        todo="put back the whole tree from one copy",
                    )
            for place, (number, entry, out) in enumerate(part):
                self._open(place, number, entry, out)

    def _open(self, place: int, number: int, entry: bytes, out: Writable) -> None:
        size, room = len(out), self._objects.room
        if size == self._objects.segment_size:
            sealed = room.sealed[place]
            room.tags[place][:] = entry[_NONCE_END:]
        else:
            sealed = room.sealed[place][: size + TAG_SIZE]
            sealed[size:] = entry[_NONCE_END:]
        try:
            self._cipher.open_into(entry[4:_NONCE_END], sealed, self._info + number.to_bytes(8), out)
        except InvalidTag:
            out[:] = bytes(size)
            raise TamperedFile(
                f"segment {number} of {self.name} does not authenticate",
                todo="put back the whole tree from one copy",
            ) from None


def _runs(slots: Sequence[int], lengths: Sequence[int], size: int) -> list[tuple[int, int]]:
    """Where one read or write will do: (first, behind the last) of neighbouring slots, all full but the last."""
    runs = []
    start = 0
    for at in range(1, len(slots) + 1):
        if at == len(slots) or slots[at] != slots[at - 1] + 1 or lengths[at - 1] != size:
            runs.append((start, at))
            start = at
    return runs
