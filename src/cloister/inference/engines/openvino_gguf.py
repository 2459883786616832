"""A GGUF file read whole for OpenVINO: every key with its array, every tensor as the weights of one layer.

llama.cpp's blocks become what OpenVINO computes with: whole numbers of 4 or 8 bits in groups, each group with one scale of
16 bits. Q4_0, Q8_0, F16, BF16 and F32 stay what they are bit for bit; Q6_K becomes 8-bit groups of 16, its scales rounded
to 16 bits. Refused by name: every other type, for which only llama.cpp has the arithmetic.
Source: ggml's docs/gguf.md and ggml-quants.c.
"""

from __future__ import annotations

import math
import mmap
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

import numpy as np
import numpy.typing as npt

from cloister.errors import InferenceError
from cloister.inference.gguf_header import MAX_ARRAY, MAX_PAIRS, MAX_STRING, MAX_TENSORS, read_gguf_header

Array: TypeAlias = npt.NDArray[Any]

_SCALARS: Final = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
_F32, _F16, _Q4_0, _Q8_0, _Q6_K, _BF16 = 0, 1, 2, 8, 14, 30
_NAMES: Final = {3: "Q4_1", 6: "Q5_0", 7: "Q5_1", 10: "Q2_K", 11: "Q3_K", 12: "Q4_K", 13: "Q5_K"}
_PLAIN: Final = {_F32: "<f4", _F16: "<f2", _BF16: "<u2"}
_BLOCKS: Final = {_Q4_0: (32, 18), _Q8_0: (32, 34), _Q6_K: (256, 210)}


@dataclass(frozen=True, slots=True)
class Layer:
    """The weights of one layer: rows of ``numbers``, plain or in groups of ``group`` with one scale each."""

    numbers: Array
    """(rows, columns) floats, or bfloat16 as uint16, or int8, or (rows, columns / 2) packed pairs, the first one low."""
    scales: Array | None = None
    """(rows, columns / group), float16."""
    bits: int = 16
    group: int = 0

    @property
    def columns(self) -> int:
        return int(self.numbers.shape[-1]) * (2 if self.bits == 4 else 1)

    def picked(self, order: npt.NDArray[np.intp]) -> Layer:
        """The same layer with its rows in another order."""
        scales = None if self.scales is None else self.scales[order]
        return Layer(self.numbers[order], scales, self.bits, self.group)


class GgufModel:
    """The keys and tensors of one file, mapped; the map lives as long as this."""

    def __init__(self, descriptor: int, *, what: str) -> None:
        """``descriptor`` is not closed and not needed any more afterwards. Raises :class:`InferenceError`."""
        self.header = read_gguf_header(descriptor, what=what)
        self._what = what
        self._map = mmap.mmap(descriptor, 0, prot=mmap.PROT_READ)
        self._position = 8
        tensors = self._bounded(self._number("Q"), MAX_TENSORS)
        pairs = self._bounded(self._number("Q"), MAX_PAIRS)
        self.keys: dict[str, Any] = {
            self._string().decode(errors="replace"): self._value() for _ in range(pairs)
        }
        table: dict[str, tuple[tuple[int, ...], int, int]] = {}
        for _ in range(tensors):
            name = self._string().decode(errors="replace")
            shape = tuple(self._number("Q") for _ in range(self._bounded(self._number("I"), 8)))
            table[name] = shape, self._number("I"), self._number("Q")
        self._table: Mapping[str, tuple[tuple[int, ...], int, int]] = table
        alignment = self.keys.get("general.alignment", 32)
        self._begin = -(-self._position // alignment) * alignment
        self._read: set[str] = set()

    def __contains__(self, name: str) -> bool:
        return name in self._table

    def unread(self) -> list[str]:
        """The tensors that nobody has asked for."""
        return sorted(set(self._table) - self._read)

    def vector(self, name: str) -> npt.NDArray[np.float32]:
        """A tensor of one side, as 32-bit floats. Raises :class:`InferenceError`."""
        numbers = self._plain(name)
        if numbers.ndim != 1:
            raise InferenceError(f"{self._what} has {name} in a form that cannot be")
        if numbers.dtype == np.uint16:
            return (numbers.astype(np.uint32) << 16).view(np.float32)
        return numbers.astype(np.float32)

    def layer(self, name: str) -> Layer:
        """A tensor of two sides, rows first. Raises :class:`InferenceError`."""
        shape, kind, _ = self._entry(name)
        if len(shape) != 2:
            raise InferenceError(f"{self._what} has {name} in a form that cannot be")
        if kind in _PLAIN:
            return Layer(self._plain(name))
        if kind not in _BLOCKS:
            raise InferenceError(
                f"{self._what} stores {name} as {_NAMES.get(kind, f'type {kind}')}, which OpenVINO does not compute",
                todo="serve it with the engine llamacpp, or convert the model to Q8_0 or Q4_0",
            )
        length, size = _BLOCKS[kind]
        columns, rows = shape
        if columns % length:
            raise InferenceError(f"{self._what} has {name} with rows that are no whole blocks")
        blocks = self._bytes(name, rows * columns // length * size).reshape(rows, columns // length, size)
        return {_Q4_0: _of_q4_0, _Q8_0: _of_q8_0, _Q6_K: _of_q6_k}[kind](blocks)

    def _plain(self, name: str) -> Array:
        shape, kind, _ = self._entry(name)
        if kind not in _PLAIN:
            raise InferenceError(f"{self._what} has {name} as blocks, where numbers belong")
        form = np.dtype(_PLAIN[kind])
        found = self._bytes(name, math.prod(shape) * form.itemsize).view(form)
        return found.reshape(tuple(reversed(shape)))

    def _entry(self, name: str) -> tuple[tuple[int, ...], int, int]:
        if name not in self._table:
            raise InferenceError(f"{self._what} lacks {name}", todo="convert the model anew")
        self._read.add(name)
        return self._table[name]

    def _bytes(self, name: str, size: int) -> npt.NDArray[np.uint8]:
        begin = self._begin + self._entry(name)[2]
        if begin + size > len(self._map):
            raise InferenceError(f"{self._what} is truncated", todo="copy it again")
        return np.frombuffer(self._map, np.uint8, size, begin)

    def _take(self, count: int) -> bytes:
        data = self._map[self._position : self._position + count]
        if len(data) != count:
            raise InferenceError(f"{self._what} is truncated inside its header", todo="copy it again")
        self._position += count
        return data

    def _number(self, form: str) -> Any:
        return struct.unpack("<" + form, self._take(struct.calcsize("<" + form)))[0]

    def _bounded(self, count: int, limit: int) -> int:
        if count > limit:
            raise InferenceError(f"{self._what} has a header that cannot be: {count} entries, over {limit}")
        return count

    def _string(self) -> bytes:
        return self._take(self._bounded(self._number("Q"), MAX_STRING))

    def _value(self) -> Any:
        kind = self._number("I")
        if kind == _STRING:
            return self._string().decode(errors="replace")
        if kind != _ARRAY:
            return self._number(self._form(kind))
        of = self._number("I")
        count = self._bounded(self._number("Q"), MAX_ARRAY)
        if of == _STRING:
            return [self._string() for _ in range(count)]
        form = np.dtype("<" + self._form(of))
        return np.frombuffer(self._take(count * form.itemsize), form).tolist()

    def _form(self, kind: int) -> str:
        if kind not in _SCALARS:
            raise InferenceError(f"{self._what} has a value of unknown type {kind} in its header")
        return _SCALARS[kind]


def _halves(blocks: npt.NDArray[np.uint8], place: int) -> npt.NDArray[np.float16]:
    """The 16-bit float at ``place`` of every block."""
    return np.ascontiguousarray(blocks[..., place : place + 2]).view("<f2")[..., 0]


def _of_q4_0(blocks: npt.NDArray[np.uint8]) -> Layer:
    # ggml packs number i beside number i + 16 and counts from -8; OpenVINO packs neighbours, in two's complement.
    low, high = blocks[..., 2:] & 15, blocks[..., 2:] >> 4
    numbers = np.concatenate([low, high], axis=-1) ^ 8
    packed = numbers[..., 0::2] | (numbers[..., 1::2] << 4)
    return Layer(packed.reshape(len(blocks), -1), _halves(blocks, 0), bits=4, group=32)


def _of_q8_0(blocks: npt.NDArray[np.uint8]) -> Layer:
    numbers = np.ascontiguousarray(blocks[..., 2:]).view(np.int8)
    return Layer(numbers.reshape(len(blocks), -1), _halves(blocks, 0), bits=8, group=32)


def _of_q6_k(blocks: npt.NDArray[np.uint8]) -> Layer:
    rows, count = blocks.shape[:2]
    low = blocks[..., :128].reshape(rows, count, 2, 1, 64) >> np.array([0, 4], np.uint8).reshape(2, 1) & 15
    high = blocks[..., 128:192].reshape(rows, count, 2, 1, 32) >> np.array([0, 2, 4, 6], np.uint8).reshape(
        4, 1
    )
    numbers = low.reshape(rows, count, 2, 4, 32) | ((high & 3) << 4)
    scales = blocks[..., 192:208].view(np.int8).astype(np.float32) * _halves(blocks, 208)[..., None]
    signed = (numbers.astype(np.int8) - 32).reshape(rows, -1)
    return Layer(signed, scales.astype(np.float16).reshape(rows, -1), bits=8, group=16)
