"""Certificate chains: who issued what, when it holds, and whether it was revoked. Every failure is one of our own.

Verified pairs of (issuer, certificate) are remembered by their digests, so that a chain whose leaf alone is new costs
one signature: a signature does not become false. Only what passed is remembered, never a date or a revocation, which
are looked at each time. Nothing here chooses a root: endorsements/roots.py does.
"""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Final

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.types import PublicKeyTypes
from cryptography.hazmat.primitives.serialization import load_der_public_key

from cloister.endorsements.x509 import (
    Certificate,
    RevocationList,
    read_certificate,
    read_revocation_list,
)
from cloister.errors import CloisterError, EndorsementError, VerificationError

MAX_REMEMBERED = 1024
"""Pairs of digests: 64 KiB in all."""
MIN_RSA_BITS: Final = 2048
_CURVES: Final = (ec.SECP256R1, ec.SECP384R1, ec.SECP521R1)

_Verify = Callable[[PublicKeyTypes, bytes, bytes], None]


class _Remembered:
    """The most recently used verified pairs; bounded, and safe for several threads."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._pairs: OrderedDict[bytes, None] = OrderedDict()
        self._lock = threading.Lock()

    def __contains__(self, pair: bytes) -> bool:
        with self._lock:
            if pair not in self._pairs:
                return False
            self._pairs.move_to_end(pair)
            return True

    def add(self, pair: bytes) -> None:
        with self._lock:
            self._pairs[pair] = None
            while len(self._pairs) > self._size:
                self._pairs.popitem(last=False)


_remembered = _Remembered(MAX_REMEMBERED)


def verify_issued(certificate_der: bytes, issuer_der: bytes) -> Certificate:
    """``certificate_der``, read, if ``issuer_der`` is an authority, is named as its issuer, and signed it.

    A root is its own issuer. RSA (PKCS #1 v1.5 and PSS, 2048 bits at least) and ECDSA (P-256, P-384, P-521) with
    SHA-256, SHA-384 or SHA-512. Dates, revocation and path lengths are the caller's (:func:`check_validity`).
    Raises :class:`~cloister.errors.VerificationError`, or :class:`~cloister.errors.EndorsementError` where one of the
    two cannot be read.
    """
    certificate, issuer = read_certificate(certificate_der), read_certificate(issuer_der)
    pair = hashlib.sha256(certificate_der).digest() + hashlib.sha256(issuer_der).digest()
    if pair in _remembered:
        return certificate
    name, by = certificate.common_name or "a certificate", issuer.common_name or "its issuer"
    if certificate.issuer != issuer.subject:
        raise VerificationError(f"{name} was not issued by {by}", todo="this is another chain's certificate")
    if not issuer.may_sign_certificates:
        raise VerificationError(f"{by} may not sign certificates")
    _verify_signed(certificate, issuer, name)
    _remembered.add(pair)
    return certificate


def verify_revocation_list(der: bytes, issuer_der: bytes, *, now: int) -> RevocationList:
    """The list ``der``, read, if ``issuer_der`` issued it and it is in force at ``now`` (Unix seconds).

    Raises :class:`~cloister.errors.EndorsementError`: malformed, not signed by the issuer, out of its time.
    """
    found, issuer = read_revocation_list(der), read_certificate(issuer_der)
    by = issuer.common_name or "its issuer"
    if found.issuer != issuer.subject:
        raise EndorsementError(f"the revocation list was not issued by {by}", todo="fetch that chain's list")
    if not issuer.may_sign_lists:
        raise EndorsementError(f"{by} may not sign revocation lists")
    if found.this_update > now:
        raise EndorsementError(
            f"the revocation list was issued at {found.this_update}, after now ({now})", todo="set the clock"
        )
    if found.next_update <= now:
        raise EndorsementError(
            f"the revocation list ended at {found.next_update} (now is {now})", todo="fetch it again"
        )
    pair = hashlib.sha256(der).digest() + hashlib.sha256(issuer_der).digest()
    if pair not in _remembered:
        try:
            _verify_signed(found, issuer, "the revocation list")
        except VerificationError as error:
            raise EndorsementError(error.what, todo="fetch it again") from None
        _remembered.add(pair)
    return found


def check_validity(certificates: Sequence[Certificate], *, now: int) -> tuple[int, int]:
    """The newest start and the earliest end (Unix seconds) of ``certificates``, all of which hold at ``now``.

    Raises :class:`~cloister.errors.EndorsementError`.
    """
    for certificate in certificates:
        name = certificate.common_name or "a certificate"
        if certificate.not_before > now:
            raise EndorsementError(
                f"{name} holds from {certificate.not_before}, after now ({now})", todo="set the clock"
            )
        if certificate.not_after <= now:
            raise EndorsementError(
                f"{name} ended at {certificate.not_after} (now is {now})", todo="fetch it again"
            )
    starts = [certificate.not_before for certificate in certificates]
    return max(starts), min(certificate.not_after for certificate in certificates)


@lru_cache(maxsize=128)
def public_key(spki: bytes) -> PublicKeyTypes:
    """The key in a SubjectPublicKeyInfo (DER). Raises :class:`~cloister.errors.EndorsementError`."""
    try:
        return load_der_public_key(spki)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise EndorsementError("a certificate's public key cannot be read") from None


def signature_algorithm(document: Certificate | RevocationList) -> str:
    """``ecdsa-sha384``, ``rsa-sha256``, ``rsa-pss-sha384`` …; empty for one that is not accepted."""
    known = _VERIFY.get(document.algorithm)
    return known[0] if known else ""


def verify_ecdsa(key: PublicKeyTypes, signature: bytes, signed: bytes, *, hash_name: str, what: str) -> None:
    """An ECDSA ``signature`` (DER) over ``signed``. Raises :class:`~cloister.errors.VerificationError`."""
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, _CURVES):
        raise VerificationError(f"the key of {what} is not on a NIST curve")
    try:
        key.verify(signature, signed, ec.ECDSA(_HASHES[hash_name]))
    except (InvalidSignature, ValueError, UnsupportedAlgorithm):
        raise VerificationError(f"the signature of {what} does not verify") from None


_HASHES: Final[dict[str, hashes.HashAlgorithm]] = {
    "sha256": hashes.SHA256(),
    "sha384": hashes.SHA384(),
    "sha512": hashes.SHA512(),
}


def _ecdsa(hash_name: str) -> _Verify:
    def verify(key: PublicKeyTypes, signature: bytes, signed: bytes) -> None:
        verify_ecdsa(key, signature, signed, hash_name=hash_name, what="the issuer")

    return verify


def _rsa(scheme: padding.AsymmetricPadding, algorithm: hashes.HashAlgorithm) -> _Verify:
    def verify(key: PublicKeyTypes, signature: bytes, signed: bytes) -> None:
        if not isinstance(key, rsa.RSAPublicKey) or key.key_size < MIN_RSA_BITS:
            raise VerificationError(f"the issuer's key is not RSA of {MIN_RSA_BITS} bits or more")
        key.verify(signature, signed, scheme, algorithm)

    return verify


def _pss(name: str) -> tuple[bytes, _Verify]:
    """RSASSA-PSS with one hash throughout and a salt of its length (RFC 4055): DER as every CA writes it."""
    algorithm = _HASHES[name]
    oid = {"sha256": b"\x01", "sha384": b"\x02", "sha512": b"\x03"}[name]
    digest = b"\x06\x09\x60\x86\x48\x01\x65\x03\x04\x02" + oid + b"\x05\x00"
    digest = bytes([0x30, len(digest)]) + digest
    mask = b"\x06\x09\x2a\x86\x48\x86\xf7\x0d\x01\x01\x08" + digest
    mask = bytes([0x30, len(mask)]) + mask
    salt = bytes([0x02, 0x01, algorithm.digest_size])
    parameters = b"".join(
        bytes([0xA0 + number, len(part)]) + part for number, part in enumerate((digest, mask, salt))
    )
    oid = b"\x06\x09\x2a\x86\x48\x86\xf7\x0d\x01\x01\x0a"
    body = oid + bytes([0x30, len(parameters)]) + parameters
    scheme = padding.PSS(mgf=padding.MGF1(algorithm), salt_length=algorithm.digest_size)
    return bytes([0x30, len(body)]) + body, _rsa(scheme, algorithm)


def _algorithms() -> dict[bytes, tuple[str, _Verify]]:
    """Every accepted AlgorithmIdentifier, whole: parameters that nobody looked at do not exist."""
    found: dict[bytes, tuple[str, _Verify]] = {}
    for number, name in enumerate(("sha256", "sha384", "sha512"), 2):
        # ecdsa-with-SHA2 (RFC 5758) has no parameters; sha2WithRSAEncryption (RFC 4055) has NULL.
        found[b"\x30\x0a\x06\x08\x2a\x86\x48\xce\x3d\x04\x03" + bytes([number])] = (
            f"ecdsa-{name}",
            _ecdsa(name),
        )
        pkcs1 = b"\x06\x09\x2a\x86\x48\x86\xf7\x0d\x01\x01" + bytes([number + 9]) + b"\x05\x00"
        found[b"\x30\x0d" + pkcs1] = (f"rsa-{name}", _rsa(padding.PKCS1v15(), _HASHES[name]))
        identifier, verify = _pss(name)
        found[identifier] = (f"rsa-pss-{name}", verify)
        # OpenSSL also writes the trailer field, although it has its default (AMD's certificates have it).
        found[_with_trailer(identifier)] = (f"rsa-pss-{name}", verify)
    return found


def _with_trailer(identifier: bytes) -> bytes:
    trailer = b"\xa3\x03\x02\x01\x01"
    oid, parameters = identifier[2:13], identifier[15:] + trailer
    body = oid + bytes([0x30, len(parameters)]) + parameters
    return bytes([0x30, len(body)]) + body


_VERIFY: Final = _algorithms()


def _verify_signed(document: Certificate | RevocationList, issuer: Certificate, name: str) -> None:
    known = _VERIFY.get(document.algorithm)
    if known is None:
        raise VerificationError(f"{name} is signed by an algorithm that is not accepted")
    key = public_key(issuer.public_key)
    try:
        known[1](key, document.signature, document.signed)
    except CloisterError:
        raise VerificationError(
            f"the signature of {name} does not verify", todo="it was altered, or is of another chain"
        ) from None
    except (InvalidSignature, ValueError, UnsupportedAlgorithm):
        raise VerificationError(
            f"the signature of {name} does not verify", todo="it was altered, or is of another chain"
        ) from None
