"""A sealed directory (suite 1) as files that can be looked at and read in any order, without unsealing it anywhere.

Folders are made of the paths in the index, sizes are the index's. Before the first byte of a file is handed out, the whole
of its body was compared with the digest that its owner signed, and every block is compared with what it was then each
time that it is read again. With ``verify="segments"`` that pass is left out and only the data key vouches for a segment: who
holds it and the disk, but not the owner's signing key, could then replace content. Refused: every change (``EROFS``).
"""

from __future__ import annotations

import errno
import logging
import os
import threading
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Final, NoReturn, TypeVar

from cloister.errors import CloisterError, KeyUnavailable
from cloister.sealing import KeySource
from cloister.sealing.index import Index
from cloister.sealing.posix import OpenFile, Space, Status
from cloister.sealing.view_body import Verify, ViewedBody
from cloister.sealing.view_cache import Fill, SegmentCache

MAX_IDLE: Final = 1024
"""So many files that nobody has open stay checked, so that opening them again costs nothing."""
CACHED_SEGMENTS: Final = 32
"""Decrypted segments that are kept, 1 MiB each, over all files."""
MADE_NS: Final = 315_532_800 * 10**9
"""1980-01-01: an index has no times, and this one no archiver complains about."""
MAX_SAID: Final = 1000
"""So many different lines at most go to the log."""
_FILE_MODE: Final = 0o400
_FOLDER_MODE: Final = 0o500
_log = logging.getLogger(__name__)
T = TypeVar("T")


class SealedView:
    """Read-only :class:`~cloister.sealing.posix.Files` of a sealed directory. Thread-safe."""

    writable = False

    def __init__(self, directory: Path, index: Index, keys: KeySource, *, verify: Verify = "whole") -> None:
        """``index`` comes from :func:`~cloister.sealing.index.open_index` over ``directory``. ``keys`` is asked once for
        each file, when it is first opened: let it remember."""
        self._directory = directory
        self._index = index
        self._keys = keys
        self._verify = verify
        self._folders = _folders_of(index)
        numbered = (*self._folders, *index.files)
        self._numbers = {path: number for number, path in enumerate(numbered, 1)}
        self._bodies: OrderedDict[str, ViewedBody] = OrderedDict()
        self._cache = SegmentCache(CACHED_SEGMENTS)
        self._said: set[str] = set()
        self._lock = threading.Lock()

    def status(self, path: str) -> Status:
        """A folder's or a file's. Raises FileNotFoundError, NotADirectoryError."""
        number = self._numbers.get(path)
        if number is None:
            raise self._missing(path)
        if path in self._folders:
            return Status("directory", number, _FOLDER_MODE, 0, 0, MADE_NS, MADE_NS)
        size = self._index.files[path].size
        return Status("file", number, _FILE_MODE, size, size, MADE_NS, MADE_NS)

    def names(self, path: str) -> tuple[str, ...]:
        """What a folder holds, sorted."""
        try:
            return self._folders[path]
        except KeyError:
            raise (_refused(errno.ENOTDIR) if path in self._numbers else self._missing(path)) from None

    def open(self, path: str, *, write: bool) -> ViewedFile:
        """Open a file; the first time its whole body is read. Raises OSError, ``EIO`` if it is not what its owner sealed."""
        if write:
            raise _refused(errno.EROFS)
        if path not in self._index.files:
            raise _refused(errno.EISDIR) if path in self._folders else self._missing(path)
        body = self._body(path)
        self.refusing(path, body.acquire)
        return ViewedFile(self, body, self.status(path))

    def _body(self, path: str) -> ViewedBody:
        with self._lock:
            body = self._bodies.get(path)
            if body is None:
                entry = self._index.files[path]
                place = self._directory / entry.file_name
                body = self._bodies[path] = ViewedBody(place, path, entry, self._keys, self._verify)
                self._forget_idle()
            self._bodies.move_to_end(path)
            return body

    def _forget_idle(self) -> None:
        if len(self._bodies) > MAX_IDLE:
            for path, body in self._bodies.items():
                if body.idle:
                    del self._bodies[path]
                    return

    def piece(self, body: ViewedBody, segment: int, start: int, length: int) -> bytes:
        """Bytes of one segment, by way of the cache."""
        fill: Fill = lambda block, clear: body.fill(segment, block, clear)  # noqa: E731
        key = (body.path, segment)
        return self.refusing(body.path, lambda: self._cache.copy(key, fill, start, length))

    def refusing(self, path: str, act: Callable[[], T]) -> T:
        """Do it; what keeps sealed bytes from being read is told to the log once, and to the program as an errno."""
        try:
            return act()
        except CloisterError as error:
            line = f"{path!a}: {error.what}"
            with self._lock:
                new = line not in self._said and len(self._said) < MAX_SAID
                self._said.add(line)
            if new:
                _log.warning("%s", line)
            raise _refused(errno.EACCES if isinstance(error, KeyUnavailable) else errno.EIO) from None

    def space(self) -> Space:
        """All of it is used."""
        return Space(self._index.size, 0)

    def sync(self) -> None:
        """There is nothing to sync."""

    def close(self) -> None:
        """Erase what was decrypted."""
        self._cache.close()

    def _missing(self, path: str) -> OSError:
        parent = path
        while "/" in parent:
            parent = parent.rpartition("/")[0]
            if parent in self._index.files:
                return _refused(errno.ENOTDIR)
        return _refused(errno.ENOENT)

    def create(self, path: str, mode: int) -> OpenFile:
        raise _refused(errno.EROFS)

    def truncate(self, path: str, size: int) -> NoReturn:
        raise _refused(errno.EROFS)

    def make_directory(self, path: str, mode: int) -> NoReturn:
        raise _refused(errno.EROFS)

    def remove_directory(self, path: str) -> NoReturn:
        raise _refused(errno.EROFS)

    def unlink(self, path: str) -> NoReturn:
        raise _refused(errno.EROFS)

    def rename(self, old: str, new: str, *, replace: bool = True) -> NoReturn:
        raise _refused(errno.EROFS)

    def link(self, path: str, target: str) -> NoReturn:
        raise _refused(errno.EROFS)

    def read_link(self, path: str) -> NoReturn:
        raise _refused(errno.EINVAL)

    def set_mode(self, path: str, mode: int) -> NoReturn:
        raise _refused(errno.EROFS)

    def set_modified(self, path: str, modified_ns: int) -> NoReturn:
        raise _refused(errno.EROFS)


class ViewedFile:
    """An open file of a view."""

    def __init__(self, view: SealedView, body: ViewedBody, status: Status) -> None:
        self._view = view
        self._body = body
        self._status = status

    @property
    def status(self) -> Status:
        """As of its path."""
        return self._status

    def read(self, offset: int, length: int) -> bytes:
        """Up to ``length`` bytes, fewer only at the end of the file."""
        layout = self._body.sealed.layout
        end = min(offset + length, layout.size)
        parts = []
        while offset < end:
            segment = layout.segment_at(offset)
            span = layout.plain(segment)
            count = min(end, span.start + span.length) - offset
            parts.append(self._view.piece(self._body, segment, offset - span.start, count))
            offset += count
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def write(self, offset: int, data: bytes | memoryview) -> NoReturn:
        raise _refused(errno.EBADF)

    def truncate(self, size: int) -> NoReturn:
        raise _refused(errno.EROFS)

    def sync(self) -> None:
        """There is nothing to sync."""

    def close(self) -> None:
        """Once."""
        self._body.release()


def _folders_of(index: Index) -> dict[str, tuple[str, ...]]:
    found: dict[str, set[str]] = {"": set()}
    for path in index.files:
        while path:
            folder, _, name = path.rpartition("/")
            known = folder in found
            found.setdefault(folder, set()).add(name)
            if known:
                break
            path = folder  # noqa: PLW2901
    return {folder: tuple(sorted(names)) for folder, names in found.items()}


def _refused(number: int) -> OSError:
    return OSError(number, os.strerror(number))
