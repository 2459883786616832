"""Attestation sessions: a challenge spent once, then an attested key for minutes (docs/spec/kbs.md). In memory.

Identifiers are kept only as digests; an attested session has another identifier than its challenge, so that nobody who
planted or saw the first one shares it. When the table is full new ones are refused and nothing is evicted.
"""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from cloister.broker.protocol import RuntimeData
from cloister.encoding import b64url_decode, b64url_encode
from cloister.errors import BrokerError, FormatError, SessionRefused
from cloister.evidence.binding import NONCE_SIZE
from cloister.evidence.bundle import EvidenceBundle, TeeKind

CHALLENGE_SECONDS = 60
SESSION_SECONDS = 300
MAX_OPEN = 4096
ID_SIZE = 32


class TooManySessions(BrokerError):
    """The table is full: come back when some have ended."""


@dataclass(frozen=True, slots=True)
class Pending:
    """A challenge that waits for its one attestation. ``expires`` in Unix seconds."""

    nonce: bytes
    tee: TeeKind
    expires: int


@dataclass(frozen=True, slots=True)
class Attested:
    """Evidence that was appraised, kept so that each rule can appraise it anew at the moment of release."""

    digest: str
    """SHA-256 of the identifier, hexadecimal: its name in tokens and audit lines."""
    nonce: bytes
    bundle: EvidenceBundle
    runtime: RuntimeData
    opened: int
    """Unix seconds: what a policy says about age counts from here, however often the evidence is appraised anew."""
    expires: int


_Entry = TypeVar("_Entry", Pending, Attested)


class Sessions:
    """Both tables. Thread-safe; times are arguments."""

    def __init__(self, *, entropy: Callable[[int], bytes] = os.urandom, limit: int = MAX_OPEN) -> None:
        self._entropy = entropy
        self._limit = limit
        self._lock = threading.Lock()
        self._pending: dict[str, Pending] = {}
        self._attested: dict[str, Attested] = {}

    def challenge(self, tee: TeeKind, now: int) -> tuple[str, Pending]:
        """A new challenge and its identifier. Raises :class:`TooManySessions`."""
        identifier = b64url_encode(self._entropy(ID_SIZE))
        pending = Pending(self._entropy(NONCE_SIZE), tee, now + CHALLENGE_SECONDS)
        with self._lock:
            self._pending = self._room(self._pending, now)
            self._pending[session_digest(identifier)] = pending
        return identifier, pending

    def spend(self, identifier: str, now: int) -> Pending:
        """The challenge of this identifier, which is gone from now on. Raises :class:`SessionRefused`."""
        with self._lock:
            pending = self._pending.pop(session_digest(identifier), None)
        if pending is None or now >= pending.expires:
            raise SessionRefused(
                "this challenge is unknown, spent or expired", todo="start again at /kbs/v0/auth"
            )
        return pending

    def attested(
        self, pending: Pending, bundle: EvidenceBundle, runtime: RuntimeData, *, ends: int, now: int
    ) -> tuple[str, Attested]:
        """Open a session under a new identifier, until ``ends`` at most. Raises :class:`TooManySessions`."""
        identifier = b64url_encode(self._entropy(ID_SIZE))
        digest = session_digest(identifier)
        session = Attested(digest, pending.nonce, bundle, runtime, now, min(ends, now + SESSION_SECONDS))
        with self._lock:
            self._attested = self._room(self._attested, now)
            self._attested[digest] = session
        return identifier, session

    def find(self, digest: str, now: int) -> Attested:
        """The attested session of this name. Raises :class:`SessionRefused`."""
        with self._lock:
            session = self._attested.get(digest)
        if session is None or now >= session.expires:
            raise SessionRefused(
                "this session is unknown or expired", todo="attest again, from /kbs/v0/auth on"
            )
        return session

    def _room(self, table: dict[str, _Entry], now: int) -> dict[str, _Entry]:
        # Sweeping only when full keeps a request's cost flat on average.
        if len(table) >= self._limit:
            table = {name: entry for name, entry in table.items() if now < entry.expires}
        if len(table) >= self._limit:
            raise TooManySessions("too many sessions are open", todo="try again in a minute")
        return table


def session_digest(identifier: str) -> str:
    """SHA-256 of an identifier's 32 bytes, hexadecimal. Raises :class:`SessionRefused` if it is none."""
    try:
        return hashlib.sha256(b64url_decode(identifier, what="session", length=ID_SIZE)).hexdigest()
    except FormatError:
        raise SessionRefused("this is not a session identifier", todo="start again at /kbs/v0/auth") from None
