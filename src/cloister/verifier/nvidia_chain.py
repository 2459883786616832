"""Certificate chains of NVIDIA's two hierarchies: P-384 and SHA-384 throughout, ended in a root known by its digest.

The chain is taken in the order it came and nothing is searched: each certificate is issued by the next, within its
path length, and no critical extension is unknown. Signatures are remembered by verifier/certificates.py; validity is
judged on every call. A device's chain has exactly five certificates: its second one is the device's own key, which
could issue further certificates below itself and so pass for several devices, if longer chains were accepted.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, utils

from cloister.endorsements.der import INTEGER, OCTET_STRING, SEQUENCE, Der
from cloister.endorsements.roots import Root
from cloister.endorsements.x509 import BASIC_CONSTRAINTS, KEY_USAGE, Certificate, read_certificate
from cloister.errors import EndorsementError, VerificationError
from cloister.verifier.certificates import public_key, verify_issued

COMPOSITE_DEVICE_ID: Final = "2.23.133.5.4.1"
"""Hopper and switches: version, device key, FWID (the RIoT form)."""
TCB_INFO: Final = "2.23.133.5.4.1.1"
"""Blackwell: DiceTcbInfo of TCG's DICE Attestation Architecture."""
_SHA384: Final = "2.16.840.1.101.3.4.2.2"
_ECDSA_SHA384: Final = bytes.fromhex("300a06082a8648ce3d040303")
_P384: Final = bytes.fromhex("3076301006072a8648ce3d020106052b81040022036200")
_UNDERSTOOD: Final = frozenset({BASIC_CONSTRAINTS, KEY_USAGE})
_DIGITAL_SIGNATURE: Final = 0
_FWIDS, _FLAGS = 0xA6, 0x87
_BAD_FLAGS: Final = {1: "not secure", 2: "in recovery", 3: "in debug"}
"""Bits of DiceTcbInfo's OperationalFlags."""
FWID_SIZE: Final = 48
_ECDSA: Final = ec.ECDSA(hashes.SHA384())


@dataclass(frozen=True, slots=True)
class Chain:
    """A chain whose signatures hold and whose end is the root that was asked for. Times are Unix seconds."""

    certificates: tuple[Certificate, ...]
    """Leaf first, root last."""
    ders: tuple[bytes, ...]
    issued_at: int
    """The newest ``notBefore``."""
    expires: int
    """The earliest ``notAfter``."""


def verify_chain(ders: Sequence[bytes], root: Root, *, what: str) -> Chain:
    """Verify all that does not depend on the time. ``what`` names the chain in errors.

    Raises :class:`~cloister.errors.VerificationError` or :class:`~cloister.errors.EndorsementError`.
    """
    root.require(ders[-1])
    certificates = tuple(read_certificate(der) for der in ders)
    for certificate in certificates:
        if not certificate.public_key.startswith(_P384) or certificate.algorithm != _ECDSA_SHA384:
            raise VerificationError(f"a certificate of {what} is not one of P-384 and SHA-384")
        for name, extension in certificate.extensions.items():
            if extension.critical and name not in _UNDERSTOOD:
                raise VerificationError(
                    f"a certificate of {what} has a critical extension {name} that is not understood"
                )
    for depth, (subject, issuer) in enumerate(pairwise(ders)):
        verify_issued(subject, issuer)
        length = certificates[depth + 1].path_length
        if length is None or length < depth:
            raise VerificationError(f"the chain of {what} is longer than one of its authorities allows")
    return Chain(
        certificates=certificates,
        ders=tuple(ders),
        issued_at=max(certificate.not_before for certificate in certificates),
        expires=min(certificate.not_after for certificate in certificates),
    )


def require_validity(chain: Chain, now: int, *, what: str, grace: int = 0) -> None:
    """``now`` lies within every certificate's validity; ``grace`` seconds after its end still count.

    Raises :class:`~cloister.errors.EndorsementError`.
    """
    if now < chain.issued_at:
        raise EndorsementError(
            f"a certificate of {what} is not valid before {chain.issued_at} (now is {now})",
            todo="set the clock",
        )
    if now >= chain.expires + grace:
        raise EndorsementError(
            f"a certificate of {what} ended at {chain.expires} (now is {now})",
            todo="fetch a newer one, or accept older ones in the policy (rim_grace_days) if you mean to",
        )


def require_signer(leaf: Certificate, *, what: str) -> None:
    """A leaf that signs data and no certificates. Raises :class:`~cloister.errors.VerificationError`."""
    if leaf.is_authority or KEY_USAGE not in leaf.extensions or not leaf.may(_DIGITAL_SIGNATURE):
        raise VerificationError(f"the certificate that signed {what} is not one that signs data")


def key_of(certificate: Certificate) -> ec.EllipticCurvePublicKey:
    """A certificate's P-384 key. Raises :class:`~cloister.errors.VerificationError`."""
    key = public_key(certificate.public_key)
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP384R1):
        raise VerificationError("a certificate's key is not on P-384")
    return key


def key_sha256(certificate: Certificate) -> str:
    """SHA-256 (hexadecimal) of the SubjectPublicKeyInfo."""
    return hashlib.sha256(certificate.public_key).hexdigest()


def verify_report_signature(leaf: Certificate, signature: bytes, signed: bytes, *, what: str) -> None:
    """ECDSA P-384 with SHA-384, ``signature`` as r ‖ s. Raises :class:`~cloister.errors.VerificationError`."""
    half = len(signature) // 2
    r, s = int.from_bytes(signature[:half], "big"), int.from_bytes(signature[half:], "big")
    try:
        key_of(leaf).verify(utils.encode_dss_signature(r, s), signed, _ECDSA)
    except (InvalidSignature, ValueError, UnsupportedAlgorithm):
        raise VerificationError(
            f"{what} was not signed by the key of its certificate",
            todo="it was altered, or stands beside the certificates of another device",
        ) from None


def firmware_id(leaf: Certificate, device: Certificate, *, what: str) -> bytes | None:
    """The FWID (48 bytes) in the report key's certificate, by either extension; None where it has neither.

    Raises :class:`~cloister.errors.VerificationError` where both contradict each other, where the extension speaks of
    another device, or where it says that the firmware is in debug, in recovery or not secure.
    """
    found: list[bytes] = []
    composite = leaf.extensions.get(COMPOSITE_DEVICE_ID)
    if composite is not None:
        body = Der(composite.value, "certificate's device id").enter(SEQUENCE)
        body.element(INTEGER)
        if body.element(SEQUENCE)[0] != device.public_key:
            raise VerificationError(f"the certificate of {what} names the key of another device")
        found.append(_digest(body))
        body.end()
    tcb_info = leaf.extensions.get(TCB_INFO)
    if tcb_info is not None:
        found.append(_tcb_info(tcb_info.value, what))
    if len(set(found)) > 1:
        raise VerificationError(f"the certificate of {what} names two FWIDs")
    return found[0] if found else None


def _tcb_info(value: bytes, what: str) -> bytes:
    body = Der(value, "certificate's TCB info").enter(SEQUENCE)
    fwid: bytes | None = None
    while not body.done:
        tag = body.peek() or 0
        content = body.element(tag)[1]
        if tag == _FWIDS and fwid is None:
            # The first is the firmware's own, as NVIDIA's verifiers read it.
            fwid = _digest(Der(content, "certificate's FWIDs"))
        elif tag == _FLAGS:
            bits = int.from_bytes(content[1:5].ljust(4, b"\0"), "big")
            for bit, meaning in _BAD_FLAGS.items():
                if bits >> (31 - bit) & 1:
                    raise VerificationError(f"the certificate of {what} says that its firmware is {meaning}")
    if fwid is None:
        raise VerificationError(f"the certificate of {what} has TCB info without a FWID")
    return fwid


def _digest(holder: Der) -> bytes:
    entry = holder.enter(SEQUENCE)
    algorithm, digest = entry.oid(), entry.element(OCTET_STRING)[1]
    if algorithm != _SHA384 or len(digest) != FWID_SIZE:
        raise entry.fail("its FWID is not a SHA-384 digest")
    return digest
