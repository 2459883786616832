"""The embedded key store: key-encryption keys as records of the broker's own state, sealed under its state key.

Each key is one record whose body holds every version; a destroyed version's bytes are gone from it, and from the database's
pages (SQLite's ``secure_delete``). It protects as far as the state key does; a store of its own (an HSM, a cloud's
service) lets an owner end what the broker can open.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Literal

from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from cloister.broker.audit import Fact
from cloister.broker.journal import Journal
from cloister.broker.keystores import KeyDescription, KeyState
from cloister.broker.keystores.versioned import not_next
from cloister.broker.keystores.versions import (
    MAX_VERSIONS,
    check_aad,
    check_id,
    check_new,
    check_plaintext,
)
from cloister.broker.state_key import StateKey, seal, unseal
from cloister.broker.transaction import Transaction
from cloister.encoding import Record, decode_json, encode_json, labelled_hash
from cloister.errors import FormatError, KeystoreError

FORMAT: Final = "cloister/local-key/v1"
SEAL_LABEL: Final = "cloister/local-keystore/v1"
RECORD_LABEL: Final = "cloister/local-key-record/v1"
ALGORITHM: Final = "AES-256-GCM"
KEY_SIZE: Final = 32
MAX_RECORD: Final = 1 << 20


class KeyVersion(Record, frozen=True, kw_only=True):
    """One version in a key's record; ``key`` is empty when it was destroyed."""

    version: int
    created: int
    state: KeyState
    key: bytes


class LocalKey(Record, frozen=True, kw_only=True):
    """A key's record, before it is sealed."""

    format: Literal["cloister/local-key/v1"] = FORMAT
    owner: str
    versions: tuple[KeyVersion, ...]

    def __repr__(self) -> str:
        return f"LocalKey(owner={self.owner!r}, versions={len(self.versions)})"


@dataclass(frozen=True, slots=True)
class _Opened:
    record: int
    key: LocalKey


class LocalKeystore:
    """A :class:`~cloister.broker.keystores.Keystore` over the broker's journal."""

    def __init__(
        self, journal: Journal, state_key: StateKey, *, entropy: Callable[[int], bytes] = os.urandom
    ) -> None:
        self._journal = journal
        self._cipher = state_key.cipher(SEAL_LABEL)
        self._entropy = entropy

    def __repr__(self) -> str:
        return "LocalKeystore()"

    def generate(self, key: str, *, owner: str, now: int) -> KeyDescription:
        check_new(key, owner, now)

        def work(transaction: Transaction) -> KeyDescription:
            if transaction.version("key", key):
                raise KeystoreError(f"there is a key {key} already", todo="rotate it, or choose another id")
            first = KeyVersion(version=1, created=now, state="active", key=self._entropy(KEY_SIZE))
            return self._store(transaction, key, LocalKey(owner=owner, versions=(first,)), "made")

        return self._journal.transact(work)

    def rotate(self, key: str, *, now: int, number: int | None = None) -> KeyDescription:
        def work(transaction: Transaction) -> KeyDescription:
            found = self._open(transaction, key)
            newest = found.versions[-1]
            if number == newest.version:
                return _described(key, found.owner, newest)
            if number not in (None, newest.version + 1):
                raise not_next(key, number, newest.version)
            if len(found.versions) >= MAX_VERSIONS:
                raise KeystoreError(
                    f"the key {key} has {MAX_VERSIONS} versions", todo="use another repository"
                )
            before = tuple(_in_state(one, "retired") for one in found.versions)
            new = KeyVersion(
                version=len(before) + 1, created=now, state="active", key=self._entropy(KEY_SIZE)
            )
            return self._store(
                transaction, key, LocalKey(owner=found.owner, versions=(*before, new)), "rotated"
            )

        return self._journal.transact(work)

    def destroy(self, key: str, version: int) -> KeyDescription:
        def work(transaction: Transaction) -> KeyDescription:
            found = self._open(transaction, key)
            _version(found, key, version)
            versions = tuple(
                KeyVersion(version=one.version, created=one.created, state="destroyed", key=b"")
                if one.version == version
                else one
                for one in found.versions
            )
            self._store(
                transaction,
                key,
                LocalKey(owner=found.owner, versions=versions),
                f"version {version} destroyed",
            )
            return _described(key, found.owner, versions[version - 1])

        return self._journal.transact(work)

    def wrap(self, key: str, plaintext: bytes, aad: bytes) -> bytes:
        check_plaintext(plaintext, aad)
        newest = self._read(key).versions[-1]
        if newest.state != "active":
            raise KeystoreError(f"the key {key} was destroyed", todo="rotate it to make a new version")
        number = newest.version.to_bytes(4, "big")
        return number + seal(AESGCM(newest.key), plaintext, _bound(key, number, aad), self._entropy)

    def unwrap(self, key: str, wrapped: bytes, aad: bytes) -> bytes:
        check_aad(aad)
        found = _version(self._read(key), key, int.from_bytes(wrapped[:4], "big"))
        if found.state == "destroyed":
            raise KeystoreError(
                f"version {found.version} of the key {key} was destroyed",
                todo="what it wrapped is lost; its owner puts it again",
            )
        return unseal(AESGCM(found.key), wrapped[4:], _bound(key, wrapped[:4], aad))

    def describe(self, key: str) -> tuple[KeyDescription, ...]:
        found = self._read(key)
        return tuple(_described(key, found.owner, one) for one in found.versions)

    def _read(self, key: str) -> LocalKey:
        check_id(key)
        stored = self._journal.read("key", key)
        if stored is None:
            raise KeystoreError(f"there is no key {key}", todo="put a resource into that repository first")
        return self._unseal(key, stored.version, stored.body)

    def _open(self, transaction: Transaction, key: str) -> LocalKey:
        check_id(key)
        stored = transaction.get("key", key)
        if stored is None:
            raise KeystoreError(f"there is no key {key}", todo="put a resource into that repository first")
        return self._unseal(key, stored.version, stored.body)

    def _unseal(self, key: str, record: int, body: bytes) -> LocalKey:
        plain = unseal(self._cipher, body, _place(key, record))
        try:
            return decode_json(plain, LocalKey, what="key record", limit=MAX_RECORD)
        except FormatError:
            raise KeystoreError(
                f"the record of the key {key} is malformed", todo="restore a backup"
            ) from None

    def _store(self, transaction: Transaction, key: str, content: LocalKey, what: str) -> KeyDescription:
        record = transaction.version("key", key) + 1
        transaction.put(
            "key", key, seal(self._cipher, encode_json(content), _place(key, record), self._entropy)
        )
        newest = content.versions[-1]
        transaction.log(
            Fact(
                "key", "done", resource=f"key:local/{key}", reason=f"{what}; newest version {newest.version}"
            )
        )
        return _described(key, content.owner, newest)


def _in_state(version: KeyVersion, state: KeyState) -> KeyVersion:
    if version.state == "destroyed":
        return version
    return KeyVersion(version=version.version, created=version.created, state=state, key=version.key)


def _version(content: LocalKey, key: str, number: int) -> KeyVersion:
    if not 1 <= number <= len(content.versions):
        raise KeystoreError(f"the key {key} has no version {number}")
    return content.versions[number - 1]


def _described(key: str, owner: str, version: KeyVersion) -> KeyDescription:
    return KeyDescription(key, version.version, ALGORITHM, owner, version.created, version.state)


def _place(key: str, record: int) -> bytes:
    return labelled_hash(RECORD_LABEL, key.encode(), record.to_bytes(8, "big"))


def _bound(key: str, number: bytes, aad: bytes) -> bytes:
    return labelled_hash(SEAL_LABEL, key.encode(), number, aad)
