"""Secure aggregation, the aggregator's side: masked vectors are added, and the sum alone is ever opened. Pure.

A message that does not fit changes nothing. What is wrong with a secret that was put together, or with the sum, ends the
round without a result: nothing is mended. The parties' side is masking.py's.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from numpy.typing import NDArray

from cloister.broker.state_key import combine
from cloister.encoding import encode_json
from cloister.errors import FederationError, UpdateRefused, UsageError
from cloister.federated.secure.shares import KEY_SIZE, SEALED_SIZE, commitment, direction, pair_key, self_key
from cloister.federated.secure.terms import (
    Body,
    Keys,
    Left,
    Mail,
    Masked,
    Relayed,
    Revealed,
    Shares,
    Terms,
    hear,
    read_roster,
)
from cloister.federated.secure.vectors import add_mask, mean

_STEPS: Final[tuple[type[Body], ...]] = (Keys, Shares, Masked, Left, Revealed)


@dataclass(frozen=True, slots=True)
class Mean:
    """What a round gave."""

    arrays: dict[str, NDArray[np.float32]]
    """The mean difference to the model, weighted by examples."""
    examples: int
    parties: frozenset[str]
    """Whose updates are in it."""


class MaskedSum:
    """The aggregator's side of one round: ``take`` what parties say in a step, ``close`` it, send what that gives."""

    def __init__(self, terms: Terms) -> None:
        self._terms, self._context = terms, terms.digest()
        self._expected = frozenset(terms.parties)
        """Who may say something in this step: fewer from step to step."""
        self._said: dict[str, tuple[bytes, Any]] = {}
        self._steps: Iterator[type[Body]] = iter(_STEPS)
        self._step: type[Body] | None = next(self._steps)
        self._keys: dict[str, Keys] = {}
        self._left = Left(senders=(), survivors=())
        self._total = np.zeros(1 + terms.values, "<u8")

    @property
    def waits_for(self) -> frozenset[str]:
        """Who may still say something in this step."""
        return self._expected - self._said.keys()

    def take(self, message: bytes, vector: bytes | memoryview = b"") -> str:
        """Whose message it is. Raises :class:`~cloister.errors.UpdateRefused`; then nothing has changed."""
        if self._step is None:
            raise UpdateRefused("this round is over")
        party, body = hear(message, self._step, context=self._context, terms=self._terms)
        if party not in self.waits_for:
            raise UpdateRefused(f"{party} said this already, or dropped out before")
        if not self._fits(party, body):
            raise UpdateRefused(f"what {party} says does not fit what it was told")
        if isinstance(body, Masked):
            data = memoryview(vector).cast("B")
            if data.nbytes != self._total.nbytes or hashlib.sha256(data).digest() != body.vector:
                raise UpdateRefused(f"the vector of {party} is not the one that it signed")
            self._total += np.frombuffer(data, "<u8")
        self._said[party] = (message, body)
        return party

    def _fits(self, party: str, body: Body) -> bool:
        survivors, dropped = set(self._left.survivors), set(self._left.senders) - set(self._left.survivors)
        match body:
            case Shares():
                sizes = {len(sealed) for sealed in body.sealed.values()}
                return body.sealed.keys() == self._keys.keys() - {party} and sizes == {SEALED_SIZE}
            case Masked():
                return body.senders == self._left.senders
            case Left():
                return body == self._left
            case Revealed():
                sizes = {len(share) for share in (*body.keys.values(), *body.seeds.values())}
                return body.keys.keys() == dropped and body.seeds.keys() == survivors and sizes == {KEY_SIZE}
            case Keys():
                return {len(body.mask), len(body.share), len(body.seed)} == {KEY_SIZE}

    def close(self) -> Mapping[str, bytes]:
        """End this step: what each party that is still in is sent. Raises FederationError where too few are."""
        step, names = self._step, sorted(self._said)
        if step in (None, Revealed):
            raise UsageError("nothing is sent any more: ask for the result")
        self._require_enough()
        said, self._said, self._expected = self._said, {}, frozenset(names)
        relayed = encode_json(Relayed(said=tuple(said[name][0] for name in names)))
        self._step = next(self._steps)
        if step is Keys:
            self._context, self._keys = read_roster(relayed, self._terms)
            return dict.fromkeys(names, relayed)
        if step is Shares:
            self._left = Left(senders=tuple(names), survivors=())
            mails = {
                name: Mail(sealed={other: said[other][1].sealed[name] for other in names if other != name})
                for name in names
            }
            return {name: encode_json(mail) for name, mail in mails.items()}
        if step is Masked:
            self._left = Left(senders=self._left.senders, survivors=tuple(names))
            return dict.fromkeys(names, encode_json(self._left))
        return dict.fromkeys(names, relayed)

    def result(self) -> Mean:
        """The mean, once enough revealed their shares. Raises FederationError."""
        if self._step is not Revealed:
            raise UsageError("there is no result before shares are revealed")
        self._require_enough()
        self._step = None
        chosen = sorted(self._said)[: self._terms.threshold]
        places = {name: place for place, name in enumerate(sorted(self._terms.parties), 1)}
        revealed: dict[int, Revealed] = {places[name]: self._said[name][1] for name in chosen}
        survivors = self._left.survivors
        for name in survivors:
            seed = combine([(place, one.seeds[name]) for place, one in revealed.items()])
            if commitment(seed) != self._keys[name].seed:
                raise _wrong_shares(name)
            add_mask(self._total, self_key(seed, self._context, name), sign=-1)
        for name in sorted(set(self._left.senders) - set(survivors)):
            secret = combine([(place, one.keys[name]) for place, one in revealed.items()])
            own = X25519PrivateKey.from_private_bytes(secret)
            if own.public_key().public_bytes_raw() != self._keys[name].mask:
                raise _wrong_shares(name)
            for other in survivors:
                key = pair_key(own, self._keys[other].mask, self._context, name, other)
                add_mask(self._total, key, sign=-direction(other, name))
        arrays, examples = mean(self._total, len(survivors), self._terms)
        return Mean(arrays, examples, frozenset(survivors))

    def _require_enough(self) -> None:
        if len(self._said) < self._terms.threshold:
            raise FederationError(
                f"{len(self._said)} parties are left in round {self._terms.number}, and {self._terms.threshold} at least "
                "have to be: nothing of what they sent can be read",
                todo="try it again, or go on with the next round",
            )


def _wrong_shares(name: str) -> FederationError:
    return FederationError(
        f"the shares of {name} do not give its secret: its own were wrong, or those that others revealed",
        todo="nothing was averaged; one of the parties is not what it says",
    )
