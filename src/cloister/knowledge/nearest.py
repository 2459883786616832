"""Which vectors may be the nearest, by the signs of their numbers: a bit for each, in memory.

A vector of 384 numbers takes 48 bytes, and 100,000 of them are compared in a few milliseconds. What is found by signs is
ranked by the vectors themselves (index.py).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from cloister.knowledge.embedding import Vectors


class Signs:
    """Of one collection's vectors, by their numbers. Not for several threads at once."""

    def __init__(self, dimensions: int) -> None:
        self._width = -(-dimensions // 64)
        self._ids = np.zeros(0, np.int64)
        self._signs = np.zeros((self._width, 0), np.uint64)
        """One behind another what is compared in one go: 64 signs of each."""
        self._places: dict[int, int] = {}

    def __len__(self) -> int:
        return len(self._places)

    def put(self, ids: Sequence[int], vectors: Vectors) -> None:
        """``ids`` are new; ``vectors`` is (ids, dimensions)."""
        start, end = len(self), len(self) + len(ids)
        if end > len(self._ids):
            room = max(64, end, 2 * len(self._ids))
            self._ids = np.concatenate([self._ids, np.zeros(room - len(self._ids), np.int64)])
            more = np.zeros((self._width, room - self._signs.shape[1]), np.uint64)
            self._signs = np.concatenate([self._signs, more], axis=1)
        self._ids[start:end] = ids
        self._signs[:, start:end] = self._packed(vectors)
        self._places.update(zip(ids, range(start, end), strict=True))

    def drop(self, ids: Iterable[int]) -> None:
        """The last takes the place of each."""
        for one in ids:
            place, last = self._places.pop(one), len(self._places)
            if place != last:
                self._ids[place], self._signs[:, place] = self._ids[last], self._signs[:, last]
                self._places[int(self._ids[place])] = place
            self._signs[:, last] = 0

    def nearest(self, vector: Vectors, most: int) -> list[int]:
        """Numbers of the ``most`` whose signs differ least from those of ``vector`` (dimensions,), in no order."""
        count = len(self)
        if count <= most:
            return [int(one) for one in self._ids[:count]]
        apart = np.zeros(count, np.uint16)
        for signs, asked in zip(self._signs, self._packed(vector[None]), strict=True):
            apart += np.bitwise_count(signs[:count] ^ asked)
        return [int(one) for one in self._ids[np.argpartition(apart, most)[:most]]]

    def _packed(self, vectors: Vectors) -> np.typing.NDArray[np.uint64]:
        """(64 signs each, vectors)"""
        bits = np.packbits(vectors > 0, axis=1)
        whole = np.zeros((len(vectors), 8 * self._width), np.uint8)
        whole[:, : bits.shape[1]] = bits
        return np.ascontiguousarray(whole.view(np.uint64).T)
