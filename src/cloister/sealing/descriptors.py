"""Descriptors of plain files: opened without following links, read and written by position, to the last byte."""

from __future__ import annotations

import contextlib
import fcntl
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeAlias

from cloister.errors import IndexMismatch, SealingError, UsageError

ReadInto: TypeAlias = Callable[[memoryview, int], int]
"""Fill the buffer from this offset on; the answer is how many bytes there were."""


@contextlib.contextmanager
def open_regular(path: Path, refusal: type[UsageError | IndexMismatch]) -> Iterator[int]:
    """A descriptor of a plain file, never of a link, pipe or device; ``refusal`` is what to raise."""
    try:
        # Without O_NONBLOCK a FIFO put in the file's place would hang us before we can see what it is.
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise refusal(f"cannot open {path}: {error.strerror}") from None
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise refusal(f"{path} is not a regular file")
        yield descriptor
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def create_new(path: Path, mode: int) -> Iterator[int]:
    """A descriptor of a file that did not exist. Raises :class:`~cloister.errors.UsageError`."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, mode)
    except OSError as error:
        raise UsageError(f"cannot create {path}: {error.strerror}") from None
    try:
        yield descriptor
    except OSError as error:
        raise UsageError(f"cannot write {path}: {error.strerror}") from None
    finally:
        os.close(descriptor)


def read_private(path: Path, *, what: str, limit: int) -> bytes:
    """At most ``limit`` + 1 bytes of a plain file that nobody but its owner may use; ``what`` names it in errors.

    Links are followed: secrets are often mounted as links. Raises :class:`~cloister.errors.UsageError`, which
    never shows contents.
    """
    try:
        with path.open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            if not stat.S_ISREG(mode) or mode & (stat.S_IRWXG | stat.S_IRWXO):
                raise UsageError(f"{what} {path} can be read by others", todo=f"run `chmod 600 {path}`")
            return file.read(limit + 1)
    except OSError as error:
        raise UsageError(
            f"{what} {path} cannot be read ({error.strerror})",
            todo="name an existing file that only you can read",
        ) from None


def frozen_memory(fill: Callable[[int], None]) -> int:
    """Anonymous memory filled by ``fill`` and then closed to every change: a memfd, the caller's to close.

    Raises what ``fill`` raises, and :class:`OSError`; nothing is left open then.
    """
    descriptor = os.memfd_create("cloister", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        fill(descriptor)
        seals = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, seals)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def reader_of(descriptor: int) -> ReadInto:
    """Positional reads of a descriptor; safe for several threads."""
    return lambda buffer, offset: read_into(descriptor, buffer, offset)


def read_into(descriptor: int, buffer: memoryview, offset: int) -> int:
    """Fill ``buffer`` from ``offset`` on; the answer is how many bytes there were."""
    done = 0
    while done < len(buffer):
        with buffer[done:] as rest:
            try:
                count = os.preadv(descriptor, [rest], offset + done)
            except OSError as error:
                raise SealingError(
                    f"a file cannot be read: {error.strerror}", todo="check the disk"
                ) from None
        if count == 0:
            break
        done += count
    return done


def write_all(descriptor: int, data: bytes | memoryview, offset: int) -> None:
    """Write all of ``data`` at ``offset``. Raises :class:`OSError`."""
    done = 0
    with memoryview(data) as view:
        while done < len(view):
            with view[done:] as rest:
                done += os.pwrite(descriptor, rest, offset + done)
