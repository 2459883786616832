"""Ed25519 keys with which owners sign indexes (RFC 8032): create, load, sign, verify.

Verification raises. An empty list of accepted signers is an error, never "anyone".
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection
from pathlib import Path

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from cloister.errors import IndexMismatch, UsageError
from cloister.sealing.key_file import SECRET_SIZE, SIGNING_KIND, read_secret, write_secret

PUBLIC_KEY_SIZE = 32
SIGNATURE_SIZE = 64


class SigningKey:
    """A private key; ``repr`` shows the public one."""

    def __init__(self, seed: bytes) -> None:
        self._key = Ed25519PrivateKey.from_private_bytes(seed)
        self.public_key: bytes = self._key.public_key().public_bytes_raw()
        """32 bytes."""

    def __repr__(self) -> str:
        return f"SigningKey(public_key={self.public_key.hex()})"

    @classmethod
    def create(cls, path: Path, *, entropy: Callable[[int], bytes] = os.urandom) -> SigningKey:
        """Make a key and its 0600 file. Raises :class:`~cloister.errors.UsageError` if the file exists."""
        seed = entropy(SECRET_SIZE)
        write_secret(path, SIGNING_KIND, seed)
        return cls(seed)

    @classmethod
    def load(cls, path: Path) -> SigningKey:
        """Read a key file. Raises :class:`~cloister.errors.UsageError`."""
        return cls(read_secret(path, SIGNING_KIND))

    def sign(self, message: bytes) -> bytes:
        """64 bytes of signature."""
        return self._key.sign(message)


def verify_signature(
    message: bytes, signature: bytes, signer: bytes, *, signers: Collection[bytes], what: str
) -> None:
    """Raise unless ``signer`` (32 bytes) is one of ``signers`` and signed ``message``.

    Raises :class:`~cloister.errors.UsageError` if ``signers`` is empty or holds what is no public key,
    :class:`~cloister.errors.IndexMismatch` otherwise.
    """
    if not signers:
        raise UsageError("no signer is named that may sign the index", todo="name the owner's public key")
    if any(len(key) != PUBLIC_KEY_SIZE for key in signers):
        raise UsageError(f"a signer's public key has {PUBLIC_KEY_SIZE} bytes")
    if signer not in signers:
        raise IndexMismatch(
            f"{what} is signed by {signer.hex()}, which is not one of the accepted signers",
            todo="compare with `cloister keys show` of the owner's signing key",
        )
    try:
        Ed25519PublicKey.from_public_bytes(signer).verify(signature, message)
    except (InvalidSignature, ValueError):
        raise IndexMismatch(
            f"the signature of {what} does not verify", todo="get the directory again from its owner"
        ) from None
