"""Secure aggregation's secrets: shares that only their receiver opens, and keys of masks (docs/spec/secure-aggregation.md).
Pure.

Each key is derived under a label of its own from one exchange or seed, with the roster, which is of one round, and the
names of those it is between. A key encrypts one message or masks one vector.
"""

from __future__ import annotations

from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from cloister.encoding import labelled_hash
from cloister.errors import UpdateRefused

KEY_SIZE: Final = 32
SEALED_SIZE: Final = 2 * KEY_SIZE + 16
"""Two shares and the tag."""


def commitment(seed: bytes) -> bytes:
    """Tells a seed that was put together from a wrong one, and nothing else of it."""
    return labelled_hash("cloister/secure-seed/v1", seed)


def seal_shares(shares: bytes, own: X25519PrivateKey, theirs: bytes, *way: bytes) -> bytes:
    """``way`` is roster, sender and receiver. The key is of this one message, so its nonce may be derived."""
    key, nonce, bound = _sealing(own, theirs, way)
    return AESGCM(key).encrypt(nonce, shares, bound)


def open_shares(sealed: bytes, own: X25519PrivateKey, theirs: bytes, *way: bytes) -> bytes:
    """Undo :func:`seal_shares`. Raises :class:`~cloister.errors.UpdateRefused`."""
    key, nonce, bound = _sealing(own, theirs, way)
    try:
        if len(sealed) == SEALED_SIZE:
            return AESGCM(key).decrypt(nonce, sealed, bound)
    except InvalidTag:
        pass
    raise UpdateRefused(f"the shares of {way[1].decode()[:80]!r} are not for this party in this round")


def pair_key(own: X25519PrivateKey, theirs: bytes, roster: bytes, *pair: str) -> bytes:
    """The key of the mask that two parties have in common."""
    names = (name.encode() for name in sorted(pair))
    return _derive(_exchange(own, theirs), "cloister/secure-pair-mask/v1", roster, *names)


def self_key(seed: bytes, roster: bytes, party: str) -> bytes:
    """The key of a party's own mask."""
    return _derive(seed, "cloister/secure-self-mask/v1", roster, party.encode())


def direction(party: str, other: str) -> int:
    """Of two, whose name is first adds their mask, and the other takes it away."""
    return 1 if party < other else -1


def _sealing(own: X25519PrivateKey, theirs: bytes, way: tuple[bytes, ...]) -> tuple[bytes, bytes, bytes]:
    secret = _derive(_exchange(own, theirs), "cloister/secure-share/v1", *way, length=KEY_SIZE + 12)
    return secret[:KEY_SIZE], secret[KEY_SIZE:], labelled_hash("cloister/secure-share-data/v1", *way)


def _exchange(own: X25519PrivateKey, theirs: bytes) -> bytes:
    try:
        return own.exchange(X25519PublicKey.from_public_bytes(theirs))
    except ValueError:
        raise UpdateRefused("a key of this round is no key, or one of low order") from None


def _derive(secret: bytes, label: str, *parts: bytes, length: int = KEY_SIZE) -> bytes:
    return HKDF(SHA256(), length, salt=None, info=labelled_hash(label, *parts)).derive(secret)
