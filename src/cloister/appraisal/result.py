"""The attestation result: the one type whose keys may be used.

It is made by :func:`cloister.appraisal.appraise.appraise` and nowhere else; its constructor refuses other
callers, so that no code path can turn unverified bytes into a key by building a result of its own.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Generic, TypeVar

from cloister.errors import ResultExpired
from cloister.verifier.claims import Claims
from cloister.verifier.trail import Check

K = TypeVar("K")


class Appraised:
    """What `appraise()` puts into a result: it vouches for these keys, claims, policy and end, and no others."""

    __slots__ = ("_claims", "_keys", "_standing")

    def __init__(self, keys: object, claims: Claims, *, policy_digest: str, expires: int) -> None:
        self._keys, self._claims, self._standing = keys, claims, (policy_digest, expires)

    def vouches_for(self, keys: object, claims: Claims, *, policy_digest: str, expires: int) -> bool:
        """By identity: a copy with something exchanged is no result."""
        return self._keys is keys and self._claims is claims and self._standing == (policy_digest, expires)


@dataclass(frozen=True, slots=True)
class AttestationResult(Generic[K]):
    """What a relying party may act on, until ``expires``. Times are Unix seconds.

    ``K`` is the type of the attested keys: ``KeyMaterial`` for a channel,
    the broker's own document for a key release.
    """

    keys: K
    claims: Claims
    policy_digest: str
    """SHA-256 (hexadecimal) of the policy's canonical form."""
    verified_at: int
    expires: int
    """The earliest of the keys' end, the collateral's next update and the policy's maximum age."""
    checks: tuple[Check, ...]
    _seal: Appraised | None = field(repr=False, compare=False, default=None)

    def __post_init__(self) -> None:
        if self._seal is None or not self._seal.vouches_for(
            self.keys, self.claims, policy_digest=self.policy_digest, expires=self.expires
        ):
            raise TypeError("an AttestationResult is made by appraise(), never by hand")

    def require_fresh(self, now: int) -> K:
        """The keys, if the result still stands at ``now``. Raises :class:`ResultExpired`."""
        if now >= self.expires:
            raise ResultExpired(
                f"the attestation result ended at {self.expires}", todo="verify the workload again"
            )
        return self.keys
