"""Are these the GPUs and switches that the policy names? SKELETON: check 16."""

from __future__ import annotations

from cloister.appraisal.reference_nvidia import NvidiaReference
from cloister.verifier.claims import Claims
from cloister.verifier.trail import Trail


def judge_nvidia(claims: Claims, reference: NvidiaReference, trail: Trail) -> None:
    """16. Count, uniqueness, versions, comparison. Raises :class:`~cloister.errors.AppraisalRefused`."""
    raise NotImplementedError
