"""Sealed directories on a disk of this machine, below ``sealed://``: by descriptors, without following links.

An index moves by rename after a sync, bodies are written beside their directory and move in under its lock, so that who
opens the directory finds nothing that its index does not name. Refuses links and special files.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from cloister.errors import IndexMismatch, UsageError
from cloister.sealing.descriptors import create_new, open_regular, read_into, write_all
from cloister.sealing.filesystem_stores import Body, Source, bounded

_LOCK_WAIT = 60.0
_LOCK_PAUSE = 0.02


class _LocalSource:
    span = 1

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self.size = os.fstat(descriptor).st_size

    def read_into(self, buffer: memoryview, offset: int) -> int:
        return read_into(self._descriptor, buffer, offset)

    def close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def __del__(self) -> None:
        self.close()


class LocalStore:
    """The disk of this machine, by descriptors."""

    local = True

    def parent(self, path: str) -> str | None:
        above = str(Path(path).parent)
        return None if above == path else above

    def read(self, path: str, limit: int) -> bytes:
        with _plain_file(path) as descriptor:
            data = bytearray(min(os.fstat(descriptor).st_size, limit) + 1)
            count = read_into(descriptor, memoryview(data), 0)
        return bounded(bytes(data[:count]), path, limit)

    def stamp(self, path: str) -> object | None:
        try:
            found = Path(path).stat()
        except OSError:
            return None
        return found.st_ino, found.st_mtime_ns, found.st_ctime_ns, found.st_size

    def source(self, path: str) -> Source:
        with _plain_file(path) as descriptor:
            return _LocalSource(os.dup(descriptor))

    def names(self, directory: str) -> list[tuple[str, bool]]:
        with os.scandir(directory) as found:
            return sorted((entry.path, entry.is_dir()) for entry in found)

    def is_directory(self, path: str) -> bool:
        return Path(path).is_dir()

    @contextlib.contextmanager
    def locked(self, directory: str, *, clock: Callable[[], float] = time.monotonic) -> Iterator[None]:
        until = clock() + _LOCK_WAIT
        while (descriptor := _lock(directory)) is None:
            if clock() > until:
                raise UsageError(
                    f"another process writes to {directory}", todo="try again when it is done"
                ) from None
            time.sleep(_LOCK_PAUSE)
        try:
            yield
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def body(self, directory: str) -> Body:
        return _LocalBody(Path(directory))

    def write(self, path: str, data: bytes, *, directory: str) -> None:
        place, beside = Path(path), _beside(Path(directory))
        try:
            with create_new(beside, 0o644) as descriptor:
                write_all(descriptor, data, 0)
                os.fsync(descriptor)
            beside.rename(place)
            _sync(place.parent)
        finally:
            beside.unlink(missing_ok=True)

    def remove(self, path: str) -> None:
        Path(path).unlink(missing_ok=True)

    def remove_directory(self, path: str) -> None:
        Path(path).rmdir()


class _LocalBody:
    """Written beside the sealed directory: who opens that meanwhile must find nothing that its index does not name."""

    def __init__(self, directory: Path) -> None:
        directory.parent.mkdir(parents=True, exist_ok=True)
        self._path = _beside(directory)
        self._file = self._path.open("xb", buffering=0)

    def write(self, data: bytes | bytearray | memoryview, /) -> int:
        with memoryview(data) as view:
            done = 0
            while done < len(view):
                done += self._file.write(view[done:])
        return done

    def keep(self, path: str) -> None:
        os.fsync(self._file.fileno())
        self._file.close()
        self._path.rename(path)
        _sync(Path(path).parent)

    def discard(self) -> None:
        self._file.close()
        self._path.unlink(missing_ok=True)


@contextlib.contextmanager
def _plain_file(path: str) -> Iterator[int]:
    if not os.path.lexists(path) or Path(path).is_dir():
        raise FileNotFoundError(path)
    with open_regular(Path(path), IndexMismatch) as descriptor:
        yield descriptor


def _lock(directory: str) -> int | None:
    """A descriptor that locks the directory until it is closed; None while another writer has it."""
    try:
        Path(directory).mkdir(parents=True, exist_ok=True)
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    except FileExistsError:
        # `mkdir` looks twice: it was there, and who removed its last file took it away before it was seen to be a directory.
        if os.path.lexists(directory) and not Path(directory).is_dir():
            raise
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # Who removed the last file has removed the directory too: a lock on that one keeps nobody out.
        if os.path.samestat(os.fstat(descriptor), Path(directory).stat()):
            return descriptor
    except (BlockingIOError, FileNotFoundError):
        pass
    except BaseException:
        os.close(descriptor)
        raise
    os.close(descriptor)
    return None


def _sync(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _beside(directory: Path) -> Path:
    return directory.with_name(f".{directory.name[:100]}.{secrets.token_hex(8)}.partial")
