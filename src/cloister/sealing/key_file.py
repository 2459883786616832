"""An owner's secrets on the owner's own disk: small text files of a kind line and 32 bytes, mode 0600.

Refuses to overwrite a file, to read one that others may read, and one of another kind: a signing key is never
taken for a key-encryption key. Nothing secret appears in errors or representations.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from cloister.encoding import b64url_decode, b64url_encode, labelled_hash
from cloister.errors import FormatError, KeyUnavailable, UsageError
from cloister.sealing.descriptors import read_private
from cloister.sealing.uri import parse_key_uri

SECRET_SIZE = 32
KEK_KIND = "cloister key-encryption key v1"
SIGNING_KIND = "cloister signing key v1"

_MAX_FILE = 256


class KeyFile:
    """A :class:`~cloister.sealing.KeySource` over an owner's copy of one key-encryption key.

    It answers for ``uri``; without one it answers for any, which is safe for whoever holds the file: the
    wrap itself is bound to its URI and opens under no other.
    """

    def __init__(self, key: bytes, uri: str | None = None, *, name: str = "the key file") -> None:
        self._uri = None if uri is None else str(parse_key_uri(uri))
        self._key = key
        self._name = name

    @classmethod
    def load(cls, path: Path, uri: str | None = None) -> KeyFile:
        """Read a key file. Raises :class:`~cloister.errors.UsageError`."""
        return cls(read_key(path), uri, name=path.name)

    def __repr__(self) -> str:
        return f"KeyFile({self._name!r}, uri={self._uri!r})"

    def key(self, uri: str) -> bytes:
        """The 32-byte key. Raises :class:`~cloister.errors.KeyUnavailable` for another URI."""
        if self._uri is not None and uri != self._uri:
            raise KeyUnavailable(
                f"{self._name} holds the key at {self._uri}, not {uri}", todo="name the key file of that URI"
            )
        return self._key


def create_key(path: Path, *, entropy: Callable[[int], bytes] = os.urandom) -> bytes:
    """Make a key-encryption key file; returns the key. Raises :class:`~cloister.errors.UsageError`."""
    key = entropy(SECRET_SIZE)
    write_secret(path, KEK_KIND, key)
    return key


def read_key(path: Path) -> bytes:
    """The 32 bytes of a key-encryption key file, which are what the broker stores at the key's URI.

    Raises :class:`~cloister.errors.UsageError`.
    """
    return read_secret(path, KEK_KIND)


def key_fingerprint(key: bytes) -> str:
    """32 hexadecimal digits that tell keys apart and say nothing else: the key itself is 256 random bits."""
    return labelled_hash("cloister/key-fingerprint/v1", key)[:16].hex()


def write_secret(path: Path, kind: str, secret: bytes) -> None:
    """Write a new 0600 file, synced to disk. Raises :class:`~cloister.errors.UsageError` if ``path`` exists."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    except FileExistsError:
        raise UsageError(
            f"{path} exists, and keys are never overwritten", todo="choose another name"
        ) from None
    except OSError as error:
        raise UsageError(f"cannot create {path}: {error.strerror}") from None
    with os.fdopen(descriptor, "wb") as file:
        file.write(f"{kind}\n{b64url_encode(secret)}\n".encode("ascii"))
        file.flush()
        os.fsync(file.fileno())


def read_kind(path: Path) -> str:
    """The kind line of a secret file: :data:`KEK_KIND` or :data:`SIGNING_KIND`."""
    kind, _ = _read(path)
    return kind


def read_secret(path: Path, kind: str) -> bytes:
    """The 32 bytes of a secret file of this kind. Raises :class:`~cloister.errors.UsageError`."""
    found, secret = _read(path)
    if found != kind:
        raise UsageError(f"{path} is a {found}, not a {kind}", todo="check which file is which")
    return secret


def _read(path: Path) -> tuple[str, bytes]:
    if not path.exists():
        raise UsageError(f"there is no key file {path}", todo="make one with `cloister keys new`")
    data = read_private(path, what="the key file", limit=_MAX_FILE)
    try:
        lines = data.decode("ascii").split("\n")
        kind, encoded, rest = lines
        if rest or kind not in (KEK_KIND, SIGNING_KIND):
            raise FormatError("not a key file")
        return kind, b64url_decode(encoded, what="the key", length=SECRET_SIZE)
    except (UnicodeDecodeError, ValueError, FormatError):
        raise UsageError(
            f"{path} is not a Cloister key file", todo="make one with `cloister keys new`"
        ) from None
