"""HKDF (RFC 5869), plain and with HPKE's labels (RFC 9180, section 4).

Refused: lengths of zero or over what one expansion gives.
"""

from __future__ import annotations

from enum import IntEnum

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.kdf.hkdf import HKDF, HKDFExpand

from cloister.errors import UsageError


class Kdf(IntEnum):
    """Key derivation functions, by their IANA number."""

    HKDF_SHA256 = 1
    HKDF_SHA384 = 2
    HKDF_SHA512 = 3

    @property
    def hash_length(self) -> int:
        """Nh: bytes of a hash, and of an extracted key."""
        return _hash(self).digest_size


def extract(kdf: Kdf, salt: bytes, secret: bytes) -> bytes:
    """HKDF-Extract (RFC 5869)."""
    return HKDF.extract(_hash(kdf), salt or None, secret)


def expand(kdf: Kdf, key: bytes, info: bytes, length: int) -> bytes:
    """HKDF-Expand (RFC 5869): ``length`` bytes, at most 255 hashes. Raises :class:`UsageError`."""
    if not 0 < length <= 255 * _hash(kdf).digest_size:
        raise UsageError(f"{length} bytes cannot be derived at once")
    return HKDFExpand(_hash(kdf), length, info).derive(key)


def _hash(kdf: Kdf) -> hashes.HashAlgorithm:
    if kdf is Kdf.HKDF_SHA256:
        return hashes.SHA256()
    return hashes.SHA384() if kdf is Kdf.HKDF_SHA384 else hashes.SHA512()


def labeled_extract(suite_id: bytes, kdf: Kdf, salt: bytes, label: bytes, secret: bytes) -> bytes:
    return extract(kdf, salt, b"HPKE-v1" + suite_id + label + secret)


def labeled_expand(suite_id: bytes, kdf: Kdf, key: bytes, label: bytes, info: bytes, length: int) -> bytes:
    if not 0 < length < 1 << 16:
        raise UsageError(f"{length} bytes cannot be derived at once")
    return expand(kdf, key, length.to_bytes(2, "big") + b"HPKE-v1" + suite_id + label + info, length)
