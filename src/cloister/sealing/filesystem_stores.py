"""What ``sealed://`` needs of the place where sealed directories lie: a local disk or any other fsspec filesystem.

Only ciphertext and public bytes pass here. Missing files are :class:`FileNotFoundError`; other errors are OSErrors or
:class:`~cloister.errors.CloisterError`.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Protocol

from cloister.errors import IndexMismatch


class Source(Protocol):
    """A sealed file opened for reading by position. Thread-safe."""

    size: int
    """Bytes of ciphertext, header and all."""
    span: int
    """How many segments are best read at once."""

    def read_into(self, buffer: memoryview, offset: int) -> int:
        """Fill ``buffer`` from ``offset`` on; the answer is how many bytes there were."""
        ...

    def close(self) -> None: ...


class Body(Protocol):
    """A sealed file while it is written, from its start to its end."""

    def write(self, data: bytes | bytearray | memoryview, /) -> int: ...

    def keep(self, path: str) -> None:
        """It is whole: put it at ``path``, the place of its id in the directory."""
        ...

    def discard(self) -> None: ...


class Store(Protocol):
    """Where sealed directories lie. Paths are the inner filesystem's own. Missing files are :class:`FileNotFoundError`."""

    local: bool

    def parent(self, path: str) -> str | None: ...

    def read(self, path: str, limit: int) -> bytes: ...

    def stamp(self, path: str) -> object | None:
        """Another value after each change of the file; None where nothing cheap tells."""
        ...

    def source(self, path: str) -> Source: ...

    def names(self, directory: str) -> list[tuple[str, bool]]:
        """What lies in a directory: full path, and whether it is one itself."""
        ...

    def is_directory(self, path: str) -> bool: ...

    def locked(self, directory: str) -> AbstractContextManager[None]:
        """One writer at a time, where the store can tell; the directory is made if it is not there."""
        ...

    def body(self, directory: str) -> Body:
        """A new sealed file of that directory."""
        ...

    def write(self, path: str, data: bytes, *, directory: str) -> None:
        """Put a small file of a sealed directory in place of whatever is there: all or nothing where the store can."""
        ...

    def remove(self, path: str) -> None:
        """Remove a file; that it is not there is no error."""
        ...

    def remove_directory(self, path: str) -> None: ...


def bounded(data: bytes, path: str, limit: int) -> bytes:
    """``data`` unless it is longer. Raises :class:`~cloister.errors.IndexMismatch`."""
    if len(data) > limit:
        raise IndexMismatch(f"{last_part(path)} is over its bound of {limit} bytes")
    return data


def last_part(path: str) -> str:
    """What names a path in errors: addresses may carry tokens in their query."""
    return path.rsplit("/", 1)[-1].split("?", 1)[0][:100]
