"""What a quote's report data means, for the side that quotes and the side that checks (docs/spec/binding.md).

``report_data`` (64 bytes) = SHA-512 over the label ``cloister/evidence-binding/v1`` and, each behind its
length: the nonce root, SHA-256 of the key material, SHA-256 of the device evidence (or nothing).
The nonce root is always the RFC 6962 root over the nonces of a window; a lone nonce is a tree of one leaf.
"""

from __future__ import annotations

import hashlib
import hmac
from dataclasses import dataclass
from typing import Final, Protocol

from cloister import merkle
from cloister.encoding import labelled_hash
from cloister.errors import BindingMismatch, FormatError, StaleNonce
from cloister.evidence.bundle import EvidenceBundle, NonceProof, TeeKind

NONCE_SIZE = 32
REPORT_DATA_SIZE = 64
LABEL = "cloister/evidence-binding/v1"
DEVICE_NONCE_LABEL = "cloister/device-nonce/v1"
QUALIFYING_DATA_LABEL = "cloister/tpm-qualifying-data/v1"
RA_TLS_LABEL = "cloister/ra-tls-binding/v1"
RA_TLS_DEVICE_NONCE_LABEL = "cloister/ra-tls-device-nonce/v1"
NO_NONCE: Final = NonceProof(index=0, size=0, path=())
"""What stands where a proof would: there is no tree, and under our own binding no nonce is in it."""


@dataclass(frozen=True, slots=True)
class Bound:
    """What genuine evidence of a bundle has to carry."""

    quoted: bytes
    """In the form of the bundle's kind of evidence: 64 bytes, or what a TPM signs for them."""
    device_nonce: bytes
    """32 bytes: the nonce of the devices' evidence."""
    found: str
    """How the nonce was found, for people."""


class Binding(Protocol):
    """One method: what a bundle's evidence has to carry as the answer to ``nonce``. Which binding holds is fixed by
    the endpoint that asked, never read off the bytes. Raises :class:`~cloister.errors.EvidenceError`."""

    def bind(self, bundle: EvidenceBundle, nonce: bytes) -> Bound: ...


class BatchedBinding:
    """Our own: the nonce in a Merkle tree, the key material, the device evidence (docs/spec/binding.md)."""

    def bind(self, bundle: EvidenceBundle, nonce: bytes) -> Bound:
        nonce_root = check_nonce(bundle, nonce)
        proof = bundle.nonce_proof
        return Bound(
            quoted_form(bundle.tee, report_data(nonce_root, bundle.key_material, bundle.device_evidence)),
            device_nonce(nonce_root, bundle.key_material),
            f"leaf {proof.index} of {proof.size}",
        )


class RaTlsBinding:
    """Of a TLS server's certificate (docs/spec/ra-tls.md): its key, which is the bundle's key material, and the devices.

    There is no nonce in it, so it says that the key was once in such a TEE: that authorises a channel, never a key release.
    """

    def bind(self, bundle: EvidenceBundle, nonce: bytes) -> Bound:
        """``nonce`` is empty. Raises :class:`StaleNonce` for evidence or a caller that has one."""
        if nonce or bundle.nonce_proof != NO_NONCE:
            raise StaleNonce(
                "a certificate's evidence answers no nonce",
                todo="ask the service for evidence over a fresh one",
            )
        data = ra_tls_report_data(bundle.key_material, bundle.device_evidence)
        return Bound(
            quoted_form(bundle.tee, data),
            ra_tls_device_nonce(bundle.key_material),
            "none: a channel, never a key",
        )


def ra_tls_report_data(spki: bytes, device_evidence: bytes = b"") -> bytes:
    """The 64 bytes to put into the quote of a certificate with this SubjectPublicKeyInfo (DER)."""
    devices = hashlib.sha256(device_evidence).digest() if device_evidence else b""
    return labelled_hash(RA_TLS_LABEL, hashlib.sha256(spki).digest(), devices, algorithm="sha512")


def ra_tls_device_nonce(spki: bytes) -> bytes:
    """The 32-byte nonce for the GPUs of a server with this key."""
    return labelled_hash(RA_TLS_DEVICE_NONCE_LABEL, hashlib.sha256(spki).digest())


def report_data(nonce_root: bytes, key_material: bytes, device_evidence: bytes = b"") -> bytes:
    """The 64 bytes to put into a quote."""
    devices = hashlib.sha256(device_evidence).digest() if device_evidence else b""
    return labelled_hash(
        LABEL, nonce_root, hashlib.sha256(key_material).digest(), devices, algorithm="sha512"
    )


def quoted_form(tee: TeeKind, data: bytes) -> bytes:
    """What evidence of kind ``tee`` carries for the 64 bytes of report ``data``.

    The TEEs carry them as they are; a TPM's qualifying data may be as short as one SHA-256, so it carries
    that digest (32 bytes). The form follows from the kind, and is never guessed from the evidence.
    """
    if tee in ("tpm", "az-snp-vtpm"):
        return labelled_hash(QUALIFYING_DATA_LABEL, data)
    return data


def device_nonce(nonce_root: bytes, key_material: bytes) -> bytes:
    """The 32-byte nonce for GPUs, which ties their evidence to the same window and the same keys."""
    return labelled_hash(DEVICE_NONCE_LABEL, nonce_root, hashlib.sha256(key_material).digest())


def check_nonce(bundle: EvidenceBundle, nonce: bytes) -> bytes:
    """The nonce root that holds ``nonce`` by the bundle's proof. Raises :class:`StaleNonce`.

    The root is only a claim until :func:`check_binding` compares it with a verified quote.
    """
    if len(nonce) != NONCE_SIZE:
        raise StaleNonce(f"a nonce is {NONCE_SIZE} bytes, not {len(nonce)}", todo="draw a fresh one")
    proof = bundle.nonce_proof
    try:
        return merkle.root_of_inclusion(nonce, proof.index, proof.size, proof.path)
    except FormatError as error:
        raise StaleNonce(
            f"the nonce proof is malformed ({error.what})", todo="ask for evidence again"
        ) from None


def check_bound(bound: Bound, quoted: bytes) -> None:
    """Raise :class:`BindingMismatch` unless ``quoted`` (from verified evidence) is what it has to be."""
    if not hmac.compare_digest(bound.quoted, quoted):
        raise BindingMismatch(
            "the report data binds other keys, devices or another nonce than came with it",
            todo="do not send anything; the evidence was relayed, replayed or altered",
        )


def check_binding(bundle: EvidenceBundle, nonce_root: bytes, quoted: bytes) -> None:
    """Raise :class:`BindingMismatch` unless ``quoted`` binds this bundle under our own binding."""
    data = report_data(nonce_root, bundle.key_material, bundle.device_evidence)
    check_bound(Bound(quoted_form(bundle.tee, data), b"", ""), quoted)
