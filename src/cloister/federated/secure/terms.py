"""Secure aggregation's terms and messages (docs/spec/secure-aggregation.md). Pure.

Every message of a party is signed with its identity key over the terms of the round, later over the roster, which names the
fresh keys of all. So none is of another run, round, model or party, and an aggregator can put in no keys of its own.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal, TypeVar

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA384
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from cloister.encoding import Record, decode_json, encode_json, from_hex, labelled_hash
from cloister.errors import FormatError, UpdateRefused, UsageError
from cloister.federated.federation import MAX_PARTIES, MILLION

MAX_MESSAGE: Final = 1 << 20
MAX_VALUES: Final = 1 << 30
T = TypeVar("T", bound=Record)


@dataclass(frozen=True, slots=True)
class Terms:
    """What all parties of a round must agree on. Who has other terms has another digest, and hears nobody."""

    run: str
    number: int
    parties: Mapping[str, ec.EllipticCurvePublicKey]
    """Their identity keys (P-384), out of evidence that was verified: never out of the aggregator's word."""
    threshold: int
    """Parties without which nothing is opened: :func:`least_threshold` of all, or more."""
    largest_ppm: int
    """The norm that a difference to the model may have, in millionths."""
    model: str
    """SHA-256 of the model that the round begins with, of the party's own copy. Hexadecimal."""
    shapes: Mapping[str, tuple[int, ...]]
    """Of its tensors."""

    def __post_init__(self) -> None:
        count, keys = len(self.parties), self.parties.values()
        if not 2 <= count <= MAX_PARTIES or any(not isinstance(key.curve, ec.SECP384R1) for key in keys):
            raise UsageError(f"2 to {MAX_PARTIES} parties with keys on P-384 add up")
        if len({_point(key) for key in keys}) != count:
            raise UsageError("two parties have one identity key")
        if not least_threshold(count) <= self.threshold <= count:
            raise UsageError(f"of {count} parties {least_threshold(count)} at least have to stay to the end")
        if not self.shapes or self.values > MAX_VALUES or self.number < 1 or self.largest_ppm < 1:
            raise UsageError("a round has a number, a model that is not too large, and a bound of updates")

    @property
    def values(self) -> int:
        """How many numbers an update has."""
        return sum(map(math.prod, self.shapes.values()))

    @property
    def largest(self) -> float:
        return self.largest_ppm / MILLION

    def digest(self) -> bytes:
        numbers = (self.number, self.threshold, self.largest_ppm, len(self.parties))
        parts = [self.run.encode(), *(_whole(number) for number in numbers)]
        parts.append(from_hex(self.model, 32, what="the digest of the model"))
        for name in sorted(self.parties):
            parts += [name.encode(), _point(self.parties[name])]
        for name in sorted(self.shapes):
            parts += [name.encode(), b"".join(map(_whole, self.shapes[name]))]
        return labelled_hash("cloister/secure-terms/v1", *parts)


def least_threshold(parties: int) -> int:
    """More than two thirds: with less, a third that is the aggregator's could sign two lists of who is left."""
    return 2 * parties // 3 + 1


class Keys(Record, frozen=True, kw_only=True, tag_field="step", tag="keys"):
    """A party's keys of this round, and the hash of its mask's seed."""

    mask: bytes
    share: bytes
    seed: bytes


class Shares(Record, frozen=True, kw_only=True, tag_field="step", tag="shares"):
    """What a party gives each of the others to keep."""

    sealed: dict[str, bytes]


class Masked(Record, frozen=True, kw_only=True, tag_field="step", tag="masked"):
    """Goes before a masked vector."""

    senders: tuple[str, ...]
    """Who gave shares, as this party heard it."""
    vector: bytes
    """SHA-256."""


class Left(Record, frozen=True, kw_only=True, tag_field="step", tag="left"):
    """Who gave shares, and who of them is left. The aggregator's word, until a party signs it."""

    senders: tuple[str, ...]
    survivors: tuple[str, ...]


class Revealed(Record, frozen=True, kw_only=True, tag_field="step", tag="revealed"):
    """Shares: of the mask keys of who dropped out, and of the seeds of who is left."""

    keys: dict[str, bytes]
    seeds: dict[str, bytes]


Body = Keys | Shares | Masked | Left | Revealed


class Relayed(Record, frozen=True, kw_only=True):
    """What parties signed, each as it came, in the order of their names. All keys of a round are its roster."""

    said: tuple[bytes, ...]


class Mail(Record, frozen=True, kw_only=True):
    """Sealed shares for one party, by who made them."""

    sealed: dict[str, bytes]


class Said(Record, frozen=True, kw_only=True):
    """A party's message as it travels, of which nothing is believed before :func:`hear`."""

    format: Literal["cloister/secure-aggregation/v1"] = "cloister/secure-aggregation/v1"
    party: str
    context: bytes
    body: Body
    signature: bytes


def say(body: Body, *, party: str, context: bytes, identity: ec.EllipticCurvePrivateKey) -> bytes:
    """A message that ``party`` signs."""
    signature = identity.sign(_message(party, context, body), ec.ECDSA(SHA384()))
    return encode_json(Said(party=party, context=context, body=body, signature=signature))


def hear(data: bytes, kind: type[T], *, context: bytes, terms: Terms) -> tuple[str, T]:
    """Who says what, in this step and context. Raises :class:`~cloister.errors.UpdateRefused`."""
    said = read(data, Said, what="a message of secure aggregation")
    who = f"a message of {said.party[:80]!r}"
    identity = terms.parties.get(said.party)
    if identity is None:
        raise UpdateRefused(f"{who}, which takes no part in this round")
    if said.context != context:
        raise UpdateRefused(f"{who} is of another run, round or model, or of other parties")
    if not isinstance(said.body, kind):
        raise UpdateRefused(f"{who} is of another step")
    try:
        identity.verify(said.signature, _message(said.party, context, said.body), ec.ECDSA(SHA384()))
    except InvalidSignature:
        raise UpdateRefused(f"{who} is not signed with its attested key") from None
    return said.party, said.body


def read(data: bytes, kind: type[T], *, what: str) -> T:
    """Out of canonical JSON. Raises :class:`~cloister.errors.UpdateRefused`."""
    try:
        found = decode_json(data, kind, what=what, limit=MAX_MESSAGE)
        if encode_json(found) == data:
            return found
    except FormatError as error:
        raise UpdateRefused(error.what) from None
    raise UpdateRefused(f"{what} is not canonical JSON (RFC 8785)")


def read_roster(data: bytes, terms: Terms) -> tuple[bytes, dict[str, Keys]]:
    """Its digest, and the keys of all in it. Raises :class:`~cloister.errors.UpdateRefused`."""
    context = terms.digest()
    roster = read(data, Relayed, what="the roster")
    heard = [hear(one, Keys, context=context, terms=terms) for one in roster.said]
    names = [party for party, _ in heard]
    if names != sorted(set(names)) or len(names) < terms.threshold:
        raise UpdateRefused(
            f"the roster has {len(names)} parties, and {terms.threshold} different ones are needed"
        )
    return labelled_hash("cloister/secure-roster/v1", context, *roster.said), dict(heard)


def _message(party: str, context: bytes, body: Record) -> bytes:
    parts = (party.encode(), context, encode_json(body))
    return labelled_hash("cloister/secure-message/v1", *parts, algorithm="sha384")


def _point(key: ec.EllipticCurvePublicKey) -> bytes:
    return key.public_bytes(Encoding.X962, PublicFormat.CompressedPoint)


def _whole(number: int) -> bytes:
    return number.to_bytes(8, "big")
