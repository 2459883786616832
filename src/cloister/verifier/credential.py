"""TPM2_MakeCredential in software: a secret that only one TPM can open, and only for one key in it.

TPM 2.0 Library, Part 1, section 24 (credential protection), 11.4.10 (KDFa, KDFe) and annexes B.4 and C.6 (how the seed
is encrypted to an RSA or ECC key). From an endorsement key's certificate only its public key is known: the rest of its
public area is that of the TCG's templates (EK Credential Profile, L-1, L-2 and the high range), and a key of another
kind is refused.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.decrepit.ciphers.modes import CFB
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.types import PublicKeyTypes
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES

from cloister.errors import VerificationError

_LABEL: Final = b"IDENTITY\0"
_HASHES: Final[dict[str, hashes.HashAlgorithm]] = {"sha256": hashes.SHA256(), "sha384": hashes.SHA384()}

Entropy = Callable[[int], bytes]


@dataclass(frozen=True, slots=True)
class Credential:
    """What a TPM activates; both as TPM2_ActivateCredential takes them, without their outer lengths."""

    credential_blob: bytes
    """TPMS_ID_OBJECT: an HMAC (TPM2B) and the encrypted secret."""
    encrypted_secret: bytes
    """TPMU_ENCRYPTED_SECRET: the seed, encrypted to the endorsement key."""


@dataclass(frozen=True, slots=True)
class _Template:
    hash: str
    aes_bits: int

    @property
    def digest_bits(self) -> int:
        return hashlib.new(self.hash).digest_size * 8


_LOW: Final = _Template("sha256", 128)
_HIGH: Final = _Template("sha384", 256)


def make_credential(ek: PublicKeyTypes, name: bytes, secret: bytes, *, entropy: Entropy) -> Credential:
    """Encrypt ``secret`` (at most 32 bytes) to endorsement key ``ek`` and to the key called ``name``.

    Raises :class:`~cloister.errors.VerificationError` for an endorsement key of a kind without a template here.
    """
    template = _template(ek)
    if not 1 <= len(secret) <= 32:
        raise VerificationError(f"a credential protects 1 to 32 bytes, not {len(secret)}")
    seed, encrypted = _seed(ek, template, entropy)
    symmetric = kdfa(template.hash, seed, b"STORAGE", name, b"", template.aes_bits)
    cipher = Cipher(AES(symmetric), CFB(bytes(16))).encryptor()
    identity = cipher.update(_sized(secret)) + cipher.finalize()
    integrity = kdfa(template.hash, seed, b"INTEGRITY", b"", b"", template.digest_bits)
    outer = hmac.digest(integrity, identity + name, template.hash)
    return Credential(_sized(outer) + identity, encrypted)


def kdfa(hash_name: str, key: bytes, label: bytes, u: bytes, v: bytes, bits: int) -> bytes:
    """SP 800-108 in counter mode with HMAC, as Part 1, 11.4.10.2 has it; ``bits`` is a multiple of 8."""
    found = b""
    counter = 0
    while len(found) * 8 < bits:
        counter += 1
        block = counter.to_bytes(4, "big") + label + b"\0" + u + v + bits.to_bytes(4, "big")
        found += hmac.digest(key, block, hash_name)
    return found[: bits // 8]


def kdfe(hash_name: str, z: bytes, u: bytes, v: bytes, bits: int) -> bytes:
    """SP 800-56A's concatenation KDF with use "IDENTITY", as Part 1, 11.4.10.3 has it; one block is enough here."""
    return hashlib.new(hash_name, (1).to_bytes(4, "big") + z + _LABEL + u + v).digest()[: bits // 8]


def _template(ek: PublicKeyTypes) -> _Template:
    if isinstance(ek, rsa.RSAPublicKey):
        if ek.key_size == 2048:
            return _LOW
        if ek.key_size in (3072, 4096):
            return _HIGH
    elif isinstance(ek, ec.EllipticCurvePublicKey):
        if isinstance(ek.curve, ec.SECP256R1):
            return _LOW
        if isinstance(ek.curve, ec.SECP384R1):
            return _HIGH
    raise VerificationError(
        "the endorsement key is none of the TCG's templates",
        todo="use its certificate for RSA 2048 or more, P-256 or P-384",
    )


def _seed(ek: PublicKeyTypes, template: _Template, entropy: Entropy) -> tuple[bytes, bytes]:
    algorithm = _HASHES[template.hash]
    try:
        if isinstance(ek, rsa.RSAPublicKey):
            seed = entropy(template.digest_bits // 8)
            oaep = padding.OAEP(padding.MGF1(algorithm), algorithm, label=_LABEL)
            return seed, ek.encrypt(seed, oaep)
        if isinstance(ek, ec.EllipticCurvePublicKey):
            ephemeral = ec.generate_private_key(ek.curve)
            z = ephemeral.exchange(ec.ECDH(), ek)
            (x, y), (static, _) = _point(ephemeral.public_key()), _point(ek)
            return kdfe(template.hash, z, x, static, template.digest_bits), _sized(x) + _sized(y)
    except (ValueError, UnsupportedAlgorithm):
        raise VerificationError("nothing can be encrypted to this endorsement key") from None
    raise VerificationError("the endorsement key is neither RSA nor ECC")


def _point(key: ec.EllipticCurvePublicKey) -> tuple[bytes, bytes]:
    size = (key.curve.key_size + 7) // 8
    numbers = key.public_numbers()
    return numbers.x.to_bytes(size, "big"), numbers.y.to_bytes(size, "big")


def _sized(data: bytes) -> bytes:
    return len(data).to_bytes(2, "big") + data
