"""Attestation sessions: a challenge spent once, then an attested key for minutes (docs/spec/kbs.md). In memory.

Identifiers are kept only as digests; an attested session has another identifier than its challenge, so that nobody
who planted or saw the first one shares it. When a table is full, or the evidence held is over its bound, new ones are
refused and nothing is evicted.
"""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from cloister.broker.profiles import Announced, Presented
from cloister.broker.protocol import RuntimeData
from cloister.encoding import b64url_decode, b64url_encode
from cloister.errors import BrokerError, FormatError, SessionRefused
from cloister.evidence.binding import NONCE_SIZE

CHALLENGE_SECONDS = 60
SESSION_SECONDS = 300
MAX_OPEN = 4096
MAX_CHALLENGES = 65_536
"""Challenges that wait; each takes a few hundred bytes, and one peer alone must not fill the table within its minute."""
MAX_HELD = 256 << 20
"""Bytes of evidence that all sessions together keep."""
ID_SIZE = 32


class TooManySessions(BrokerError):
    """The table is full: come back when some have ended."""


@dataclass(frozen=True, slots=True)
class Pending:
    """A challenge that waits for its one attestation. ``expires`` in Unix seconds."""

    nonce: bytes
    announced: Announced
    expires: int
    size: int = 0


@dataclass(frozen=True, slots=True)
class Attested:
    """Evidence that was appraised, kept so that each rule can appraise it anew at the moment of release."""

    digest: str
    """SHA-256 of the identifier, hexadecimal: its name in tokens and audit entries."""
    nonce: bytes
    presented: Presented
    policy: str
    """Digest of the policy that accepted it first: the one to try first again."""
    opened: int
    """Unix seconds: what a policy says about age counts from here, however often the evidence is appraised anew."""
    expires: int
    size: int

    @property
    def runtime(self) -> RuntimeData:
        """The challenge and the key that answers are encrypted to."""
        return self.presented.runtime


_Entry = TypeVar("_Entry", Pending, Attested)


class Sessions:
    """Both tables. Thread-safe; times are arguments."""

    def __init__(
        self,
        *,
        entropy: Callable[[int], bytes] = os.urandom,
        limit: int = MAX_OPEN,
        challenges: int = MAX_CHALLENGES,
        max_held: int = MAX_HELD,
    ) -> None:
        self._entropy = entropy
        self._limit = limit
        self._challenges = challenges
        self._max_held = max_held
        self._held = 0
        self._lock = threading.Lock()
        self._pending: dict[str, Pending] = {}
        self._attested: dict[str, Attested] = {}

    @property
    def open(self) -> int:
        """Attested sessions, some of which may have ended."""
        return len(self._attested)

    def challenge(self, announced: Announced, now: int) -> tuple[str, Pending]:
        """A new challenge and its identifier. Raises :class:`TooManySessions`."""
        identifier = b64url_encode(self._entropy(ID_SIZE))
        pending = Pending(self._entropy(NONCE_SIZE), announced, now + CHALLENGE_SECONDS)
        with self._lock:
            self._pending = self._room(self._pending, now, self._challenges)
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
        self, pending: Pending, presented: Presented, *, policy: str, size: int, ends: int, now: int
    ) -> tuple[str, Attested]:
        """Open a session under a new identifier, until ``ends`` at most. Raises :class:`TooManySessions`.

        ``size`` is what its evidence takes, in bytes.
        """
        identifier = b64url_encode(self._entropy(ID_SIZE))
        digest = session_digest(identifier)
        expires = min(ends, now + SESSION_SECONDS)
        session = Attested(digest, pending.nonce, presented, policy, now, expires, size)
        with self._lock:
            if self._held + size > self._max_held:
                self._attested = self._swept(self._attested, now)
            if self._held + size > self._max_held:
                raise TooManySessions("open sessions hold too much evidence", todo="try again in a minute")
            self._attested = self._room(self._attested, now, self._limit)
            self._attested[digest] = session
            self._held += size
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

    def _room(self, table: dict[str, _Entry], now: int, limit: int) -> dict[str, _Entry]:
        # Sweeping only when full keeps a request's cost flat on average.
        if len(table) >= limit:
            table = self._swept(table, now)
        if len(table) >= limit:
            raise TooManySessions("too many sessions are open", todo="try again in a minute")
        return table

    def _swept(self, table: dict[str, _Entry], now: int) -> dict[str, _Entry]:
        kept = {name: entry for name, entry in table.items() if now < entry.expires}
        self._held -= sum(entry.size for name, entry in table.items() if name not in kept)
        return kept


def session_digest(identifier: str) -> str:
    """SHA-256 of an identifier's 32 bytes, hexadecimal. Raises :class:`SessionRefused` if it is none."""
    try:
        return hashlib.sha256(b64url_decode(identifier, what="session", length=ID_SIZE)).hexdigest()
    except FormatError:
        raise SessionRefused("this is not a session identifier", todo="start again at /kbs/v0/auth") from None
