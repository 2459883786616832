"""The one place that touches dcap-qvl: our types in, a :class:`Verdict` out, every foreign failure mapped.

``verify_with_policy`` under ``QuotePolicy.strict`` with the rules' relaxations is the only call made.
Its messages choose the error class and what to do; they are quoted, so that nothing is lost in the mapping.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final, Literal

import dcap_qvl
import msgspec
from cryptography import x509

from cloister.endorsements.intel import Collateral
from cloister.errors import AppraisalRefused, CloisterError, EndorsementError, VerificationError
from cloister.evidence.quote import Quote
from cloister.verifier.rules import IntelRules

_Flag = Literal["True", "False", "Undefined"]
SGX_TYPES: Final = (0, 1, 2)
"""Standard, scalable, scalable with integrity (PCK certificate extension): all of them are genuine."""


class _Tcb(msgspec.Struct, frozen=True):
    status: str
    advisory_ids: tuple[str, ...]
    eval_data_number: int


class _Level(msgspec.Struct, frozen=True, rename="camel"):
    tcb_date: str
    tcb_status: str


class _Pck(msgspec.Struct, frozen=True):
    ppid: list[int]
    fmspc: list[int]
    sgx_type: int
    dynamic_platform: _Flag
    cached_keys: _Flag
    smt_enabled: _Flag


class _Platform(msgspec.Struct, frozen=True):
    tcb_level: _Level
    pck: _Pck


class _QeReport(msgspec.Struct, frozen=True):
    isv_svn: int


class _Qe(msgspec.Struct, frozen=True):
    tcb_level: _Level
    report: _QeReport
    tcb_eval_data_number: int


class _QuoteClaims(msgspec.Struct, frozen=True):
    """The part of dcap-qvl's claims (version 1) that is used; times are Unix seconds."""

    claims_version: Literal[1]
    tcb: _Tcb
    platform: _Platform
    qe: _Qe
    latest_issue_date: int
    earliest_expiration_date: int
    qe_iden_latest_issue_date: int
    qe_iden_earliest_expiration_date: int
    report: dict[str, dict[str, Any]]


_CLAIMS: Final = msgspec.json.Decoder(_QuoteClaims)


@dataclass(frozen=True, slots=True)
class Verdict:
    """What dcap-qvl found; times are Unix seconds, ``report`` is its own reading of the body in hexadecimal."""

    status: str
    advisory_ids: tuple[str, ...]
    evaluation_number: int
    issued_at: int
    expires: int
    fmspc: str
    ppid: str
    sgx_type: int
    dynamic_platform: str
    cached_keys: str
    smt_enabled: str
    tcb_date: str
    qe_status: str
    qe_isv_svn: int
    report: dict[str, Any]


def run_dcap(quote: Quote, collateral: Collateral, *, anchor: bytes, now: int, rules: IntelRules) -> Verdict:
    """Verify under ``anchor`` (DER root). Raises the errors that :func:`cloister.verifier.intel.verify` names."""
    try:
        claims = dcap_qvl.QuoteVerifier(anchor).verify_with_policy(
            quote.encoded, _collateral(collateral), now, _policy(rules, now)
        )
        found = _CLAIMS.decode(claims.to_json())
        (report,) = found.report.values()
    except ValueError as error:  # dcap-qvl's one exception; msgspec's and Unicode's derive from it
        raise _refusal(str(error), quote, collateral, now) from None
    except BaseException as error:  # a Rust panic is no Exception: pyo3 derives it from BaseException
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise VerificationError(
            f"dcap-qvl failed ({type(error).__name__})", todo="the quote or collateral is malformed"
        ) from None
    pck, tcb, qe = found.platform.pck, found.tcb, found.qe
    return Verdict(
        status=tcb.status,
        advisory_ids=tcb.advisory_ids,
        evaluation_number=min(tcb.eval_data_number, qe.tcb_eval_data_number),
        issued_at=max(found.latest_issue_date, found.qe_iden_latest_issue_date),
        expires=min(found.earliest_expiration_date, found.qe_iden_earliest_expiration_date),
        fmspc=bytes(pck.fmspc).hex(),
        ppid=bytes(pck.ppid).hex(),
        sgx_type=pck.sgx_type,
        dynamic_platform=pck.dynamic_platform,
        cached_keys=pck.cached_keys,
        smt_enabled=pck.smt_enabled,
        tcb_date=found.platform.tcb_level.tcb_date,
        qe_status=qe.tcb_level.tcb_status,
        qe_isv_svn=qe.report.isv_svn,
        report={**report, **report.get("base", {})},  # a TDX 1.5 report nests the fields of 1.0
    )


def _collateral(parts: Collateral) -> dcap_qvl.QuoteCollateralV3:
    return dcap_qvl.QuoteCollateralV3(
        parts.pck_crl_issuer_chain,
        bytes.fromhex(parts.root_ca_crl),
        bytes.fromhex(parts.pck_crl),
        parts.tcb_info_issuer_chain,
        parts.tcb_info,
        bytes.fromhex(parts.tcb_info_signature),
        parts.qe_identity_issuer_chain,
        parts.qe_identity,
        bytes.fromhex(parts.qe_identity_signature),
    )


def _policy(rules: IntelRules, now: int) -> dcap_qvl.QuotePolicy:
    # Builders return new objects, and `strict` starts with UpToDate accepted.
    policy = dcap_qvl.QuotePolicy.strict(now)
    for status in sorted(rules.accepted_statuses):
        policy = policy.allow_status(status)
    return (
        policy.reject_advisories(sorted(rules.rejected_advisories))
        .platform_grace_period(rules.out_of_date_grace)
        .qe_grace_period(rules.out_of_date_grace)
        .min_tcb_eval_data_number(rules.min_tcb_evaluation_number)
        .allow_dynamic_platform(rules.allow_dynamic_platform)
        .allow_cached_keys(rules.allow_cached_keys)
        .allow_smt(rules.allow_smt)
        .accepted_sgx_types(list(SGX_TYPES))
    )


_BY_POLICY: Final = (
    ("Dynamic platform is not allowed", "genuine multi-socket servers need platform.allow_dynamic_platform"),
    ("Cached keys are not allowed", "genuine multi-socket servers need platform.allow_cached_keys"),
    ("SMT (hyperthreading) is not allowed", "to accept hyper-threading set platform.allow_smt"),
    ("is not acceptable by policy", "update the platform, or add the status to tcb.accepted_statuses"),
    ("too old", "update the platform; tcb.out_of_date_grace_seconds bounds how old its TCB level may be"),
    ("is rejected by policy", "tcb.rejected_advisories names it; update the platform"),
    ("TCB eval data number", "fetch newer collateral; tcb.min_evaluation_number is the bound"),
    ("not in accepted types", "the PCK certificate names an unknown SGX type"),
)
_BY_COLLATERAL: Final = (
    ("expired", "fetch the collateral again"),
    ("issue date is in the future", "set the clock, or fetch collateral of the time in question"),
    ("Fmspc mismatch", "fetch collateral for this platform's FMSPC"),
    ("non-TDX TCB info", "fetch collateral for TDX"),
    ("non-SGX TCB info", "fetch collateral for SGX"),
    ("Unsupported QE Identity", "fetch collateral for this kind of TEE"),
    ("CRL", "fetch the collateral again"),
    ("TCB Info", "fetch the collateral again"),
    ("TcbInfo", "fetch the collateral again"),
    ("tcb_info", "it was altered, or Intel did not sign it"),
    ("QE Identity", "fetch the collateral again"),
    ("QeIdentity", "fetch the collateral again"),
    ("qe_identity", "it was altered, or Intel did not sign it"),
    ("Invalid key length", "a signature in the collateral has the wrong length"),
    ("tdxModule", "fetch the collateral again"),
)
_GENUINE: Final = (
    ("No matching TCB level", "the platform is older than every TCB level that Intel still lists"),
    ("Revoked", "Intel revoked this platform's TCB"),
    ("SEPT_VE_DISABLE", "the host could feed the TD wrong memory: boot it with SEPT_VE_DISABLE"),
    ("TD migration", "a migratable TD can leave its platform: launch it without migration"),
)


def _refusal(message: str, quote: Quote, collateral: Collateral, now: int) -> CloisterError:
    first = (message.removeprefix("Verification failed: ").splitlines() or ["refused"])[0][:300]
    what = "".join(char if char.isprintable() else "?" for char in first)
    if what.startswith("CrlExpired"):
        return EndorsementError("a revocation list has expired", todo="fetch the collateral again")
    for part, todo in _BY_POLICY:
        if part in what:
            return AppraisalRefused(what, todo=todo)
    if "certificate chain" in what:
        return VerificationError(what, todo=_chain_trouble(quote, collateral, now))
    for part, todo in _BY_COLLATERAL:
        if part in what:
            return EndorsementError(what, todo=todo)
    for part, todo in _GENUINE:
        if part in what:
            return VerificationError(what, todo=todo)
    return VerificationError(what, todo="the quote was altered, or was never signed by a genuine platform")


def _chain_trouble(quote: Quote, collateral: Collateral, now: int) -> str:
    """Why a chain failed, as far as it can be told cheaply: for the reader, after the refusal is certain."""
    try:
        revoked = {
            entry.serial_number
            for text in (collateral.pck_crl, collateral.root_ca_crl)
            for entry in x509.load_der_x509_crl(bytes.fromhex(text))
        }
        moment = datetime.fromtimestamp(now, UTC)
        for der in quote.signature.certificates[:-1]:
            certificate = x509.load_der_x509_certificate(der)
            name = certificate.subject.rfc4514_string().replace("\n", " ")[:100]
            if certificate.serial_number in revoked:
                return f"{name} is revoked"
            if not certificate.not_valid_before_utc <= moment <= certificate.not_valid_after_utc:
                return f"{name} is outside its validity"
    except Exception:  # only decorates an error that is raised anyway
        return "a certificate of the quote or collateral is malformed"
    return "a certificate of the quote or of the collateral is not signed by the root, revoked or out of date"
