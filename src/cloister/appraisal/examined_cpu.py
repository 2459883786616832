"""CPU evidence under examination: quotes, reports and bundles, in the order of ``appraise()``.

A whole bundle with nonce and policy goes to ``appraise()`` itself. For everything less, the same verifiers and
judges are called, and what cannot be asked is left out and told apart in the table of checks.
"""

from __future__ import annotations

import hmac
from dataclasses import replace
from typing import Final

from cloister.appraisal.appraise import appraise
from cloister.appraisal.asked import Asked, Found, refuse_nonce, refuse_policy
from cloister.appraisal.devices import appraise_devices
from cloister.appraisal.dispatch import judge_platform, judge_workload, verify_evidence
from cloister.appraisal.examined_devices import examine_device_evidence
from cloister.appraisal.reference_intel import MAX_GRACE
from cloister.endorsements.roots import AMD_ROOTS, INTEL_ROOT, Root
from cloister.errors import AppraisalRefused, BindingMismatch, CloisterError, EvidenceError, VerificationError
from cloister.evidence.binding import check_binding, check_nonce, device_nonce
from cloister.evidence.bundle import EvidenceBundle, TeeKind, parse_bundle
from cloister.evidence.hcl import parse_hcl
from cloister.evidence.key_material import parse_key_material
from cloister.evidence.quote import parse_quote
from cloister.evidence.recognise import Recognised
from cloister.verifier import azure, intel, snp
from cloister.verifier.claims import Claims
from cloister.verifier.logs import replay_logs
from cloister.verifier.rules import TCB_STATUSES, IntelRules
from cloister.verifier.trail import Trail

REPORTED: Final = IntelRules(
    min_tcb_evaluation_number=1,
    accepted_statuses=frozenset(TCB_STATUSES),
    out_of_date_grace=MAX_GRACE,
    allow_dynamic_platform=True,
    allow_cached_keys=True,
    allow_smt=True,
)
"""What is genuine at all: everything that a policy could accept. Never for an appraisal."""


def examine_bundle(subject: Recognised, asked: Asked, found: Found) -> None:
    with found.trail.check(3):
        bundle = parse_bundle(subject.data)
    given = asked.given.of(bundle.tee)
    if asked.policy is not None and asked.nonce is not None:
        try:
            result = appraise(
                bundle,
                nonce=asked.nonce,
                policy=asked.policy,
                now=asked.now,
                decode=parse_key_material,
                not_after=lambda material: material.not_after,
                collateral=given or None,
                device_collateral=asked.given.nvidia or None,
                trail=found.trail,
            )
        except AppraisalRefused:
            found.claims = _observed(bundle.tee, bundle.quote, given or bundle.endorsements, asked)
            raise
        found.claims, found.fresh = result.claims, True
        return
    # Only the nonce leads to the root that the report data holds: without it nothing can be compared.
    nonce_root = None
    if asked.nonce is not None:
        with found.trail.check(1) as passed:
            nonce_root = check_nonce(bundle, asked.nonce)
            passed(f"leaf {bundle.nonce_proof.index} of {bundle.nonce_proof.size}")
    _cpu(
        bundle.tee,
        bundle.quote,
        given or bundle.endorsements,
        asked=replace(asked, event_log=bundle.event_log, firmware_log=bundle.firmware_log),
        found=found,
        bundle=bundle,
        nonce_root=nonce_root,
    )


def examine_intel_quote(subject: Recognised, asked: Asked, found: Found) -> None:
    refuse_nonce(asked)
    with found.trail.check(3):
        quote = parse_quote(subject.data)
        claimed = subject.parts.get("report_data", quote.report_data)
        if claimed.ljust(64, b"\0") != quote.report_data:
            raise EvidenceError("the document says another report data than its quote", todo="it was altered")
        if subject.source_tee not in ("", quote.tee):
            raise EvidenceError(f"the request says {subject.source_tee}, its quote is {quote.tee}")
    if subject.parts.get("event_log") and not asked.event_log:
        asked = replace(asked, event_log=subject.parts["event_log"])
    _cpu(quote.tee, subject.data, asked.given.intel, asked=asked, found=found)


def examine_snp_report(subject: Recognised, asked: Asked, found: Found) -> None:
    refuse_nonce(asked)
    _cpu("snp", subject.data, asked.given.snp, asked=asked, found=found)


def examine_azure(subject: Recognised, asked: Asked, found: Found) -> None:
    refuse_nonce(asked)
    _cpu("az-snp-vtpm", subject.data, asked.given.snp, asked=asked, found=found)


def examine_hcl_report(subject: Recognised, asked: Asked, found: Found) -> None:
    """An HCL report without the vTPM's quote: a genuine guest, of which nothing is known since it started."""
    refuse_nonce(asked)
    refuse_policy(subject, asked, found)
    with found.trail.check(3, name="HCL report"):
        report = parse_hcl(subject.data)
    _cpu("snp", report.snp_report, asked.given.snp, asked=asked, found=found)
    with found.trail.check(8, name="runtime data") as passed:
        sealed = found.claims.report_data if found.claims else b""
        if not hmac.compare_digest(report.digest + bytes(32), sealed):
            raise BindingMismatch(
                "the SEV-SNP report does not seal this runtime data", todo="the two are of different guests"
            )
        passed(f"SHA-256 {report.digest.hex()[:16]}… is the report data")
    found.facts |= {f"vm-configuration.{name}": value for name, value in report.vm_configuration.items()}


def examine_tpm_quote(subject: Recognised, asked: Asked, found: Found) -> None:
    refuse_nonce(asked)
    _cpu("tpm", subject.data, asked.given.tpm, asked=asked, found=found)


def _cpu(
    tee: TeeKind,
    evidence: bytes,
    endorsements: bytes,
    *,
    asked: Asked,
    found: Found,
    bundle: EvidenceBundle | None = None,
    nonce_root: bytes | None = None,
) -> None:
    """2. to 16. as far as the question goes, in the order of ``appraise()``."""
    policy, trail = asked.policy, found.trail
    if policy is None:
        claims = _genuine(tee, evidence, endorsements, roots=_vendor_roots(tee), now=asked.now, trail=trail)
    else:
        with trail.check(2) as passed:
            if tee not in policy.tees:
                raise AppraisalRefused(
                    f"the policy does not accept a TEE of kind {tee}",
                    todo=f"it accepts {' and '.join(policy.tees)}; add the table of that kind if you mean to",
                )
            passed(tee.upper())
        try:
            claims = verify_evidence(tee, evidence, endorsements, policy=policy, now=asked.now, trail=trail)
            judge_platform(claims, policy, trail)
        except AppraisalRefused:
            found.claims = _observed(tee, evidence, endorsements, asked)
            raise
    found.claims = claims
    if bundle is not None:
        with trail.check(3):
            if claims.tee != bundle.tee:
                raise EvidenceError(f"the bundle says {bundle.tee}, its quote is {claims.tee}")
    if bundle is not None and nonce_root is not None:
        with trail.check(12) as passed:
            check_binding(bundle, nonce_root, claims.report_data)
            passed(f"report data {claims.report_data.hex()[:16]}…")
    if asked.event_log or asked.firmware_log:
        with trail.check(13) as passed:
            claims = replay_logs(claims, event_log=asked.event_log, firmware_log=asked.firmware_log)
            measured = {event.name for event in claims.measured_events}
            count = len(claims.measured_events) + sum(name not in measured for name in claims.events)
            passed(f"{count} event{'' if count == 1 else 's'}")
    found.claims = claims
    evidence = bundle.device_evidence if bundle else b""
    endorsements = asked.given.nvidia or (bundle.device_endorsements if bundle else b"")
    nonce = device_nonce(nonce_root, bundle.key_material) if bundle and nonce_root else None
    if policy is not None:
        judge_workload(claims, policy, trail)
        found.claims = appraise_devices(
            claims, evidence, endorsements, nonce=nonce, policy=policy, now=asked.now, trail=trail
        )
    elif evidence:
        found.devices = examine_device_evidence(
            evidence, endorsements, nonce=nonce, now=asked.now, trail=trail
        )


def _genuine(
    tee: TeeKind, evidence: bytes, endorsements: bytes, *, roots: tuple[Root, ...], now: int, trail: Trail
) -> Claims:
    """3. to 11. under no rules but the vendor's: genuine, and not debug."""
    if not roots:
        raise VerificationError(
            "no vendor's root vouches for every TPM", todo="name the root of its key in a policy: roots.tpm"
        )
    if tee in ("tdx", "sgx"):
        return intel.verify(evidence, endorsements, root=roots[0], now=now, rules=REPORTED, trail=trail)
    verify = snp.verify if tee == "snp" else azure.verify
    return verify(evidence, endorsements, roots=roots, now=now, revocation_required=False, trail=trail)


def _observed(tee: TeeKind, evidence: bytes, endorsements: bytes, asked: Asked) -> Claims | None:
    """What genuine evidence says that the policy refuses, so that a person can see it."""
    roots = asked.policy.roots_of(tee) if asked.policy else ()
    if tee == "tpm":
        return None
    try:
        return _genuine(tee, evidence, endorsements, roots=roots, now=asked.now, trail=Trail())
    except CloisterError:
        return None


def _vendor_roots(tee: TeeKind) -> tuple[Root, ...]:
    if tee == "tpm":
        return ()
    return (INTEL_ROOT,) if tee in ("tdx", "sgx") else AMD_ROOTS
