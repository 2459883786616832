"""What a party sends at the end of a round: tensors by name, as safetensors, and whether they may be used at all.

Nothing of an update is believed. Its names, kinds and shapes are those of the model, every number is one, and how far it
goes from the model is bounded, all before anything is computed with it. What is refused counts for nobody; it is never
mended, since an average with a part of it would be what its sender chose.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from cloister.errors import FormatError, UpdateRefused

Arrays = Mapping[str, NDArray[Any]]
"""Tensors by name."""
MAX_TENSORS: Final = 4096
MAX_NAME: Final = 256
KINDS: Final = ("float32", "float16")
"""What is averaged. Whole numbers (counters, positions) are no weights and do not travel."""


def encode_arrays(arrays: Arrays) -> bytes:
    """As safetensors. Raises FormatError for what no update is made of."""
    from safetensors.numpy import save  # noqa: PLC0415 -- only who trains needs it

    _check_names(arrays, "the update")
    for name, array in arrays.items():
        if array.dtype.name not in KINDS:
            raise FormatError(f"{name} is of {array.dtype.name}; what travels is {' or '.join(KINDS)}")
    return save({name: np.asarray(array, order="C") for name, array in sorted(arrays.items())})


def decode_arrays(data: bytes, *, what: str, limit: int) -> dict[str, NDArray[Any]]:
    """Tensors out of safetensors of at most ``limit`` bytes. Raises FormatError; nothing in them is ever run."""
    from safetensors import SafetensorError  # noqa: PLC0415 -- as above
    from safetensors.numpy import load  # noqa: PLC0415

    if len(data) > limit:
        raise FormatError(f"{what} has {len(data)} bytes, and {limit} at most are taken")
    try:
        found = load(data)
    except (SafetensorError, ValueError, KeyError, TypeError, OverflowError, MemoryError):
        raise FormatError(f"{what} is not safetensors that can be read") from None
    _check_names(found, what)
    return found


def check_update(update: Arrays, *, model: Arrays, largest: float, what: str) -> float:
    """The norm of ``update`` less ``model``. Raises :class:`~cloister.errors.UpdateRefused` where it may not be used."""
    lacking, more = model.keys() - update.keys(), update.keys() - model.keys()
    if lacking or more:
        raise UpdateRefused(
            f"{what} lacks {len(lacking)} of the model's tensors, and has {len(more)} that it lacks"
        )
    total = 0.0
    for name, before in model.items():
        after = update[name]
        if after.dtype != before.dtype or after.dtype.name not in KINDS:
            raise UpdateRefused(
                f"{what}: {_short(name)} is of {after.dtype.name}, and not of {before.dtype.name}"
            )
        if after.shape != before.shape:
            raise UpdateRefused(f"{what}: {_short(name)} has the shape {after.shape}, and not {before.shape}")
        # In 64 bits: squares of what is finite in 32 may not be.
        square = float(np.square(after.astype(np.float64) - before.astype(np.float64)).sum())
        if not math.isfinite(square):
            raise UpdateRefused(f"{what}: {_short(name)} has numbers that are none")
        total += square
    norm = math.sqrt(total)
    if norm > largest:
        raise UpdateRefused(
            f"{what} goes {norm:.3g} from the model, and {largest:.3g} at most is taken",
            todo="train with lower rates, or agree on a larger bound",
        )
    return norm


def _check_names(arrays: Arrays, what: str) -> None:
    if not 1 <= len(arrays) <= MAX_TENSORS:
        raise FormatError(f"{what} has {len(arrays)} tensors; 1 to {MAX_TENSORS} are taken")
    for name in arrays:
        if not 1 <= len(name) <= MAX_NAME or not name.isprintable() or not name.isascii():
            raise FormatError(f"{what} has a tensor without a name that can be shown")


def _short(name: str) -> str:
    return name[:80]
