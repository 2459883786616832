"""What a quote's report data means, for the side that quotes and the side that checks (docs/spec/binding.md).

``report_data`` (64 bytes) = SHA-512 over the label ``cloister/evidence-binding/v1`` and, each behind its
length: the nonce root, SHA-256 of the key material, SHA-256 of the device evidence (or nothing).
The nonce root is always the RFC 6962 root over the nonces of a window; a lone nonce is a tree of one leaf.
"""

from __future__ import annotations

import hashlib
import hmac

from cloister import merkle
from cloister.encoding import labelled_hash
from cloister.errors import BindingMismatch, FormatError, StaleNonce
from cloister.evidence.bundle import EvidenceBundle, TeeKind

NONCE_SIZE = 32
REPORT_DATA_SIZE = 64
LABEL = "cloister/evidence-binding/v1"
DEVICE_NONCE_LABEL = "cloister/device-nonce/v1"
QUALIFYING_DATA_LABEL = "cloister/tpm-qualifying-data/v1"


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


def check_binding(bundle: EvidenceBundle, nonce_root: bytes, quoted: bytes) -> None:
    """Raise :class:`BindingMismatch` unless ``quoted`` (from a verified quote) binds this bundle."""
    expected = quoted_form(bundle.tee, report_data(nonce_root, bundle.key_material, bundle.device_evidence))
    if not hmac.compare_digest(expected, quoted):
        raise BindingMismatch(
            "the report data binds other keys, devices or another nonce than came with it",
            todo="do not send anything; the evidence was relayed, replayed or altered",
        )
