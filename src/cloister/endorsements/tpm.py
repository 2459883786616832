"""What vouches for a TPM's attestation key: its certificate chain and revocation lists, carried along.

An enrolment (verifier/tpm_enrolment.py) writes into the certificate which TPM the key is in and how the key was made
there, as an extension of our own; certificates of clouds have no such extension.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

from cloister.encoding import Record, decode_json, encode_json
from cloister.endorsements.der import OCTET_STRING, SEQUENCE, Der
from cloister.errors import EndorsementError, FormatError

FORMAT: Final = "cloister/endorsements/tpm/v1"
MAX_ENDORSEMENTS = 256 * 1024
MAX_CHAIN = 6

AK_IDENTITY: Final = "2.25.40647430455767419431862714437405292832"
"""The extension's object identifier (ITU-T X.667: UUID 1e94690c-8c44-4971-9b75-75fb2860b920)."""
EK_CERTIFICATE_USAGE: Final = "2.23.133.8.1"
"""tcg-kp-EKCertificate (TCG EK Credential Profile)."""
AK_CERTIFICATE_USAGE: Final = "2.23.133.8.3"
"""tcg-kp-AIKCertificate."""
_EK_DIGEST: Final = 32
_NAME: Final = 34


class TpmEndorsements(Record, frozen=True, kw_only=True):
    """Certificates and lists in DER (standard base64 on the wire)."""

    format: Literal["cloister/endorsements/tpm/v1"] = FORMAT
    ak_chain: tuple[bytes, ...]
    """The attestation key's certificate first, its root last: from the cloud, or from an enrolment (credential
    activation against the endorsement key, verifier/tpm_enrolment.py)."""
    crls: tuple[bytes, ...] = ()


@dataclass(frozen=True, slots=True)
class AkIdentity:
    """What an enrolment saw: in which TPM the attestation key is, and what kind of key it is."""

    ek_sha256: bytes
    """SHA-256 of the endorsement key's SubjectPublicKeyInfo."""
    ak_name: bytes
    """The attestation key's name with SHA-256: it covers every attribute of the key."""


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
            f"TPM endorsements hold {len(found.ak_chain)} certificates and {len(found.crls)} revocation lists, "
            f"not 1 to {MAX_CHAIN} and at most {MAX_CHAIN}"
        )
    return found


def encode_tpm_endorsements(endorsements: TpmEndorsements) -> bytes:
    """The canonical wire form."""
    return encode_json(endorsements)


def encode_identity(identity: AkIdentity) -> bytes:
    """The extension's content: SEQUENCE { ek OCTET STRING (32), name OCTET STRING (34) }."""
    if (len(identity.ek_sha256), len(identity.ak_name)) != (_EK_DIGEST, _NAME):
        raise EndorsementError("an attestation key's identity is a digest of 32 and a name of 34 bytes")
    inner = b"".join(
        bytes([OCTET_STRING, len(part)]) + part for part in (identity.ek_sha256, identity.ak_name)
    )
    return bytes([SEQUENCE, len(inner)]) + inner


def parse_identity(data: bytes) -> AkIdentity:
    """Decode the extension's content. Raises :class:`~cloister.errors.EndorsementError`."""
    outer = Der(data, "attestation key's identity")
    inner = outer.enter(SEQUENCE)
    outer.end()
    ek, name = inner.element(OCTET_STRING)[1], inner.element(OCTET_STRING)[1]
    inner.end()
    if (len(ek), len(name)) != (_EK_DIGEST, _NAME):
        raise outer.fail("a digest of 32 and a name of 34 bytes should stand there")
    return AkIdentity(ek, name)
