"""A model's tensors in its .safetensors files, read in pieces of rows: never more of them in memory than asked for.

Files are read by position, not mapped: one that is cut short meanwhile gives an error and no signal. Where there are
several, ``model.safetensors`` alone counts, else what ``model.safetensors.index.json`` names, as ``transformers`` does it.
Refused: tables that ``safetensors_table`` refuses, a tensor that two files have, an index that the files do not fit.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Self

import numpy as np

from cloister.encoding import parse_json
from cloister.errors import FormatError, InferenceError
from cloister.inference.conversion.blocks import Floats
from cloister.inference.model_files import ModelFiles
from cloister.inference.safetensors_table import WIDTH, Place, read_table, table_length
from cloister.sealing.descriptors import read_into

ONE_FILE: Final = "model.safetensors"
INDEX_NAME: Final = "model.safetensors.index.json"
MAX_INDEX: Final = 32 << 20


@dataclass(frozen=True, slots=True)
class Weights:
    """Where every tensor lies. The descriptors are those of the :class:`ModelFiles`, which stay open meanwhile."""

    places: Mapping[str, Place]
    _descriptors: Mapping[str, int]

    @classmethod
    def of(cls, model: ModelFiles) -> Self:
        """Read the tables. Raises :class:`FormatError` and :class:`InferenceError`."""
        listed = _listed(model)
        places: dict[str, Place] = {}
        descriptors: dict[str, int] = {}
        for name in sorted(set(listed.values()) if listed is not None else _files(model)):
            descriptor = model.descriptors.get(name)
            if descriptor is None:
                raise InferenceError(f"the model's index names {_shown(name)}, which is not there")
            for tensor, place in _table(descriptor, name).items():
                if tensor in places:
                    raise FormatError(f"two files have the tensor {_shown(tensor)}")
                if listed is not None and listed.get(tensor) != name:
                    raise FormatError(
                        f"{name} has the tensor {_shown(tensor)}, which the index has elsewhere or not at all"
                    )
                places[tensor] = place
                descriptors[tensor] = descriptor
        if listed is not None and len(places) != len(listed):
            raise FormatError(f"the model's index names {len(listed) - len(places)} tensors that no file has")
        return cls(places, descriptors)

    def rows(self, name: str, start: int, stop: int) -> Floats:
        """Rows ``start`` to ``stop`` of a tensor, flat, as 32-bit floats. Raises :class:`FormatError`."""
        place = self.places[name]
        step = (place.end - place.start) // place.shape[0]
        raw = np.empty((stop - start) * step, np.uint8)
        if read_into(self._descriptors[name], raw.data, place.start + start * step) != raw.size:
            raise FormatError(
                f"the tensor {_shown(name)} ends too early: its file changed", todo="copy it again"
            )
        if place.type == "BF16":
            return (raw.view("<u2").astype(np.uint32) << np.uint32(16)).view(np.float32)
        if place.type == "F16":
            return raw.view("<f2").astype(np.float32)
        return raw.view("<f4")

    @property
    def parameters(self) -> int:
        return sum((place.end - place.start) // WIDTH[place.type] for place in self.places.values())


def _table(descriptor: int, name: str) -> Mapping[str, Place]:
    size = os.fstat(descriptor).st_size
    table = _read(descriptor, 8, 0, name) if size >= 8 else b""
    length = table_length(table, size, what=name)
    return read_table(_read(descriptor, length, 8, name), size, what=name)


def _read(descriptor: int, length: int, offset: int, name: str) -> bytes:
    data = bytearray(length)
    with memoryview(data) as view:
        if read_into(descriptor, view, offset) != length:
            raise FormatError(f"{name} ends too early")
    return bytes(data)


def _files(model: ModelFiles) -> tuple[str, ...]:
    if ONE_FILE in model.descriptors:
        return (ONE_FILE,)
    return tuple(name for name in model.descriptors if name.endswith(".safetensors"))


def _listed(model: ModelFiles) -> Mapping[str, str] | None:
    """Tensor → file, by the index, where that counts."""
    if ONE_FILE in model.descriptors or INDEX_NAME not in model.descriptors:
        return None
    index = parse_json(model.read(INDEX_NAME, MAX_INDEX), what=INDEX_NAME, limit=MAX_INDEX)
    found = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(found, dict) or not all(isinstance(name, str) for name in found.values()):
        raise FormatError(f"{INDEX_NAME} has no weight_map of names")
    return found


def _shown(name: str) -> str:
    return "".join(char if char.isprintable() else "?" for char in name[:120])
