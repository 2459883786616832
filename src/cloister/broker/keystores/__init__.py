"""Key stores: who holds the key-encryption keys under which the broker's data keys are wrapped.

One Protocol over all of them. A key-encryption key never leaves its store; what it wraps is short (a data key that the
broker's own state key has already wrapped), so no store alone can read a resource, and without its store nobody can.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

MAX_PLAINTEXT = 128
"""Bytes that a store is asked to wrap at the most."""
AAD_SIZE = 32

KeyState = Literal["active", "retired", "destroyed"]
"""active wraps and unwraps, retired only unwraps, destroyed does neither, ever again."""


@dataclass(frozen=True, slots=True)
class KeyDescription:
    """One version of a key-encryption key. ``created`` in Unix seconds."""

    id: str
    version: int
    algorithm: str
    owner: str
    created: int
    state: KeyState


class Keystore(Protocol):
    """Key-encryption keys by id (``A-Z a-z 0-9 . _ -``, 1 to 64), each with versions 1, 2, 3 …

    ``aad`` (32 bytes) names the one record that the plaintext is for; a store whose algorithm takes none binds it otherwise.
    Every method raises :class:`~cloister.errors.KeystoreError`: for an unknown or destroyed key, a wrap that does not
    authenticate or belongs to another ``aad`` or key. When the store cannot be reached it raises
    :class:`~cloister.errors.KeystoreUnavailable`, and nothing has changed.
    """

    def generate(self, key: str, *, owner: str, now: int) -> KeyDescription:
        """Make a key: its version 1, active. Refuses an id that exists."""
        ...

    def rotate(self, key: str, *, now: int, number: int | None = None) -> KeyDescription:
        """Make the next version, active from now on; the ones before are retired.

        With ``number`` that version and no other: if it is the newest already, by another broker or before an answer was
        lost, it is the answer.
        """
        ...

    def wrap(self, key: str, plaintext: bytes, aad: bytes) -> bytes:
        """``plaintext`` (1 to 128 bytes) under the active version: 4 bytes of its number, then the store's own form."""
        ...

    def unwrap(self, key: str, wrapped: bytes, aad: bytes) -> bytes:
        """Undo :meth:`wrap`, by the version that it names, if that is not destroyed."""
        ...

    def describe(self, key: str) -> tuple[KeyDescription, ...]:
        """Every version, oldest first. Raises for an unknown id."""
        ...

    def destroy(self, key: str, version: int) -> KeyDescription:
        """Shred one version, active or retired; what only it wrapped is lost for good."""
        ...
