"""What a mount asks of a file system: the POSIX calls that programs need, by path, and open files by handle.

Two answer: a tree that is written in place (tree/), and the read-only view of a directory that was sealed once
(view.py). Paths are relative, ``/`` between components, ``""`` for the root. Every refusal is an :class:`OSError` with the
errno that POSIX names; bytes that do not authenticate are ``EIO``, and the reason is told to the log, never to the program.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

Kind = Literal["file", "directory", "link"]


@dataclass(frozen=True, slots=True)
class Status:
    """What ``stat`` shows."""

    kind: Kind
    number: int
    """The same as long as the file lives, whatever it is called."""
    mode: int
    """Permission bits only."""
    size: int
    """Bytes of plaintext."""
    stored: int
    """Bytes of plaintext that are stored: less than ``size`` where there are holes."""
    modified_ns: int
    changed_ns: int
    links: int = 1


@dataclass(frozen=True, slots=True)
class Space:
    """What ``statvfs`` shows of the place below, in bytes."""

    total: int
    free: int


class OpenFile(Protocol):
    """An open file; it stays readable and writable when its name goes to another file. Thread-safe."""

    @property
    def status(self) -> Status: ...

    def read(self, offset: int, length: int) -> bytes:
        """Up to ``length`` bytes; fewer only at the end of the file. Holes are zeros."""
        ...

    def write(self, offset: int, data: bytes | memoryview) -> int:
        """Write all of ``data``, filling up with a hole where ``offset`` lies behind the end."""
        ...

    def truncate(self, size: int) -> None: ...

    def sync(self) -> None:
        """When this returns, what was written so far outlives a crash of the process, the system and the power."""
        ...

    def close(self) -> None: ...


@runtime_checkable
class Filling(Protocol):
    """An open file that also reads into memory that is there: touching fresh memory costs more than decrypting."""

    def read_into(self, offset: int, buffer: memoryview) -> int:
        """As :meth:`OpenFile.read`; how many bytes. When it raises, what is in ``buffer`` is nobody's."""
        ...


class Files(Protocol):
    """A file system. Thread-safe."""

    @property
    def writable(self) -> bool: ...

    def status(self, path: str) -> Status: ...

    def names(self, path: str) -> tuple[str, ...]: ...

    def open(self, path: str, *, write: bool) -> OpenFile: ...

    def create(self, path: str, mode: int) -> OpenFile:
        """A new, empty file, open for writing. ``EEXIST`` where the name is taken."""
        ...

    def truncate(self, path: str, size: int) -> None: ...

    def make_directory(self, path: str, mode: int) -> None: ...

    def remove_directory(self, path: str) -> None: ...

    def unlink(self, path: str) -> None: ...

    def rename(self, old: str, new: str, *, replace: bool = True) -> None:
        """Atomic. A file at ``new`` is replaced (``EEXIST`` if not ``replace``), a directory only if it is empty."""
        ...

    def link(self, path: str, target: str) -> None:
        """A symbolic link at ``path``. ``EPERM`` unless ``target`` is relative and stays inside."""
        ...

    def read_link(self, path: str) -> str: ...

    def set_mode(self, path: str, mode: int) -> None: ...

    def set_modified(self, path: str, modified_ns: int) -> None: ...

    def space(self) -> Space: ...

    def sync(self) -> None:
        """As :meth:`OpenFile.sync`, for everything."""
        ...

    def close(self) -> None:
        """Sync and let go. Nothing can be done with it any more."""
        ...
