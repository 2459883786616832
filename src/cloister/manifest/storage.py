"""Signed documents on a disk: read up to a bound, written whole or not at all."""

from __future__ import annotations

import contextlib
import os
import tempfile
from pathlib import Path

from cloister.errors import UsageError
from cloister.manifest.signed import MAX_SIGNED, Signed, encode_signed, parse_signed


def read_bounded(path: Path, *, limit: int, what: str) -> bytes:
    """A whole file of at most ``limit`` bytes. Raises :class:`~cloister.errors.UsageError`."""
    try:
        with path.open("rb") as file:
            data = file.read(limit + 1)
    except OSError as error:
        raise UsageError(
            f"{what} {path} cannot be read ({error.strerror})", todo="name an existing file"
        ) from None
    if len(data) > limit:
        raise UsageError(f"{what} {path} is longer than {limit} bytes")
    return data


def read_signed(path: Path) -> Signed:
    """A signed document. Raises :class:`~cloister.errors.UsageError`, :class:`~cloister.errors.ManifestError`."""
    return parse_signed(read_bounded(path, limit=MAX_SIGNED, what="the signed document"))


def write_signed(path: Path, signed: Signed, *, replace: bool) -> None:
    """Write a signed document; without ``replace`` nothing may be at ``path``. Raises UsageError."""
    write_whole(path, encode_signed(signed), replace=replace)


def write_whole(path: Path, data: bytes, *, replace: bool, mode: int = 0o644) -> None:
    """``data`` in a file, synced: a reader sees the old or the new, never a part. Others may read it, unless ``mode`` says
    otherwise. Raises UsageError.
    """
    try:
        descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(data)
                os.fchmod(file.fileno(), mode)
                file.flush()
                os.fsync(file.fileno())
            if replace:
                Path(name).replace(path)
            else:
                os.link(name, path)  # fails where something is: two writers, one wins
        finally:
            with contextlib.suppress(FileNotFoundError):
                Path(name).unlink()
        _sync(path.parent)
    except FileExistsError:
        raise UsageError(f"{path} exists, and is not overwritten", todo="choose another name") from None
    except OSError as error:
        raise UsageError(f"{path} cannot be written ({error.strerror})") from None


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
