"""What vouches for a TPM's attestation key: its certificate chain and revocation lists, carried along."""

from __future__ import annotations

from typing import Final, Literal

from cloister.encoding import Record, decode_json, encode_json
from cloister.errors import EndorsementError, FormatError

FORMAT: Final = "cloister/endorsements/tpm/v1"
MAX_ENDORSEMENTS = 256 * 1024
MAX_CHAIN = 6


class TpmEndorsements(Record, frozen=True, kw_only=True):
    """Certificates and lists in DER (standard base64 on the wire)."""

    format: Literal["cloister/endorsements/tpm/v1"] = FORMAT
    ak_chain: tuple[bytes, ...]
    """The attestation key's certificate first, its root last: from the cloud, or from an enrolment (credential
    activation against the endorsement key, verifier/tpm_enrolment.py)."""
    crls: tuple[bytes, ...] = ()


def parse_tpm_endorsements(data: bytes) -> TpmEndorsements:
    """Decode. Raises :class:`~cloister.errors.EndorsementError`."""
    if not data:
        raise EndorsementError(
            "no certificate of the attestation key came with the TPM quote, and none was given",
            todo="enrol the attestation key first",
        )
    try:
        found = decode_json(data, TpmEndorsements, what="TPM endorsements", limit=MAX_ENDORSEMENTS)
    except FormatError as error:
        raise EndorsementError(error.what, todo="enrol the attestation key again") from None
    if not 1 <= len(found.ak_chain) <= MAX_CHAIN or len(found.crls) > MAX_CHAIN:
        raise EndorsementError(
            f"TPM endorsements hold {len(found.ak_chain)} certificates, not 1 to {MAX_CHAIN}"
        )
    return found


def encode_tpm_endorsements(endorsements: TpmEndorsements) -> bytes:
    """The canonical wire form."""
    return encode_json(endorsements)
