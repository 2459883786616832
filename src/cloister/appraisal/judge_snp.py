"""Are these the SEV-SNP platform and guest that the policy names? SKELETON: checks 9, 10, 11, 14 and 15."""

from __future__ import annotations

from cloister.appraisal.reference_snp import SnpReference
from cloister.verifier.claims import Claims
from cloister.verifier.trail import Trail


def judge_snp_platform(claims: Claims, reference: SnpReference, trail: Trail) -> None:
    """9. to 11. TCB minima, firmware, guest policy, VMPL. Raises :class:`~cloister.errors.AppraisalRefused`."""
    raise NotImplementedError


def judge_snp(claims: Claims, reference: SnpReference, trail: Trail) -> None:
    """14. and 15. Measurement, host data, id keys. Raises :class:`~cloister.errors.AppraisalRefused`."""
    raise NotImplementedError
