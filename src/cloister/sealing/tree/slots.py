"""Which slots of an object are taken. A slot that the last durable state points at is never given out.

Pure. What replaces a segment takes a free slot; the old one comes free when the record that no longer points at it is
durable, or at once if no record ever pointed at it. Refuses two segments in one slot.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable
from dataclasses import dataclass, field

from cloister.errors import TamperedFile
from cloister.sealing.tree.segment_map import MAX_SLOT


@dataclass(slots=True)
class SlotBatch:
    """What a commit carries: slots that it points at for the first time, and slots that it points at no longer."""

    fresh: set[int] = field(default_factory=set)
    freed: list[int] = field(default_factory=list)


class Slots:
    """Of one object."""

    __slots__ = ("_low", "_open", "_taken", "_unpunched")

    def __init__(self, taken: Iterable[int]) -> None:
        """``taken`` are those that the state points at. Raises :class:`~cloister.errors.TamperedFile`."""
        slots = list(taken)
        self._taken = bytearray(max(slots, default=-1) + 1)
        for slot in slots:
            if self._taken[slot]:
                raise TamperedFile("two segments of a file lie in one place")
            self._taken[slot] = 1
        self._low = 0
        self._open = SlotBatch()
        self._unpunched: list[int] = []

    @property
    def count(self) -> int:
        """So many slots the object has, the last one taken."""
        return len(self._taken)

    def take(self, count: int) -> list[int]:
        """So many free slots, the lowest."""
        slots: list[int] = []
        at = self._low
        while len(slots) < count:
            at = self._taken.find(0, at)
            if at < 0:
                at = len(self._taken)
                if at > MAX_SLOT:
                    raise OSError(errno.EFBIG, os.strerror(errno.EFBIG))
                self._taken.append(0)
            self._taken[at] = 1
            slots.append(at)
            at += 1
        self._low = at
        self._open.fresh.update(slots)
        return slots

    def leave(self, slot: int) -> None:
        """The segment that lay there lies elsewhere, or is no more."""
        if slot in self._open.fresh:
            self._open.fresh.discard(slot)
            self._free(slot)
        else:
            self._open.freed.append(slot)

    def begin(self) -> SlotBatch:
        """What a commit that begins now carries."""
        batch, self._open = self._open, SlotBatch()
        return batch

    def done(self, batch: SlotBatch) -> None:
        """It is durable."""
        for slot in batch.freed:
            self._free(slot)
        self._unpunched += batch.freed

    def undone(self, batch: SlotBatch, *, certain: bool) -> None:
        """It failed; ``certain``: and can never be found on the disk either, so nothing points at its fresh slots."""
        self._open.freed[:0] = batch.freed
        if certain:
            # What was replaced meanwhile waits among the freed ones, which is safe.
            self._open.fresh |= batch.fresh.difference(self._open.freed)

    def trim(self) -> None:
        """Forget free slots at the end."""
        end = len(self._taken)
        while end and not self._taken[end - 1]:
            end -= 1
        del self._taken[end:]
        self._low = min(self._low, end)

    def take_unpunched(self, at_least: int) -> list[tuple[int, int]]:
        """Runs (slot, how many) that came free and are still free, if they are so many together; each once."""
        free = sorted({slot for slot in self._unpunched if slot < len(self._taken) and not self._taken[slot]})
        if len(free) < at_least:
            self._unpunched = free
            return []
        self._unpunched = []
        runs: list[tuple[int, int]] = []
        for slot in free:
            if runs and slot == runs[-1][0] + runs[-1][1]:
                runs[-1] = (runs[-1][0], runs[-1][1] + 1)
            else:
                runs.append((slot, 1))
        return runs

    def _free(self, slot: int) -> None:
        self._taken[slot] = 0
        self._low = min(self._low, slot)
