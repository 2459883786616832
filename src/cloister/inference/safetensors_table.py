"""Read a safetensors file: names, types and shapes, and for each tensor a view of its bytes; nothing is copied.

The format is an 8-byte length, a JSON table and the bytes (huggingface/safetensors, format 0.x). Refused: a table that
does not cover the bytes exactly, without gaps or overlap, types other than the floating-point ones that adapters have,
shapes that do not fit their bytes, and more of anything than its bound.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal

import msgspec

from cloister.encoding import convert, parse_json
from cloister.errors import FormatError

MAX_TABLE: Final = 16 << 20
MAX_TENSORS: Final = 1 << 16
MAX_DIMENSIONS: Final = 4
MAX_LENGTH: Final = 1 << 32

Type = Literal["F32", "F16", "BF16"]
WIDTH: Final[Mapping[str, int]] = {"F32": 4, "F16": 2, "BF16": 2}
_METADATA: Final = "__metadata__"


class _Entry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    dtype: Type
    shape: tuple[int, ...]
    data_offsets: tuple[int, int]


@dataclass(frozen=True, slots=True)
class Tensor:
    """One tensor, row by row, little endian."""

    type: Type
    shape: tuple[int, ...]
    data: memoryview


@dataclass(frozen=True, slots=True)
class Place:
    """Where one tensor lies in its file: bytes ``start`` to ``end``, counted from the file's beginning."""

    type: Type
    shape: tuple[int, ...]
    start: int
    end: int


def table_length(head: bytes, size: int, *, what: str) -> int:
    """Bytes of the table, from the first 8 bytes of a file of ``size``. Raises :class:`FormatError`."""
    if len(head) < 8 or size < 8:
        raise FormatError(f"{what} is too short to be safetensors")
    length = int.from_bytes(head[:8], "little")
    if length > min(MAX_TABLE, size - 8):
        raise FormatError(f"{what} has a table of {length} bytes, over its bound")
    return length


def read_table(table: bytes, size: int, *, what: str) -> dict[str, Place]:
    """Every tensor's place by name; ``table`` stands after 8 bytes of a file of ``size``. Raises :class:`FormatError`."""
    found = parse_json(table, what=what, limit=MAX_TABLE)
    if not isinstance(found, dict):
        raise FormatError(f"{what} has no table of tensors")
    convert(found.pop(_METADATA, {}), dict[str, str], what=what)
    if len(found) > MAX_TENSORS:
        raise FormatError(f"{what} names over {MAX_TENSORS} tensors")
    entries = convert(found, dict[str, _Entry], what=what)
    begin = 8 + len(table)
    places: dict[str, Place] = {}
    position = 0
    for name, entry in sorted(entries.items(), key=lambda item: item[1].data_offsets):
        start, end = entry.data_offsets
        if len(entry.shape) > MAX_DIMENSIONS or not all(0 < side <= MAX_LENGTH for side in entry.shape):
            raise FormatError(f"{what} has a tensor of a shape that cannot be")
        if start != position or end - start != math.prod(entry.shape) * WIDTH[entry.dtype]:
            raise FormatError(f"{what} has tensors that overlap, leave gaps or do not fit their shapes")
        places[name] = Place(type=entry.dtype, shape=entry.shape, start=begin + start, end=begin + end)
        position = end
    if begin + position != size:
        raise FormatError(f"{what} is {size - begin - position} bytes longer than its tensors")
    return places


def read_tensors(data: memoryview, *, what: str) -> dict[str, Tensor]:
    """Every tensor of a safetensors file by name; ``what`` names the file in errors. Raises :class:`FormatError`."""
    length = table_length(bytes(data[:8]), len(data), what=what)
    places = read_table(bytes(data[8 : 8 + length]), len(data), what=what)
    return {
        name: Tensor(type=place.type, shape=place.shape, data=data[place.start : place.end])
        for name, place in places.items()
    }
