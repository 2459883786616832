"""The head of a GGUF file: its keys and values, and the table that says where each tensor lies. Pure; bytes out.

Source: ggml's docs/gguf.md, version 3, little endian.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from cloister.inference.conversion.blocks import BlockType
from cloister.inference.gguf_header import MAGIC

ALIGNMENT: Final = 32
VERSION: Final = 3
_UINT32, _INT32, _FLOAT32, _BOOL, _STRING, _ARRAY = 4, 5, 6, 7, 8, 9


class Pairs:
    """Keys and values, in the order in which they were added."""

    def __init__(self) -> None:
        self.count = 0
        self._parts: list[bytes] = []

    def text(self, key: str, value: str) -> None:
        self._add(key, _STRING, string(value.encode()))

    def count_of(self, key: str, value: int) -> None:
        self._add(key, _UINT32, struct.pack("<I", value))

    def number(self, key: str, value: float) -> None:
        self._add(key, _FLOAT32, struct.pack("<f", value))

    def flag(self, key: str, value: bool) -> None:
        self._add(key, _BOOL, struct.pack("<?", value))

    def strings(self, key: str, values: Iterable[bytes]) -> None:
        parts = [string(value) for value in values]
        self._add(key, _ARRAY, struct.pack("<IQ", _STRING, len(parts)) + b"".join(parts))

    def integers(self, key: str, values: Sequence[int]) -> None:
        self._add(
            key, _ARRAY, struct.pack("<IQ", _INT32, len(values)) + struct.pack(f"<{len(values)}i", *values)
        )

    def numbers(self, key: str, values: Sequence[float]) -> None:
        self._add(
            key, _ARRAY, struct.pack("<IQ", _FLOAT32, len(values)) + struct.pack(f"<{len(values)}f", *values)
        )

    def encoded(self) -> bytes:
        return b"".join(self._parts)

    def _add(self, key: str, kind: int, data: bytes) -> None:
        self._parts.append(string(key.encode()) + struct.pack("<I", kind) + data)
        self.count += 1


@dataclass(frozen=True, slots=True)
class Stored:
    """A tensor of the file: ``sides`` with the rows first, and where its bytes begin after the head."""

    name: str
    sides: tuple[int, ...]
    kind: BlockType
    offset: int
    size: int


def layout(tensors: Iterable[tuple[str, tuple[int, ...], BlockType]]) -> tuple[tuple[Stored, ...], int]:
    """A place for each tensor, and where the last one ends."""
    places, offset = [], 0
    for name, sides, kind in tensors:
        elements = 1
        for side in sides:
            elements *= side
        size = kind.bytes_of(elements)
        places.append(Stored(name, sides, kind, offset, size))
        offset += padded(size)
    return tuple(places), offset


def head(pairs: Pairs, tensors: Sequence[Stored]) -> bytes:
    """All that stands before the first tensor's bytes."""
    table = bytearray()
    for tensor in tensors:
        sides = tuple(reversed(tensor.sides))
        table += string(tensor.name.encode())
        table += struct.pack(f"<I{len(sides)}QIQ", len(sides), *sides, tensor.kind.number, tensor.offset)
    data = MAGIC + struct.pack("<IQQ", VERSION, len(tensors), pairs.count) + pairs.encoded() + bytes(table)
    return data + bytes(padded(len(data)) - len(data))


def string(data: bytes) -> bytes:
    return struct.pack("<Q", len(data)) + data


def padded(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT
