"""Endorsements that a person has as files, put together into the documents that the verifiers take.

``cloister verify --endorsements F`` may name dcap-qvl's JSON, a VCEK and AMD's chain as certificates, RIM documents,
OCSP answers, or documents of our own, in any order: content decides what each is. Choosing certificates here is
convenience, not trust: the verifier judges whatever was chosen. Two documents for one vendor are refused, because
nobody could say which one counted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from cloister.endorsements.amd import SnpEndorsements, encode_snp_endorsements, vendor_intermediates
from cloister.endorsements.nvidia import NvidiaEndorsements, encode_nvidia_endorsements
from cloister.endorsements.roots import AMD_ROOTS, vendor_certificate
from cloister.endorsements.x509 import common_name, read_certificate, read_revocation_list
from cloister.errors import UsageError
from cloister.evidence.recognise import Recognised

_DOCUMENTS = {
    "intel-collateral": "intel",
    "snp-endorsements": "snp",
    "tpm-endorsements": "tpm",
    "nvidia-endorsements": "nvidia",
}
_SNP_LEAVES = ("SEV-VCEK", "SEV-VLEK")


@dataclass(frozen=True, slots=True)
class Given:
    """One document for each vendor, as its verifier takes it; empty where nothing was given."""

    intel: bytes = b""
    snp: bytes = b""
    tpm: bytes = b""
    nvidia: bytes = b""
    certificates: tuple[bytes, ...] = ()
    """DER, as they came: an SPDM report without its chain takes it from here."""

    def of(self, tee: str) -> bytes:
        """The document for evidence of kind ``tee``."""
        vendor = {"tdx": "intel", "sgx": "intel", "snp": "snp", "az-snp-vtpm": "snp", "tpm": "tpm"}
        return bytes(getattr(self, vendor[tee])) if tee in vendor else b""


def gather(files: Sequence[Recognised]) -> Given:
    """Put ``files`` together. Raises :class:`~cloister.errors.UsageError` for what is no endorsement or comes
    twice, :class:`~cloister.errors.EndorsementError` for certificates that cannot be read."""
    documents: dict[str, bytes] = {}
    certificates: list[bytes] = []
    crls: list[bytes] = []
    rims: list[bytes] = []
    ocsp: list[bytes] = []
    for file in files:
        if file.kind in _DOCUMENTS:
            vendor = _DOCUMENTS[file.kind]
            if documents.setdefault(vendor, file.data) != file.data:
                raise UsageError(f"two documents of {file.what} are given", todo="give the one that counts")
        elif file.kind in ("certificates", "crl"):
            certificates += file.certificates
            crls += file.crls
        elif file.kind == "rim":
            rims.append(file.data)
        elif file.kind == "ocsp":
            ocsp.append(file.data)
        elif file.kind in ("intel-tcb-info", "intel-qe-identity"):
            raise UsageError(
                f"{file.what} alone has no issuer chain and no revocation lists",
                todo="give the collateral as dcap-qvl's JSON, or let it be fetched",
            )
        else:
            raise UsageError(
                f"{file.what} is no endorsement", todo="give it as the evidence, or leave it out"
            )
    if rims or ocsp:
        if "nvidia" in documents:
            raise UsageError(
                "RIMs are given beside a document of NVIDIA endorsements", todo="give one or the other"
            )
        documents["nvidia"] = encode_nvidia_endorsements(
            NvidiaEndorsements(rims=tuple(dict.fromkeys(rims)), ocsp=tuple(dict.fromkeys(ocsp)))
        )
    if "snp" not in documents and (snp := _snp(certificates, crls)):
        documents["snp"] = snp
    return Given(**documents, certificates=tuple(dict.fromkeys(certificates)))


def _snp(certificates: Sequence[bytes], crls: Sequence[bytes]) -> bytes:
    """VCEK or VLEK with the chain that its issuer's name leads to; AMD's own ASK, ASVK and ARK where none were given."""
    parsed = [read_certificate(der) for der in certificates]
    leaves = {
        certificate.der: certificate for certificate in parsed if certificate.common_name in _SNP_LEAVES
    }
    if not leaves:
        return b""
    if len(leaves) > 1:
        raise UsageError("certificates of two SEV-SNP chips are given", todo="give the one of this report")
    (leaf,) = leaves.values()
    # AMD's intermediates are package data; what was given goes first.
    shipped = [read_certificate(der) for root in AMD_ROOTS for der in vendor_intermediates(root.sha256)]
    by_subject = {certificate.subject: certificate for certificate in [*shipped, *parsed]}
    intermediate = by_subject.get(leaf.issuer)
    if intermediate is None:
        raise UsageError(
            f"the certificate of {common_name(leaf.issuer)}, which issued the chip's key, is not given",
            todo="give AMD's chain (ASK or ASVK, and ARK) as well, or let it be fetched",
        )
    roots = [
        by_subject.get(intermediate.issuer),
        *(read_certificate(vendor_certificate(root)) for root in AMD_ROOTS),
    ]
    root = next((root for root in roots if root is not None and root.subject == intermediate.issuer), None)
    if root is None:
        raise UsageError("the root of the chip's chain is not given", todo="give AMD's ARK as well")
    lists = [der for der in crls if read_revocation_list(der).issuer == root.subject]
    return encode_snp_endorsements(
        SnpEndorsements(
            signing_key=leaf.der,
            intermediate=intermediate.der,
            root=root.der,
            crl=lists[0] if lists else b"",
        )
    )
