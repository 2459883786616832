"""Secure aggregation, a party's side: its update goes into a sum, and nobody sees it, the aggregator neither. Pure but for
randomness.

Bonawitz et al. 2017 in its form for an aggregator that lies (docs/spec/secure-aggregation.md; why it is ours: ADR 11). A
step is done once and in order, and after a refusal a party's part in this try of the round is over: what it would say next
could be put together with what it said. The aggregator's side is sum.py's.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from cloister.broker.state_key import Entropy, split
from cloister.encoding import Record
from cloister.errors import FederationError, UsageError
from cloister.federated.secure.shares import (
    KEY_SIZE,
    commitment,
    direction,
    open_shares,
    pair_key,
    seal_shares,
    self_key,
)
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
    read,
    read_roster,
    say,
)
from cloister.federated.secure.vectors import add_mask, weighted
from cloister.federated.updates import Arrays


class Tried(Record, frozen=True, kw_only=True):
    """What a party remembers of a round, however often it is tried: two sums of other parties differ by one's update."""

    terms: bytes
    """Digest of those under which its masked vector went out."""
    opened: tuple[str, ...]
    """Whose sum it helped to open; empty if none's."""


class MaskedParty:
    """One party's side of one try of a round. Its keys are in this object alone, and fresh in every other."""

    def __init__(
        self,
        terms: Terms,
        party: str,
        identity: ec.EllipticCurvePrivateKey,
        *,
        before: Tried | None = None,
        entropy: Entropy = os.urandom,
    ) -> None:
        """``before`` is :attr:`tried` of an earlier try of this round, if there was one."""
        if terms.parties.get(party) != identity.public_key():
            raise UsageError(f"this is not the identity key of {party[:80]!r}")
        self._context = terms.digest()
        if before is not None and before.terms != self._context:
            raise FederationError(
                f"round {terms.number} was begun under other terms, and this party's update may be opened under those",
                todo="try it again with the same parties and model, or go on with the next round",
            )
        self._terms, self._party, self._identity, self._before = terms, party, identity, before
        self._mask, self._share = (X25519PrivateKey.from_private_bytes(entropy(KEY_SIZE)) for _ in range(2))
        self._seed = entropy(KEY_SIZE)
        self._keys = Keys(
            mask=self._mask.public_key().public_bytes_raw(),
            share=self._share.public_key().public_bytes_raw(),
            seed=commitment(self._seed),
        )
        self._roster = b""
        self._others: dict[str, Keys] = {}
        self._held: dict[str, bytes] = {}
        self._left = Left(senders=(), survivors=())
        self._opened: tuple[str, ...] = ()
        self._step = "keys"

    @property
    def tried(self) -> Tried:
        """The caller keeps it where it lasts, before it sends what ``mask`` gives, and again what ``reveal`` gives."""
        before = self._before.opened if self._before is not None else ()
        return Tried(terms=self._context, opened=self._opened or before)

    def keys(self) -> bytes:
        """Step 1: its keys of this round."""
        with self._at("keys", "shares"):
            return self._say(self._keys, self._context)

    def shares(self, roster: bytes) -> bytes:
        """Step 2: shares of its secrets for everybody whose keys are in the roster."""
        with self._at("shares", "mask"):
            self._roster, self._others = read_roster(roster, self._terms)
            if self._others.pop(self._party, None) != self._keys:
                raise FederationError("the roster has not the keys of this party, or others in their place")
            sealed = {}
            for name, (key, seed) in self._split().items():
                if name == self._party:
                    self._held[name] = key + seed
                elif name in self._others:
                    way = (self._roster, self._party.encode(), name.encode())
                    sealed[name] = seal_shares(key + seed, self._share, self._others[name].share, *way)
            return self._say(Shares(sealed=sealed), self._roster)

    def mask(self, mail: bytes, difference: Arrays, examples: int) -> tuple[bytes, memoryview]:
        """Step 3: ``difference`` to the round's model, times examples, under masks: a head, and the vector behind it."""
        with self._at("mask", "agree"):
            sealed = read(mail, Mail, what="the shares for this party").sealed
            self._require_enough([self._party, *sealed], "gave shares")
            for name, shares in sealed.items():
                if name not in self._others:
                    raise FederationError(f"shares of {name[:80]!r}, which is not in the roster")
                way = (self._roster, name.encode(), self._party.encode())
                self._held[name] = open_shares(shares, self._share, self._others[name].share, *way)
            vector = weighted(difference, examples, self._terms)
            add_mask(vector, self_key(self._seed, self._roster, self._party), sign=1)
            for name in sealed:
                key = pair_key(self._mask, self._others[name].mask, self._roster, self._party, name)
                add_mask(vector, key, sign=direction(self._party, name))
            data = vector.data.cast("B")
            head = Masked(senders=tuple(sorted(self._held)), vector=hashlib.sha256(data).digest())
            return self._say(head, self._roster), data

    def agree(self, left: bytes) -> bytes:
        """Step 4: sign who is left."""
        with self._at("agree", "reveal"):
            told = read(left, Left, what="the list of who is left")
            survivors = set(told.survivors)
            if told.senders != tuple(sorted(self._held)) or told.survivors != tuple(sorted(survivors)):
                raise FederationError("those who gave shares are others than this party heard of")
            if not survivors <= self._held.keys() or self._party not in survivors:
                raise FederationError("the list of who is left lacks this party, or has one without shares")
            self._require_enough(survivors, "are left")
            if self._before is not None and self._before.opened not in ((), told.survivors):
                raise FederationError(
                    "this party helped to open this round for other parties: the difference would be one's update",
                    todo="try it again with the parties that were left, or go on with the next round",
                )
            self._left = told
            return self._say(told, self._roster)

    def reveal(self, agreements: bytes) -> bytes:
        """Step 5: once enough signed the same list, one share for each party: of its key or of its seed, never both."""
        with self._at("reveal", "over"):
            said = read(agreements, Relayed, what="the signatures of who is left").said
            heard = [hear(one, Left, context=self._roster, terms=self._terms) for one in said]
            survivors, held = self._left.survivors, self._held
            if any(told != self._left or name not in survivors for name, told in heard):
                raise FederationError(
                    "the aggregator told others of other survivors than it told this party of"
                )
            self._require_enough({name for name, _ in heard}, "signed who is left")
            self._held, self._opened = {}, survivors
            body = Revealed(
                keys={name: held[name][:KEY_SIZE] for name in held if name not in survivors},
                seeds={name: held[name][KEY_SIZE:] for name in survivors},
            )
            return self._say(body, self._roster)

    def _split(self) -> dict[str, tuple[bytes, bytes]]:
        threshold, names = self._terms.threshold, sorted(self._terms.parties)
        keys, seeds = (
            split(secret, threshold, len(names)) for secret in (self._mask.private_bytes_raw(), self._seed)
        )
        return {name: (key, seed) for name, (_, key), (_, seed) in zip(names, keys, seeds, strict=True)}

    def _say(self, body: Body, context: bytes) -> bytes:
        return say(body, party=self._party, context=context, identity=self._identity)

    def _require_enough(self, names: Iterable[str], what: str) -> None:
        count = len(set(names))
        if count < self._terms.threshold:
            raise FederationError(f"{count} parties {what}, and {self._terms.threshold} at least have to")

    @contextmanager
    def _at(self, step: str, following: str) -> Iterator[None]:
        if self._step != step:
            raise FederationError(f"this party's part in this round is at {self._step!r}, not at {step!r}")
        self._step = "over"
        yield
        self._step = following
