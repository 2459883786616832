"""Where the segments of one file lie and what authenticates them: 44 bytes for each, and nothing for holes.

Pure. An entry is the slot (4 bytes, big-endian), the nonce (24) and the tag (16). Refuses runs that are not what they say.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from cloister.errors import FormatError

ENTRY_SIZE: Final = 44
MAX_SLOT: Final = (1 << 32) - 2
_CHUNK: Final = 256
"""Segments to a chunk: a file with holes has only the chunks where something is."""
_NO_SLOT: Final = b"\xff\xff\xff\xff"
_HOLE: Final = _NO_SLOT + bytes(40)


class SegmentMap:
    """Entries by segment number."""

    __slots__ = ("_chunks", "stored")

    def __init__(self) -> None:
        self._chunks: dict[int, bytearray] = {}
        self.stored = 0
        """Segments that are not holes."""

    def get(self, segment: int) -> bytes | None:
        """The entry; None for a hole."""
        chunk = self._chunks.get(segment // _CHUNK)
        if chunk is None:
            return None
        at = segment % _CHUNK * ENTRY_SIZE
        entry = bytes(chunk[at : at + ENTRY_SIZE])
        return None if not entry or entry[:4] == _NO_SLOT else entry

    def put(self, segment: int, entry: bytes) -> None:
        """Point a segment at a slot."""
        chunk = self._chunks.setdefault(segment // _CHUNK, bytearray())
        at = segment % _CHUNK * ENTRY_SIZE
        missing = (at - len(chunk)) // ENTRY_SIZE
        if missing > 0:
            chunk += _HOLE * missing
        if at == len(chunk) or chunk[at : at + 4] == _NO_SLOT:
            self.stored += 1
        chunk[at : at + ENTRY_SIZE] = entry

    def put_run(self, first: int, entries: bytes) -> None:
        """Point consecutive segments, none of them a hole. Raises :class:`~cloister.errors.FormatError`."""
        if not entries or len(entries) % ENTRY_SIZE:
            raise FormatError("a run of segments has a length that it cannot have")
        for number, at in enumerate(range(0, len(entries), ENTRY_SIZE)):
            entry = entries[at : at + ENTRY_SIZE]
            if entry[:4] == _NO_SLOT:
                raise FormatError("a run of segments holds a hole")
            self.put(first + number, entry)

    def cut(self, count: int) -> list[int]:
        """Forget all segments from ``count`` on; the slots they had."""
        slots = [slot for _, slot in self._pairs(count)]
        last, within = divmod(count, _CHUNK)
        for number in [number for number in self._chunks if number > last or (number == last and not within)]:
            del self._chunks[number]
        if last in self._chunks:
            del self._chunks[last][within * ENTRY_SIZE :]
        self.stored -= len(slots)
        return slots

    def slots(self) -> list[int]:
        """All slots that are pointed at."""
        return [slot for _, slot in self._pairs(0)]

    def runs(self) -> Iterator[tuple[int, bytes]]:
        """Runs of consecutive segments that are no holes, in order, none longer than a chunk."""
        for number in sorted(self._chunks):
            chunk = self._chunks[number]
            start = None
            for at in range(0, len(chunk) + ENTRY_SIZE, ENTRY_SIZE):
                there = at < len(chunk) and chunk[at : at + 4] != _NO_SLOT
                if there and start is None:
                    start = at
                elif not there and start is not None:
                    yield number * _CHUNK + start // ENTRY_SIZE, bytes(chunk[start:at])
                    start = None

    def _pairs(self, start: int) -> Iterator[tuple[int, int]]:
        for number, chunk in self._chunks.items():
            base = number * _CHUNK
            for within in range(max(0, start - base), len(chunk) // ENTRY_SIZE):
                at = within * ENTRY_SIZE
                if chunk[at : at + 4] != _NO_SLOT:
                    yield base + within, int.from_bytes(chunk[at : at + 4])


def slot_of(entry: bytes) -> int:
    """Which slot of the object an entry points at."""
    return int.from_bytes(entry[:4])
