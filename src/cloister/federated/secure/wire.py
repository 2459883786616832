"""Secure aggregation over an exchange: its steps as kinds of requests, and what these carry beside its messages. Pure.

A step's content is a message of docs/spec/secure-aggregation.md, and in two of them a short one in front of a long one: whom
the aggregator counts to the round before its model, and a party's message before its masked vector.
"""

from __future__ import annotations

import hashlib
from typing import Final

from cloister.encoding import Record
from cloister.errors import UpdateRefused
from cloister.federated.secure.terms import MAX_MESSAGE, least_threshold

STEPS: Final = ("keys", "shares", "masked", "agree", "reveal")
BEGUN: Final = "this round was begun under other terms, and this party's update may be opened under those"
"""What a party says that takes part in this round no more, whatever it is asked."""
_LENGTH: Final = 4


class Asked(Record, frozen=True, kw_only=True):
    """Who takes part in a round, as the aggregator says. Its digests tell two that know other keys why they do not meet."""

    parties: dict[str, str]
    """Party → SHA-256 of its workload's key (SubjectPublicKeyInfo, DER). A party believes its own agent's keys alone."""


def threshold(minimum: int, parties: int) -> int:
    """How many of so many parties have to stay to the end of a round."""
    return max(minimum, least_threshold(parties))


def key_digest(spki: bytes) -> str:
    """As :class:`Asked` has it."""
    return hashlib.sha256(spki).hexdigest()


def pack(head: bytes, rest: bytes | memoryview) -> bytes:
    """A short message before a long one."""
    return b"".join((len(head).to_bytes(_LENGTH, "big"), head, rest))


def unpack(data: bytes) -> tuple[bytes, memoryview]:
    """Undo :func:`pack`. Raises :class:`~cloister.errors.UpdateRefused`."""
    length = int.from_bytes(data[:_LENGTH], "big")
    if len(data) < _LENGTH or length > min(MAX_MESSAGE, len(data) - _LENGTH):
        raise UpdateRefused("a message of secure aggregation is cut short")
    return data[_LENGTH : _LENGTH + length], memoryview(data)[_LENGTH + length :]
