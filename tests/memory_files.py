"""A file system in memory that behaves as a mount expects: for tests of what lies above, without a disk or a key."""

from __future__ import annotations

import errno
import itertools
import os
import threading
from typing import Any

from cloister.errors import TamperedFile
from cloister.sealing.posix import Kind, Space, Status


def refused(number: int) -> OSError:
    return OSError(number, os.strerror(number))


class _Entry:
    def __init__(self, kind: Kind, number: int, mode: int, content: bytes = b"") -> None:
        self.kind, self.number, self.mode = kind, number, mode
        self.content = bytearray(content)
        self.modified = 10**18

    @property
    def status(self) -> Status:
        size = 0 if self.kind == "directory" else len(self.content)
        return Status(self.kind, self.number, self.mode, size, size, self.modified, self.modified)


class MemoryFile:
    def __init__(self, files: MemoryFiles, entry: _Entry) -> None:
        self._files, self._entry = files, entry
        self.closed = False

    @property
    def status(self) -> Status:
        return self._entry.status

    def read(self, offset: int, length: int) -> bytes:
        if self._entry.number in self._files.damaged:
            raise TamperedFile("segment 0 does not authenticate")
        return bytes(memoryview(self._entry.content)[offset : offset + length])

    def write(self, offset: int, data: bytes | memoryview) -> int:
        with self._files.lock:
            content = self._entry.content
            if offset + len(data) > self._files.limit:
                raise refused(errno.ENOSPC)
            if offset > len(content):
                content.extend(bytes(offset - len(content)))
            content[offset : offset + len(data)] = data
        return len(data)

    def truncate(self, size: int) -> None:
        with self._files.lock:
            content = self._entry.content
            del content[size:]
            content.extend(bytes(size - len(content)))

    def sync(self) -> None:
        self._files.syncs += 1

    def close(self) -> None:
        assert not self.closed
        self.closed = True
        self._files.open_handles -= 1


class MemoryFiles:
    """Writable :class:`~cloister.sealing.posix.Files`."""

    writable = True

    def __init__(self, *, limit: int = 1 << 40) -> None:
        self.limit = limit
        self.damaged: set[int] = set()
        self.syncs = 0
        self.open_handles = 0
        self.lock = threading.RLock()
        self._numbers = itertools.count(1)
        self._entries = {"": _Entry("directory", next(self._numbers), 0o755)}

    def _entry(self, path: str) -> _Entry:
        try:
            return self._entries[path]
        except KeyError:
            raise refused(errno.ENOENT) from None

    def _new(self, path: str, kind: Kind, mode: int, content: bytes = b"") -> _Entry:
        with self.lock:
            if path in self._entries:
                raise refused(errno.EEXIST)
            self._entry(path.rpartition("/")[0])
            entry = self._entries[path] = _Entry(kind, next(self._numbers), mode, content)
            return entry

    def status(self, path: str) -> Status:
        return self._entry(path).status

    def names(self, path: str) -> tuple[str, ...]:
        self._entry(path)
        prefix = f"{path}/" if path else ""
        below = (other[len(prefix) :] for other in self._entries if other and other.startswith(prefix))
        return tuple(sorted(name for name in below if "/" not in name))

    def open(self, path: str, *, write: bool) -> MemoryFile:
        entry = self._entry(path)
        if entry.kind == "directory":
            raise refused(errno.EISDIR)
        self.open_handles += 1
        return MemoryFile(self, entry)

    def create(self, path: str, mode: int) -> MemoryFile:
        entry = self._new(path, "file", mode)
        self.open_handles += 1
        return MemoryFile(self, entry)

    def truncate(self, path: str, size: int) -> None:
        file = self.open(path, write=True)
        file.truncate(size)
        file.close()

    def make_directory(self, path: str, mode: int) -> None:
        self._new(path, "directory", mode)

    def remove_directory(self, path: str) -> None:
        with self.lock:
            if self._entry(path).kind != "directory":
                raise refused(errno.ENOTDIR)
            if self.names(path):
                raise refused(errno.ENOTEMPTY)
            del self._entries[path]

    def unlink(self, path: str) -> None:
        with self.lock:
            if self._entry(path).kind == "directory":
                raise refused(errno.EISDIR)
            del self._entries[path]

    def rename(self, old: str, new: str, *, replace: bool = True) -> None:
        with self.lock:
            self._entry(old)
            if new in self._entries and not replace:
                raise refused(errno.EEXIST)
            if new in self._entries and self.names(new):
                raise refused(errno.ENOTEMPTY)
            moved = {
                path: new + path[len(old) :] for path in self._entries if f"{path}/".startswith(f"{old}/")
            }
            taken = {target: self._entries.pop(path) for path, target in moved.items()}
            self._entries.update(taken)

    def link(self, path: str, target: str) -> None:
        self._new(path, "link", 0o777, target.encode())

    def read_link(self, path: str) -> str:
        return self._entry(path).content.decode()

    def set_mode(self, path: str, mode: int) -> None:
        self._entry(path).mode = mode

    def set_modified(self, path: str, modified_ns: int) -> None:
        self._entry(path).modified = modified_ns

    def space(self) -> Space:
        return Space(self.limit, self.limit // 2)

    def sync(self) -> None:
        self.syncs += 1

    def close(self) -> None:
        self.sync()


def attributes(file: Any) -> Status:
    """What a handle shows, for short."""
    status: Status = file.status
    return status
