"""Memory that files are opened into: in large pages where the kernel gives them, frozen once filled, and never a disk.

Pages of 4 KiB cost more than the decryption: the kernel finds and enters each on its own. A tmpfs of our own, which is
mounted nowhere and so has no path that anybody could open, takes as much in one page as is written in one call (Linux
6.14; before, 2 MiB or 4 KiB), and is never swapped out (Linux 6.4). Where this process may not make one, a memfd takes
its place. Files are written and not mapped to be filled: where memory runs out a write fails, a mapping kills.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import struct
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Final

from cloister.sealing.descriptors import frozen_memory

_WORTH_IT: Final = 2 << 20
"""Bytes from which a file is given a tmpfs of its own."""
_TMPFS_MAGIC: Final = 0x01021994
_RAMFS_MAGIC: Final = 0x858458F6
_SPARE: Final = 4 << 20
"""Bytes over its one file that a tmpfs of ours gets for its own tables."""

# Linux's include/uapi: asm-generic/unistd.h (the same numbers on every processor from 424 on), linux/mount.h, linux/fcntl.h.
_SYS_FSOPEN, _SYS_FSCONFIG, _SYS_FSMOUNT, _SYS_MOUNT_SETATTR = 430, 431, 432, 442
_CLOEXEC: Final = 1
_SET_FLAG, _SET_STRING, _CREATE = 0, 1, 6
_READ_ONLY, _NO_SETUID, _NO_DEVICES, _NO_PROGRAMS = 1, 2, 4, 8
_AT_EMPTY_PATH: Final = 0x1000
_NOT_FOR_US: Final = (
    errno.EPERM,
    errno.ENOSYS,
    errno.EINVAL,
    errno.EACCES,
    errno.ENODEV,
    errno.EOPNOTSUPP,
    errno.ENOENT,
)
"""What a kernel says that does not let this process, or does not know how to."""


def in_memory(descriptor: int) -> bool:
    """Whether the file or folder lies on a file system that keeps nothing on a disk: tmpfs or ramfs."""
    found = ctypes.create_string_buffer(256)
    if _libc().fstatfs(descriptor, found):
        failed = ctypes.get_errno()
        raise OSError(failed, os.strerror(failed))
    return int(ctypes.c_ulong.from_buffer(found).value) in (_TMPFS_MAGIC, _RAMFS_MAGIC)


def frozen_pages(size: int, fill: Callable[[int], None]) -> int:
    """Memory for ``size`` bytes, filled by ``fill``, then closed to every change: a descriptor, the caller's to close.

    In large pages and never swapped where the kernel and the rights of this process allow; else it is
    :func:`~cloister.sealing.descriptors.frozen_memory`. ``fill`` is called once. Raises what it raises, and
    :class:`OSError`; nothing is left open then.
    """
    made = _own_tmpfs(size) if size >= _WORTH_IT else None
    if made is None:
        return frozen_memory(fill)
    mount, writable = made
    try:
        try:
            fill(writable)
            frozen = os.open(f"/proc/self/fd/{writable}", os.O_RDONLY | os.O_CLOEXEC)
        finally:
            os.close(writable)
        try:
            # The kernel refuses this while anybody could still write, so from here on nobody can.
            _call(_SYS_MOUNT_SETATTR, mount, b"", _AT_EMPTY_PATH, struct.pack("=4Q", _READ_ONLY, 0, 0, 0), 32)
        except BaseException:
            os.close(frozen)
            raise
        return frozen
    finally:
        os.close(mount)


def _own_tmpfs(size: int) -> tuple[int, int] | None:
    """Descriptors of a tmpfs that is mounted nowhere and of a nameless file in it; None where that is not to be had."""
    if os.uname().machine not in ("x86_64", "aarch64") or not Path("/proc/self/fd").is_dir():
        return None
    try:
        setup = _call(_SYS_FSOPEN, b"tmpfs", _CLOEXEC)
        try:
            for key, value in (("huge", "within_size"), ("size", str(size + _SPARE)), ("mode", "700")):
                _call(_SYS_FSCONFIG, setup, _SET_STRING, key.encode(), value.encode(), 0)
            with contextlib.suppress(OSError):  # Linux before 6.4
                _call(_SYS_FSCONFIG, setup, _SET_FLAG, b"noswap", None, 0)
            _call(_SYS_FSCONFIG, setup, _CREATE, None, None, 0)
            mount = _call(_SYS_FSMOUNT, setup, _CLOEXEC, _NO_SETUID | _NO_DEVICES | _NO_PROGRAMS)
        finally:
            os.close(setup)
        try:
            file = os.open(".", os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o400, dir_fd=mount)
        except BaseException:
            os.close(mount)
            raise
    except OSError as error:
        if error.errno in _NOT_FOR_US:
            return None
        raise
    return mount, file


@cache
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _call(number: int, *arguments: int | bytes | None) -> int:
    call = _libc().syscall
    call.restype = ctypes.c_long
    passed = [ctypes.c_long(one) if isinstance(one, int) else ctypes.c_char_p(one) for one in arguments]
    result = int(call(ctypes.c_long(number), *passed))
    if result < 0:
        failed = ctypes.get_errno()
        raise OSError(failed, os.strerror(failed))
    return result
