"""Endorsements on disk, one file for each part, shared by the processes of one user.

A cache saves questions; it is never a reason to trust: whatever comes out of it is verified like anything from the
network. Entries appear whole or not at all (written beside, synced, renamed), so two processes need no lock. Each
carries a digest against damage; one that is damaged or not what its name says is dropped and asked for again. The
number and size of entries are bounded, the oldest go first. A directory that others could write to is refused.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
import stat
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from cloister.encoding import Record, decode_json, encode_json
from cloister.endorsements.asking import MAX_CONTENT, Entry, Vendor, check_key
from cloister.errors import CloisterError, FormatError, UsageError

MAX_FILE: Final = 2 * MAX_CONTENT
_HEADER: Final = b"cloister/endorsement-cache/v1 "
_SUFFIX: Final = ".entry"
_UNFINISHED: Final = ".new-"
_ABANDONED: Final = 3600
"""Seconds after which a file that was never renamed belongs to a process that died."""


class _Stored(Record, frozen=True, kw_only=True):
    vendor: Vendor
    key: str
    fetched_at: int
    content: bytes


class Cache:
    """The entries below ``directory``. Nothing is touched before the first use."""

    def __init__(self, directory: Path, *, max_entries: int = 1024, max_bytes: int = 64 << 20) -> None:
        self.directory = directory
        self._max_entries = max_entries
        self._max_bytes = max_bytes

    def read(self, vendor: Vendor, key: str) -> Entry | None:
        """The entry, or None. Raises :class:`~cloister.errors.UsageError` if the directory cannot be used."""
        path = self.directory / _name(vendor, key)
        with self._use():
            if not self._exists():
                return None
            entry = _load(path)
            if entry is None:
                return None
            if (entry.vendor, entry.key) != (vendor, key):
                path.unlink(missing_ok=True)
                return None
            return entry

    def write(self, entry: Entry) -> None:
        """Store ``entry`` in place of one with its name. Raises :class:`~cloister.errors.UsageError`."""
        check_key(entry.key)
        if len(entry.content) > MAX_CONTENT:
            raise UsageError(f"an endorsement of {len(entry.content)} bytes is too large to be cached")
        body = encode_json(
            _Stored(vendor=entry.vendor, key=entry.key, fetched_at=entry.fetched_at, content=entry.content)
        )
        data = _HEADER + hashlib.sha256(body).hexdigest().encode() + b"\n" + body
        name = _name(entry.vendor, entry.key)
        with self._use():
            self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._exists()
            unfinished = self.directory / f"{_UNFINISHED}{secrets.token_hex(8)}"
            try:
                _write_synced(unfinished, data)
                unfinished.replace(self.directory / name)
            except BaseException:
                unfinished.unlink(missing_ok=True)
                raise
            _sync_directory(self.directory)
            self._evict(keep=name)

    def entries(self) -> tuple[Entry, ...]:
        """Every sound entry, by name. Raises :class:`~cloister.errors.UsageError`."""
        with self._use():
            if not self._exists():
                return ()
            found = [_load(path) for path in sorted(self.directory.glob(f"*{_SUFFIX}"))]
        return tuple(
            sorted(
                (entry for entry in found if entry is not None), key=lambda entry: (entry.vendor, entry.key)
            )
        )

    def drop(self, vendor: Vendor, key: str) -> None:
        """Forget one entry, if it is there. Raises :class:`~cloister.errors.UsageError`."""
        with self._use():
            (self.directory / _name(vendor, key)).unlink(missing_ok=True)

    @contextlib.contextmanager
    def _use(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise UsageError(
                f"the cache {self.directory} cannot be used: {error.strerror or type(error).__name__}",
                todo="name another with --cache",
            ) from None

    def _exists(self) -> bool:
        try:
            status = self.directory.stat()
        except FileNotFoundError:
            return False
        if not stat.S_ISDIR(status.st_mode):
            raise UsageError(f"the cache {self.directory} is not a directory")
        if status.st_uid != os.geteuid() or status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            raise UsageError(
                f"others can write to the cache {self.directory}", todo=f"chmod 700 {self.directory}"
            )
        return True

    def _evict(self, *, keep: str) -> None:
        files: list[tuple[int, str, int]] = []
        for path in self.directory.iterdir():
            with contextlib.suppress(FileNotFoundError):  # another process was quicker
                status = path.lstat()
                if path.name.startswith(_UNFINISHED):
                    if abs(time.time() - status.st_mtime) > _ABANDONED:
                        path.unlink(missing_ok=True)
                elif path.name.endswith(_SUFFIX):
                    files.append((status.st_mtime_ns, path.name, status.st_size))
        count, size = len(files), sum(one[2] for one in files)
        for _, name, length in sorted(files):
            if count <= self._max_entries and size <= self._max_bytes:
                return
            if name != keep:
                (self.directory / name).unlink(missing_ok=True)
                count, size = count - 1, size - length


def _name(vendor: Vendor, key: str) -> str:
    return hashlib.sha256(f"{vendor}/{check_key(key)}".encode()).hexdigest() + _SUFFIX


def _load(path: Path) -> Entry | None:
    """The entry, or None; a damaged one is removed."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError:
        return None
    with os.fdopen(descriptor, "rb") as file:
        data = file.read(MAX_FILE + 1) if stat.S_ISREG(os.fstat(descriptor).st_mode) else b""
    header, _, body = data.partition(b"\n")
    expected = _HEADER + hashlib.sha256(body).hexdigest().encode()
    try:
        if header != expected:
            raise FormatError("the digest does not fit")
        stored = decode_json(body, _Stored, what="a cache entry", limit=MAX_FILE)
        check_key(stored.key)
    except CloisterError:
        path.unlink(missing_ok=True)
        return None
    return Entry(stored.vendor, stored.key, stored.fetched_at, stored.content)


def _write_synced(path: Path, data: bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(descriptor)


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
