"""What every key store of somebody else has in common: ids, states, the form of a wrap, one way through each operation.

A store gives five primitives: read a key's versions, make one, shred one, encrypt, decrypt. The order of checks, which
versions may do what, and what happens when an answer was lost are here, once. A wrap is opened again before it is handed
out, so that a store that mixes answers up is found before the only copy of a data key depends on it.
"""

from __future__ import annotations

import hmac
import re
import threading
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Final

from cloister.broker.keystores import MAX_PLAINTEXT, KeyDescription, KeyState
from cloister.broker.keystores.versions import (
    MAX_VERSIONS,
    VERSION_SIZE,
    bound_aad,
    check_aad,
    check_id,
    check_new,
    check_plaintext,
    check_time,
)
from cloister.errors import KeystoreError, KeystoreUnavailable

MAX_WRAPPED: Final = 4096
_OWNER: Final = re.compile(r"[A-Za-z0-9._-]{1,64}")
"""What a tag, a label and a record all take."""


@dataclass(frozen=True, slots=True)
class ForeignVersion:
    """One version as its store knows it; ``handle`` is the store's own name for it."""

    number: int
    created: int
    owner: str
    destroyed: bool
    handle: str


class VersionedKeystore(ABC):
    """A :class:`~cloister.broker.keystores.Keystore` over a store's own primitives."""

    algorithm: ClassVar[str]
    label: ClassVar[str]
    max_versions: ClassVar[int] = MAX_VERSIONS

    def __init__(self) -> None:
        # Versions whose making was not answered: asked again, that version is the answer and not one more.
        self._unsure: dict[str, int] = {}
        self._making = threading.Lock()

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"

    @abstractmethod
    def _read(self, key: str) -> tuple[ForeignVersion, ...]:
        """Every version, by number; empty for an unknown key."""

    @abstractmethod
    def _make(self, key: str, number: int, owner: str, now: int) -> ForeignVersion:
        """Make that version or, if it is there already, find it."""

    @abstractmethod
    def _shred(self, key: str, version: ForeignVersion) -> None:
        """Record the destruction, then destroy; finishes what an earlier attempt began."""

    @abstractmethod
    def _encrypt(self, key: str, version: ForeignVersion, plaintext: bytes, aad: bytes) -> bytes: ...

    @abstractmethod
    def _decrypt(self, key: str, version: ForeignVersion, body: bytes, aad: bytes) -> bytes: ...

    def generate(self, key: str, *, owner: str, now: int) -> KeyDescription:
        check_new(key, owner, now)
        if not _OWNER.fullmatch(owner):
            raise KeystoreError(
                "not every store can hold this owner's name", todo="use 1 to 64 of A-Z a-z 0-9 . _ -"
            )
        with self._making:
            found = self._read(key)
            unsure = self._unsure.pop(key, 0)
            if found and not (unsure == 1 == len(found) and found[0].owner == owner):
                raise KeystoreError(f"there is a key {key} already", todo="rotate it, or choose another id")
            made = found[0] if found else self._made(key, 1, owner, now)
        if made.owner != owner:
            raise KeystoreError(
                f"the key {key} was made for another owner just now", todo="choose another id"
            )
        return describe(key, self.algorithm, (made,))[0]

    def rotate(self, key: str, *, now: int, number: int | None = None) -> KeyDescription:
        check_time(now)
        found = self._known(key)
        newest = found[-1]
        unsure = self._unsure.pop(key, 0)
        if newest.number == (unsure if number is None else number):
            return describe(key, self.algorithm, found)[-1]
        if number not in (None, newest.number + 1):
            raise not_next(key, number, newest.number)
        if newest.number >= self.max_versions:
            raise KeystoreError(
                f"the key {key} has {self.max_versions} versions", todo="use another repository"
            )
        made = self._made(key, newest.number + 1, newest.owner, now)
        return describe(key, self.algorithm, (*found, made))[-1]

    def wrap(self, key: str, plaintext: bytes, aad: bytes) -> bytes:
        check_plaintext(plaintext, aad)
        newest = self._known(key)[-1]
        if newest.destroyed:
            raise KeystoreError(f"the key {key} was destroyed", todo="rotate it to make a new version")
        body = self._encrypt(key, newest, plaintext, aad)
        if not 1 <= len(body) <= MAX_WRAPPED - VERSION_SIZE:
            raise KeystoreError("the key store wrapped to a form out of all bounds")
        if not hmac.compare_digest(self._decrypt(key, newest, body, aad), plaintext):
            raise KeystoreError("the key store does not open what it just wrapped", todo="check the store")
        return newest.number.to_bytes(VERSION_SIZE, "big") + body

    def unwrap(self, key: str, wrapped: bytes, aad: bytes) -> bytes:
        check_aad(aad)
        if not VERSION_SIZE < len(wrapped) <= MAX_WRAPPED:
            raise KeystoreError(f"a wrapped key of {len(wrapped)} bytes is not of any store's form")
        version = self._unwrapping(key, int.from_bytes(wrapped[:VERSION_SIZE], "big"))
        if version.destroyed:
            raise destroyed(key, version.number)
        plaintext = self._decrypt(key, version, wrapped[VERSION_SIZE:], aad)
        if not 1 <= len(plaintext) <= MAX_PLAINTEXT:
            raise KeystoreError("the key store unwrapped to what no broker wrapped")
        return plaintext

    def describe(self, key: str) -> tuple[KeyDescription, ...]:
        return describe(key, self.algorithm, self._known(key))

    def destroy(self, key: str, version: int) -> KeyDescription:
        found = self._version(key, version)
        self._shred(key, found)
        return KeyDescription(key, found.number, self.algorithm, found.owner, found.created, "destroyed")

    def _made(self, key: str, number: int, owner: str, now: int) -> ForeignVersion:
        try:
            return self._make(key, number, owner, now)
        except KeystoreUnavailable:
            self._unsure[key] = number
            raise

    def _known(self, key: str) -> tuple[ForeignVersion, ...]:
        check_id(key)
        found = self._read(key)
        if not found:
            raise KeystoreError(f"there is no key {key}", todo="put a resource into that repository first")
        return found

    def _unwrapping(self, key: str, number: int) -> ForeignVersion:
        """The version to unwrap with; a store that tells a destroyed one more cheaply than by its record does so here."""
        return self._version(key, number)

    def _version(self, key: str, number: int) -> ForeignVersion:
        for one in self._known(key):
            if one.number == number:
                return one
        raise KeystoreError(f"the key {key} has no version {number}")

    def _bound(self, key: str, version: ForeignVersion, aad: bytes) -> bytes:
        """32 bytes for key, version and record at once, for stores that take one string."""
        return bound_aad(self.label, key, version.number, aad)


def describe(key: str, algorithm: str, versions: tuple[ForeignVersion, ...]) -> tuple[KeyDescription, ...]:
    """The newest version is active, those before are retired, and what was destroyed stays so."""
    newest = versions[-1].number

    def state(one: ForeignVersion) -> KeyState:
        if one.destroyed:
            return "destroyed"
        return "active" if one.number == newest else "retired"

    return tuple(
        KeyDescription(key, one.number, algorithm, one.owner, one.created, state(one)) for one in versions
    )


def numbered(versions: list[ForeignVersion], store: str) -> tuple[ForeignVersion, ...]:
    """``versions`` in order. Raises :class:`~cloister.errors.KeystoreError` unless they are 1, 2, 3 …"""
    ordered = tuple(sorted(versions, key=lambda one: one.number))
    if [one.number for one in ordered] != list(range(1, len(ordered) + 1)):
        raise KeystoreError(f"{store} has an incomplete record of a key's versions", todo="restore it there")
    return ordered


def not_next(key: str, number: int | None, newest: int) -> KeystoreError:
    """The error for a version that cannot be made now."""
    return KeystoreError(
        f"version {number} of the key {key} cannot be made, the newest is {newest}",
        todo="look at the key, and rotate it anew",
    )


def destroyed(key: str, number: int) -> KeystoreError:
    """The error for a version that was destroyed."""
    return KeystoreError(
        f"version {number} of the key {key} was destroyed",
        todo="what it wrapped is lost; its owner puts it again",
    )
