"""Intel SGX and TDX quotes: is this quote genuine, at ``now``, under this root?

The chain, signatures, revocation, TCB levels and QE identity are checked by dcap-qvl, always under one of its
policies (its ``verify()`` accepts every TCB status but Revoked, so it is never used). Around it stand our own
strict parser, the choice of the root, the time window, and a comparison of both parsers' reading. Whatever goes
wrong in there comes out as one of our errors. No measurement and no report data is judged here: see appraisal.

The numbers are those of docs/reference/checks.md; 1, 2 and 12 to 17 belong to appraisal.
"""

from __future__ import annotations

import logging
import threading

from cloister.endorsements.intel import parse_collateral
from cloister.endorsements.pck import PckIdentity, read_pck
from cloister.endorsements.roots import Root
from cloister.errors import AppraisalRefused, EndorsementError, VerificationError
from cloister.evidence.quote import Quote, parse_quote
from cloister.evidence.tdx import TdReport
from cloister.verifier.claims import Claims
from cloister.verifier.dcap import Verdict, run_dcap
from cloister.verifier.rules import TCB_STATUSES, IntelRules
from cloister.verifier.trail import Trail, day

MAX_TIME = 1 << 40
_TD_FIELDS = (
    "td_attributes",
    "xfam",
    "tee_tcb_svn",
    "mr_seam",
    "mr_config_id",
    "mr_owner",
    "mr_owner_config",
)

_log = logging.getLogger("cloister.verifier")
_announced = threading.Event()


def verify(
    quote: bytes,
    collateral: bytes,
    *,
    root: Root,
    now: int,
    rules: IntelRules,
    trail: Trail | None = None,
) -> Claims:
    """Verify ``quote`` against ``collateral`` (dcap-qvl's JSON) under ``root`` at ``now`` (Unix seconds).

    Raises :class:`~cloister.errors.EvidenceError` (not a quote), :class:`~cloister.errors.EndorsementError`
    (collateral missing, malformed, expired or of another platform), :class:`~cloister.errors.VerificationError`
    (not genuine, revoked, debug) or :class:`~cloister.errors.AppraisalRefused` (genuine, but outside ``rules``).
    """
    trail = Trail() if trail is None else trail
    begun = len(trail.passed)
    # 3. The quote has exactly the form of its version.
    with trail.check(3, name="quote form") as found:
        parsed = parse_quote(quote)
        found(f"{parsed.tee.upper()} quote, version {parsed.header.version}")
    # 4. Never debug. Before the signature on purpose: the reason is clearer, and altering the bit only refuses more.
    with trail.check(4) as found:
        if parsed.debug:
            raise VerificationError(
                "the workload runs in debug mode: its memory can be read from outside",
                todo="build and launch it without debug; no policy accepts this",
            )
        found("off")
    # 5. The chain ends in the root that the policy names, and that certificate alone is the trust anchor.
    with trail.check(5) as found:
        anchor = root.require(parsed.signature.certificates[-1])
        found(f"{root.name}, SHA-256 {root.sha256[:16]}…")
    # 6. to 11. are dcap-qvl's, under a policy; the outcomes are then looked at once more.
    with trail.check(6, name="collateral validity"):
        if not 0 <= now <= MAX_TIME:
            raise EndorsementError(f"{now} is no time", todo="give Unix seconds")
        document = parse_collateral(collateral)
    try:
        verdict = run_dcap(parsed, document, anchor=anchor, now=now, rules=rules, trail=trail)
    except AppraisalRefused:
        # Rules are asked last: what was refused by them is genuine.
        trail.found(7, "all hold")
        trail.found(8, "as the QE identity names it", name="quoting enclave identity")
        raise
    _window(verdict, now, trail)
    pck = _same_reading(parsed, verdict, trail)
    _rules_hold(parsed, verdict, rules, trail)
    if root.simulated:
        _announce(root)
    return _claims(parsed, verdict, root, pck, trail, begun)


def _window(verdict: Verdict, now: int, trail: Trail) -> None:
    # 6. dcap-qvl refuses what has expired, but not a CRL from the future (webpki ignores thisUpdate).
    with trail.check(6, name="collateral validity") as found:
        if verdict.issued_at > now:
            raise EndorsementError(
                f"collateral was issued at {verdict.issued_at}, after now ({now})",
                todo="set the clock, or fetch collateral of the time in question",
            )
        if verdict.expires <= now:
            raise EndorsementError(
                f"collateral expired at {verdict.expires} (now is {now})", todo="fetch the collateral again"
            )
        found(f"issued {day(verdict.issued_at)}, expires {day(verdict.expires)}")


def _same_reading(quote: Quote, verdict: Verdict, trail: Trail) -> PckIdentity:
    # 7. The signature covers what dcap-qvl read; we go on with what we read: both must be the same.
    report = quote.report
    expected = {"report_data": report.report_data}
    if isinstance(report, TdReport):
        expected |= {"mr_td": report.mrtd} | {name: getattr(report, name) for name in _TD_FIELDS}
        expected |= {f"rt_mr{number}": getattr(report, f"rtmr{number}") for number in range(4)}
        if report.mr_service_td is not None:
            expected["mr_service_td"] = report.mr_service_td
    else:
        expected |= {"mr_enclave": report.mrenclave, "mr_signer": report.mrsigner}
        expected |= {"attributes": report.attributes}
    with trail.check(7) as found:
        for name, value in expected.items():
            if verdict.report.get(name) != value.hex():
                raise VerificationError(f"two readings of the quote disagree about {name}")
        pck = read_pck(quote.signature.certificates[0])
        if (pck.fmspc, pck.ppid) != (verdict.fmspc, verdict.ppid):
            raise VerificationError("two readings of the PCK certificate disagree")
        found(f"PCK certificate of FMSPC {pck.fmspc}, {pck.ca} CA")
    # 8. is dcap-qvl's alone: without it there would be no verdict.
    trail.found(8, f"{verdict.qe_status}, ISV SVN {verdict.qe_isv_svn}", name="quoting enclave identity")
    return pck


def _rules_hold(quote: Quote, verdict: Verdict, rules: IntelRules, trail: Trail) -> None:
    # 9. and 10. again: a change of dcap-qvl's defaults must not widen what a policy accepts.
    with trail.check(9, name="TCB status") as found:
        if verdict.status not in rules.accepted_statuses or verdict.status not in TCB_STATUSES:
            raise AppraisalRefused(f"TCB status {verdict.status} is not accepted by the policy")
        rejected = rules.rejected_advisories.intersection(verdict.advisory_ids)
        if rejected:
            raise AppraisalRefused(
                f"advisory {min(rejected)} is rejected by the policy",
                todo="tcb.rejected_advisories names it; update the platform",
            )
        found(f"{verdict.status}, {', '.join(verdict.advisory_ids) or 'no advisory'}")
    with trail.check(10, name="TCB evaluation number") as found:
        if verdict.evaluation_number < rules.min_tcb_evaluation_number:
            raise AppraisalRefused(
                f"TCB evaluation number {verdict.evaluation_number} is below {rules.min_tcb_evaluation_number}"
            )
        found(str(verdict.evaluation_number))
    with trail.check(11) as found:
        if isinstance(quote.report, TdReport):
            _trust_domain(quote.report)
        found(
            f"dynamic {verdict.dynamic_platform}, cached keys {verdict.cached_keys}, SMT {verdict.smt_enabled}"
        )


def _trust_domain(report: TdReport) -> None:
    """11. What no policy accepts of a trust domain. Raises :class:`~cloister.errors.VerificationError`."""
    # A signer other than all zeros is a module of someone else.
    if report.mr_signer_seam.strip(b"\0") or report.seam_attributes.strip(b"\0"):
        raise VerificationError(
            "the TDX module was not signed by Intel, or is a debug module", todo="no policy accepts this"
        )
    names = report.attribute_names
    if "SEPT_VE_DISABLE" not in names:
        raise VerificationError(
            "SEPT_VE_DISABLE is off", todo="the host could feed the TD wrong memory; no policy accepts this"
        )
    if "MIGRATABLE" in names:
        raise VerificationError(
            "the trust domain is migratable", todo="it could leave its platform; no policy accepts this"
        )


def _claims(quote: Quote, verdict: Verdict, root: Root, pck: PckIdentity, trail: Trail, begun: int) -> Claims:
    report = quote.report
    details = {
        "quote_version": str(quote.header.version),
        "fmspc": verdict.fmspc,
        "ppid": verdict.ppid,
        "sgx_type": str(verdict.sgx_type),
        "dynamic_platform": verdict.dynamic_platform,
        "cached_keys": verdict.cached_keys,
        "smt_enabled": verdict.smt_enabled,
        "tcb_date": verdict.tcb_date,
        "qe_tcb_status": verdict.qe_status,
    }
    if isinstance(report, TdReport):
        details |= {name: getattr(report, name).hex() for name in _TD_FIELDS}
        details["mr_service_td"] = report.service_td.hex()
    else:
        details |= {"attributes": report.attributes.hex(), "cpu_svn": report.cpu_svn.hex()}
        details |= {"isv_prod_id": str(report.isv_prod_id), "isv_svn": str(report.isv_svn)}
        details |= {"config_id": report.config_id.hex(), "config_svn": str(report.config_svn)}
    return Claims(
        tee=quote.tee,
        root_sha256=root.sha256,
        simulated=root.simulated,
        report=report,
        measurements=quote.measurements,
        report_data=quote.report_data,
        debug=quote.debug,
        tcb_status=verdict.status,
        advisory_ids=verdict.advisory_ids,
        tcb_evaluation_number=verdict.evaluation_number,
        issued_at=verdict.issued_at,
        collateral_expires=verdict.expires,
        hardware={"ppid": pck.ppid, "pck_sha256": pck.spki_sha256},
        details=details,
        checks=trail.passed[begun:],
    )


def _announce(root: Root) -> None:
    """Loudly, once per process: whoever reads the log must not take this for hardware."""
    if not _announced.is_set():
        _announced.set()
        _log.warning(
            "SIMULATED TEE ACCEPTED: the policy names simulated root %s. No hardware protects this workload; "
            "never use this for real data.",
            root.sha256,
        )
