"""Rounds of secure aggregation for tests: real keys, every party and the aggregator, everything they say kept."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Mapping
from typing import Any, Final

import numpy as np
from cryptography.hazmat.primitives.asymmetric import ec
from msgspec import structs

from cloister.encoding import decode_json
from cloister.federated.secure.masks import MaskedParty, Tried
from cloister.federated.secure.sum import MaskedSum, Mean
from cloister.federated.secure.terms import Body, Said, Terms, least_threshold, say

STEPS: Final = ("keys", "shares", "mask", "agree", "reveal")
LARGEST: Final = 4_000_000
Update = tuple[dict[str, Any], int]
"""A difference, and of how many examples."""


@functools.cache
def identity(name: str) -> ec.EllipticCurvePrivateKey:
    return ec.derive_private_key(int.from_bytes(hashlib.sha256(name.encode()).digest()), ec.SECP384R1())


def names(count: int) -> tuple[str, ...]:
    return tuple(f"party{number:02}" for number in range(count))


def terms(count: int = 4, **changes: Any) -> Terms:
    fields: dict[str, Any] = {
        "run": "ab" * 32 + "/1",
        "number": 3,
        "parties": {name: identity(name).public_key() for name in names(count)},
        "threshold": least_threshold(count),
        "largest_ppm": LARGEST,
        "model": "11" * 32,
        "shapes": {"weight": (3, 4), "bias": (3,)},
    }
    return Terms(**(fields | changes))


def update(of: Terms, seed: int, examples: int | None = None, *, norm: float = 1.0) -> Update:
    """Any, of a norm."""
    draw = np.random.default_rng(seed)
    arrays = {name: draw.normal(size=shape).astype(np.float32) for name, shape in of.shapes.items()}
    long = float(np.sqrt(sum(float(np.square(array.astype(np.float64)).sum()) for array in arrays.values())))
    return {name: array * np.float32(norm / long) for name, array in arrays.items()}, examples or 10 + seed


def expected(updates: Mapping[str, Update]) -> dict[str, Any]:
    """The weighted mean, computed in the clear."""
    total = sum(examples for _, examples in updates.values())
    first = next(iter(updates.values()))[0]
    return {
        name: sum(
            arrays[name].astype(np.float64) * (examples / total) for arrays, examples in updates.values()
        )
        for name in first
    }


class Play:
    """A round. ``gone`` has the step in which a party says nothing any more."""

    def __init__(
        self,
        of: Terms,
        *,
        gone: Mapping[str, str] | None = None,
        before: Mapping[str, Tried] | None = None,
        updates: Mapping[str, Update] | None = None,
        entropy: Callable[[str], Callable[[int], bytes]] | None = None,
    ) -> None:
        self.terms = of
        self.gone = dict(gone or {})
        self.updates = updates or {name: update(of, seed) for seed, name in enumerate(of.parties)}
        self.sum = MaskedSum(of)
        self.parties = {
            name: MaskedParty(
                of,
                name,
                identity(name),
                before=(before or {}).get(name),
                **({"entropy": entropy(name)} if entropy else {}),
            )
            for name in of.parties
        }
        self.told: Mapping[str, bytes] = dict.fromkeys(of.parties, b"")
        self.said: dict[str, dict[str, bytes]] = {step: {} for step in STEPS}
        self.vectors: dict[str, memoryview] = {}

    def says(self, name: str, step: str) -> bytes:
        """What a party answers in a step."""
        party, told = self.parties[name], self.told[name]
        if step == "keys":
            message = party.keys()
        elif step == "mask":
            message, self.vectors[name] = party.mask(told, *self.updates[name])
        else:
            message = {"shares": party.shares, "agree": party.agree, "reveal": party.reveal}[step](told)
        self.said[step][name] = message
        return message

    def step(self, step: str) -> None:
        """Everybody who is there says its part; the aggregator takes it."""
        for name in self.told:
            if name not in self.gone or STEPS.index(self.gone[name]) > STEPS.index(step):
                message = self.says(name, step)
                assert self.sum.take(message, self.vectors.get(name, b"")) == name
        if step != "reveal":
            self.told = self.sum.close()

    def until(self, step: str) -> Play:
        """Everything before ``step``."""
        for one in STEPS[: STEPS.index(step)]:
            self.step(one)
        return self

    def result(self) -> Mean:
        """All of it."""
        self.until("reveal").step("reveal")
        return self.sum.result()


def said(message: bytes) -> Any:
    """A message as it is."""
    return decode_json(message, Said, what="a message")


def resaid(
    message: bytes, identity_of: str | None = None, context: bytes | None = None, **changes: Any
) -> bytes:
    """A message with another body, signed anew by its party or by another key."""
    found = said(message)
    body: Body = structs.replace(found.body, **changes)
    return say(
        body,
        party=found.party,
        context=context or found.context,
        identity=identity(identity_of or found.party),
    )
