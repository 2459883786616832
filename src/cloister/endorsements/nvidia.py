"""What NVIDIA signs about devices: reference integrity manifests (RIMs) and OCSP answers.

Carried along or fetched, as one strict JSON document; here it is only bounded and parsed, the verifier judges it.
"""

from __future__ import annotations

from typing import Final, Literal

from cloister.encoding import Record, decode_json, encode_json
from cloister.errors import EndorsementError, FormatError

FORMAT: Final = "cloister/endorsements/nvidia/v1"
MAX_ENDORSEMENTS = 1 << 20
MAX_RIMS = 32
MAX_OCSP = 64


class NvidiaEndorsements(Record, frozen=True, kw_only=True):
    """One document for all devices of a machine; binary fields are standard base64 on the wire."""

    format: Literal["cloister/endorsements/nvidia/v1"] = FORMAT
    rims: tuple[bytes, ...] = ()
    """Signed XML (SWID tags), each once, in any order: the verifier finds each device's by id."""
    ocsp: tuple[bytes, ...] = ()
    """OCSP responses (DER, RFC 6960) for certificates of the devices and RIMs; none: revocation was not checked."""


def parse_nvidia_endorsements(data: bytes) -> NvidiaEndorsements:
    """Decode; empty input is a document without anything. Raises :class:`~cloister.errors.EndorsementError`."""
    if not data:
        return NvidiaEndorsements()
    try:
        found = decode_json(data, NvidiaEndorsements, what="NVIDIA endorsements", limit=MAX_ENDORSEMENTS)
    except FormatError as error:
        raise EndorsementError(error.what, todo="fetch them again") from None
    if len(found.rims) > MAX_RIMS or len(found.ocsp) > MAX_OCSP:
        raise EndorsementError(
            f"NVIDIA endorsements hold {len(found.rims)} RIMs and {len(found.ocsp)} OCSP answers, over their bounds"
        )
    return found


def encode_nvidia_endorsements(endorsements: NvidiaEndorsements) -> bytes:
    """The canonical wire form."""
    return encode_json(endorsements)
