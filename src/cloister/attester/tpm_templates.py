"""Public areas of the keys that attestation uses, as a TPM takes them.

Endorsement keys are those of the TCG's EK Credential Profile (templates L-1, L-2 and H-3), so that a TPM makes again
the very key that its vendor certified. The attestation key is derived from the endorsement hierarchy's seed, so one
TPM always has the same one, and nothing of it is stored.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from cloister.evidence.tpm_structures import (
    ADMIN_WITH_POLICY,
    ALG_AES,
    ALG_CFB,
    ALG_ECC,
    ALG_ECDSA,
    ALG_NULL,
    ALG_RSA,
    DECRYPT,
    FIXED_PARENT,
    FIXED_TPM,
    HASH_IDS,
    NO_DA,
    RESTRICTED,
    SENSITIVE_DATA_ORIGIN,
    SIGN,
    USER_WITH_AUTH,
)

_P256: Final = 0x0003
_P384: Final = 0x0004
_IN_TPM: Final = FIXED_TPM | FIXED_PARENT | SENSITIVE_DATA_ORIGIN
_EK_LOW: Final = _IN_TPM | ADMIN_WITH_POLICY | RESTRICTED | DECRYPT
_EK_HIGH: Final = _EK_LOW | USER_WITH_AUTH
_POLICY_SECRET: Final = bytes.fromhex("837197674484b3f81a90cc8d46a5d724fd52d76e06520b64f2a1da1b331469aa")
"""PolicySecret(TPM_RH_ENDORSEMENT) with SHA-256."""
_POLICY_OR: Final = bytes.fromhex(
    "b26e7d28d11a50bc53d882bcf5fd3a1a074148bb35d3b4e4cb1c0ad9bde419cacb47ba09699646150f9fc000f3f80e12"
)
"""PolicyC with SHA-384, of the high-range templates."""


def _u16(*values: int) -> bytes:
    return b"".join(value.to_bytes(2, "big") for value in values)


def _area(kind: int, name_algorithm: str, attributes: int, policy: bytes, rest: bytes) -> bytes:
    head = _u16(kind, HASH_IDS[name_algorithm]) + attributes.to_bytes(4, "big")
    return head + _u16(len(policy)) + policy + rest


@dataclass(frozen=True, slots=True)
class EkKind:
    """Where a TPM has one of its endorsement keys (TCG EK Credential Profile, section 2.2)."""

    name: str
    certificate: int
    """NV index of its certificate."""
    handle: int
    """Where it is persistent, on machines that keep it."""
    template: bytes


EK_P256: Final = EkKind(
    "p256",
    0x01C0000A,
    0x81010002,
    _area(
        ALG_ECC,
        "sha256",
        _EK_LOW,
        _POLICY_SECRET,
        _u16(ALG_AES, 128, ALG_CFB, ALG_NULL, _P256, ALG_NULL, 32) + bytes(32) + _u16(32) + bytes(32),
    ),
)
EK_P384: Final = EkKind(
    "p384",
    0x01C00016,
    0x81010016,
    _area(
        ALG_ECC,
        "sha384",
        _EK_HIGH,
        _POLICY_OR,
        _u16(ALG_AES, 256, ALG_CFB, ALG_NULL, _P384, ALG_NULL, 0, 0),
    ),
)
EK_RSA2048: Final = EkKind(
    "rsa2048",
    0x01C00002,
    0x81010001,
    _area(
        ALG_RSA,
        "sha256",
        _EK_LOW,
        _POLICY_SECRET,
        _u16(ALG_AES, 128, ALG_CFB, ALG_NULL, 2048) + bytes(4) + _u16(256) + bytes(256),
    ),
)
EK_KINDS: Final = (EK_P384, EK_P256, EK_RSA2048)
"""In the order of preference."""

AK_TEMPLATE: Final = _area(
    ALG_ECC,
    "sha256",
    _IN_TPM | USER_WITH_AUTH | NO_DA | RESTRICTED | SIGN,
    b"",
    _u16(ALG_NULL, ALG_ECDSA, HASH_IDS["sha256"], _P256, ALG_NULL, 0, 0),
)
"""A restricted ECDSA key on P-256 with SHA-256."""
