"""What a part of a federation keeps sealed on its host's disk: one file, written whole and synced, or not at all.

A file of another key, or with a bit changed, does not open. That a host laid an older file in its place, or took it away, no
file can tell.
"""

from __future__ import annotations

import fcntl
import io
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Generic, TypeVar

from cloister.encoding import Record, decode_json, encode_json
from cloister.errors import FormatError, UsageError
from cloister.manifest.storage import write_whole
from cloister.sealing import KeySource
from cloister.sealing.reader import SealedReader
from cloister.sealing.writer import SealedWriter

R = TypeVar("R", bound=Record)


def write_sealed(path: Path, parts: Iterable[bytes], *, key_uri: str, kek: bytes) -> None:
    """Put a file of these parts in the place of what is there. Raises UsageError where it cannot be written."""
    out = io.BytesIO()
    with SealedWriter(out, key_uri=key_uri, kek=kek, name=path.name) as writer:
        for part in parts:
            writer.write(part)
    write_whole(path, out.getvalue(), replace=True)


def read_sealed(path: Path, keys: KeySource, *, limit: int) -> bytes | None:
    """What is in it; None where there is no file. Raises FormatError beyond ``limit`` bytes, and the errors of sealing."""
    try:
        with path.open("rb") as file:
            reader = SealedReader(file, keys, name=path.name)
            if reader.size > limit:
                raise FormatError(f"{path.name} has over {limit} bytes")
            return reader.read(0, reader.size)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise UsageError(f"{path} cannot be read ({error.strerror})") from None


class SealedRecord(Generic[R]):
    """A record in a file that no other process has open in this way. :meth:`close` lets others have it."""

    def __init__(
        self, path: Path, kind: type[R], *, keys: KeySource, key_uri: str, limit: int, user: str
    ) -> None:
        """``limit`` in bytes; ``user``: who else may have it, in words. Raises UsageError, and as the key source does."""
        self._path, self._kind, self._limit = path, kind, limit
        self._keys, self._key_uri, self._kek = keys, key_uri, keys.key(key_uri)
        self._held = _hold(path, user)

    @property
    def name(self) -> str:
        return self._path.name

    def read(self) -> R | None:
        """None where there is none yet. Raises FormatError, UsageError and the errors of sealing."""
        data = read_sealed(self._path, self._keys, limit=self._limit)
        return None if data is None else decode_json(data, self._kind, what=self.name, limit=self._limit)

    def write(self, record: R) -> R:
        """Only what is on the disk counts. Raises UsageError where it cannot be written, also once it is closed."""
        if self._held < 0:
            raise UsageError(f"{self.name} is closed")
        write_sealed(self._path, [encode_json(record)], key_uri=self._key_uri, kek=self._kek)
        return record

    def close(self) -> None:
        """Again it does nothing."""
        if self._held >= 0:
            os.close(self._held)
            self._held = -1


def _hold(path: Path, user: str) -> int:
    """A lock, as a descriptor. Raises UsageError."""
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = path.with_name(f".{path.name}.lock")
        descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise UsageError(f"{path.parent} cannot be used ({error.strerror})", todo="check --state") from None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        raise UsageError(f"another {user} uses {path}", todo="stop it first") from None
    return descriptor
