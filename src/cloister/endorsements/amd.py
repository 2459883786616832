"""What AMD signs about a chip: the VCEK or VLEK, its chain, the revocation list.

Carried along or fetched, as one strict JSON document; here it is only bounded and parsed, the verifier judges it.
AMD's intermediates are data of this package, so that the chip's own certificate is all that has to be at hand.
"""

from __future__ import annotations

from functools import cache
from importlib import resources
from typing import Final, Literal

from cloister.encoding import Record, decode_json, encode_json
from cloister.endorsements.roots import AMD_ARK_SHA256S, AMD_ROOTS, vendor_certificate
from cloister.endorsements.x509 import read_certificate, read_pem_certificates
from cloister.errors import EndorsementError, FormatError

FORMAT: Final = "cloister/endorsements/snp/v1"
MAX_ENDORSEMENTS = 256 * 1024
PRODUCTS: Final = tuple(AMD_ARK_SHA256S)
"""``milan``, ``genoa`` (with Bergamo and Siena), ``turin``."""


class SnpEndorsements(Record, frozen=True, kw_only=True):
    """Certificates and list in DER (standard base64 on the wire)."""

    format: Literal["cloister/endorsements/snp/v1"] = FORMAT
    signing_key: bytes
    """The VCEK's or VLEK's certificate."""
    intermediate: bytes
    """ASK (for a VCEK) or ASVK (for a VLEK)."""
    root: bytes
    """ARK."""
    crl: bytes = b""
    """AMD's list for the product, or empty: then revocation was not checked, and the policy decides."""


def parse_snp_endorsements(data: bytes) -> SnpEndorsements:
    """Decode. Raises :class:`~cloister.errors.EndorsementError`."""
    if not data:
        raise EndorsementError(
            "no endorsements came with the SEV-SNP report, and none were given",
            todo="fetch them (AMD KDS) or let the workload carry them",
        )
    try:
        return decode_json(data, SnpEndorsements, what="SEV-SNP endorsements", limit=MAX_ENDORSEMENTS)
    except FormatError as error:
        raise EndorsementError(error.what, todo="fetch them again") from None


def encode_snp_endorsements(endorsements: SnpEndorsements) -> bytes:
    """The canonical wire form."""
    return encode_json(endorsements)


def endorsements_for(signing_key: bytes, *, crl: bytes = b"") -> SnpEndorsements:
    """The endorsements of a bare VCEK or VLEK certificate (DER): the chain is chosen by its issuer's name.

    Nothing is verified. Raises :class:`~cloister.errors.EndorsementError` where no chain of AMD's bears that name.
    """
    issuer = read_certificate(signing_key).issuer
    for root in AMD_ROOTS:
        for intermediate in vendor_intermediates(root.sha256):
            if read_certificate(intermediate).subject == issuer:
                return SnpEndorsements(
                    signing_key=signing_key,
                    intermediate=intermediate,
                    root=vendor_certificate(root),
                    crl=crl,
                )
    raise EndorsementError(
        "the certificate was issued by none of AMD's known intermediates",
        todo="give its whole chain, or fetch it for the right product",
    )


def parse_cert_chain(pem: bytes) -> tuple[bytes, bytes]:
    """What AMD's KDS answers for ``cert_chain``: intermediate (ASK or ASVK) and root (ARK), DER.

    Raises :class:`~cloister.errors.EndorsementError`.
    """
    intermediate, root = read_pem_certificates(pem, what="AMD's certificate chain", count=2)
    if read_certificate(intermediate).issuer != read_certificate(root).subject:
        raise EndorsementError("AMD's certificate chain is not an intermediate and its root, in this order")
    return intermediate, root


@cache
def vendor_intermediates(root_sha256: str) -> tuple[bytes, bytes]:
    """AMD's ASK and ASVK (DER) below the root of that digest, from this package's data.

    Not believed for being here: the verifier checks the root's signature over them like over any others.
    """
    product = next(name for name, digest in AMD_ARK_SHA256S.items() if digest == root_sha256)
    folder = resources.files("cloister.endorsements").joinpath("vendors")
    ask, asvk = (folder.joinpath(f"amd-{kind}-{product}.der").read_bytes() for kind in ("ask", "asvk"))
    return ask, asvk
