"""How the updates of a round become a model: by the method that every party signed, with the privacy that they agreed on.

Updates have passed :func:`~cloister.federated.updates.check_update`. The result depends on nothing but them: not on who
came first, not on whether the run was killed in between. Arithmetic is of Flower's strategies, in process and in 32 bits
at least, where they compute what is meant; docs/adr/0012-aggregation-and-privacy.md says where they do not.

``fedavg``, ``fedprox`` (whose term is a matter of the parties) and ``fedadam`` weigh an update by the examples that its
sender *says* it has: one who lies is heard for ten million. ``median``, ``trimmed-mean`` and ``krum`` do not read that
number, and neither does the privacy of clients.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
from flwr.app import Array, ArrayRecord, Metadata, MetricRecord, RecordDict
from flwr.app.message import make_message
from flwr.serverapp.strategy import FedAdam, FedAvg, FedMedian, FedTrimmedAvg
from numpy.typing import NDArray

from cloister.errors import FederationError, UpdateRefused
from cloister.federated.federation import MILLION, Federation, Privacy
from cloister.federated.privacy import Source, keyed_source, normal
from cloister.federated.updates import Arrays, encode_arrays

MAX_EXAMPLES: Final = 10_000_000
SERVER_RATE: Final = 1e-2
"""FedAdam's η, of Reddi et al. 2021 (arXiv 2003.00295) for text; the federation does not say it."""
ADAPTIVITY: Final = 1e-3
"""FedAdam's τ, of the same."""
_BLOCK: Final = 1 << 18
_WEIGHT: Final = "num-examples"
_NO_METADATA: Final = Metadata(0, "", 0, 0, "", "", 0.0, 0.0, "train")
"""Replies that never travelled: a strategy reads their content."""
Update = tuple[Arrays, int]
"""Tensors, and the examples that they are said to be learned from."""
Found = dict[str, NDArray[Any]]
SECRET_SIZE: Final = 32


class Aggregator:
    """The aggregation of one run, with what of it outlives a round."""

    def __init__(self, federation: Federation) -> None:
        self._how = federation.aggregation
        self._minimum = federation.minimum
        privacy = federation.privacy
        self._clients = privacy if isinstance(privacy, Privacy) and privacy.of == "clients" else None
        self.secret = os.urandom(SECRET_SIZE)
        """The run's. The noise that hides clients comes from it and from what it is added to: a host that puts an older
        checkpoint back gets the same noise for the same updates, and no second look at them."""
        self._moments: Found = {}

    def combine(self, model: Arrays, updates: Mapping[str, Update], *, number: int) -> Found:
        """The model after round ``number`` (from 1), which began with ``model``; ``updates`` are by party.

        Raises :class:`~cloister.errors.FederationError` where there is none, and then nothing has changed.
        """
        parties = sorted(updates)
        if len(parties) < self._minimum:
            raise FederationError(f"{len(parties)} updates came, and a round needs {self._minimum}")
        arrays = [updates[party][0] for party in parties]
        if self._clients is not None:
            source = self._noise(model, arrays, number)
            return _as_model(_private_mean(model, arrays, self._clients, source), model)
        tolerated = self._how.tolerated
        match self._how.method:
            case "median":
                mean = _flower(FedMedian(), arrays, number)
            case "trimmed-mean":
                _require(len(arrays), 2 * tolerated + 1, self._how.method)
                # Flower cuts int(beta · n): with beta = f / n that may be f - 1, by rounding (1 of 49).
                mean = _flower(FedTrimmedAvg(beta=(tolerated + 0.25) / len(arrays)), arrays, number)
            case "krum":
                _require(len(arrays), 2 * tolerated + 3, self._how.method)
                mean = dict(arrays[_krum(arrays, tolerated)])
            case _:
                weights = [_believed(party, updates[party][1]) for party in parties]
                mean = _flower(FedAvg(), arrays, number, weights)
        return self.follow(model, mean, number=number)

    def follow(self, model: Arrays, mean: Arrays, *, number: int) -> Found:
        """The model after a round whose updates come to ``mean``: for secure aggregation, which shows no more."""
        if self._how.method != "fedadam":
            return _as_model(mean, model)
        moments = self._moments or {
            name: np.zeros((2, *one.shape), dtype=np.float32) for name, one in model.items()
        }
        if {name: one.shape[1:] for name, one in moments.items()} != {
            name: one.shape for name, one in model.items()
        }:
            raise FederationError("the moments that were kept are of another model")
        adam = FedAdam(eta=SERVER_RATE, tau=ADAPTIVITY)
        adam.current_arrays = {name: _wide(one) for name, one in sorted(model.items())}
        adam.m_t = {name: one[0] for name, one in moments.items()}
        adam.v_t = {name: one[1] for name, one in moments.items()}
        found = _as_model(_flower(adam, [mean], number), model)
        first, second = adam.m_t, adam.v_t
        self._moments = {name: np.stack([first[name], second[name]]) for name in sorted(model)}
        return found

    def _noise(self, model: Arrays, arrays: Sequence[Arrays], number: int) -> Source:
        digests = (hashlib.sha256(encode_arrays(one)).digest() for one in (model, *arrays))
        return keyed_source(self.secret, number.to_bytes(8, "big"), *digests)

    def state(self) -> Found:
        """What outlives a round, for its checkpoint: FedAdam's moments, both of a tensor under its name. Else nothing."""
        return dict(self._moments)

    def restore(self, state: Arrays, secret: bytes = b"") -> None:
        """Go on from a :meth:`state` and :attr:`secret`. Raises FederationError for one of another method."""
        self.secret = secret or self.secret
        wrong = [name for name, one in state.items() if one.dtype != np.float32 or one.shape[:1] != (2,)]
        if wrong or (state and self._how.method != "fedadam"):
            raise FederationError(f"the state that was kept is not of {self._how.method}")
        self._moments = {name: state[name] for name in sorted(state)}


def _flower(
    strategy: FedAvg, arrays: Sequence[Arrays], number: int, weights: Sequence[int] | None = None
) -> Found:
    """What a strategy makes of replies; without weights of the same for each."""
    replies = [
        make_message(
            _NO_METADATA,
            RecordDict(
                {
                    "arrays": ArrayRecord({name: Array(_wide(one)) for name, one in sorted(update.items())}),
                    "metrics": MetricRecord({_WEIGHT: weight}),
                }
            ),
        )
        for update, weight in zip(arrays, weights or [1] * len(arrays), strict=True)
    ]
    record, _ = strategy.aggregate_train(number, replies)
    if record is None:
        raise FederationError("the updates came to no model")
    return {name: array.numpy() for name, array in record.items()}


def _krum(arrays: Sequence[Arrays], tolerated: int) -> int:
    """The update that is nearest to the n - f - 2 nearest to it (Blanchard et al. 2017); of equals the first."""
    count = len(arrays)
    squares = np.zeros((count, count))
    for name in sorted(arrays[0]):
        rows = [one[name].reshape(-1) for one in arrays]
        for start in range(0, len(rows[0]), _BLOCK):
            block = np.stack([row[start : start + _BLOCK].astype(np.float64) for row in rows])
            for place in range(count - 1):
                # Of differences, in 64 bits: what is left of products of whole weights in 32 is rounding.
                apart = block[place + 1 :] - block[place]
                squares[place, place + 1 :] += np.einsum("ij,ij->i", apart, apart)
    squares += squares.T
    scores = []
    for place in range(count):
        others = np.sort(np.delete(squares[place], place))
        scores.append(float(others[: count - tolerated - 2].sum()))
    return scores.index(min(scores))


def _private_mean(model: Arrays, arrays: Sequence[Arrays], privacy: Privacy, source: Source) -> Found:
    """``model`` and the mean of the differences, each cut to the clip, with noise.

    Each counts the same: weighed by examples, one party's share could be the whole, and noise that hides 1/n of it hides
    nothing. Without one of them the sum moves by the clip at most; who took part in a round is no secret.
    """
    clip, count = privacy.clip_ppm / MILLION, len(arrays)
    shares = []
    for update in arrays:
        squares = (float(np.square(_difference(update[name], model[name])).sum()) for name in sorted(model))
        norm = math.sqrt(math.fsum(squares))
        shares.append(min(1.0, clip / norm) if norm else 1.0)
    deviation = privacy.noise_ppm / MILLION * clip / count
    found: Found = {}
    for name in sorted(model):
        before = model[name].astype(np.float64)
        total = np.zeros_like(before)
        for update, share in zip(arrays, shares, strict=True):
            total += share * _difference(update[name], model[name])
        noise = normal(source, before.size).reshape(before.shape)
        found[name] = before + total / count + deviation * noise
    return found


def _difference(after: NDArray[Any], before: NDArray[Any]) -> NDArray[np.float64]:
    found: NDArray[np.float64] = after.astype(np.float64) - before.astype(np.float64)
    return found


def _as_model(found: Arrays, model: Arrays) -> Found:
    """In the kinds of the model, and of numbers that are ones."""
    with np.errstate(over="ignore"):
        cast = {name: np.asarray(found[name]).astype(one.dtype) for name, one in sorted(model.items())}
    for name, one in cast.items():
        if not np.isfinite(one).all():
            raise FederationError(f"the round's model has numbers that are none, in {name[:80]}")
    return cast


def _wide(one: NDArray[Any]) -> NDArray[Any]:
    """In 32 bits at least: sums of float16 in float16 lose what is averaged."""
    # What was computed of no dimensions numpy gives as a scalar, which Flower does not take.
    return np.asarray(one.astype(np.float32) if one.dtype == np.float16 else one)


def _believed(party: str, examples: int) -> int:
    if not 1 <= examples <= MAX_EXAMPLES:
        raise UpdateRefused(
            f"the update of {party[:80]} is said to be of {examples} examples; 1 to {MAX_EXAMPLES} are believed"
        )
    return examples


def _require(count: int, needed: int, method: str) -> None:
    if count < needed:
        raise FederationError(f"{method} needs {needed} updates, and {count} came")
