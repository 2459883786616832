"""Key stores: who holds the key-encryption key under which data keys are wrapped."""

from __future__ import annotations

from typing import Protocol


class Keystore(Protocol):
    """Wraps 32-byte data keys. ``aad`` names the one record that the data key is for.

    Both raise :class:`~cloister.errors.KeystoreError`; ``unwrap`` also when ``aad`` is another record's.
    """

    def wrap(self, data_key: bytes, aad: bytes) -> bytes: ...

    def unwrap(self, wrapped: bytes, aad: bytes) -> bytes: ...
