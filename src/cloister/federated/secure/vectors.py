"""Vectors that are summed under masks: updates as whole numbers modulo 2^64, and back (docs/spec/secure-aggregation.md).
Pure.

A difference of the largest norm is 2^32 steps, times at most 2^24 examples, times at most 64 parties: no honest sum wraps.
Who sends other numbers spoils the sum, as with any average of what nobody may see; what can be told of the sum is checked.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, Final

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from numpy.typing import NDArray

from cloister.errors import FederationError, UpdateRefused
from cloister.federated.secure.terms import Terms
from cloister.federated.updates import Arrays, check_update

FRACTION: Final = 1 << 32
"""Steps from nothing to the largest norm."""
MAX_EXAMPLES: Final = 1 << 24
"""Of one party."""
_CHUNK: Final = 1 << 17
"""Numbers at a time: what stays in a processor's cache."""
_SLACK: Final = 1e-5
"""What rounding may add to a norm: half a step for each of 2^30 numbers is less."""
_AGAIN: Final = "one of the parties is not what it says; nothing was averaged"
Vector = NDArray[np.uint64]


def weighted(difference: Arrays, examples: int, terms: Terms) -> Vector:
    """The number of examples, and the difference times that in steps, tensors in the order of their names.

    Raises :class:`~cloister.errors.UpdateRefused`: a party refuses its own update, since nobody else can.
    """
    if not 1 <= examples <= MAX_EXAMPLES:
        raise UpdateRefused(f"an update is of 1 to {MAX_EXAMPLES} examples, not of {examples}")
    nothing = {name: np.broadcast_to(np.float32(0), shape) for name, shape in terms.shapes.items()}
    check_update(difference, model=nothing, largest=terms.largest, what="this party's update")
    vector = np.empty(1 + terms.values, "<i8")
    vector[0] = examples
    place = 1
    for name in sorted(terms.shapes):
        for part in _parts(difference[name].reshape(-1)):
            steps = vector[place : place + len(part)]
            steps[:] = np.rint(part.astype(np.float64) * (FRACTION / terms.largest))
            steps *= examples
            place += len(part)
    return vector.view("<u8")


def mean(total: Vector, parties: int, terms: Terms) -> tuple[dict[str, NDArray[np.float32]], int]:
    """What the sum of ``parties`` vectors says: the weighted mean, and all examples. Raises FederationError."""
    numbers = total.view("<i8")
    examples = int(numbers[0])
    if not parties <= examples <= parties * MAX_EXAMPLES:
        raise FederationError("the updates do not add up: some party sent what is no update", todo=_AGAIN)
    step, place, square = terms.largest / FRACTION / examples, 1, 0.0
    arrays: dict[str, NDArray[np.float32]] = {}
    for name in sorted(terms.shapes):
        flat = np.empty(math.prod(terms.shapes[name]), np.float32)
        for part in _parts(flat):
            values = numbers[place : place + len(part)] * step
            square += float(np.square(values).sum())
            part[:] = values
            place += len(part)
        arrays[name] = flat.reshape(terms.shapes[name])
    # A mean goes no further than the furthest of its parts.
    if not math.sqrt(square) <= terms.largest * (1 + _SLACK):
        raise FederationError(
            f"the mean goes {math.sqrt(square):.3g} from the model, and {terms.largest:.3g} is the most that each may",
            todo=_AGAIN,
        )
    return arrays, examples


def add_mask(vector: Vector, key: bytes, *, sign: int) -> None:
    """Add the AES-256-CTR stream of ``key`` to ``vector``, number by number modulo 2^64, or take it away."""
    combine = np.add if sign > 0 else np.subtract
    for part, words in zip(_parts(vector), _words(key), strict=False):
        combine(part, words[: len(part)], out=part)


def _parts(flat: NDArray[Any]) -> Iterator[NDArray[Any]]:
    return (flat[start : start + _CHUNK] for start in range(0, len(flat), _CHUNK))


def _words(key: bytes) -> Iterator[Vector]:
    # A key has one stream, which begins at block 0.
    stream = Cipher(algorithms.AES(key), modes.CTR(bytes(16))).encryptor()
    zeros, words = bytes(8 * _CHUNK), np.empty(_CHUNK, "<u8")
    while True:
        stream.update_into(zeros, words.data.cast("B"))
        yield words
