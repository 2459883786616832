"""TPM 2.0 quotes. SKELETON: the signature is the contract."""

from __future__ import annotations

from collections.abc import Sequence

from cloister.endorsements.roots import Root
from cloister.verifier.claims import Claims
from cloister.verifier.trail import Trail


def verify(
    quote: bytes,
    endorsements: bytes,
    *,
    roots: Sequence[Root],
    now: int,
    revocation_required: bool,
    trail: Trail | None = None,
) -> Claims:
    """Verify ``quote`` (evidence/tpm.py) against ``endorsements`` (endorsements/tpm.py) at ``now`` (Unix seconds)."""
    raise NotImplementedError
