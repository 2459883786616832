"""The attestation result: the one type whose keys may be used.

It is made by :func:`cloister.appraisal.appraise.appraise`, or by :func:`cloister.appraisal.ear.accept_ear` from the
token of a verifier that the relying party trusts, and nowhere else; its constructor refuses other callers, so that no
code path can turn unverified bytes into a key by building a result of its own.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Generic, TypeVar

from cloister.errors import ResultExpired
from cloister.verifier.claims import Claims
from cloister.verifier.trail import Check

K = TypeVar("K")


class Appraised:
    """What `appraise()` and `accept_ear()` put into a result: it vouches for exactly these contents, and no others."""

    __slots__ = ("_claims", "_keys", "_standing")

    def __init__(
        self,
        keys: object,
        claims: Claims,
        *,
        key_material: bytes,
        policy_digest: str,
        verified_at: int,
        expires: int,
        checks: tuple[Check, ...],
        verifier: str = "",
    ) -> None:
        self._keys, self._claims = keys, claims
        self._standing = (key_material, policy_digest, verified_at, expires, checks, verifier)

    def vouches_for(self, keys: object, claims: Claims, standing: tuple[object, ...]) -> bool:
        """Keys and claims by identity: a copy with something exchanged is no result."""
        return self._keys is keys and self._claims is claims and self._standing == standing


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
    key_material: bytes = field(repr=False, default=b"")
    """The exact bytes that the evidence binds, of which ``keys`` were decoded."""
    verifier: str = ""
    """Who appraised the evidence: empty for this process, else the trusted verifier whose token was accepted."""
    _seal: Appraised | None = field(repr=False, compare=False, default=None)

    def __post_init__(self) -> None:
        standing = (
            self.key_material, self.policy_digest, self.verified_at, self.expires, self.checks, self.verifier,
        )  # fmt: skip
        if self._seal is None or not self._seal.vouches_for(self.keys, self.claims, standing):
            raise TypeError("an AttestationResult is made by appraise() or accept_ear(), never by hand")

    def require_fresh(self, now: int) -> K:
        """The keys, if the result still stands at ``now``. Raises :class:`ResultExpired`."""
        if now >= self.expires:
            raise ResultExpired(
                f"the attestation result ended at {self.expires}", todo="verify the workload again"
            )
        return self.keys
