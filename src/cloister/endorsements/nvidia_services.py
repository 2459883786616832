"""NVIDIA's RIM service and OCSP responder: what to ask for devices, how answers become endorsements.

Pure: no I/O. Sources: NVIDIA, "RIM service API" (``GET /v1/rim/{id}``: JSON with the signed XML in base64) and RFC 6960
(OCSP over POST). Ids come out of unverified evidence, so one that is not of NVIDIA's form is never put into an
address. OCSP is asked at the configured responder alone, never at an address that a certificate names, and without a
nonce: an answer may then be kept until its ``nextUpdate``, which the verifier checks, and served to air-gapped sites.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from collections.abc import Callable
from functools import partial
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives.hashes import SHA384
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509 import ocsp

from cloister.encoding import parse_json
from cloister.endorsements.asking import JSON_TYPES, Asking, Part, Reply, certificates_end
from cloister.endorsements.nvidia import (
    MAX_OCSP,
    MAX_RIMS,
    NvidiaEndorsements,
    encode_nvidia_endorsements,
    parse_nvidia_endorsements,
)
from cloister.endorsements.rim import read_rim, rim_certificates
from cloister.endorsements.services import Services
from cloister.errors import EndorsementError, FormatError

MAX_RIM: Final = 256 * 1024
MAX_RIM_REPLY: Final = 400 * 1024
MAX_ANSWER: Final = 16 * 1024
HOUR: Final = 3600
QUARTER: Final = 90 * 86_400
_ID: Final = re.compile(r"[A-Z0-9][A-Za-z0-9_.-]{2,126}")

OcspTarget = tuple[bytes, bytes]
"""A certificate and its issuer's, DER."""


def ask_nvidia(
    rim_ids: tuple[str, ...],
    targets: Callable[[tuple[bytes, ...]], tuple[OcspTarget, ...]],
    services: Services,
) -> Asking:
    """Endorsements of devices (endorsements/nvidia.py): the RIMs, then OCSP answers for what ``targets`` names.

    ``targets`` is given the RIMs (XML), because their signers' certificates are to be asked for as well.
    """
    ids = tuple(dict.fromkeys(rim_ids))
    if len(ids) > MAX_RIMS:
        raise EndorsementError(f"the devices name {len(ids)} RIMs, over the bound of {MAX_RIMS}")
    rims = tuple(rim for rim in (yield tuple(rim_part(one, services) for one in ids)) if rim is not None)
    answers: tuple[bytes, ...] = ()
    if services.nvidia_ocsp is not None:
        wanted = tuple(dict.fromkeys(targets(rims)))
        if len(wanted) > MAX_OCSP:
            raise EndorsementError(
                f"{len(wanted)} certificates would have to be asked for, over {MAX_OCSP}",
                todo="attest fewer devices at once",
            )
        found = yield tuple(ocsp_part(certificate, issuer, services) for certificate, issuer in wanted)
        answers = tuple(answer for answer in found if answer is not None)
    document = encode_nvidia_endorsements(NvidiaEndorsements(rims=tuple(dict.fromkeys(rims)), ocsp=answers))
    parse_nvidia_endorsements(document)
    return document


def rim_part(rim_id: str, services: Services) -> Part:
    """One reference manifest by id. Raises :class:`~cloister.errors.EndorsementError`."""
    if not _ID.fullmatch(rim_id):
        raise EndorsementError("the evidence leads to a RIM id that is not of NVIDIA's form")
    return Part(
        vendor="nvidia",
        key=f"rim/{rim_id}",
        what=f"RIM {rim_id}",
        url=f"{services.nvidia_rim}/v1/rim/{rim_id}",
        types=JSON_TYPES,
        limit=MAX_RIM_REPLY,
        read=partial(_read_rim, rim_id=rim_id),
        max_age=QUARTER,
        unknown=f"NVIDIA publishes no RIM {rim_id}",
    )


def ocsp_part(certificate: bytes, issuer: bytes, services: Services) -> Part:
    """The state of one certificate. Raises :class:`~cloister.errors.EndorsementError`."""
    try:
        subject = x509.load_der_x509_certificate(certificate)
        authority = x509.load_der_x509_certificate(issuer)
        # SHA-384: what NVIDIA's own verifier asks with.
        request = ocsp.OCSPRequestBuilder().add_certificate(subject, authority, SHA384()).build()
        encoded = request.public_bytes(Encoding.DER)
        serial = subject.serial_number
    except Exception as error:  # cryptography raises ValueError, TypeError, UnsupportedAlgorithm and more
        raise EndorsementError(
            f"a certificate to be asked for cannot be read ({type(error).__name__})"
        ) from None
    return Part(
        vendor="nvidia",
        key=f"ocsp/{hashlib.sha256(encoded).hexdigest()}",
        what=f"OCSP answer for certificate {serial:x}",
        url=f"{services.nvidia_ocsp}/",
        types=frozenset({"application/ocsp-response"}),
        limit=MAX_ANSWER,
        read=partial(_read_answer, serial=serial),
        max_age=HOUR,
        unknown="there is no OCSP responder at that address",
        post=encoded,
        post_type="application/ocsp-request",
    )


def nvidia_part_ends(key: str, content: bytes) -> int:
    """Unix seconds at which the content of a part stops to hold. Raises :class:`~cloister.errors.EndorsementError`."""
    kind = key.partition("/")[0]
    if kind == "rim":
        return certificates_end(rim_certificates(content))
    if kind == "ocsp":
        return _answer_ends(_answer(content))
    raise EndorsementError("there is no such endorsement of NVIDIA's")


def nvidia_document_ends(document: bytes) -> int:
    """Unix seconds of the earliest end in it. Raises :class:`~cloister.errors.EndorsementError`, too if it is empty."""
    found = parse_nvidia_endorsements(document)
    ends = [certificates_end(rim_certificates(rim)) for rim in found.rims]
    ends += [_answer_ends(_answer(answer)) for answer in found.ocsp]
    if not ends:
        raise EndorsementError("the NVIDIA endorsements are empty")
    return min(ends)


def _read_rim(reply: Reply, *, rim_id: str) -> bytes:
    try:
        document = parse_json(reply.body, what="the RIM service's answer", limit=MAX_RIM_REPLY)
    except FormatError as error:
        raise EndorsementError(error.what) from None
    if not isinstance(document, dict) or not isinstance(document.get("rim"), str):
        raise EndorsementError("the RIM service's answer holds no rim")
    # Its further fields (sha256, last_updated, …) are signed by nobody.
    if document.get("id") != rim_id:
        raise EndorsementError("the RIM service sent another RIM than the one that was asked for")
    try:
        rim = base64.b64decode(document["rim"].encode("ascii"), validate=True)
    except (UnicodeEncodeError, binascii.Error, ValueError):
        raise EndorsementError("the rim in the RIM service's answer is not base64") from None
    if not 0 < len(rim) <= MAX_RIM:
        raise EndorsementError(f"the RIM is {len(rim)} bytes long, over its bound of {MAX_RIM}")
    read_rim(rim)
    return rim


def _read_answer(reply: Reply, *, serial: int) -> bytes:
    answer = _answer(reply.body)
    if answer.serial_number != serial:
        raise EndorsementError("the OCSP answer is about another certificate than the one that was asked for")
    return reply.body


def _answer(der: bytes) -> ocsp.OCSPResponse:
    try:
        answer = ocsp.load_der_ocsp_response(der)
        if answer.response_status is not ocsp.OCSPResponseStatus.SUCCESSFUL:
            raise EndorsementError(f"the OCSP responder refused: {answer.response_status.name.lower()}")
        _ = answer.serial_number, answer.this_update_utc, answer.next_update_utc
    except EndorsementError:
        raise
    except Exception as error:  # cryptography raises ValueError, TypeError, UnsupportedAlgorithm and more
        raise EndorsementError(f"this is no OCSP answer ({type(error).__name__})") from None
    return answer


def _answer_ends(answer: ocsp.OCSPResponse) -> int:
    # Without nextUpdate newer information is always available (RFC 6960, section 4.2.2.1): it is never kept.
    ends = answer.next_update_utc or answer.this_update_utc
    return int(ends.timestamp())
