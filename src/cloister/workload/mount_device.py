"""``/dev/fuse``: mounting, the threads that read requests and write answers, unmounting.

Root mounts by system call, others through ``fusermount3``, which every distribution installs setuid. Nothing is compiled and
no library is loaded. Refused: a mount point that is not an empty folder.
"""

from __future__ import annotations

import array
import contextlib
import ctypes
import errno
import logging
import os
import shutil
import socket
import subprocess
import threading
import time
from pathlib import Path
from typing import Final, Protocol

from cloister.errors import WorkloadError
from cloister.workload.mount import Reply
from cloister.workload.mount_kernel import BUFFER_SIZE, Owner

DEVICE: Final = Path("/dev/fuse")
THREADS: Final = 6
"""So many requests are worked on at once: cores for cryptography, and some that wait for the disk."""
_READ_AHEAD: Final = 4 << 20
_MAX_READ: Final = 256 << 10
# Sixteen reads ahead at once, each of which stays in a core's cache on its way: fewer and larger ones took up to a
# third more of the processor. A mapping that is read at random gets no read-ahead after its first hundred misses.
_MS_RDONLY, _MS_NOSUID, _MS_NODEV = 1, 2, 4
_MNT_DETACH: Final = 2
_PATIENCE: Final = 0.05
_libc = ctypes.CDLL(None, use_errno=True)
_log = logging.getLogger(__name__)


class Answering(Protocol):
    """What answers requests: :class:`~cloister.workload.mount.Mounted`."""

    def answer(self, data: memoryview) -> Reply: ...


class Session:
    """A mounted file system, from the mount to the end of its last thread."""

    def __init__(self, mountpoint: Path, answering: Answering, *, owner: Owner, writable: bool) -> None:
        """Mount and serve. Raises :class:`~cloister.errors.WorkloadError`."""
        if not mountpoint.is_dir() or any(mountpoint.iterdir()):
            raise WorkloadError(f"{mountpoint} is not an empty folder to mount at", todo="make one first")
        self.mountpoint = mountpoint.resolve()
        self._answering = answering
        by_root = os.geteuid() == 0
        mount = _mount_as_root if by_root else _mount_through_helper
        self._device = mount(self.mountpoint, owner, writable=writable)
        self._threads = [
            threading.Thread(target=self._serve, name=f"mount-{number}", daemon=True)
            for number in range(THREADS)
        ]
        for thread in self._threads:
            thread.start()
        try:
            device = self.mountpoint.stat().st_dev  # answered only when the kernel and we have agreed on all
        except OSError as error:
            _unmounted(self.mountpoint, lazily=True)
            raise _cannot_mount(self.mountpoint, str(error.strerror)) from None
        if by_root:
            _read_further_ahead(device)

    @property
    def alive(self) -> bool:
        """Whether it is still mounted and answered."""
        return any(thread.is_alive() for thread in self._threads)

    def _serve(self) -> None:
        buffer = bytearray(BUFFER_SIZE)
        view = memoryview(buffer)
        while True:
            try:
                count = os.readv(self._device, [view])
            except OSError as error:
                if error.errno in (errno.EINTR, errno.EAGAIN, errno.ENOENT):
                    continue  # ENOENT: the program was interrupted before we had its request
                if error.errno != errno.ENODEV:
                    _log.error("the mount at %s ended: %s", self.mountpoint, error.strerror)
                return
            reply = self._answering.answer(view[:count])
            if reply is None:
                continue
            try:
                os.writev(self._device, reply)
            except OSError as error:
                if error.errno == errno.ENODEV:
                    return
                if error.errno != errno.ENOENT:  # the program no longer waits for this answer
                    _log.error("an answer at %s was refused: %s", self.mountpoint, error.strerror)

    def unmount(self, *, patience: float) -> bool:
        """Take it away. While programs use it, ``patience`` seconds long it is tried again, then it is detached: they keep
        what they have open until we end, nobody finds it any more. False if it came to that."""
        deadline = time.monotonic() + patience
        while not _unmounted(self.mountpoint, lazily=False):
            if time.monotonic() >= deadline:
                self._flush()
                _unmounted(self.mountpoint, lazily=True)
                return False
            time.sleep(_PATIENCE)
        for thread in self._threads:
            thread.join(max(1.0, patience))
        with contextlib.suppress(OSError):
            os.close(self._device)
        return True

    def _flush(self) -> None:
        """What programs wrote and the kernel still holds comes to us."""
        try:
            folder = os.open(self.mountpoint, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError:
            return
        _libc.syncfs(folder)
        os.close(folder)


def detach(mountpoint: Path) -> None:
    """Take away a mount whose process has died. Nothing happens where there is none, or one that is alive."""
    try:
        with os.scandir(mountpoint):  # the kernel would answer `stat` from memory
            return
    except OSError as error:
        if error.errno == errno.ENOTCONN:
            _unmounted(mountpoint, lazily=True)


def _mount_as_root(mountpoint: Path, owner: Owner, *, writable: bool) -> int:
    try:
        device = os.open(DEVICE, os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        raise WorkloadError(
            f"{DEVICE} cannot be opened: {error.strerror}", todo="load the kernel's fuse module"
        ) from None
    options = [f"fd={device}", "rootmode=40000", f"user_id={owner.uid}", f"group_id={owner.gid}"]
    options += ["default_permissions", "allow_other", f"max_read={_MAX_READ}"]
    flags = _MS_NOSUID | _MS_NODEV | (0 if writable else _MS_RDONLY)
    target, data = os.fsencode(mountpoint), ",".join(options).encode("ascii")
    if _libc.mount(b"cloister", target, b"fuse.cloister", ctypes.c_ulong(flags), data) != 0:
        number = ctypes.get_errno()
        os.close(device)
        raise _cannot_mount(mountpoint, os.strerror(number))
    return device


def _mount_through_helper(mountpoint: Path, owner: Owner, *, writable: bool) -> int:
    if (owner.uid, owner.gid) != (os.getuid(), os.getgid()):
        raise WorkloadError("only root can mount for somebody else", todo="start it as root")
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    with ours, theirs:
        options = ["default_permissions", f"max_read={_MAX_READ}", "fsname=cloister", "subtype=cloister"]
        options += ["nosuid", "nodev", "rw" if writable else "ro"]
        command = [_helper(), "-o", ",".join(options), "--", str(mountpoint)]
        done = subprocess.run(  # noqa: S603 -- no shell, the system's own program, paths behind "--"
            command,
            env={"_FUSE_COMMFD": str(theirs.fileno())},
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )
        if done.returncode != 0:
            raise _cannot_mount(mountpoint, (done.stderr.strip().splitlines() or ["refused"])[-1])
        size = array.array("i").itemsize
        _, ancillary, _, _ = ours.recvmsg(1, socket.CMSG_SPACE(size))
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            (device,) = array.array("i", data[:size])
            os.set_inheritable(device, False)
            return int(device)
    raise _cannot_mount(mountpoint, "fusermount3 handed over no device")


def _unmounted(mountpoint: Path, *, lazily: bool) -> bool:
    """Try to unmount; True unless it is in use."""
    if os.geteuid() == 0:
        flags = _MNT_DETACH if lazily else 0
        if _libc.umount2(os.fsencode(mountpoint), flags) == 0:
            return True
        return ctypes.get_errno() != errno.EBUSY
    command = [_helper(), "-u", *(["-z"] if lazily else []), "--", str(mountpoint)]
    done = subprocess.run(  # noqa: S603 -- as above
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60, check=False
    )
    return done.returncode == 0 or "busy" not in done.stderr


def _helper() -> str:
    found = shutil.which("fusermount3")
    if found is None:
        raise WorkloadError("there is no fusermount3", todo="install fuse3, or start as root")
    return found


def _cannot_mount(mountpoint: Path, why: str) -> WorkloadError:
    return WorkloadError(
        f"cannot mount at {mountpoint}: {why}", todo="see `cloister doctor`; containers need /dev/fuse"
    )


def _read_further_ahead(device: int) -> None:
    """For who reads from front to back; the kernel's own 128 KiB leave one core idle."""
    with contextlib.suppress(OSError):
        setting = Path(f"/sys/class/bdi/{os.major(device)}:{os.minor(device)}/read_ahead_kb")
        setting.write_text(str(_READ_AHEAD // 1024))
