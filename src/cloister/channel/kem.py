"""Key encapsulation: X-Wing and DHKEM(X25519, HKDF-SHA256), and the key pairs that live in memory.

X-Wing (MLKEM768-X25519, id 0x647a: draft-connolly-cfrg-xwing-kem, draft-ietf-hpke-pq) is the default: it stays
secret as long as one of its two halves does. DHKEM(X25519, HKDF-SHA256) (id 0x0020, RFC 9180) is for interoperation.

Refused: keys of another length, X25519 points of low order, ML-KEM keys with coefficients out of range, keys that
were erased. Private keys have no text form, cannot be pickled or copied, and are dropped by ``erase()``: OpenSSL
clears their memory when it frees them.
"""

from __future__ import annotations

import hashlib
from enum import IntEnum
from typing import Final, NoReturn

from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey, MLKEM768PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey

from cloister.channel.kdf import Kdf, labeled_expand, labeled_extract
from cloister.errors import ChannelError, DecapsulationFailed, UnknownKey, UsageError

_MLKEM_PUBLIC: Final = 1184
_MLKEM_CIPHERTEXT: Final = 1088
_X25519: Final = 32
_XWING_LABEL: Final = b"\\.//^\\"


class Kem(IntEnum):
    """Key encapsulation mechanisms, by their IANA number."""

    X25519 = 0x0020
    X_WING = 0x647A

    @property
    def public_length(self) -> int:
        """Npk: bytes of a public key."""
        return _X25519 if self is Kem.X25519 else _MLKEM_PUBLIC + _X25519

    @property
    def enc_length(self) -> int:
        """Nenc: bytes of an encapsulated key."""
        return _X25519 if self is Kem.X25519 else _MLKEM_CIPHERTEXT + _X25519


class KeyPair:
    """A KEM key pair that lives in this process only."""

    __slots__ = ("_mlkem", "_x25519", "kem", "public_key")

    def __init__(self, kem: Kem, x25519: X25519PrivateKey, mlkem: MLKEM768PrivateKey | None) -> None:
        if (mlkem is None) != (kem is Kem.X25519):
            raise UsageError(f"these are not the private keys that {kem.name} has")
        self.kem = kem
        self._x25519: X25519PrivateKey | None = x25519
        self._mlkem = mlkem
        public = x25519.public_key().public_bytes_raw()
        self.public_key: bytes = (mlkem.public_key().public_bytes_raw() if mlkem else b"") + public

    @classmethod
    def generate(cls, kem: Kem = Kem.X_WING) -> KeyPair:
        """A fresh pair. No seed is kept, so there is no short secret to leak."""
        mlkem = MLKEM768PrivateKey.generate() if kem is Kem.X_WING else None
        return cls(kem, X25519PrivateKey.generate(), mlkem)

    @classmethod
    def from_private_bytes(cls, kem: Kem, private: bytes) -> KeyPair:
        """The pair of a 32-byte private key: X25519's scalar, or X-Wing's seed (expanded with SHAKE256)."""
        if len(private) != 32:
            raise UsageError(f"a {kem.name} private key has 32 bytes, not {len(private)}")
        if kem is Kem.X25519:
            return cls(kem, X25519PrivateKey.from_private_bytes(private), None)
        expanded = hashlib.shake_256(private).digest(96)
        mlkem = MLKEM768PrivateKey.from_seed_bytes(expanded[:64])
        return cls(kem, X25519PrivateKey.from_private_bytes(expanded[64:]), mlkem)

    def decapsulate(self, enc: bytes) -> bytes:
        """The shared secret inside ``enc``. Raises :class:`DecapsulationFailed`, :class:`UnknownKey` (erased)."""
        x25519, mlkem = self._x25519, self._mlkem
        if x25519 is None:
            raise UnknownKey("this private key was erased", todo="verify again and use the current key")
        if len(enc) != self.kem.enc_length:
            raise DecapsulationFailed(
                f"an encapsulated {self.kem.name} key has {self.kem.enc_length} bytes, not {len(enc)}"
            )
        theirs = enc[-_X25519:]
        try:
            dh = x25519.exchange(X25519PublicKey.from_public_bytes(theirs))
            if mlkem is None:
                return _dhkem(dh, enc, self.public_key)
            return _xwing(mlkem.decapsulate(enc[:_MLKEM_CIPHERTEXT]), dh, theirs, self.public_key)
        except ValueError:
            raise DecapsulationFailed("the encapsulated key is not one (a point of low order)") from None

    def erase(self) -> None:
        """Drop the private halves; OpenSSL clears them as it frees them. May be called twice."""
        self._x25519 = None
        self._mlkem = None

    def __repr__(self) -> str:
        return f"<KeyPair {self.kem.name} {hashlib.sha256(self.public_key).hexdigest()[:16]}>"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a private key is not pickled or copied")


def encapsulate(kem: Kem, public_key: bytes, *, ephemeral: KeyPair | None = None) -> tuple[bytes, bytes]:
    """Make a secret that only the holder of ``public_key`` gets: (shared secret, enc).

    ``ephemeral`` reproduces published X25519 vectors and is never given otherwise. Raises :class:`ChannelError`
    for a public key that is none.
    """
    if len(public_key) != kem.public_length:
        raise ChannelError(f"a {kem.name} public key has {kem.public_length} bytes, not {len(public_key)}")
    pair = ephemeral or KeyPair.generate(Kem.X25519)
    own, theirs = pair.public_key[-_X25519:], public_key[-_X25519:]
    try:
        if pair._x25519 is None:
            raise UsageError("an ephemeral key serves once")
        dh = pair._x25519.exchange(X25519PublicKey.from_public_bytes(theirs))
        if kem is Kem.X25519:
            return _dhkem(dh, own, public_key), own
        secret, ciphertext = MLKEM768PublicKey.from_public_bytes(public_key[:_MLKEM_PUBLIC]).encapsulate()
        return _xwing(secret, dh, own, public_key), ciphertext + own
    except ValueError:
        raise ChannelError(f"this is not a {kem.name} public key", todo="verify the workload again") from None
    finally:
        pair.erase()


def _dhkem(dh: bytes, enc: bytes, public_key: bytes) -> bytes:
    """ExtractAndExpand of DHKEM (RFC 9180, section 4.1); X25519's KEM always hashes with SHA-256."""
    suite_id = b"KEM" + Kem.X25519.to_bytes(2, "big")
    prk = labeled_extract(suite_id, Kdf.HKDF_SHA256, b"", b"eae_prk", dh)
    return labeled_expand(suite_id, Kdf.HKDF_SHA256, prk, b"shared_secret", enc + public_key, 32)


def _xwing(mlkem_secret: bytes, dh: bytes, ephemeral: bytes, public_key: bytes) -> bytes:
    """X-Wing's combiner: the X25519 half of ciphertext and public key are hashed, ML-KEM binds its own."""
    parts = mlkem_secret + dh + ephemeral + public_key[-_X25519:] + _XWING_LABEL
    return hashlib.sha3_256(parts).digest()
