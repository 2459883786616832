"""HPKE (RFC 9180), base mode, with sequence numbers and export: what Oblivious HTTP is built on.

KEMs are in :mod:`cloister.channel.kem`. KDFs: HKDF with SHA-256, SHA-384, SHA-512. AEADs: AES-128-GCM, AES-256-GCM,
ChaCha20-Poly1305. Each side's object seals or opens in order and derives secrets for other purposes.

Refused: other algorithms, what does not authenticate in its place of the sequence, a sequence past 2^32.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from itertools import count
from typing import Final, Protocol, cast

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM, ChaCha20Poly1305

from cloister.channel.kdf import Kdf, expand, extract, labeled_expand, labeled_extract
from cloister.channel.kem import Kem, KeyPair, encapsulate
from cloister.errors import ChannelError, ChunkRefused, UsageError

__all__ = [
    "MAX_SEALS",
    "NONCE_LENGTH",
    "TAG_LENGTH",
    "Aead",
    "Buffer",
    "Cipher",
    "Kdf",
    "Kem",
    "KeyPair",
    "Nonces",
    "Recipient",
    "Sender",
    "Suite",
    "cipher",
    "encapsulate",
    "expand",
    "extract",
    "nonce_at",
    "setup_recipient",
    "setup_sender",
]

NONCE_LENGTH: Final = 12
"""Nn of every AEAD here, bytes."""
TAG_LENGTH: Final = 16
"""What sealing adds, bytes."""
MAX_SEALS: Final = 1 << 32
"""Messages under one key; RFC 9180 would allow 2^96 - 1, AEAD limits are met long before."""

Buffer = bytes | bytearray | memoryview


class Aead(IntEnum):
    """Authenticated ciphers, by their IANA number."""

    AES_128_GCM = 1
    AES_256_GCM = 2
    CHACHA20_POLY1305 = 3

    @property
    def key_length(self) -> int:
        """Nk: bytes of a key."""
        return 16 if self is Aead.AES_128_GCM else 32


class Cipher(Protocol):
    """An AEAD under one key, as `cryptography` spells it."""

    def encrypt(self, nonce: Buffer, data: Buffer, associated_data: Buffer | None) -> bytes: ...

    def decrypt(self, nonce: Buffer, data: Buffer, associated_data: Buffer | None) -> bytes: ...


@dataclass(frozen=True, slots=True)
class Suite:
    """One algorithm of each kind. Raises :class:`UsageError` for numbers that are not in the tables above."""

    kem: Kem
    kdf: Kdf = Kdf.HKDF_SHA256
    aead: Aead = Aead.AES_256_GCM

    def __post_init__(self) -> None:
        try:
            object.__setattr__(self, "kem", Kem(self.kem))
            object.__setattr__(self, "kdf", Kdf(self.kdf))
            object.__setattr__(self, "aead", Aead(self.aead))
        except ValueError as error:
            raise UsageError(f"HPKE suite not known here: {error}") from None

    @classmethod
    def of(cls, kem: int, kdf: int, aead: int) -> Suite:
        """The suite of these IANA numbers."""
        return cls(cast(Kem, kem), cast(Kdf, kdf), cast(Aead, aead))

    @property
    def suite_id(self) -> bytes:
        """RFC 9180, section 5.1."""
        return b"HPKE" + b"".join(part.to_bytes(2, "big") for part in (self.kem, self.kdf, self.aead))


class _Schedule:
    """The key schedule of RFC 9180, section 5.1 (base mode), and what both sides do with it."""

    __slots__ = ("_base_nonce", "_cipher", "_exporter", "suite")

    def __init__(self, suite: Suite, shared_secret: bytes, info: bytes) -> None:
        self.suite = suite
        identity, algorithm = suite.suite_id, suite.kdf
        hashed = (
            b"\x00"  # mode_base
            + labeled_extract(identity, algorithm, b"", b"psk_id_hash", b"")
            + labeled_extract(identity, algorithm, b"", b"info_hash", info)
        )
        secret = labeled_extract(identity, algorithm, shared_secret, b"secret", b"")
        key = labeled_expand(identity, algorithm, secret, b"key", hashed, suite.aead.key_length)
        nonce = labeled_expand(identity, algorithm, secret, b"base_nonce", hashed, NONCE_LENGTH)
        self._exporter = labeled_expand(identity, algorithm, secret, b"exp", hashed, algorithm.hash_length)
        self._cipher = cipher(suite.aead, key)
        self._base_nonce = int.from_bytes(nonce, "big")

    def export(self, context: bytes, length: int) -> bytes:
        """A secret for another purpose (RFC 9180, section 5.3), ``length`` bytes."""
        return labeled_expand(self.suite.suite_id, self.suite.kdf, self._exporter, b"sec", context, length)


class Sender(_Schedule):
    """Seals in order."""

    __slots__ = ("_nonces",)

    def __init__(self, suite: Suite, shared_secret: bytes, info: bytes) -> None:
        super().__init__(suite, shared_secret, info)
        self._nonces = Nonces(self._base_nonce)

    def seal(self, aad: bytes, plaintext: Buffer) -> bytes:
        """The next ciphertext, 16 bytes longer. Raises :class:`ChannelError` at the sequence's end."""
        return self._cipher.encrypt(self._nonces.take(), plaintext, aad)


class Recipient(_Schedule):
    """Opens in the order of sealing; what does not authenticate leaves the sequence where it was."""

    __slots__ = ("_sequence",)

    def __init__(self, suite: Suite, shared_secret: bytes, info: bytes) -> None:
        super().__init__(suite, shared_secret, info)
        self._sequence = 0

    @property
    def sequence(self) -> int:
        """Messages opened so far."""
        return self._sequence

    def open(self, aad: bytes, ciphertext: Buffer) -> bytes:
        """The next plaintext. Raises :class:`ChunkRefused`."""
        try:
            opened = self._cipher.decrypt(nonce_at(self._base_nonce, self._sequence), ciphertext, aad)
        except InvalidTag:
            raise ChunkRefused(f"sealed message {self._sequence} does not authenticate") from None
        self._sequence += 1
        return opened


class Nonces:
    """The nonces of one sealing key. Each is given out once: before it is used, and to one thread only."""

    __slots__ = ("_base", "_places")

    def __init__(self, base: int, *, start: int = 0) -> None:
        self._base = base
        self._places = count(start)  # its `next` is one step of the interpreter

    def take(self) -> bytes:
        """The next nonce. Raises :class:`ChannelError` past :data:`MAX_SEALS`."""
        return nonce_at(self._base, next(self._places))


def setup_sender(
    suite: Suite, public_key: bytes, info: bytes, *, ephemeral: KeyPair | None = None
) -> tuple[bytes, Sender]:
    """SetupBaseS: (enc, sender). Raises :class:`ChannelError` for a public key that is none."""
    shared_secret, enc = encapsulate(suite.kem, public_key, ephemeral=ephemeral)
    return enc, Sender(suite, shared_secret, info)


def setup_recipient(suite: Suite, pair: KeyPair, enc: bytes, info: bytes) -> Recipient:
    """SetupBaseR. Raises :class:`DecapsulationFailed`; a wrong key shows only when the first message is opened."""
    if suite.kem is not pair.kem:
        raise UsageError(f"a {pair.kem.name} key pair does not serve {suite.kem.name}")
    return Recipient(suite, pair.decapsulate(enc), info)


def cipher(aead: Aead, key: bytes) -> Cipher:
    """The AEAD under ``key`` (Nk bytes)."""
    return ChaCha20Poly1305(key) if aead is Aead.CHACHA20_POLY1305 else AESGCM(key)


def nonce_at(base: int, sequence: int) -> bytes:
    """The nonce of message ``sequence``: base XOR sequence. Raises :class:`ChannelError` past :data:`MAX_SEALS`."""
    if sequence >= MAX_SEALS:
        raise ChannelError("this key has sealed all the messages it may", todo="start another exchange")
    return (base ^ sequence).to_bytes(NONCE_LENGTH, "big")
