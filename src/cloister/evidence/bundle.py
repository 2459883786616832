"""What travels from an attester to whoever verifies it: a quote and everything needed to appraise it.

The bundle is transport, not truth: each of its parts is checked against the quote, whose signature is checked
against a vendor's root. Its wire form is strict JSON (docs/spec/evidence.md).
"""

from __future__ import annotations

from typing import Final, Literal, get_args

from cloister.encoding import Record, decode_json, encode_json

MAX_BUNDLE = 1 << 20
"""Upper bound of a bundle on the wire, bytes."""

TeeKind = Literal["tdx", "sgx", "snp", "az-snp-vtpm", "tpm"]
"""The kinds of evidence, by the names that the KBS protocol has for them."""
TEE_KINDS: Final[tuple[TeeKind, ...]] = get_args(TeeKind)

FORMAT: Final = "cloister/evidence/v1"


class NonceProof(Record, frozen=True, kw_only=True):
    """Where this client's nonce stands in the Merkle tree whose root the quote binds (RFC 6962)."""

    index: int
    size: int
    path: tuple[bytes, ...]


class EvidenceBundle(Record, frozen=True, kw_only=True):
    """One quote with its companions. ``bytes`` fields are standard base64 on the wire."""

    format: Literal["cloister/evidence/v1"] = FORMAT
    tee: TeeKind
    quote: bytes
    """The vendor's structure, unchanged; for TPMs the form of evidence/tpm.py."""
    key_material: bytes
    """The exact bytes that the binding hashes; their form is fixed by the endpoint that asked."""
    nonce_proof: NonceProof
    event_log: bytes = b""
    """Launch events that replay to RTMR3 (evidence/eventlog.py), or empty."""
    firmware_log: bytes = b""
    """What was measured before the launcher: a TCG log (CCEL, or a TPM's), without padding, or empty."""
    device_evidence: bytes = b""
    """Evidence of GPUs and switches (evidence/nvidia.py); empty without any."""
    endorsements: bytes = b""
    """What vendors sign about the CPU, carried along: Intel's in dcap-qvl's JSON form, else as endorsements/ has it."""
    device_endorsements: bytes = b""
    """The same for the devices (endorsements/nvidia.py), or empty."""


def parse_bundle(data: bytes) -> EvidenceBundle:
    """Decode a bundle. Raises :class:`~cloister.errors.FormatError`."""
    return decode_json(data, EvidenceBundle, what="evidence bundle", limit=MAX_BUNDLE)


def encode_bundle(bundle: EvidenceBundle) -> bytes:
    """The canonical wire form."""
    return encode_json(bundle)
