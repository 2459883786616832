"""Azure's SEV-SNP guests, attested through their vTPM. SKELETON: the signature is the contract."""

from __future__ import annotations

from collections.abc import Sequence

from cloister.endorsements.roots import Root
from cloister.verifier.claims import Claims
from cloister.verifier.trail import Trail


def verify(
    evidence: bytes,
    endorsements: bytes,
    *,
    roots: Sequence[Root],
    now: int,
    revocation_required: bool,
    trail: Trail | None = None,
) -> Claims:
    """Verify HCL report and vTPM quote against ``endorsements`` (endorsements/amd.py) at ``now`` (Unix seconds)."""
    raise NotImplementedError
