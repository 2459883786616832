"""A Hugging Face model's folder becomes one GGUF file, tensor by tensor in pieces of rows.

All sizes are known before the first weight is read: the head is written first, and then threads read, quantise and write
piece after piece, each at its place. So memory holds a few pieces, however large the model is. The file appears under its
name only when it is whole and on the disk. Refused: what the other modules of this folder refuse.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from cloister.errors import InferenceError, UsageError
from cloister.inference.conversion.blocks import F32, Floats, encoded
from cloister.inference.conversion.configuration import NAME as CONFIG_NAME
from cloister.inference.conversion.configuration import Shape, read_shape
from cloister.inference.conversion.container import Pairs, Stored, head, layout
from cloister.inference.conversion.keys import model_pairs
from cloister.inference.conversion.quantisation import QUANTISATIONS, Quantisation, block_type
from cloister.inference.conversion.tensors import Wanted, wanted_tensors
from cloister.inference.conversion.tokenizer import read_tokenizer
from cloister.inference.conversion.weights import Weights
from cloister.inference.model_files import ModelFiles
from cloister.sealing.descriptors import write_all

PIECE: Final = 1 << 22
"""Numbers of one piece: 16 MiB as 32-bit floats."""
MAX_THREADS: Final = 64
_FACTORS: Final = "rope_freqs.weight"

Progress = Callable[[int, int], None]
"""Takes the bytes written so far and all that will be; on the caller's thread. What it raises ends the conversion."""


@dataclass(frozen=True, slots=True)
class ConvertedModel:
    """What was written."""

    path: Path | None
    architecture: str
    quantisation: Quantisation
    parameters: int
    size: int
    """Bytes of the file."""
    context_length: int
    types: Mapping[str, int]
    """Block type → tensors stored so."""
    notes: tuple[str, ...]
    """What is not as in the model that was converted, for a person to read."""


def convert(
    model: ModelFiles,
    target: Path,
    *,
    quantisation: Quantisation,
    progress: Progress | None = None,
    threads: int | None = None,
    name: str | None = None,
) -> ConvertedModel:
    """Write ``model`` as the file ``target`` (mode 0600; one that is there is replaced when the new one is whole).

    ``threads`` None stands for one per processor that this process may use. Raises :class:`UsageError` (what was asked for,
    the disk), :class:`FormatError` and :class:`InferenceError` (the model).
    """
    if target.suffix != ".gguf":
        raise UsageError(f"{target} is no name of a GGUF file", todo="let it end in .gguf")
    try:
        descriptor, part = tempfile.mkstemp(prefix=f".{target.name}.", suffix=".part", dir=target.parent)
    except OSError as error:
        raise UsageError(f"cannot create {target}: {error.strerror}") from None
    try:
        try:
            found = convert_into(
                model, descriptor, quantisation=quantisation, progress=progress, threads=threads,
                name=name or target.stem,
            )  # fmt: skip
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        os.replace(part, target)  # noqa: PTH105 -- both in one folder
        _sync_folder(target.parent)
    except OSError as error:
        raise UsageError(f"cannot write {target}: {error.strerror}", todo="make room on the disk") from None
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(part)  # noqa: PTH108
    return ConvertedModel(
        target, found.architecture, found.quantisation, found.parameters, found.size, found.context_length,
        found.types, found.notes,
    )  # fmt: skip


def convert_into(
    model: ModelFiles,
    descriptor: int,
    *,
    quantisation: Quantisation,
    progress: Progress | None = None,
    threads: int | None = None,
    name: str = "model",
) -> ConvertedModel:
    """As :func:`convert`, into an empty open file: a memfd, where no disk may see the model. Raises OSError besides."""
    if model.kind != "huggingface":
        raise UsageError(f"a model of the kind {model.kind} is not converted to GGUF")
    if quantisation not in QUANTISATIONS:
        raise UsageError(
            f"there is no quantisation {quantisation}", todo=f"choose one of: {', '.join(QUANTISATIONS)}"
        )
    threads = len(os.sched_getaffinity(0)) if threads is None else threads
    if not 1 <= threads <= MAX_THREADS:
        raise UsageError(f"{threads} threads: between 1 and {MAX_THREADS} convert")
    shape = read_shape(model.read(CONFIG_NAME))
    weights = Weights.of(model)
    wanted = wanted_tensors(shape, weights.places)
    vocabulary = read_tokenizer(model, shape)
    pairs = Pairs()
    model_pairs(pairs, shape, quantisation, name)
    vocabulary.add_to(pairs)
    factors = shape.rotation.factors
    table = [(entry.target, entry.shape, block_type(entry, shape, quantisation)) for entry in wanted]
    if factors is not None:
        table.append((_FACTORS, (len(factors),), F32))
    places, end = layout(table)
    begin = head(pairs, places)
    os.posix_fallocate(descriptor, 0, len(begin) + end)
    write_all(descriptor, begin, 0)
    if factors is not None:
        write_all(descriptor, np.array(factors, "<f4").tobytes(), len(begin) + places[-1].offset)
    work = (
        _Piece(entry, place, start, stop)
        for entry, place in zip(wanted, places, strict=False)
        for start, stop in _pieces(entry, shape)
    )
    _run(
        work,
        weights,
        descriptor,
        len(begin),
        threads,
        lambda done: progress and progress(len(begin) + done, len(begin) + end),
    )
    return ConvertedModel(
        path=None,
        architecture=shape.architecture,
        quantisation=quantisation,
        parameters=weights.parameters,
        size=len(begin) + end,
        context_length=shape.context,
        types=dict(Counter(kind.name for _, _, kind in table)),
        notes=shape.notes + vocabulary.notes,
    )


@dataclass(frozen=True, slots=True)
class _Piece:
    wanted: Wanted
    place: Stored
    start: int
    stop: int


def _pieces(entry: Wanted, shape: Shape) -> Iterator[tuple[int, int]]:
    rows = entry.shape[0]
    # Rows move within a head only, so a piece holds whole heads.
    unit = shape.head_length if entry.heads is not None else 1
    row = 1 if len(entry.shape) == 1 else entry.shape[1]
    step = rows if len(entry.shape) == 1 else max(1, PIECE // (row * unit)) * unit
    for start in range(0, rows, step):
        yield start, min(start + step, rows)


def _run(
    work: Iterator[_Piece],
    weights: Weights,
    descriptor: int,
    begin: int,
    threads: int,
    report: Callable[[int], object],
) -> None:
    done = 0
    with ThreadPoolExecutor(threads, thread_name_prefix="convert") as pool:
        waiting: set[Future[int]] = set()
        try:
            for piece in work:
                waiting.add(pool.submit(_write, piece, weights, descriptor, begin))
                if len(waiting) > threads:
                    finished, waiting = wait(waiting, return_when=FIRST_COMPLETED)
                    done += sum(future.result() for future in finished)
                    report(done)
            for future in waiting:
                done += future.result()
            report(done)
        finally:
            pool.shutdown(cancel_futures=True)


def _write(piece: _Piece, weights: Weights, descriptor: int, begin: int) -> int:
    entry, kind = piece.wanted, piece.place.kind
    data = weights.rows(entry.source, piece.start, piece.stop)
    if entry.heads is not None:
        data = _neighbours(data, piece.stop - piece.start, entry.shape[0] // entry.heads)
    try:
        packed = encoded(data, kind)
    except InferenceError as error:
        raise InferenceError(f"{entry.source}: {error.what}", todo=error.todo) from None
    row = 1 if len(entry.shape) == 1 else entry.shape[1]
    write_all(descriptor, packed.data, begin + piece.place.offset + kind.bytes_of(piece.start * row))
    return packed.size


def _neighbours(data: Floats, rows: int, head_length: int) -> Floats:
    """Rows of whole heads, where the halves of each head become neighbouring pairs."""
    halves = data.reshape(rows // head_length, 2, head_length // 2, -1)
    return np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(-1)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
