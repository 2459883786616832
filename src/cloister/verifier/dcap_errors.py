"""What a refusal of dcap-qvl means here: the number of the check that failed, the class of error, what to do.

dcap-qvl has one exception and tells its reasons in English. The table below knows the texts of version 0.7; a text
that it does not know is the strictest of them all, a quote that is not genuine. Texts are quoted, so that nothing is
lost in the mapping, as one printable line.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

from cryptography import x509

from cloister.endorsements.intel import Collateral
from cloister.errors import AppraisalRefused, CloisterError, EndorsementError, VerificationError
from cloister.evidence.quote import Quote


@dataclass(frozen=True, slots=True)
class _Meaning:
    """``part`` of dcap-qvl's text: which check failed, and how it is told."""

    part: str
    number: int
    error: type[CloisterError]
    todo: str


_AGAIN: Final = "fetch the collateral again"
_MEANINGS: Final = (
    # What the rules decide, after everything was found genuine.
    _Meaning(
        "Dynamic platform is not allowed",
        11,
        AppraisalRefused,
        "genuine multi-socket servers need platform.allow_dynamic_platform",
    ),
    _Meaning(
        "Cached keys are not allowed",
        11,
        AppraisalRefused,
        "genuine multi-socket servers need platform.allow_cached_keys",
    ),
    _Meaning(
        "SMT (hyperthreading) is not allowed",
        11,
        AppraisalRefused,
        "to accept hyper-threading set platform.allow_smt",
    ),
    _Meaning("not in accepted types", 11, AppraisalRefused, "the PCK certificate names an unknown SGX type"),
    _Meaning(
        "is not acceptable by policy",
        9,
        AppraisalRefused,
        "update the platform, or add the status to tcb.accepted_statuses",
    ),
    _Meaning(
        "too old",
        9,
        AppraisalRefused,
        "update the platform; tcb.out_of_date_grace_seconds bounds how old its TCB level may be",
    ),
    _Meaning(
        "is rejected by policy",
        9,
        AppraisalRefused,
        "tcb.rejected_advisories names it; update the platform",
    ),
    _Meaning(
        "TCB eval data number",
        10,
        AppraisalRefused,
        "fetch newer collateral; tcb.min_evaluation_number is the bound",
    ),
    # The quoting enclave, against its identity.
    *(
        _Meaning(
            part,
            8,
            VerificationError,
            "the quote was signed by another enclave than Intel's quoting enclave, or by a retired one",
        )
        for part in (
            "QE MRSIGNER mismatch",
            "QE ISVPRODID mismatch",
            "QE MISCSELECT mismatch",
            "QE ATTRIBUTES mismatch",
            "QE ISVSVN",
            "QE report validation failed",
        )
    ),
    # The platform's TCB, against the levels that Intel lists.
    _Meaning(
        "No matching TCB level",
        9,
        VerificationError,
        "the platform is older than every TCB level that Intel still lists",
    ),
    _Meaning("TCB status is invalid", 9, VerificationError, "Intel revoked this platform's TCB"),
    _Meaning(
        "TDX module ISVSVN", 9, VerificationError, "the TDX module is older than every level Intel lists"
    ),
    _Meaning(
        "TDX module TCB level", 9, VerificationError, "the TDX module is older than every level Intel lists"
    ),
    # The trust domain's own attributes.
    _Meaning(
        "SEPT_VE_DISABLE",
        11,
        VerificationError,
        "the host could feed the TD wrong memory: boot it with SEPT_VE_DISABLE",
    ),
    _Meaning(
        "TD migration",
        11,
        VerificationError,
        "a migratable TD can leave its platform: launch it without migration",
    ),
    _Meaning(
        "TD profiling",
        11,
        VerificationError,
        "the host could watch the TD's performance counters: launch it without profiling",
    ),
    _Meaning(
        "SERVTD_EXT", 11, VerificationError, "service TDs could reach into it: launch it without SERVTD_EXT"
    ),
    _Meaning(
        "Reserved bits in TD attributes", 11, VerificationError, "launch it with attributes that are known"
    ),
    _Meaning(
        "MR service TD",
        11,
        VerificationError,
        "a service TD can reach into this trust domain: launch it without one",
    ),
    _Meaning(
        "TDX module identity",
        11,
        VerificationError,
        "the TDX module is not Intel's, a debug module, or of a version that the TCB info does not know",
    ),
    _Meaning("Debug mode", 4, VerificationError, "build and launch it without debug; no policy accepts this"),
    # Collateral: missing, malformed, of another time, of another platform, not signed.
    _Meaning("expired", 6, EndorsementError, _AGAIN),
    _Meaning(
        "issue date is in the future",
        6,
        EndorsementError,
        "set the clock, or fetch collateral of the time in question",
    ),
    _Meaning("Fmspc mismatch", 6, EndorsementError, "fetch collateral for this platform's FMSPC"),
    _Meaning("non-TDX TCB info", 6, EndorsementError, "fetch collateral for TDX"),
    _Meaning("non-SGX TCB info", 6, EndorsementError, "fetch collateral for SGX"),
    _Meaning("Unsupported QE Identity", 6, EndorsementError, "fetch collateral for this kind of TEE"),
    _Meaning("CRL", 6, EndorsementError, _AGAIN),
    _Meaning("TCB Info", 6, EndorsementError, _AGAIN),
    _Meaning("TcbInfo", 6, EndorsementError, _AGAIN),
    _Meaning("component count mismatch", 6, EndorsementError, _AGAIN),
    _Meaning("tcb_info", 7, EndorsementError, "it was altered, or Intel did not sign it"),
    _Meaning("QE Identity", 6, EndorsementError, _AGAIN),
    _Meaning("QeIdentity", 6, EndorsementError, _AGAIN),
    _Meaning("qe_identity", 7, EndorsementError, "it was altered, or Intel did not sign it"),
    _Meaning("Invalid key length", 7, EndorsementError, "a signature in the collateral has the wrong length"),
    _Meaning("tdxModule", 6, EndorsementError, _AGAIN),
)


def refusal(message: str, quote: Quote, collateral: Collateral, now: int) -> tuple[int, CloisterError]:
    """The number of the check that failed, and our error, for dcap-qvl's ``message``."""
    first = (message.removeprefix("Verification failed: ").splitlines() or ["refused"])[0][:300]
    what = "".join(char if char.isprintable() else "?" for char in first)
    if what.startswith("CrlExpired"):
        return 6, EndorsementError("a revocation list has expired", todo=_AGAIN)
    if what.startswith("CertRevoked"):
        return 7, VerificationError("the root certificate is revoked", todo="trust nothing under it")
    if "certificate chain" in what:
        if _list_expired(collateral, now):
            return 6, EndorsementError("a revocation list has expired", todo=_AGAIN)
        return 7, VerificationError(what, todo=_chain_trouble(quote, collateral, now))
    for meaning in _MEANINGS:
        if meaning.part in what:
            return meaning.number, meaning.error(what, todo=meaning.todo)
    todo = "the quote was altered, or was never signed by a genuine platform"
    return 7, VerificationError(what, todo=todo)


def _list_expired(collateral: Collateral, now: int) -> bool:
    """Did a chain fail for the age of a revocation list? Only to tell the reader: the refusal is certain."""
    try:
        ends = [
            x509.load_der_x509_crl(bytes.fromhex(text)).next_update_utc
            for text in (collateral.pck_crl, collateral.root_ca_crl)
        ]
        moment = datetime.fromtimestamp(now, UTC)
    except Exception:  # only decorates an error that is raised anyway
        return False
    return any(end is not None and end < moment for end in ends)


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
