"""What one file holds while somebody uses it: segments on the disk, and segments in memory that are not sealed yet.

Every method is called under the tree's lock. Refuses to grow beyond the bound. Stale bytes never come back: what lies behind
a shrunk end is cut out of its segment, and a file that grows again finds zeros there.
"""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass
from typing import Final, TypeAlias

from cloister.sealing.segments import Buffer
from cloister.sealing.tree.cache import SegmentCache
from cloister.sealing.tree.objects import AT_ONCE, StoredObject
from cloister.sealing.tree.operations import SetContents
from cloister.sealing.tree.segment_map import ENTRY_SIZE, slot_of
from cloister.sealing.tree.slots import SlotBatch
from cloister.sealing.tree.state import MAX_SIZE, Node

MAX_RUN: Final = 256
"""Segments to a run in a record."""


Planned: TypeAlias = tuple[int, bytes | None, bytes | None]
"""A segment's number, its entry, the bytes of it that were asked for: one of the two, or neither for a hole."""


class Contents:
    """A file that is open, or has something to commit."""

    __slots__ = (
        "_cache",
        "changed",
        "dirty",
        "gone",
        "handles",
        "kept",
        "node",
        "object",
        "removed",
        "size_of",
        "touched",
    )

    def __init__(self, node: Node, stored: StoredObject, segment_size: int, cache: SegmentCache) -> None:
        self.node = node
        self.object = stored
        self.size_of = segment_size
        self._cache = cache
        self.dirty: dict[int, bytearray] = {}
        """Plaintext of segments that changed in memory, each as long as the file wants it."""
        self.changed: set[int] = set()
        """Segments whose entries the last record does not have."""
        self.kept = -(-node.size // segment_size)
        """Segments that were never cut away since the last record."""
        self.touched = False
        self.handles = 0
        self.removed = False
        self.gone = False
        """Removed, and the record of it is durable."""

    @property
    def idle(self) -> bool:
        """Nobody uses it, and there is nothing to commit."""
        return not self.handles and not self.touched

    # Reading

    def plan(self, offset: int, end: int) -> list[Planned]:
        """For each segment of the range: number, entry, or of one in memory the bytes of the range. Holes have neither."""
        size = self.size_of
        found: list[Planned] = []
        for number in range(offset // size, -(-end // size)):
            held = self.dirty.get(number)
            if held is None:
                found.append((number, self.node.segments.get(number), None))
            else:
                start = number * size
                found.append((number, None, bytes(held[max(0, offset - start) : end - start])))
        return found

    def length_of(self, number: int) -> int:
        """Bytes of a segment, as long as the file is now."""
        return min(self.size_of, self.node.size - number * self.size_of)

    def load(self, number: int) -> bytearray:
        """A segment to be changed: it is in memory from now on. Raises errors of sealing, and OSError."""
        held = self.dirty.get(number)
        if held is None:
            held = bytearray(self.length_of(number))
            entry = self.node.segments.get(number)
            if entry is not None:
                known = self._cache.get(self.object.name, entry)
                if known is None:
                    self.object.fetch(self.object.file(write=False), [(number, entry, held)])
                else:
                    held[:] = known
        return held

    # Changing

    def write(self, offset: int, data: memoryview) -> None:
        """All of ``data``. Raises OSError and errors of sealing; then nothing of it is there."""
        end = offset + len(data)
        if end > MAX_SIZE:
            raise OSError(errno.EFBIG, os.strerror(errno.EFBIG))
        size = self.size_of
        new_size = max(self.node.size, end)
        first_whole, behind_whole = -(-offset // size), end // size
        edges = {
            number
            for number in (offset // size, (end - 1) // size)
            if not first_whole <= number < behind_whole
        }
        held = {}
        for number in edges:
            start = number * size
            replaced = offset <= start and end >= min(start + size, self.node.size)
            held[number] = bytearray() if replaced or start >= self.node.size else self.load(number)
        stored = []
        try:
            for begin in range(first_whole, behind_whole, AT_ONCE):
                numbers = range(begin, min(begin + AT_ONCE, behind_whole))
                views: list[tuple[int, Buffer]] = [
                    (number, data[number * size - offset : (number + 1) * size - offset])
                    for number in numbers
                ]
                stored += list(zip(numbers, self.object.store(views), strict=True))
            if new_size > self.node.size:
                self._grow(offset if offset > self.node.size else self.node.size, edges)
        except BaseException:
            for _, entry in stored:
                self.object.slots.leave(slot_of(entry))
            raise
        self.node.size = new_size
        for number, entry in stored:
            self._point(number, entry)
        for number in edges:
            buffer, start = held[number], number * size
            wanted = self.length_of(number)
            if len(buffer) < wanted:
                buffer.extend(bytes(wanted - len(buffer)))
            low, high = max(offset, start), min(end, start + size)
            buffer[low - start : high - start] = data[low - offset : high - offset]
            self.dirty[number] = buffer
        self.touched = True

    def truncate(self, size: int) -> None:
        """Shorter or longer. Raises OSError and errors of sealing; then nothing has changed."""
        if size > MAX_SIZE:
            raise OSError(errno.EFBIG, os.strerror(errno.EFBIG))
        if size > self.node.size:
            self._grow(size, frozenset())
        elif size < self.node.size:
            self._shrink(size)
        self.touched = True

    def _grow(self, size: int, edges: frozenset[int] | set[int]) -> None:
        """To ``size``, zeros behind the old end; ``edges`` are segments that the caller makes long enough."""
        last = self.node.size // self.size_of
        if self.node.size % self.size_of and last not in edges and size > self.node.size:
            self._lengthen(last, min(self.size_of, size - last * self.size_of))
        self.node.size = size

    def _lengthen(self, number: int, wanted: int) -> None:
        if number not in self.dirty and self.node.segments.get(number) is None:
            return  # a hole is as long as it needs to be
        held = self.load(number)
        held += bytes(wanted - len(held))
        self.dirty[number] = held

    def _shrink(self, size: int) -> None:
        slots = self.object.slots
        kept = -(-size // self.size_of)
        within = size % self.size_of
        last = kept - 1
        if within and (last in self.dirty or self.node.segments.get(last) is not None):
            held = self.load(last)
            del held[within:]
            self.dirty[last] = held
        for number in [number for number in self.dirty if number >= kept]:
            del self.dirty[number]
        for slot in self.node.map_of_its_own().cut(kept):
            slots.leave(slot)
        self.changed = {number for number in self.changed if number < kept}
        self.kept = min(self.kept, kept)
        self.node.size = size

    def _point(self, number: int, entry: bytes) -> None:
        self.dirty.pop(number, None)
        segments = self.node.map_of_its_own()
        before = segments.get(number)
        if before is not None:
            self.object.slots.leave(slot_of(before))
        segments.put(number, entry)
        self.changed.add(number)

    def write_back(self) -> None:
        """Seal what is in memory. Raises OSError; what was not sealed stays in memory."""
        numbers = sorted(self.dirty)
        for begin in range(0, len(numbers), AT_ONCE):
            part = [(number, self.dirty[number]) for number in numbers[begin : begin + AT_ONCE]]
            entries = self.object.store(part)
            for (number, plain), entry in zip(part, entries, strict=True):
                self._point(number, entry)
                self._cache.put(self.object.name, entry, plain)

    def bring_back(self) -> None:
        """What was sealed since the last record is taken into memory again: the disk may have lost it."""
        for number in sorted(self.changed):
            self.dirty[number] = self.load(number)

    # Committing

    def begin(self) -> ContentsBatch:
        """What a commit that begins now says of it; nothing may be left in memory."""
        batch = ContentsBatch(self, self.changed, self.kept, self.object.slots.begin())
        self.changed, self.touched = set(), False
        self.kept = -(-self.node.size // self.size_of)
        return batch

    def operation(self, batch: ContentsBatch) -> SetContents:
        """As a record has it."""
        runs: list[tuple[int, bytes]] = []
        gathered = bytearray()
        first = -1
        for number in sorted(batch.changed):
            entry = self.node.segments.get(number)
            assert entry is not None  # noqa: S101 -- what is changed is never a hole: _shrink forgets it
            count = len(gathered) // ENTRY_SIZE
            if gathered and (number != first + count or count == MAX_RUN):
                runs.append((first, bytes(gathered)))
                gathered.clear()
            if not gathered:
                first = number
            gathered += entry
        if gathered:
            runs.append((first, bytes(gathered)))
        node = self.node
        return SetContents(node.number, batch.kept, node.size, node.modified_ns, node.changed_ns, tuple(runs))

    def undone(self, batch: ContentsBatch, *, certain: bool) -> None:
        """It failed: what it said is to be said again. ``certain`` as in slots.py."""
        self.object.slots.undone(batch.slots, certain=certain)
        self.changed |= {number for number in batch.changed if number < self.kept}
        self.kept = min(self.kept, batch.kept)
        self.touched = True


@dataclass(frozen=True, slots=True)
class ContentsBatch:
    """One file's part of a commit."""

    contents: Contents
    changed: set[int]
    kept: int
    slots: SlotBatch
