"""Mounts that only the launcher and its children see, and file systems in memory on them.

Called by the launcher, once, before it starts a thread: what it then mounts (sealed files in the clear, a private /tmp)
exists in its own mount namespace alone. As root that takes a mount namespace; otherwise a user namespace comes with it, in
which the process is who it was. The machine's root can still look through ``/proc/<pid>/root``: in a confidential VM it is
inside what was measured, and trusted.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from cloister.errors import IsolationRefused, UsageError, WorkloadError
from cloister.workload import linux
from cloister.workload.linux import Finding

Huge = Literal["never", "always", "within_size", "advise"]
TEMPORARY: Final = ("/tmp", "/var/tmp", "/dev/shm")  # noqa: S108 -- the places that get a file system of their own
"""Where programs write what they do not name."""
SOCKETS: Final = ("/run",)
"""Where services have their Unix sockets, to which no Landlock known here forbids to connect."""
_MS_NOSUID: Final = 0x2
_MS_NODEV: Final = 0x4
_MS_NOEXEC: Final = 0x8
_MS_RDONLY: Final = 0x1
_MS_BIND: Final = 0x1000
_MS_REC: Final = 0x4000
_MS_PRIVATE: Final = 1 << 18
_MNT_DETACH: Final = 2


@dataclass(frozen=True, slots=True)
class Mounted:
    """A file system in memory, until :meth:`unmount`."""

    path: str
    findings: tuple[Finding, ...]

    def unmount(self) -> None:
        """Let go of it. Its memory is given back when nothing holds a file of it open. Raises :class:`WorkloadError`."""
        unmount(self.path)


def unmount(path: str) -> None:
    """As soon as nobody uses it any more. Raises :class:`~cloister.errors.WorkloadError`."""
    try:
        linux.syscall("umount2", _text(path), _MNT_DETACH)
    except OSError as error:
        raise WorkloadError(f"{path} cannot be unmounted: {error.strerror}") from None


def private_mounts() -> Literal["mount", "user and mount"]:
    """From here on, mounts of this process are seen by it and its children alone; says which namespaces that took.

    Raises :class:`~cloister.errors.IsolationRefused` where the kernel does not let it, and
    :class:`~cloister.errors.WorkloadError` where this process has more than one thread.
    """
    if len(list(Path("/proc/self/task").iterdir())) != 1:
        raise WorkloadError("mounts are made private before the first thread starts")
    taken: Literal["mount", "user and mount"] = "mount"
    try:
        try:
            linux.unshare(linux.CLONE_NEWNS)
        except OSError as error:
            if error.errno != errno.EPERM:
                raise
            new_user_namespace(linux.CLONE_NEWNS)
            taken = "user and mount"
        # Nothing is mounted there: only how mounts travel changes.
        linux.syscall("mount", _text("none"), _text("/"), None, _MS_REC | _MS_PRIVATE, None)
    except OSError as error:
        raise IsolationRefused(
            f"no mounts of its own can be made for the program: {error.strerror}",
            todo="start as root, or allow user namespaces (`sysctl user.max_user_namespaces`)",
        ) from None
    return taken


def new_user_namespace(flags: int) -> None:
    """Enter a user namespace, and with it those of ``flags``, as the same user and group. Raises :class:`OSError`."""
    user, group = os.geteuid(), os.getegid()
    dumpable = linux.prctl(linux.PR_GET_DUMPABLE)
    linux.unshare(linux.CLONE_NEWUSER | flags)
    # The files below belong to root as long as the process is not dumpable.
    linux.prctl(linux.PR_SET_DUMPABLE, 1)
    try:
        for name, text in (
            ("setgroups", "deny"),
            ("uid_map", f"{user} {user} 1"),
            ("gid_map", f"{group} {group} 1"),
        ):
            Path("/proc/self", name).write_text(text, "ascii")
    finally:
        if dumpable != 1:
            linux.prctl(linux.PR_SET_DUMPABLE, 0)


def private_tmpfs(
    path: str,
    *,
    size: int,
    uid: int,
    gid: int,
    mode: int = 0o700,
    huge: Huge = "never",
) -> Mounted:
    """A file system in memory over the directory ``path``, of at most ``size`` bytes, for one user.

    Without set-user-id programs and devices; its pages are never swapped where the kernel knows ``noswap`` (Linux 6.4, and
    not in a user namespace). Call :func:`private_mounts` first, or everybody sees it.
    Raises :class:`~cloister.errors.WorkloadError` and :class:`~cloister.errors.UsageError`.
    """
    if size <= 0 or mode & ~0o1777:
        raise UsageError("a file system in memory has a size over 0 and permission bits alone")
    plain = f"size={size},mode={mode:o},uid={uid},gid={gid}"
    wanted = [] if huge == "never" else [f"huge={huge}"]
    with _directory(path) as place:
        for options in ([*wanted, "noswap"], wanted, ["noswap"], []):
            try:
                _mount_tmpfs(place, ",".join([plain, *options]), _MS_NOSUID | _MS_NODEV)
            except OSError as error:
                if error.errno != errno.EINVAL or not options:
                    raise WorkloadError(
                        f"no file system in memory can be mounted on {path[:256]}: {error.strerror}",
                        todo="start as root, or allow user namespaces",
                    ) from None
                continue
            return Mounted(path, tuple(_missing(path, options, huge)))
    raise AssertionError  # the last attempt returns or raises


def temporary_files(
    *, size: int, uid: int, gid: int, paths: Iterable[str] = TEMPORARY
) -> tuple[Mounted, ...]:
    """A private file system in memory over each of ``paths`` that exists: /tmp, /var/tmp and /dev/shm.

    Whatever the launcher still needs of what was there, it must have open before.
    """
    return tuple(
        private_tmpfs(path, size=size, uid=uid, gid=gid, mode=0o1777)
        for path in paths
        if Path(path).is_dir() and not Path(path).is_symlink()
    )


def conceal(paths: Iterable[str] = SOCKETS) -> tuple[str, ...]:
    """Cover each of ``paths`` that exists, by nothing that could be read or written; says which were covered.

    For directories with the Unix sockets of others, and for such sockets by their own path.
    Raises :class:`~cloister.errors.WorkloadError`.
    """
    covered = []
    for path in paths:
        try:
            status = os.lstat(path)
        except FileNotFoundError:
            continue
        try:
            if stat.S_ISDIR(status.st_mode):
                with _directory(path) as place:
                    _mount_tmpfs(place, "size=4k,mode=555", _MS_NOSUID | _MS_NODEV | _MS_NOEXEC | _MS_RDONLY)
            else:
                linux.syscall("mount", _text("/dev/null"), _text(path), None, _MS_BIND, None)
        except OSError as error:
            raise WorkloadError(f"{path[:256]} cannot be covered: {error.strerror}") from None
        covered.append(path)
    return tuple(covered)


def _missing(path: str, options: list[str], huge: Huge) -> Iterator[Finding]:
    if "noswap" not in options:
        yield Finding(
            f"memory of {path}",
            "weak",
            "could be swapped out: this kernel takes no `noswap` here",
            "use Linux 6.4 or later as root, or a machine without swap",
        )
    if huge != "never" and f"huge={huge}" not in options:
        yield Finding(
            f"memory of {path}", "weak", "is in small pages: this kernel has no huge ones for files"
        )


def _mount_tmpfs(place: str, options: str, flags: int) -> None:
    linux.syscall("mount", _text("tmpfs"), _text(place), _text("tmpfs"), flags, _text(options))


def _text(text: str) -> ctypes.Array[ctypes.c_char]:
    return ctypes.create_string_buffer(os.fsencode(text))


@contextlib.contextmanager
def _directory(path: str) -> Iterator[str]:
    """Its name by descriptor: it cannot become a link to another place between looking and mounting."""
    try:
        descriptor = os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as error:
        raise WorkloadError(f"{path[:256]} is no directory to mount on: {error.strerror}") from None
    try:
        yield f"/proc/self/fd/{descriptor}"
    finally:
        os.close(descriptor)
