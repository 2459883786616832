"""Opened segments that were asked for in part and will be again: bounded, oldest out first.

A segment is found by its entry, which changes with every seal, so nothing that was replaced can be found.
"""

from __future__ import annotations

import threading
from collections import OrderedDict

from cloister.sealing.envelope import erase
from cloister.sealing.segments import Buffer


class SegmentCache:
    """Plaintext by (object, entry). Thread-safe."""

    def __init__(self, most: int) -> None:
        """``most`` is in bytes."""
        self._most = most
        self._held = 0
        self._segments: OrderedDict[tuple[str, bytes], Buffer] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, name: str, entry: bytes) -> Buffer | None:
        """Not to be changed."""
        with self._lock:
            found = self._segments.get((name, entry))
            if found is not None:
                self._segments.move_to_end((name, entry))
            return found

    def put(self, name: str, entry: bytes, plain: Buffer) -> None:
        """``plain`` is not changed any more."""
        with self._lock:
            if (name, entry) in self._segments:
                return
            self._segments[name, entry] = plain
            self._held += len(plain)
            while self._held > self._most:
                _, oldest = self._segments.popitem(last=False)
                self._held -= len(oldest)

    def clear(self) -> None:
        """Erase all."""
        with self._lock:
            for plain in self._segments.values():
                if isinstance(plain, bytearray):
                    erase(plain)
            self._segments.clear()
            self._held = 0
