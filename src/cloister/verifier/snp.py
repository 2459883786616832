"""AMD SEV-SNP reports. SKELETON: the signature is the contract."""

from __future__ import annotations

from collections.abc import Sequence

from cloister.endorsements.roots import Root
from cloister.verifier.claims import Claims
from cloister.verifier.trail import Trail


def verify(
    report: bytes,
    endorsements: bytes,
    *,
    roots: Sequence[Root],
    now: int,
    revocation_required: bool,
    trail: Trail | None = None,
) -> Claims:
    """Verify ``report`` (1184 bytes) against ``endorsements`` (endorsements/amd.py) at ``now`` (Unix seconds)."""
    raise NotImplementedError
