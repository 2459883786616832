"""A bounded number of decrypted segments, shared by all who read: each is opened once, however many ask for it at once.

Buffers are used again and again, because fresh memory costs more than AES. Who waits for a segment does not keep others from
theirs. Refuses to hand out a byte of a segment whose opening failed.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import TypeAlias

from cloister.sealing.envelope import erase
from cloister.sealing.segments import SEGMENT_SIZE

Fill: TypeAlias = Callable[[bytearray, bytearray], None]
"""Open a segment by way of the first buffer into the start of the second, 1 MiB each. Raises what keeps it from that."""


class _Held:
    __slots__ = ("clear", "failure", "pins", "ready")

    def __init__(self, clear: bytearray) -> None:
        self.clear = clear
        self.pins = 0
        self.ready = threading.Event()
        self.failure: BaseException | None = None


class SegmentCache:
    """Thread-safe."""

    def __init__(self, capacity: int) -> None:
        """``capacity`` is in segments; while more threads than that read at once, there are as many as threads."""
        self._capacity = capacity
        self._held: OrderedDict[Hashable, _Held] = OrderedDict()
        self._spare: list[bytearray] = []
        self._blocks: list[bytearray] = []
        self._lock = threading.Lock()

    def copy(self, key: Hashable, fill: Fill, start: int, length: int) -> bytes:
        """``length`` bytes from ``start`` on of the segment ``key``, opened by ``fill`` if it is not here."""
        held = self._pin(key, fill)
        try:
            with memoryview(held.clear) as clear:
                return bytes(clear[start : start + length])
        finally:
            self._unpin(held)

    def close(self) -> None:
        """Erase what is held and not being copied at this moment."""
        with self._lock:
            for held in self._held.values():
                if held.pins == 0:
                    erase(held.clear)
            for buffer in self._spare:
                erase(buffer)
            self._held.clear()
            self._spare.clear()

    def _pin(self, key: Hashable, fill: Fill) -> _Held:
        with self._lock:
            held = self._held.get(key)
            if held is None:
                mine = True
                held = self._held[key] = _Held(self._buffer())
            else:
                mine = False
                self._held.move_to_end(key)
            held.pins += 1
        if mine:
            self._fill(key, held, fill)
        else:
            held.ready.wait()
        if held.failure is not None:
            self._unpin(held)
            raise held.failure
        return held

    def _fill(self, key: Hashable, held: _Held, fill: Fill) -> None:
        with self._lock:
            block = self._blocks.pop() if self._blocks else bytearray(SEGMENT_SIZE)
        try:
            fill(block, held.clear)
        except BaseException as error:
            held.failure = error
            with self._lock:
                if self._held.get(key) is held:
                    del self._held[key]  # who asks next tries again
        finally:
            held.ready.set()
            with self._lock:
                self._blocks.append(block)

    def _unpin(self, held: _Held) -> None:
        with self._lock:
            held.pins -= 1

    def _buffer(self) -> bytearray:
        if len(self._held) >= self._capacity:
            for key, held in self._held.items():
                if held.pins == 0:
                    del self._held[key]
                    return held.clear
        return self._spare.pop() if self._spare else bytearray(SEGMENT_SIZE)
