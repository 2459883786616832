"""The local key store, laptop mode: a state key under a passphrase (docs/spec/broker-state.md).

The passphrase comes from a file that only its owner can read, never from an argument or the environment. Whoever
runs the broker knows it, so this mode protects a lost disk, not an owner from the operator.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.argon2 import Argon2id

from cloister.encoding import labelled_hash
from cloister.errors import KeystoreError, UsageError
from cloister.sealing.descriptors import read_private

FORMAT: Final = "cloister/broker-state/v1"
STATE_KEY_LABEL = "cloister/broker-state-key/v1"
KEY_SIZE = 32
SALT_SIZE = 16
NONCE_SIZE = 12
SEALED_KEY_SIZE = NONCE_SIZE + KEY_SIZE + 16
MIN_PASSPHRASE = 12
MAX_PASSPHRASE = 1024

Entropy = Callable[[int], bytes]


@dataclass(frozen=True, slots=True)
class Cost:
    """What one guess at the passphrase costs (Argon2id, RFC 9106)."""

    iterations: int = 3
    lanes: int = 4
    memory_kib: int = 64 * 1024


@dataclass(frozen=True, slots=True)
class SealedStateKey:
    """The state key at rest: what the ``state`` table holds."""

    salt: bytes
    cost: Cost
    wrapped: bytes


class LocalKeystore:
    """Wraps data keys under the state key, which lives in this process's memory."""

    def __init__(self, state_key: bytes, *, entropy: Entropy = os.urandom) -> None:
        if len(state_key) != KEY_SIZE:
            raise KeystoreError(f"a state key is {KEY_SIZE} bytes, not {len(state_key)}")
        self._seal = AESGCM(state_key)
        self._entropy = entropy

    def __repr__(self) -> str:
        return "LocalKeystore()"

    def wrap(self, data_key: bytes, aad: bytes) -> bytes:
        """nonce (12) ‖ AES-256-GCM: 60 bytes."""
        return seal(self._seal, data_key, aad, self._entropy)

    def unwrap(self, wrapped: bytes, aad: bytes) -> bytes:
        if len(wrapped) != SEALED_KEY_SIZE:
            raise KeystoreError(f"a wrapped key is {SEALED_KEY_SIZE} bytes, not {len(wrapped)}")
        return unseal(self._seal, wrapped, aad)


def create_state_key(passphrase: bytes, *, cost: Cost, entropy: Entropy) -> tuple[SealedStateKey, bytes]:
    """A fresh state key and its form at rest."""
    state_key, salt = entropy(KEY_SIZE), entropy(SALT_SIZE)
    cipher = AESGCM(_passphrase_key(passphrase, salt, cost))
    return SealedStateKey(salt, cost, seal(cipher, state_key, _header(salt, cost), entropy)), state_key


def open_state_key(sealed: SealedStateKey, passphrase: bytes) -> bytes:
    """The state key. Raises :class:`KeystoreError` on a wrong passphrase or an altered state."""
    cost = sealed.cost
    bounds = ((cost.iterations, 1, 16), (cost.lanes, 1, 16), (cost.memory_kib, 8 * 1024, 1024 * 1024))
    if any(not low <= value <= high for value, low, high in bounds) or len(sealed.salt) != SALT_SIZE:
        raise KeystoreError(
            "the state's passphrase parameters are out of their bounds",
            todo="this is not a state that `cloister broker` wrote; restore a backup",
        )
    cipher = AESGCM(_passphrase_key(passphrase, sealed.salt, cost))
    try:
        return unseal(cipher, sealed.wrapped, _header(sealed.salt, cost))
    except KeystoreError:
        raise KeystoreError(
            "the passphrase does not open this state",
            todo="give the passphrase file that was used when the state was made",
        ) from None


def read_passphrase(path: Path) -> bytes:
    """The passphrase in a file of mode 0600 or stricter. Raises :class:`UsageError`; never shows its content."""
    text = read_private(path, what="the passphrase file", limit=MAX_PASSPHRASE + 1)
    passphrase = text.removesuffix(b"\n")
    if not MIN_PASSPHRASE <= len(passphrase) <= MAX_PASSPHRASE:
        raise UsageError(
            f"the passphrase in {path} must be {MIN_PASSPHRASE} to {MAX_PASSPHRASE} bytes long",
            todo="for example: openssl rand -base64 24",
        )
    return passphrase


def seal(cipher: AESGCM, plaintext: bytes, aad: bytes, entropy: Entropy) -> bytes:
    """nonce ‖ ciphertext ‖ tag, under a fresh random nonce."""
    nonce = entropy(NONCE_SIZE)
    return nonce + cipher.encrypt(nonce, plaintext, aad)


def unseal(cipher: AESGCM, sealed: bytes, aad: bytes) -> bytes:
    """Undo :func:`seal`. Raises :class:`KeystoreError` unless the bytes were sealed for this ``aad``."""
    if len(sealed) < NONCE_SIZE + 16:
        raise KeystoreError("a sealed record is cut short", todo="restore a backup")
    try:
        return cipher.decrypt(sealed[:NONCE_SIZE], sealed[NONCE_SIZE:], aad)
    except InvalidTag:
        raise KeystoreError(
            "a sealed record does not authenticate: altered, or moved from another place",
            todo="restore a backup, or put it again",
        ) from None


def _passphrase_key(passphrase: bytes, salt: bytes, cost: Cost) -> bytes:
    return Argon2id(
        salt=salt,
        length=KEY_SIZE,
        iterations=cost.iterations,
        lanes=cost.lanes,
        memory_cost=cost.memory_kib,
    ).derive(passphrase)


def _header(salt: bytes, cost: Cost) -> bytes:
    numbers = (cost.iterations, cost.lanes, cost.memory_kib)
    return labelled_hash(
        STATE_KEY_LABEL, FORMAT.encode(), salt, *(number.to_bytes(4, "big") for number in numbers)
    )
