"""The disk as a tree sees it: one flat folder of plain files. All access goes through here, so that tests can pull the plug.

Refuses links, pipes and devices wherever a plain file is expected, and follows nothing: every name is opened below the
folder's own descriptor. A write is whole or it raises. Errors are :class:`OSError`, as the system gave them.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final, Protocol

from cloister.errors import IndexMismatch, UsageError
from cloister.sealing.posix import Space

_AT_ONCE: Final = 512
"""Buffers for one system call; Linux takes 1024."""
_KEEP_SIZE, _PUNCH_HOLE = 1, 2
_libc = ctypes.CDLL(None, use_errno=True)


class StoredFile(Protocol):
    """An open file of the folder."""

    def size(self) -> int: ...

    def read(self, buffers: Sequence[memoryview], offset: int) -> int:
        """Fill the buffers from ``offset`` on; how many bytes there were."""
        ...

    def write(self, buffers: Sequence[bytes | memoryview], offset: int) -> None: ...

    def truncate(self, size: int) -> None: ...

    def punch(self, offset: int, length: int) -> None:
        """Give the space back; reads find zeros. Where the file system cannot, nothing happens."""
        ...

    def reserve(self, offset: int, length: int) -> None:
        """Set room aside, so that writing there later cannot fail for want of it; the size stays. Where the file system
        cannot, or there is no room, nothing happens."""
        ...

    def sync(self) -> None:
        """Contents and size are on the disk when it returns."""
        ...

    def lock(self, *, alone: bool) -> bool:
        """Until it is closed; False if somebody else's lock is in the way."""
        ...

    def close(self) -> None: ...


class Storage(Protocol):
    """The folder."""

    def names(self) -> Iterator[tuple[str, bool]]:
        """Each name, and whether it is a plain file."""
        ...

    def open(self, name: str, *, write: bool) -> StoredFile: ...

    def create(self, name: str) -> StoredFile:
        """A file that was not there."""
        ...

    def rename(self, old: str, new: str) -> None: ...

    def remove(self, name: str) -> None: ...

    def sync(self) -> None:
        """Names are on the disk when it returns."""
        ...

    def space(self) -> Space: ...

    def close(self) -> None: ...


class FolderStorage:
    """A folder of a real file system."""

    def __init__(self, directory: Path) -> None:
        """Raises :class:`~cloister.errors.UsageError`."""
        try:
            self._folder = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise UsageError(f"cannot open the folder {directory}: {error.strerror}") from None

    def names(self) -> Iterator[tuple[str, bool]]:
        """In no order."""
        with os.scandir(self._folder) as entries:
            for entry in entries:
                yield entry.name, entry.is_file(follow_symlinks=False)

    def open(self, name: str, *, write: bool) -> PlainFile:
        """Raises OSError, and :class:`~cloister.errors.IndexMismatch` where something else than a plain file lies."""
        # Without O_NONBLOCK a FIFO put in the file's place would hang us before we can see what it is.
        flags = (os.O_RDWR if write else os.O_RDONLY) | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
        try:
            descriptor = os.open(name, flags, dir_fd=self._folder)
        except OSError as error:
            if error.errno in (errno.ELOOP, errno.EISDIR, errno.ENXIO):
                raise IndexMismatch(f"{name!a} is not a plain file") from None
            raise
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.close(descriptor)
            raise IndexMismatch(f"{name!a} is not a plain file")
        return PlainFile(descriptor)

    def create(self, name: str) -> PlainFile:
        """Raises OSError."""
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        return PlainFile(os.open(name, flags, 0o600, dir_fd=self._folder))

    def rename(self, old: str, new: str) -> None:
        """Over what is there."""
        os.rename(old, new, src_dir_fd=self._folder, dst_dir_fd=self._folder)

    def remove(self, name: str) -> None:
        """Nothing happens where nothing is."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name, dir_fd=self._folder)

    def sync(self) -> None:
        """The folder itself."""
        os.fsync(self._folder)

    def space(self) -> Space:
        """Of the file system."""
        found = os.fstatvfs(self._folder)
        return Space(found.f_blocks * found.f_frsize, found.f_bavail * found.f_frsize)

    def close(self) -> None:
        """Once."""
        os.close(self._folder)


class PlainFile:
    """A file of a real file system."""

    __slots__ = ("_descriptor",)

    def __init__(self, descriptor: int) -> None:
        """``descriptor`` is ours from now on."""
        self._descriptor = descriptor

    def size(self) -> int:
        """Bytes."""
        return os.fstat(self._descriptor).st_size

    def read(self, buffers: Sequence[memoryview], offset: int) -> int:
        """Across short reads."""
        done = 0
        for wanted in _portions(buffers):
            left = list(wanted)
            while left:
                count = os.preadv(self._descriptor, left, offset + done)
                if count == 0:
                    return done
                done += count
                left = _behind(left, count)
        return done

    def write(self, buffers: Sequence[bytes | memoryview], offset: int) -> None:
        """Across short writes."""
        done = 0
        for wanted in _portions(buffers):
            left = list(wanted)
            while left:
                count = os.pwritev(self._descriptor, left, offset + done)
                done += count
                left = _behind(left, count)

    def truncate(self, size: int) -> None:
        """Shorter or longer."""
        os.ftruncate(self._descriptor, size)

    def punch(self, offset: int, length: int) -> None:
        """Best effort."""
        self._allocate(_PUNCH_HOLE | _KEEP_SIZE, offset, length)

    def reserve(self, offset: int, length: int) -> None:
        """Best effort."""
        self._allocate(_KEEP_SIZE, offset, length)

    def _allocate(self, mode: int, offset: int, length: int) -> None:
        _libc.fallocate(self._descriptor, mode, ctypes.c_longlong(offset), ctypes.c_longlong(length))

    def sync(self) -> None:
        """As the system can."""
        os.fdatasync(self._descriptor)

    def lock(self, *, alone: bool) -> bool:
        """Between processes, and between two openings in one."""
        try:
            fcntl.flock(self._descriptor, (fcntl.LOCK_EX if alone else fcntl.LOCK_SH) | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def close(self) -> None:
        """Once."""
        os.close(self._descriptor)


def _portions(buffers: Sequence[bytes | memoryview]) -> Iterator[Sequence[bytes | memoryview]]:
    for start in range(0, len(buffers), _AT_ONCE):
        yield buffers[start : start + _AT_ONCE]


def _behind(buffers: list[bytes | memoryview], count: int) -> list[bytes | memoryview]:
    """What is left of the buffers behind ``count`` bytes."""
    for number, buffer in enumerate(buffers):
        if count < len(buffer):
            return [memoryview(buffer)[count:], *buffers[number + 1 :]] if count else buffers[number:]
        count -= len(buffer)
    return []
