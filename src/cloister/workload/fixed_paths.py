"""Paths that go on meaning the same: only over such a path does what is mounted stay where the program looks for it.

A link on the way can be pointed elsewhere afterwards. On a file system that somebody else shares (virtio-fs, 9P, NFS, FUSE)
a name that changes outside lets the kernel drop whatever was mounted below it, and the program would go on with the host's
files. And whoever may remove or rename a name, in a mount namespace that does not see the mount, drops it as well. Refused:
all three; the folders on the way belong to root or to the launcher, and nobody else may change them.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cloister.errors import UsageError

HELD: Final = frozenset(
    {
        0xEF53,  # ext2, ext3, ext4
        0x58465342,  # xfs
        0x9123683E,  # btrfs
        0xF2F52010,  # f2fs
        0xCA451A4E,  # bcachefs
        0x2FC12FC1,  # zfs
        0x01021994,  # tmpfs
        0x858458F6,  # ramfs
        0x794C7630,  # overlayfs
        0x73717368,  # squashfs
        0xE0F5E1E2,  # erofs
        0x28CD3D45,  # cramfs
        0x9660,  # iso9660
        0x4D44,  # vfat
    }
)
"""File systems whose names change only through this kernel, by ``f_type`` (statfs(2), Linux ``magic.h``)."""
_WALK: Final = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
_OVERFLOW: Final = 65534
"""How a user namespace shows ids that it does not know (user_namespaces(7))."""
_STATFS_SIZE: Final = 256
"""Bytes; the kernel's structure takes 120 on 64-bit machines."""


@contextlib.contextmanager
def open_fixed(path: Path) -> Iterator[int]:
    """A descriptor (``O_PATH``) of what is at ``path``, absolute and plain, reached step by step without a link.

    Raises :class:`~cloister.errors.UsageError` for a path that may come to mean something else.
    """
    descriptor = os.open("/", _WALK)
    walked = Path("/")
    trusted = _Trusted.of_this_process()
    try:
        for name in path.parts[1:]:
            above, descriptor = descriptor, _step(descriptor, name, walked / name)
            folder = os.fstat(above)
            os.close(above)
            trusted.require_to_rule(walked, folder, os.fstat(descriptor))
            walked /= name
            _require_held(descriptor, walked)
        yield descriptor
    finally:
        os.close(descriptor)


def require_fixed(path: Path) -> None:
    """Raise :class:`~cloister.errors.UsageError` unless ``path`` is such a path."""
    with open_fixed(path):
        pass


def require_mounted(path: Path) -> None:
    """Raise :class:`~cloister.errors.UsageError` unless something is mounted on just ``path``, and will stay there."""
    with open_fixed(path.parent) as parent:
        shown = _step(parent, path.name, path)
        try:
            if os.fstat(shown).st_dev == os.fstat(parent).st_dev:
                raise UsageError(f"{path} is not what was mounted there a moment ago", todo="start again")
        finally:
            os.close(shown)


@dataclass(frozen=True, slots=True)
class _Trusted:
    users: frozenset[int]
    groups: frozenset[int]

    @classmethod
    def of_this_process(cls) -> _Trusted:
        users, groups = {0, os.geteuid()}, {0, os.getegid()}
        if Path("/proc/self/uid_map").read_text("ascii").split() != ["0", "0", str(2**32 - 1)]:
            # In a user namespace root's files look like everybody else's, so the owners of others cannot be told apart.
            users.add(_OVERFLOW)
            groups.add(_OVERFLOW)
        return cls(frozenset(users), frozenset(groups))

    def require_to_rule(self, folder: Path, itself: os.stat_result, entry: os.stat_result) -> None:
        """Nobody else may rename ``entry`` of ``folder``."""
        open_to_group = itself.st_mode & stat.S_IWGRP and itself.st_gid not in self.groups
        if itself.st_uid in self.users and not open_to_group and not itself.st_mode & stat.S_IWOTH:
            return
        if itself.st_uid in self.users and itself.st_mode & stat.S_ISVTX and entry.st_uid in self.users:
            return
        raise UsageError(
            f"{folder} can be changed by other users of this machine, who could exchange what lies there",
            todo=f"`chown root {folder}` and `chmod go-w {folder}`, or use another folder",
        )


def _step(folder: int, name: str, walked: Path) -> int:
    try:
        found = os.open(name, _WALK, dir_fd=folder)
    except OSError as error:
        raise UsageError(f"cannot open {walked}: {error.strerror}") from None
    if stat.S_ISLNK(os.fstat(found).st_mode):
        os.close(found)
        raise UsageError(
            f"{walked} is a link, which can be pointed elsewhere while the program runs",
            todo=f"name the place itself: {os.path.realpath(walked)}",
        )
    return found


def _require_held(descriptor: int, walked: Path) -> None:
    kind = _file_system(descriptor)
    if kind not in HELD:
        raise UsageError(
            f"{walked} is on a file system (type {kind:#x}) whose names can change outside this machine",
            todo="copy it to a disk or image of this machine, or name a place there",
        )


def _file_system(descriptor: int) -> int:
    # `os.statvfs` leaves the type out.
    buffer = ctypes.create_string_buffer(_STATFS_SIZE)
    # A descriptor of O_PATH will do since Linux 3.12.
    if ctypes.CDLL(None, use_errno=True).fstatfs(ctypes.c_int(descriptor), buffer) != 0:
        raise UsageError(f"the kernel does not name a file system: {os.strerror(ctypes.get_errno())}")
    return ctypes.c_long.from_buffer(buffer).value & 0xFFFFFFFF
