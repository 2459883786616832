"""TPM structures made by hand around a key in memory: what a TPM would sign, and everything that it never would.

For tables of attacks on parser and verifier; the whole ways run against a real software TPM (software_tpm.py).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cache

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature

from cloister.evidence.tpm import TpmQuoteWire
from cloister.evidence.tpm_structures import (
    ALG_ECC,
    ALG_ECDSA,
    ALG_NULL,
    ALG_RSA,
    ALG_RSAPSS,
    ALG_RSASSA,
    FIXED_PARENT,
    FIXED_TPM,
    GENERATED,
    HASH_IDS,
    RESTRICTED,
    SENSITIVE_DATA_ORIGIN,
    SIGN,
    ST_QUOTE,
    USER_WITH_AUTH,
)

NOW = 1_800_000_000
AK_ATTRIBUTES = FIXED_TPM | FIXED_PARENT | SENSITIVE_DATA_ORIGIN | USER_WITH_AUTH | RESTRICTED | SIGN
HASHES = {"sha256": hashes.SHA256(), "sha384": hashes.SHA384(), "sha512": hashes.SHA512()}
PCRS = {number: hashlib.sha256(bytes([number])).digest() for number in (0, 4, 7, 15)}
EXTRA = bytes(range(32))

Key = rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey


@cache
def ec_key(name: str, curve: type[ec.EllipticCurve] = ec.SECP256R1) -> ec.EllipticCurvePrivateKey:
    """One key for each name, the same in every test of a run."""
    return ec.generate_private_key(curve())


@cache
def rsa_key(name: str, bits: int = 2048) -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(65537, bits)


def u16(*values: int) -> bytes:
    return b"".join(value.to_bytes(2, "big") for value in values)


def u32(value: int) -> bytes:
    return value.to_bytes(4, "big")


def sized(data: bytes) -> bytes:
    return u16(len(data)) + data


def public_area(
    key: Key, *, attributes: int = AK_ATTRIBUTES, scheme: str | None = "ecdsa", digest: str = "sha256"
) -> bytes:
    """TPMT_PUBLIC of a signing key."""
    numbers = {"ecdsa": ALG_ECDSA, "rsassa": ALG_RSASSA, "rsapss": ALG_RSAPSS}
    shown = u16(ALG_NULL) if scheme is None else u16(numbers[scheme], HASH_IDS[digest])
    if isinstance(key, rsa.RSAPrivateKey):
        modulus = key.public_key().public_numbers().n.to_bytes(key.key_size // 8, "big")
        kind, rest = ALG_RSA, u16(key.key_size) + u32(0) + sized(modulus)
    else:
        point = key.public_key().public_numbers()
        size = key.key_size // 8
        curve = 3 if key.key_size == 256 else 4
        kind = ALG_ECC
        rest = (
            u16(curve, ALG_NULL) + sized(point.x.to_bytes(size, "big")) + sized(point.y.to_bytes(size, "big"))
        )
    return u16(kind, HASH_IDS["sha256"]) + u32(attributes) + sized(b"") + u16(ALG_NULL) + shown + rest


@dataclass(frozen=True)
class Quote:
    """A quote to be signed; :func:`dataclasses.replace` bends it."""

    key: Key = field(default_factory=lambda: ec_key("ak"))
    scheme: str = "ecdsa"
    digest: str = "sha256"
    attributes: int = AK_ATTRIBUTES
    magic: int = GENERATED
    kind: int = ST_QUOTE
    extra: bytes = EXTRA
    safe: int = 1
    bank: str = "sha256"
    pcrs: Mapping[int, bytes] = field(default_factory=lambda: PCRS)
    shown: Mapping[str, bytes] | None = None
    """The values that travel, where they are not those that were quoted."""

    def bent(self, **changes: object) -> Quote:
        return replace(self, **changes)  # type: ignore[arg-type]

    @property
    def public(self) -> bytes:
        return public_area(self.key, attributes=self.attributes, scheme=self.scheme, digest=self.digest)

    @property
    def attest(self) -> bytes:
        values = b"".join(self.pcrs[number] for number in sorted(self.pcrs))
        selected = sum(1 << number for number in self.pcrs).to_bytes(3, "little")
        return (
            u32(self.magic)
            + u16(self.kind)
            + sized(b"\x00\x0b" + bytes(32))
            + sized(self.extra)
            + (1234).to_bytes(8, "big")
            + u32(7)
            + u32(2)
            + bytes([self.safe])
            + (0x20260101).to_bytes(8, "big")
            + u32(1)
            + u16(HASH_IDS[self.bank])
            + b"\x03"
            + selected
            + sized(hashlib.new(self.digest, values).digest())
        )

    def sign(self, attest: bytes) -> bytes:
        """TPMT_SIGNATURE."""
        algorithm = HASHES[self.digest]
        if isinstance(self.key, ec.EllipticCurvePrivateKey):
            r, s = decode_dss_signature(self.key.sign(attest, ec.ECDSA(algorithm)))
            size = self.key.key_size // 8
            parts = sized(r.to_bytes(size, "big")) + sized(s.to_bytes(size, "big"))
            return u16(ALG_ECDSA, HASH_IDS[self.digest]) + parts
        if self.scheme == "rsapss":
            scheme: padding.AsymmetricPadding = padding.PSS(padding.MGF1(algorithm), algorithm.digest_size)
            number = ALG_RSAPSS
        else:
            scheme, number = padding.PKCS1v15(), ALG_RSASSA
        return u16(number, HASH_IDS[self.digest]) + sized(self.key.sign(attest, scheme, algorithm))

    @property
    def wire(self) -> TpmQuoteWire:
        attest = self.attest
        values = {str(number): value for number, value in self.pcrs.items()}
        return TpmQuoteWire(
            attest=attest,
            signature=self.sign(attest),
            ak_public=self.public,
            pcrs=dict(values if self.shown is None else self.shown),
        )
