"""Was a certificate revoked? OCSP answers (RFC 6960), as they travel or were fetched, judged at the caller's time.

An answer counts when it is signed by the certificate's own issuer, or by a responder that this issuer certified for
just that (extended key usage OCSPSigning). A revoked or unknown certificate is always refused, however old the answer
that says so; a good one counts from ``thisUpdate`` until ``nextUpdate``, or for an hour where the answer names no end.
Answers carry no nonce here: they are made to be carried along, so it is their time that limits replay.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Final, Literal

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.x509 import ocsp

from cloister.endorsements.der import OBJECT_IDENTIFIER, SEQUENCE, Der
from cloister.endorsements.x509 import BASIC_CONSTRAINTS, KEY_USAGE, Certificate, read_certificate
from cloister.errors import CloisterError, EndorsementError, VerificationError
from cloister.verifier.certificates import public_key, verify_ecdsa, verify_issued

MAX_RESPONSE: Final = 16 * 1024
MAX_ANSWERS: Final = 16
MAX_RESPONDERS: Final = 4
DEFAULT_LIFE: Final = 3600
"""Seconds that an answer without ``nextUpdate`` stands."""
_OCSP_SIGNING: Final = "1.3.6.1.5.5.7.3.9"
_EXTENDED_KEY_USAGE: Final = "2.5.29.37"
_DIGITAL_SIGNATURE: Final = 0
_UNDERSTOOD: Final = frozenset({BASIC_CONSTRAINTS, KEY_USAGE, _EXTENDED_KEY_USAGE})
_HASHES: Final = ("sha1", "sha256", "sha384", "sha512")
_SIGNING_HASHES: Final = ("sha256", "sha384", "sha512")


@dataclass(frozen=True, slots=True)
class Revocation:
    """What answers said about some certificates, none of which is revoked. Times are Unix seconds."""

    status: Literal["checked", "not checked"]
    """``checked`` where every certificate has a good answer in force."""
    issued_at: int = 0
    """The newest ``thisUpdate``; 0 without answers."""
    expires: int | None = None
    """When the first of the answers ends."""


@dataclass(frozen=True, slots=True)
class _Answer:
    """One certificate's part of a response. Unverified."""

    hash_name: str
    issuer_name: bytes
    issuer_key: bytes
    serial: int
    status: str
    this_update: int
    next_update: int


@dataclass(frozen=True, slots=True)
class _Response:
    answers: tuple[_Answer, ...]
    signed: bytes
    signature: bytes
    hash_name: str
    responders: tuple[bytes, ...]
    """DER of the certificates that came along."""
    responder_name: bytes | None
    responder_key: bytes | None
    """SHA-1, as RFC 6960 has it; only to find the responder, never to trust it."""


def check_revocation(
    targets: Iterable[tuple[bytes, bytes]], responses: Sequence[bytes], *, now: int, required: bool
) -> Revocation:
    """``targets`` are (certificate, issuer) in DER, of chains that were verified; ``responses`` DER, in any order.

    Raises :class:`~cloister.errors.VerificationError` for a revoked or unknown certificate,
    :class:`~cloister.errors.EndorsementError` for malformed answers and, where ``required``, for missing or old ones.
    """
    parsed = [_parse(response) for response in responses]
    complete, issued_at, ends = True, 0, []
    for certificate_der, issuer_der in dict.fromkeys(targets):
        answer = _answer_for(certificate_der, issuer_der, parsed, responses, now=now, required=required)
        if answer is None:
            complete = False
        else:
            issued_at = max(issued_at, answer.this_update)
            ends.append(answer.next_update)
    return Revocation("checked" if complete else "not checked", issued_at, min(ends) if ends else None)


def _answer_for(
    certificate_der: bytes,
    issuer_der: bytes,
    parsed: Sequence[_Response],
    responses: Sequence[bytes],
    *,
    now: int,
    required: bool,
) -> _Answer | None:
    certificate, issuer = read_certificate(certificate_der), read_certificate(issuer_der)
    name = certificate.common_name or "a certificate"
    best: _Answer | None = None
    old = ""
    for data, response in zip(responses, parsed, strict=True):
        for answer in response.answers:
            if not _speaks_of(answer, certificate, issuer):
                continue
            responder = _responder_of(data, issuer_der)
            if answer.status != "good":
                raise VerificationError(
                    f"{name} is {answer.status} by its issuer's responder", todo="do not use this device"
                )
            # A bad word stands for ever; a good one only while it and its responder do.
            if (
                answer.this_update <= now < answer.next_update
                and responder.not_before <= now <= responder.not_after
            ):
                if best is None or answer.next_update > best.next_update:
                    best = answer
            else:
                old = f"the OCSP answer for {name} holds from {answer.this_update} to {answer.next_update}"
    if best is None and required:
        raise EndorsementError(
            f"{old} (now is {now})" if old else f"no OCSP answer says whether {name} was revoked",
            todo='fetch OCSP answers, or say revocation = "unchecked" in the policy',
        )
    return best


def _speaks_of(answer: _Answer, certificate: Certificate, issuer: Certificate) -> bool:
    return (
        answer.serial == certificate.serial
        and answer.issuer_name == hashlib.new(answer.hash_name, issuer.subject).digest()
        and answer.issuer_key == hashlib.new(answer.hash_name, _key_bits(issuer)).digest()
    )


@lru_cache(maxsize=256)
def _verified(data: bytes, issuer_der: bytes) -> bytes | None:
    """The responder's certificate whose signature holds, None for the issuer itself."""
    response, issuer = _parse(data), read_certificate(issuer_der)
    if _is_responder(response, issuer):
        _check_signature(response, issuer)
        return None
    for der in response.responders:
        responder = read_certificate(der)
        if not _is_responder(response, responder):
            continue
        verify_issued(der, issuer_der)
        if not _may_answer(responder):
            raise VerificationError("an OCSP answer was signed by a certificate that is not for OCSP")
        _check_signature(response, responder)
        return der
    raise VerificationError("an OCSP answer was signed neither by the issuer nor by its responder")


def _responder_of(data: bytes, issuer_der: bytes) -> Certificate:
    try:
        der = _verified(data, issuer_der)
    except CloisterError as error:
        raise VerificationError(error.what, todo="fetch OCSP answers again") from None
    return read_certificate(issuer_der if der is None else der)


def _check_signature(response: _Response, signer: Certificate) -> None:
    key = public_key(signer.public_key)
    verify_ecdsa(
        key, response.signature, response.signed, hash_name=response.hash_name, what="an OCSP answer"
    )


def _is_responder(response: _Response, certificate: Certificate) -> bool:
    if response.responder_key is not None:
        found = hashlib.sha1(_key_bits(certificate), usedforsecurity=False).digest()
        return response.responder_key == found
    return response.responder_name == certificate.subject


def _may_answer(responder: Certificate) -> bool:
    if any(one.critical and name not in _UNDERSTOOD for name, one in responder.extensions.items()):
        return False
    usage = responder.extensions.get(_EXTENDED_KEY_USAGE)
    if usage is None or responder.is_authority or not responder.may(_DIGITAL_SIGNATURE):
        return False
    purposes = Der(usage.value, "responder's key usage").enter(SEQUENCE)
    found = False
    while purposes.peek() == OBJECT_IDENTIFIER:
        found = purposes.oid() == _OCSP_SIGNING or found
    return found


def _key_bits(certificate: Certificate) -> bytes:
    key = Der(certificate.public_key, "certificate's key").enter(SEQUENCE)
    key.element(SEQUENCE)
    return key.bits()


@lru_cache(maxsize=256)
def _parse(data: bytes) -> _Response:
    if len(data) > MAX_RESPONSE:
        raise EndorsementError(f"an OCSP answer is {len(data)} bytes long, over its bound of {MAX_RESPONSE}")
    try:
        return _read(data)
    except (ValueError, TypeError, UnsupportedAlgorithm, OverflowError, AttributeError, Warning) as error:
        raise EndorsementError(f"an OCSP answer is malformed ({type(error).__name__})") from None


def _read(data: bytes) -> _Response:
    from cryptography.hazmat.primitives.serialization import Encoding  # noqa: PLC0415

    found = ocsp.load_der_ocsp_response(data)
    if found.response_status is not ocsp.OCSPResponseStatus.SUCCESSFUL:
        # "Try later" and the like answer nothing.
        return _Response((), b"", b"", "", (), None, None)
    signing = found.signature_hash_algorithm
    if signing is None or signing.name not in _SIGNING_HASHES:
        raise ValueError
    name = found.responder_name
    return _Response(
        answers=tuple(_single(one) for _, one in zip(range(MAX_ANSWERS), found.responses, strict=False)),
        signed=found.tbs_response_bytes,
        signature=found.signature,
        hash_name=signing.name,
        responders=tuple(one.public_bytes(Encoding.DER) for one in found.certificates[:MAX_RESPONDERS]),
        responder_name=None if name is None else name.public_bytes(),
        responder_key=found.responder_key_hash,
    )


def _single(one: ocsp.OCSPSingleResponse) -> _Answer:
    if one.hash_algorithm.name not in _HASHES:
        raise ValueError
    start = int(one.this_update_utc.timestamp())
    end = one.next_update_utc
    return _Answer(
        hash_name=one.hash_algorithm.name,
        issuer_name=one.issuer_name_hash,
        issuer_key=one.issuer_key_hash,
        serial=one.serial_number,
        status=one.certificate_status.name.lower(),
        this_update=start,
        next_update=start + DEFAULT_LIFE if end is None else int(end.timestamp()),
    )
