"""Secure aggregation, a workload's side: trains, and answers the five steps of a round so that nobody sees its update.

The parties of a round are those that the aggregator lists, with the keys that this party's own agent verified; with any
other key, or one party too few, nothing is said. The rest of the terms is this workload's own knowledge. What it trained in
a round stays here until the next one, so a round that is tried again is not learned again.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from cloister.errors import FederationError, UpdateRefused
from cloister.federated.exchange import Request
from cloister.federated.federation import MILLION, Federation
from cloister.federated.flower.workshop import Answer
from cloister.federated.identity import Identity, read_spki
from cloister.federated.secure.masks import MaskedParty
from cloister.federated.secure.memory import Memory
from cloister.federated.secure.terms import Terms, read
from cloister.federated.secure.vectors import MAX_EXAMPLES
from cloister.federated.secure.wire import BEGUN, STEPS, Asked, key_digest, pack, threshold, unpack
from cloister.federated.tasks import Trained
from cloister.federated.updates import Arrays, check_update

PATIENCE: Final = 30.0
"""Seconds in which the agent hands over the keys of a party that has just come, or come back."""
Train = Callable[[Request], tuple[Arrays, Trained]]
"""A round's model, and what training made of it. Raises for a request of another run or model."""
_Place = tuple[str, int, str]
"""Run, round and model."""


@dataclass(frozen=True, slots=True)
class _Update:
    place: _Place
    difference: dict[str, NDArray[np.float32]]
    examples: int
    metrics: Mapping[str, float]


class SecureWork:
    """One workload's part. Steps come one after another; :meth:`know` may come at any time, from another thread."""

    def __init__(
        self,
        federation: Federation,
        party: str,
        identity: Identity,
        memory: Memory,
        *,
        patience: float = PATIENCE,
    ) -> None:
        self._federation = federation
        self._party = party
        self._identity = identity
        self._memory = memory
        self._patience = patience
        self._known = threading.Condition()
        self._keys: dict[str, bytes] = {}
        self._update: _Update | None = None
        self._part: tuple[_Place, MaskedParty] | None = None

    def know(self, peers: Mapping[str, bytes]) -> None:
        """The keys of all other parties that the agent verified, in place of those before. Raises FederationError."""
        for spki in peers.values():
            read_spki(spki, digest=key_digest(spki))
        with self._known:
            self._keys = dict(peers) | {self._party: self._identity.spki}
            self._known.notify_all()

    def answer(self, request: Request, train: Train) -> Answer:
        """One step. Raises :class:`~cloister.errors.UpdateRefused` and other CloisterErrors; then this try is over."""
        place = (request.run, request.number, request.model)
        if request.kind == STEPS[0]:
            return self._begun(request, place, train)
        if self._part is None or self._part[0] != place:
            raise UpdateRefused("this workload takes no part in that round, or not from that model")
        part = self._part[1]
        match request.kind:
            case "shares":
                return _said(part.shares(request.content))
            case "masked":
                return self._masked(request, place, part)
            case "agree":
                return _said(part.agree(request.content))
            case "reveal":
                message = part.reveal(request.content)
                self._memory.keep(request.run, request.number, part.tried)
                self._part = None
                return _said(message)
        raise UpdateRefused(f"there is no step {request.kind[:32]!r}")

    def _begun(self, request: Request, place: _Place, train: Train) -> Answer:
        self._part = None
        head, model = unpack(request.content)
        keys = self._keys_of(read(head, Asked, what="the list of a round's parties").parties)
        before = self._memory.before(request.run, request.number)
        trained = self._update
        if trained is None or trained.place != place:
            trained = self._update = self._checked(place, *train(replace(request, content=bytes(model))))
        terms = Terms(
            run=request.run, number=request.number, parties=keys,
            threshold=threshold(self._federation.minimum, len(keys)),
            largest_ppm=self._federation.aggregation.largest_ppm, model=request.model,
            shapes={name: array.shape for name, array in trained.difference.items()},
        )  # fmt: skip
        if before is not None and before.terms != terms.digest():
            raise UpdateRefused(BEGUN)
        part = MaskedParty(terms, self._party, self._identity.key, before=before)
        message = part.keys()
        self._part = (place, part)
        return Answer(message, 0, dict(trained.metrics))

    def _masked(self, request: Request, place: _Place, part: MaskedParty) -> Answer:
        update = self._update
        if update is None or update.place != place:
            raise FederationError("there is no update of this round any more")
        message, vector = part.mask(request.content, update.difference, update.examples)
        self._memory.keep(request.run, request.number, part.tried)
        return _said(pack(message, vector))

    def _keys_of(self, asked: Mapping[str, str]) -> dict[str, Any]:
        """The round's parties and their keys, as this workload knows them. Raises UpdateRefused."""
        if self._party not in asked or len(asked) < self._federation.minimum:
            raise UpdateRefused(
                f"a round has {self._federation.minimum} parties at least, this one among them; {len(asked)} are listed"
            )

        def differing() -> list[str]:
            return [name for name, digest in asked.items() if key_digest(self._keys.get(name, b"")) != digest]

        with self._known:
            self._known.wait_for(lambda: not differing(), self._patience)
            wrong, keys = differing(), {name: self._keys.get(name, b"") for name in asked}
        if wrong:
            raise UpdateRefused(
                f"the workload key of {', '.join(sorted(wrong))[:200]} is not one that this party's agent verified"
            )
        return {name: read_spki(spki, digest=key_digest(spki)) for name, spki in keys.items()}

    def _checked(self, place: _Place, model: Arrays, made: Trained) -> _Update:
        """What only this party can check, before anybody counts on it. Raises UpdateRefused."""
        largest = self._federation.aggregation.largest_ppm / MILLION
        check_update(made.arrays, model=model, largest=largest, what="this party's update")
        if not 1 <= made.examples <= MAX_EXAMPLES:
            raise UpdateRefused(f"an update is of 1 to {MAX_EXAMPLES} examples, not of {made.examples}")
        difference = {
            name: (made.arrays[name].astype(np.float64) - before.astype(np.float64)).astype(np.float32)
            for name, before in model.items()
        }
        listed = self._federation.metrics
        metrics = {name: value for name, value in made.metrics.items() if name in listed}
        return _Update(place, difference, made.examples, metrics)


def _said(content: bytes) -> Answer:
    return Answer(content, 0, {})
