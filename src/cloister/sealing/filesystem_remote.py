"""Sealed directories in any fsspec filesystem but the local one, below ``sealed://``: by its synchronous calls.

Its caches are left off: they would hold what was not asked for. Refuses answers of another length than asked for. An
object store has no lock and no rename: the last writer wins, and the others learn it from the index's version.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

from cloister.errors import CloisterError, NetworkError, UsageError
from cloister.sealing.envelope import HEADER_SIZE, parse_header
from cloister.sealing.filesystem_stores import Body, Source, bounded, last_part
from cloister.sealing.index import SUFFIX

_ABSENT = (FileNotFoundError, NotADirectoryError, IsADirectoryError)


class _RemoteSource:
    span = 8

    def __init__(self, read: Callable[[int, int], bytes], size: int, name: str) -> None:
        self._read = read
        self.size = size
        self._name = name

    def read_into(self, buffer: memoryview, offset: int) -> int:
        end = min(offset + len(buffer), self.size)
        data = self._read(offset, end)
        if len(data) > end - offset:
            raise NetworkError(
                f"{self._name} was asked for a range of bytes and answered with more",
                todo="use a server that answers ranges",
            )
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        pass


class RemoteStore:
    """Any other fsspec filesystem, by its synchronous calls and without its caches."""

    local = False

    def __init__(self, inner: Any) -> None:
        self._inner = inner

    def parent(self, path: str) -> str | None:
        above: str = self._inner._parent(path)
        return None if above in ("", "/", path) or above.endswith(("://", ":/")) else above

    def read(self, path: str, limit: int) -> bytes:
        with _foreign(path):
            return bounded(self._range(path, 0, limit + 1), path, limit)

    def stamp(self, path: str) -> object | None:
        return None

    def source(self, path: str) -> Source:
        with _foreign(path):
            size = self._inner.info(path)["size"]
        if not isinstance(size, int):
            raise NetworkError(
                f"{last_part(path)} has no size that its server tells", todo="use another server"
            )

        def read(start: int, end: int) -> bytes:
            with _foreign(path):
                return self._range(path, start, end)

        return _RemoteSource(read, size, last_part(path))

    def names(self, directory: str) -> list[tuple[str, bool]]:
        with _foreign(directory):
            found = self._inner.ls(directory, detail=True)
        return sorted((entry["name"].rstrip("/"), entry["type"] == "directory") for entry in found)

    def is_directory(self, path: str) -> bool:
        with _foreign(path):
            return bool(self._inner.isdir(path))

    @contextlib.contextmanager
    def locked(self, directory: str) -> Iterator[None]:
        with _foreign(directory), contextlib.suppress(FileExistsError):
            self._inner.makedirs(directory, exist_ok=True)
        yield

    def body(self, directory: str) -> Body:
        return _RemoteBody(self._inner, directory)

    def write(self, path: str, data: bytes, *, directory: str) -> None:
        with _foreign(path):
            self._inner.pipe_file(path, data)
            self._inner.invalidate_cache()

    def remove(self, path: str) -> None:
        with contextlib.suppress(FileNotFoundError), _foreign(path):
            self._inner.rm_file(path)

    def remove_directory(self, path: str) -> None:
        with contextlib.suppress(OSError), _foreign(path):
            self._inner.rmdir(path)

    def _range(self, path: str, start: int, end: int) -> bytes:
        if self._inner.async_impl:
            data: bytes = self._inner.cat_file(path, start=start, end=end)
        else:
            # Where fsspec reads ranges through its file objects they would hold blocks of their own.
            with self._inner.open(path, "rb", cache_type="none") as file:
                file.seek(start)
                data = file.read(end - start)
        return data


class _RemoteBody:
    """Written where it stays, as soon as its header tells its id; an object store shows it when it is whole."""

    def __init__(self, inner: Any, directory: str) -> None:
        self._inner = inner
        self._directory = directory
        self._start = bytearray()
        self._path = ""
        self._file: Any = None

    def write(self, data: bytes | bytearray | memoryview, /) -> int:
        if self._file is None:
            self._start += data
            if len(self._start) >= HEADER_SIZE:
                self._open()
        else:
            with _foreign(self._path):
                self._file.write(data)
        return len(data)

    def keep(self, path: str) -> None:
        if self._file is None or path != self._path:
            raise UsageError(f"{last_part(path)} is not the sealed file that was written")
        with _foreign(path):
            self._file.close()
            self._inner.invalidate_cache()

    def discard(self) -> None:
        if self._file is not None:
            with contextlib.suppress(Exception):  # nothing names it, so that it is there harms nobody
                self._file.close()
                self._inner.rm_file(self._path)
            self._file = None

    def _open(self) -> None:
        header = parse_header(bytes(self._start[:HEADER_SIZE]), name="a new file")
        self._path = f"{self._directory}/{header.file_id.hex()}{SUFFIX}"
        with _foreign(self._path):
            self._file = self._inner.open(self._path, "wb")
            self._file.write(bytes(self._start))
        self._start.clear()


@contextlib.contextmanager
def _foreign(path: str) -> Iterator[None]:
    """What an inner filesystem raises, as errors that say where; absence stays :class:`FileNotFoundError`."""
    try:
        yield
    except _ABSENT:
        raise FileNotFoundError(path) from None
    except (CloisterError, OSError):
        raise
    except Exception as error:  # each inner filesystem has an error tree of its own
        raise NetworkError(
            f"{last_part(path)} cannot be reached ({type(error).__name__})", todo="check the storage below"
        ) from error
