"""The bounds on what a key store is given, and what a wrap authenticates beside its plaintext: the same in all. Pure."""

from __future__ import annotations

import re
from typing import Final

from cloister.broker.keystores import AAD_SIZE, MAX_PLAINTEXT
from cloister.encoding import MAX_SAFE_INTEGER, labelled_hash
from cloister.errors import KeystoreError

MAX_VERSIONS: Final = 1000
MAX_OWNER: Final = 128
VERSION_SIZE: Final = 4

_ID: Final = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,63}")


def check_id(key: str) -> None:
    """Raise :class:`~cloister.errors.KeystoreError` unless ``key`` is an id."""
    if not _ID.fullmatch(key):
        raise KeystoreError(
            f"{key[:64]!a} is not the id of a key",
            todo="use 1 to 64 of A-Z a-z 0-9 . _ - and no dot in front",
        )


def check_new(key: str, owner: str, now: int) -> None:
    """Raise unless a key of this id, owner and time can be made."""
    check_id(key)
    if not 1 <= len(owner) <= MAX_OWNER or not owner.isprintable():
        raise KeystoreError(f"the owner of a key is 1 to {MAX_OWNER} printable characters")
    check_time(now)


def check_time(now: int) -> None:
    """Raise unless ``now`` is a time in Unix seconds that a record can hold."""
    if not 0 <= now <= MAX_SAFE_INTEGER:
        raise KeystoreError("a key is made at a time in Unix seconds")


def check_plaintext(plaintext: bytes, aad: bytes) -> None:
    """Raise unless a store wraps ``plaintext`` for ``aad``."""
    if not 1 <= len(plaintext) <= MAX_PLAINTEXT:
        raise KeystoreError(f"a key store wraps 1 to {MAX_PLAINTEXT} bytes, not {len(plaintext)}")
    check_aad(aad)


def check_aad(aad: bytes) -> None:
    """Raise unless ``aad`` names one record."""
    if len(aad) != AAD_SIZE:
        raise KeystoreError(f"a wrap is for one record, named by {AAD_SIZE} bytes, not {len(aad)}")


def bound_aad(label: str, key: str, version: int, aad: bytes) -> bytes:
    """32 bytes for the key, its version and the record that a wrap is for, under the store's own label."""
    return labelled_hash(label, key.encode("ascii"), version.to_bytes(VERSION_SIZE, "big"), aad)
