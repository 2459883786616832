"""The form of a model's files: what was given, and what it is converted to for a candidate.

Refused in one line: what is no model in the clear, and what is sealed (its owner optimises it before sealing).
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cloister.encoding import parse_json
from cloister.errors import FormatError, InferenceError, UsageError
from cloister.inference.gguf_header import read_gguf_header
from cloister.inference.model_files import CHOICE_NAME, ModelFiles, wanted
from cloister.inference.optimizer.candidates import BITS, Form, Source
from cloister.sealing.index import INDEX_NAME

_WEIGHTS: Final = re.compile(r"(\.safetensors|\.gguf|openvino_model\.bin)$")
_BYTES_OF: Final[Mapping[str, float]] = {"float32": 32, "float16": 16, "bfloat16": 16}


@dataclass(frozen=True, slots=True)
class Given:
    """The model as it was given."""

    path: Path
    name: str
    """For the names of what is made of it."""
    source: Source
    files: tuple[str, ...]
    """Of its folder, or the one file; without an older choice."""

    def place(self, name: str) -> Path:
        return self.path / name if self.path.is_dir() else self.path


def find_given(path: Path) -> Given:
    """The model at ``path``. Raises :class:`UsageError`, and InferenceError for a damaged one."""
    if path.is_dir() and (path / INDEX_NAME).exists():
        raise UsageError(
            f"{path} is sealed, and what is chosen has to be sealed with the model",
            todo="its owner runs `cloister optimize` on the model in the clear and seals the folder that it writes",
        )
    with ModelFiles.of_path(path) as model:
        names = tuple(name for name in model.descriptors if name != CHOICE_NAME)
        sizes = {name: os.fstat(model.descriptors[name]).st_size for name in names}
        weights = sum(size for name, size in sizes.items() if _WEIGHTS.search(name))
        if weights == 0:
            raise UsageError(f"{path} holds no weights", todo="name a .gguf file or a model's folder")
        if model.kind == "gguf":
            shapes = read_gguf_header(model.main, what=model.main_name).shapes
            elements = sum(_product(shape) for shape in shapes.values())
            bits = 8 * weights / max(1, elements)
        else:
            bits = _bits(model)
    name = path.resolve().stem if path.is_file() else path.resolve().name
    return Given(path, name, Source(model.kind, weights, bits), names)


def make(source: Path, target: Path, form: Form) -> None:
    """Convert the Hugging Face folder ``source`` to the file ``target``. Raises what the conversion raises."""
    from cloister.inference.conversion.gguf import convert  # noqa: PLC0415 -- numpy, for whoever converts

    if form == "as it is":
        raise UsageError("a model as it is needs no conversion")
    with ModelFiles.of_path(source) as model:
        convert(model, target, quantisation=form, name=source.resolve().name)


def made_size(source: Source, form: Form) -> int:
    """About the bytes of the converted file, rather more than less."""
    return int(source.weights * BITS[form] / source.bits * 1.1) + (16 << 20)


def files_at(path: Path) -> tuple[str, ...]:
    """Names of a model's files in the folder ``path`` that engines read, or of the one file."""
    if path.is_file():
        return (path.name,)
    _, names = wanted((file.name for file in path.iterdir() if file.is_file()), what=str(path))
    return tuple(name for name in names if name != CHOICE_NAME)


def _bits(model: ModelFiles) -> float:
    try:
        config = (
            parse_json(model.read("config.json"), what="config.json")
            if "config.json" in model.descriptors
            else {}
        )
    except FormatError as error:
        raise InferenceError(error.what, todo="the model is damaged: copy it again") from None
    if model.kind == "openvino":
        return 8.0  # the weights' types are inside the IR; most are compressed to 4 or 8 bits
    stored = config.get("dtype") or config.get("torch_dtype") if isinstance(config, dict) else None
    return _BYTES_OF.get(str(stored), 16.0)


def _product(shape: tuple[int, ...]) -> int:
    count = 1
    for side in shape:
        count *= side
    return count


def disk_size(path: Path, given: Given) -> int:
    """Bytes of a candidate's files at ``path``."""
    if path.is_dir():
        return sum((path / name).stat().st_size for name in given.files)
    return path.stat().st_size
