"""Sessions of admission: a nonce for a party, good for one admission within a minute. A state machine without I/O.

Anybody may ask for a session in a party's name. So open ones lie in no table, which could be filled, and none pushes out
another: a session's name says whose it is and until when, under a key of this process, and its nonce follows from the name.
Kept are the names of those that were used, until they would have ended anyway: only a verified admission uses one.
"""

from __future__ import annotations

import hashlib
import hmac
from typing import Final

from cloister.encoding import b64url_decode, b64url_encode, labelled_hash
from cloister.errors import CloisterError, FederationError, StaleNonce

SESSION_SECONDS: Final = 60.0
SALT: Final = 16
MAX_USED: Final = 10_000
"""Verified admissions within a minute."""
MAX_NAME: Final = 512
_LABEL: Final = "cloister/federation-session/v1"
_MILLI: Final = 1000
_MAC: Final = hashlib.sha256().digest_size


class Sessions:
    """Of one process. ``secret`` are 32 random bytes. Time only rises (a monotonic clock, not below 0)."""

    def __init__(self, secret: bytes) -> None:
        self._secret = secret
        self._used: dict[str, float] = {}

    def open(self, party: str, salt: bytes, *, now: float) -> tuple[str, bytes]:
        """A session's name, and its nonce (32 bytes). ``salt`` is random."""
        ends = int((now + SESSION_SECONDS) * _MILLI).to_bytes(8, "big")
        body = ends + salt + party.encode()
        return b64url_encode(body + self._keyed("name", body)), self._keyed("nonce", body)

    def check(self, session: str, *, now: float) -> tuple[str, bytes]:
        """The party and the nonce of a session that may still be used. Raises :class:`~cloister.errors.StaleNonce`."""
        over = StaleNonce("there is no such session, or it is over", todo="ask for another")
        try:
            named = b64url_decode(session[: MAX_NAME + 1], what="a session")
        except CloisterError:
            raise over from None
        body, mac = named[:-_MAC], named[-_MAC:]
        if not hmac.compare_digest(mac, self._keyed("name", body)):
            raise over
        ends = int.from_bytes(body[:8], "big") / _MILLI
        if now > ends or session in self._used or len(session) > MAX_NAME:
            raise over
        return body[8 + SALT :].decode(), self._keyed("nonce", body)

    def use(self, session: str, *, now: float) -> None:
        """It admits somebody now. Raises StaleNonce for one that did before, FederationError if there are too many."""
        self.check(session, now=now)
        self._used = {name: until for name, until in self._used.items() if now <= until}
        if len(self._used) >= MAX_USED:
            raise FederationError("too many admissions within a minute", todo="try again in a minute")
        self._used[session] = now + SESSION_SECONDS

    def _keyed(self, purpose: str, body: bytes) -> bytes:
        return hmac.digest(self._secret, labelled_hash(_LABEL, purpose.encode(), body), "sha256")
