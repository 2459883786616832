"""Files that are questions to a kernel or a library OS: one write commits, one read answers, and errno speaks.

They are read and written by the system calls themselves: Python's own files would buffer, split and seek, and
``os.read`` repeats an interrupted call for ever (PEP 475), where a quote has to be given up at some point. Sizes
are bounded. Nothing is interpreted here, and every failure is an ``OSError`` for the caller to put into words.
"""

from __future__ import annotations

import ctypes
import errno
import os
from functools import cache
from pathlib import Path
from typing import Any, Final

_PIECE: Final = 64 * 1024


def read_file(path: Path, limit: int) -> bytes:
    """All of ``path``. Raises ``OSError``: that of the kernel, EINTR too, or EFBIG over ``limit`` bytes."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        found = bytearray()
        while piece := _read(descriptor, min(_PIECE, limit + 1 - len(found))):
            found += piece
            if len(found) > limit:
                raise OSError(errno.EFBIG, os.strerror(errno.EFBIG))
        return bytes(found)
    finally:
        os.close(descriptor)


def write_file(path: Path, data: bytes) -> None:
    """``data`` by one write, then close. Raises ``OSError``: that of the kernel, or EIO if it took only a part."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        taken = _call("write", descriptor, data, len(data))
        if taken != len(data):
            raise OSError(errno.EIO, f"only {taken} of {len(data)} bytes were taken")
    finally:
        os.close(descriptor)


def read_text(path: Path, limit: int = 4096) -> str:
    """One line of an attribute, without its line feed. Raises ``OSError``, EILSEQ where it is no ASCII."""
    try:
        return read_file(path, limit).decode("ascii").removesuffix("\n")
    except UnicodeDecodeError:
        raise OSError(errno.EILSEQ, os.strerror(errno.EILSEQ)) from None


def _read(descriptor: int, size: int) -> bytes:
    buffer = ctypes.create_string_buffer(size)
    taken = _call("read", descriptor, buffer, size)  # before the buffer is looked at
    return buffer.raw[:taken]


def _call(name: str, descriptor: int, buffer: Any, size: int) -> int:
    """read(2) or write(2), once. The interpreter's lock is released meanwhile."""
    done: int = getattr(_libc(), name)(descriptor, buffer, size)
    if done < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return done


@cache
def _libc() -> ctypes.CDLL:
    library = ctypes.CDLL(None, use_errno=True)
    for call in (library.read, library.write):
        call.argtypes = (ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t)
        call.restype = ctypes.c_ssize_t
    return library
