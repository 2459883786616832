"""XAES-256-GCM: AES-256-GCM with nonces so long (24 bytes) that they can be drawn at random, always.

Pure. For each message a key is derived from the first half of the nonce (NIST SP 800-108r1 in counter mode over
CMAC); that key and the second half are a common AES-256-GCM. Refuses keys and nonces of other lengths. It draws no
nonces: whoever seals does, a fresh one for each seal. Source: https://c2sp.org/XAES-256-GCM.
"""

from __future__ import annotations

import threading
from typing import Final

from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.ciphers.algorithms import AES256
from cryptography.hazmat.primitives.ciphers.modes import ECB

from cloister.errors import FormatError
from cloister.sealing.segments import KEY_SIZE, Buffer, Writable

NONCE_SIZE: Final = 24
_HALF: Final = 12
_BLOCK: Final = 16
_COUNTERS: Final = (int.from_bytes(b"\0\1X\0") << 96, int.from_bytes(b"\0\2X\0") << 96)
_BOTH: Final = (1 << 128) | 1


class Xaes:
    """One key. Thread-safe."""

    __slots__ = ("_blocks", "_deriving", "_masks")

    def __init__(self, key: Buffer) -> None:
        """``key`` is 32 bytes. Raises :class:`~cloister.errors.FormatError`."""
        if len(key) != KEY_SIZE:
            raise FormatError(f"a key has {KEY_SIZE} bytes, not {len(key)}")
        # ECB chains nothing, so one encryptor derives for all messages; two threads must not be in it at once.
        self._blocks = Cipher(AES256(key), ECB()).encryptor()  # noqa: S305 -- the bare block cipher, as CMAC takes it
        self._deriving = threading.Lock()
        zero = int.from_bytes(self._blocks.update(bytes(_BLOCK)))
        subkey = (zero << 1) ^ ((0x87 | 1 << 128) if zero >> 127 else 0)
        self._masks = (_COUNTERS[0] ^ subkey) << 128 | (_COUNTERS[1] ^ subkey)

    def seal_into(self, nonce: bytes, plain: Buffer, associated_data: bytes, out: Writable) -> None:
        """Encrypt into ``out``, which is longer by a tag of 16 bytes. ``nonce`` is 24 fresh random bytes."""
        self._message(nonce).encrypt_into(nonce[_HALF:], plain, associated_data, out)

    def open_into(self, nonce: bytes, sealed: Buffer, associated_data: bytes, out: Writable) -> None:
        """Decrypt into ``out``, which is shorter by a tag.

        Raises :class:`cryptography.exceptions.InvalidTag`; what is in ``out`` then is nobody's to read.
        """
        self._message(nonce).decrypt_into(nonce[_HALF:], sealed, associated_data, out)

    def _message(self, nonce: bytes) -> AESGCM:
        if len(nonce) != NONCE_SIZE:
            raise FormatError(f"a nonce has {NONCE_SIZE} bytes, not {len(nonce)}")
        blocks = self._masks ^ (int.from_bytes(nonce[:_HALF]) * _BOTH)
        with self._deriving:
            key = self._blocks.update(blocks.to_bytes(2 * _BLOCK))
        return AESGCM(key)
