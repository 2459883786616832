"""The one place that touches dcap-qvl: our types in, a :class:`Verdict` out, every foreign failure mapped.

``verify_with_policy`` under ``QuotePolicy.strict`` with the rules' relaxations is the only call made. Its messages
choose the number of the check, the error class and what to do (verifier/dcap_errors.py). Converted collateral is kept
for as long as the parsed one is: a service verifies thousands of quotes against the same documents.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final, Literal

import dcap_qvl
import msgspec

from cloister.endorsements.intel import Collateral
from cloister.errors import VerificationError
from cloister.evidence.quote import Quote
from cloister.verifier.dcap_errors import refusal
from cloister.verifier.rules import IntelRules
from cloister.verifier.trail import Trail

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


def run_dcap(
    quote: Quote,
    collateral: Collateral,
    *,
    anchor: bytes,
    now: int,
    rules: IntelRules,
    trail: Trail | None = None,
) -> Verdict:
    """Verify under ``anchor`` (DER root); a refusal stops ``trail`` at the number of its check.

    Raises the errors that :func:`cloister.verifier.intel.verify` names.
    """
    trail = Trail() if trail is None else trail
    try:
        claims = dcap_qvl.QuoteVerifier(anchor).verify_with_policy(
            quote.encoded, _collateral(collateral), now, _policy(rules, now)
        )
        found = _CLAIMS.decode(claims.to_json())
        (report,) = found.report.values()
    except ValueError as error:  # dcap-qvl's one exception; msgspec's and Unicode's derive from it
        number, refused = refusal(str(error), quote, collateral, now)
        trail.stop(number, refused)
        raise refused from None
    except BaseException as error:  # a Rust panic is no Exception: pyo3 derives it from BaseException
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        failed = VerificationError(
            f"dcap-qvl failed ({type(error).__name__})", todo="the quote or collateral is malformed"
        )
        trail.stop(7, failed)
        raise failed from None
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


@lru_cache(maxsize=8)
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


@lru_cache(maxsize=8)
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
