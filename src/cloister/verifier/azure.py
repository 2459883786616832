"""Azure's SEV-SNP guests, attested through their vTPM (the paravisor's): two signatures, one chain.

AMD vouches for the SEV-SNP report; its report data is the SHA-256 of the runtime data, in which the paravisor names
the vTPM's attestation key; that key signs the quote, whose qualifying data binds nonce and keys. So all of the vTPM
stands on the launch measurement, which covers the paravisor: a policy that does not pin it trusts nobody's vTPM.
Attributes of the key are the paravisor's word: its own claim in the public area is checked, and no more.
"""

from __future__ import annotations

import hmac
from collections.abc import Sequence
from dataclasses import replace

from cloister.endorsements.roots import Root
from cloister.errors import BindingMismatch, VerificationError
from cloister.evidence.hcl import HclReport, parse_evidence
from cloister.evidence.tpm import TpmQuote
from cloister.verifier import snp
from cloister.verifier.claims import Claims
from cloister.verifier.tpm import pcr_measurements, quote_details, verify_signature
from cloister.verifier.trail import Trail


def verify(
    evidence: bytes,
    endorsements: bytes,
    *,
    roots: Sequence[Root],
    now: int,
    revocation_required: bool,
    trail: Trail | None = None,
) -> Claims:
    """Verify HCL report and vTPM quote against ``endorsements`` (endorsements/amd.py) at ``now`` (Unix seconds).

    The claims are those of the SEV-SNP report, with the quote's PCRs beside its measurement, and the quote's
    qualifying data as report data. Raises what :func:`cloister.verifier.snp.verify` raises, and
    :class:`~cloister.errors.EvidenceError`, :class:`~cloister.errors.BindingMismatch` (runtime data that the
    report does not seal) or :class:`~cloister.errors.VerificationError` (a quote of another key).
    """
    trail = Trail() if trail is None else trail
    with trail.check(3, name="HCL report and quote") as found:
        report, quote = parse_evidence(evidence)
        found(f"vTPM quote over {len(quote.pcrs)} PCRs of bank {quote.bank}")
    claims = snp.verify(
        report.snp_report,
        endorsements,
        roots=roots,
        now=now,
        revocation_required=revocation_required,
        trail=trail,
    )
    with trail.check(8, name="runtime data") as found:
        _sealed(report, claims.report_data)
        found(f"SHA-256 {report.digest.hex()[:16]}… is the SEV-SNP report's")
    with trail.check(8, name="vTPM attestation key") as found:
        _same_key(report, quote)
        found("HCLAkPub")
    with trail.check(7, name="quote signature") as found:
        found(verify_signature(quote, report.ak))
    configuration = {f"vm-configuration.{name}": value for name, value in report.vm_configuration.items()}
    hardware = dict(claims.hardware)
    if report.ek_sha256 is not None:
        hardware["ek_sha256"] = report.ek_sha256
    return replace(
        claims,
        tee="az-snp-vtpm",
        measurements={**claims.measurements, **pcr_measurements(quote)},
        report_data=quote.extra_data,
        hardware=hardware,
        details={**claims.details, **quote_details(quote), **configuration},
        checks=trail.passed,
    )


def _sealed(report: HclReport, report_data: bytes) -> None:
    if not hmac.compare_digest(report.digest + bytes(32), report_data):
        raise BindingMismatch(
            "the SEV-SNP report does not seal this runtime data",
            todo="the attestation key in it was exchanged, or the two are of different guests",
        )


def _same_key(report: HclReport, quote: TpmQuote) -> None:
    if quote.attestation_key.key != report.ak:
        raise VerificationError(
            "the quote's attestation key is not the one that the SEV-SNP report vouches for",
            todo="the quote is of another vTPM",
        )
