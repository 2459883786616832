"""Did this TPM measure what the policy names? SKELETON: checks 14 and 15."""

from __future__ import annotations

from collections.abc import Mapping

from cloister.appraisal.values import Values
from cloister.verifier.claims import Claims
from cloister.verifier.trail import Trail


def judge_tpm(claims: Claims, pcrs: Mapping[str, Values], trail: Trail) -> None:
    """14. The PCRs that the policy names. Raises :class:`~cloister.errors.AppraisalRefused`."""
    raise NotImplementedError
