"""What AMD signs about a chip: the VCEK or VLEK, its chain, the revocation list.

Carried along or fetched, as one strict JSON document; here it is only bounded and parsed, the verifier judges it.
"""

from __future__ import annotations

from typing import Final, Literal

from cloister.encoding import Record, decode_json, encode_json
from cloister.errors import EndorsementError, FormatError

FORMAT: Final = "cloister/endorsements/snp/v1"
MAX_ENDORSEMENTS = 256 * 1024


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
