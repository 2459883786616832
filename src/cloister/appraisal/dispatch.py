"""Which verifier and which judges belong to a kind of evidence. One table for appraisals and for `cloister verify`."""

from __future__ import annotations

from cloister.appraisal.hardware import judge_hardware
from cloister.appraisal.judge_intel import judge_sgx, judge_sgx_platform, judge_tdx, judge_tdx_platform
from cloister.appraisal.judge_snp import judge_snp, judge_snp_platform
from cloister.appraisal.judge_tpm import judge_tpm, judge_tpm_platform
from cloister.appraisal.policy import Policy
from cloister.appraisal.reference_intel import intel_rules
from cloister.errors import AppraisalRefused, VerificationError
from cloister.evidence.bundle import TeeKind
from cloister.verifier import azure, intel, snp, tpm
from cloister.verifier.claims import Claims
from cloister.verifier.trail import Trail


def verify_evidence(
    tee: TeeKind, evidence: bytes, endorsements: bytes, *, policy: Policy, now: int, trail: Trail
) -> Claims:
    """3. to 11. Is this genuine evidence of a TEE of kind ``tee``, under the roots and rules of ``policy``?

    Raises the errors of the verifiers.
    """
    roots = policy.roots_of(tee)
    if not roots:
        raise VerificationError(
            f"the policy trusts no root that could vouch for {tee} evidence", todo="look at its [roots] table"
        )
    if tee in ("tdx", "sgx"):
        if policy.tcb is None:
            raise AppraisalRefused("the policy has no [tcb] table for an Intel TEE")
        rules = intel_rules(policy.tcb, policy.platform)
        return intel.verify(evidence, endorsements, root=roots[0], now=now, rules=rules, trail=trail)
    if tee == "tpm":
        required = policy.tpm is None or policy.tpm.revocation == "required"
        return tpm.verify(
            evidence, endorsements, roots=roots, now=now, revocation_required=required, trail=trail
        )
    required = policy.snp is None or policy.snp.revocation == "required"
    verify = snp.verify if tee == "snp" else azure.verify
    return verify(evidence, endorsements, roots=roots, now=now, revocation_required=required, trail=trail)


def judge_platform(claims: Claims, policy: Policy, trail: Trail) -> None:
    """9. to 11. Is the platform below the workload one that ``policy`` accepts? Raises :class:`AppraisalRefused`."""
    if claims.tee == "tdx" and policy.tdx is not None:
        judge_tdx_platform(claims, policy.tdx, trail)
    elif claims.tee == "sgx" and policy.sgx is not None:
        judge_sgx_platform(claims, policy.sgx, trail)
    elif claims.tee in ("snp", "az-snp-vtpm") and policy.snp is not None:
        judge_snp_platform(claims, policy.snp, trail)
    elif claims.tee == "tpm" and policy.tpm is not None:
        judge_tpm_platform(claims, policy.tpm, trail)
    judge_hardware(claims, policy.hardware, trail)


def judge_workload(claims: Claims, policy: Policy, trail: Trail) -> None:
    """14. and 15. Is it the workload that ``policy`` names? Raises :class:`~cloister.errors.AppraisalRefused`."""
    if claims.tee == "tdx" and policy.tdx is not None:
        judge_tdx(claims, policy.tdx, trail)
    elif claims.tee == "sgx" and policy.sgx is not None:
        judge_sgx(claims, policy.sgx, trail)
    elif claims.tee == "snp" and policy.snp is not None and policy.azure is None:
        judge_snp(claims, policy.snp, trail)
    elif claims.tee == "az-snp-vtpm" and policy.snp is not None and policy.azure is not None:
        judge_snp(claims, policy.snp, trail)
        judge_tpm(claims, policy.azure, trail)
    elif claims.tee == "tpm" and policy.tpm is not None:
        judge_tpm(claims, policy.tpm, trail)
    else:
        raise AppraisalRefused(f"the policy has no reference values for {claims.tee}")
