"""The places of one run that nobody else sees: a private tmpfs with folders, and measured copies over what was measured.

All of it lies in a mount namespace of the run. Common places for temporary files become private too, and so do the sockets
of the machine's services, unless something that this very run needs lies there. Refused: to go on where a file is no
longer what was measured.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import stat
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Final

from cloister.errors import UsageError, WorkloadError
from cloister.workload import linux, namespaces
from cloister.workload.environment import PrivateFolders
from cloister.workload.fixed_paths import open_fixed, require_fixed, require_mounted
from cloister.workload.isolation import User
from cloister.workload.linux import Finding
from cloister.workload.plan import Plan
from cloister.workload.private_files import erase_files
from cloister.workload.program import MAX_EXECUTABLE, copy_measured

SERVICES: Final = Path("/run")
SOCKETS: Final = ("/run/docker.sock", "/run/podman", "/run/containerd", "/run/dbus", "/run/systemd/private")
"""Covered where the whole of ``/run`` cannot be, as this very run needs something there."""
NAMES: Final = ("systemd/resolve", "resolvconf", "NetworkManager/resolv.conf", "connman", "nscd")
"""Below ``/run``: by these a program with a network finds its name servers."""
MAX_TRIES: Final = 10
"""To make a folder that other runs make and remove,"""
PAUSE: Final = 0.05
"""and seconds to wait for one of them."""
_UNITS: Final = {"KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "TiB": 1 << 40}
_MS_BIND: Final = 0x1000
_MS_REC: Final = 0x4000
_MS_REMOUNT: Final = 0x20
_MS_RDONLY: Final = 0x1


def memory_size(text: str, *, total: int) -> int:
    """Bytes that ``text`` means: ``"8GiB"``, ``"500MiB"``, or ``"50%"`` of ``total``. Raises UsageError."""
    number, unit = (text[:-1], "%") if text.endswith("%") else (text[:-3], text[-3:])
    if number.isascii() and number.isdigit() and int(number) > 0:
        if unit == "%" and int(number) <= 100:
            return total * int(number) // 100
        if unit in _UNITS and int(number) * _UNITS[unit] < 1 << 62:
            return int(number) * _UNITS[unit]
    raise UsageError(f"[program] memory is {text[:32]!a}", todo='write "8GiB", "500MiB" or "50%"')


def machine_memory() -> int:
    """Bytes of memory that this machine has."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def make_private(plan: Plan, user: User, undo: ExitStack) -> Iterator[Finding]:
    """Enter the namespace, and make the places of ``plan`` for ``user``. What is weaker than it could be is yielded."""
    file, folders = plan.configuration.file, plan.folders
    size = memory_size(file.program.memory, total=machine_memory())
    namespaces.private_mounts()
    if not plan.needs_below(SERVICES):
        kept = () if file.network.access == "none" else NAMES
        cover_services(SERVICES, size, undo, kept=kept)
    else:
        namespaces.conceal(path for path in SOCKETS if not plan.needs_below(Path(path)))
    for place in plan.temporary:
        yield from _tmpfs(place, size, user, undo, mode=0o1777)
    make_folder(folders.root, undo)
    # The launcher's own, like the folders that it writes into: it must not be led astray in them.
    own = User(uid=os.geteuid(), gid=os.getegid())
    yield from _tmpfs(folders.root, size, own, undo, mode=0o755)
    make_folders(folders, user, undo)
    folders.measured.mkdir(mode=0o755)
    for number, (path, digest) in enumerate(plan.program.files.items()):
        copy = folders.measured / str(number)
        copy_measured(Path(path), digest, copy)
        bind(copy, Path(path))
        undo.callback(namespaces.unmount, str(path))
    program, copy = Path(plan.program.file), folders.measured / "program"
    copy_measured(program, plan.program.executable, copy, limit=MAX_EXECUTABLE)
    bind(copy, program)
    undo.callback(namespaces.unmount, str(program))


def cover_services(place: Path, size: int, undo: ExitStack, *, kept: Iterable[str] = ()) -> None:
    """Nothing below ``place`` is there any more but ``kept``, read-only: sockets of services do what they are told."""
    with ExitStack() as opened:
        found: list[tuple[str, int, bool]] = []
        for name in kept:
            with contextlib.suppress(OSError):
                descriptor = os.open(place / name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
                opened.callback(os.close, descriptor)
                mode = os.fstat(descriptor).st_mode
                if stat.S_ISDIR(mode) or stat.S_ISREG(mode):
                    found.append((name, descriptor, stat.S_ISDIR(mode)))
        own = User(uid=os.geteuid(), gid=os.getegid())
        _tmpfs(place, size, own, undo, mode=0o755)
        for name, descriptor, folder in found:
            target = place / name
            (target if folder else target.parent).mkdir(parents=True, exist_ok=True, mode=0o755)
            if not folder:
                target.touch()
            bind(Path(f"/proc/self/fd/{descriptor}"), target)
            undo.callback(namespaces.unmount, str(target))


def make_folders(folders: PrivateFolders, user: User, undo: ExitStack) -> None:
    """The folders of the private tmpfs, which is there."""
    undo.callback(erase_files, folders.secrets)
    folders.secrets.mkdir(mode=0o755)
    for folder in (folders.home, folders.temporary, folders.opened):
        folder.mkdir(mode=0o700)
        os.chown(folder, user.uid, user.gid)


def make_folder(path: Path, undo: ExitStack) -> None:
    """A place to mount on. What of it was not there is removed again, unless another run mounts on it then: the kernel would
    take that one's mount away with the folder. Raises :class:`~cloister.errors.WorkloadError`.
    """
    for _ in range(MAX_TRIES):
        missing = [folder for folder in (path, *path.parents) if not folder.exists()]
        for folder in reversed(missing):
            try:
                folder.mkdir(mode=0o755)
            except FileExistsError:
                continue  # another run was quicker
            except FileNotFoundError:
                break  # and this one has ended
            except OSError as error:
                raise WorkloadError(
                    f"there is no {path} to mount on, and {folder} cannot be made: {error.strerror}",
                    todo="make the folder, or start as root",
                ) from None
            undo.callback(_remove_folder, folder)
        if _hold(path, undo):
            return
    raise WorkloadError(f"{path} is no folder to mount on")


def _hold(path: Path, undo: ExitStack) -> bool:
    """Say that ``path`` is mounted on, for as long as this run lasts. False where it is no folder, or not there any more."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except PermissionError:
        return path.is_dir()  # who may not look into it did not make it, and nobody removes it
    except OSError:
        return False
    undo.callback(os.close, descriptor)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:  # it is being removed
        time.sleep(PAUSE)
        return False
    except OSError:
        pass  # a file system without locks
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except OSError:
        return False


def _remove_folder(path: Path) -> None:
    # Somebody put something there meanwhile, or mounts on it: then it stays.
    with contextlib.suppress(OSError), ExitStack() as opened:
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        opened.callback(os.close, descriptor)
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        path.rmdir()


def private_tmpfs(
    path: Path, *, size: int, user: User, undo: ExitStack, huge: namespaces.Huge = "never"
) -> None:
    """One more file system in memory, at a path of the configuration's own."""
    make_folder(path, undo)
    require_fixed(path)
    for _ in _tmpfs(path, size, user, undo, huge=huge):
        pass
    require_mounted(path)


def bind(source: Path, target: Path) -> None:
    """Let ``target`` show ``source``, read-only, for as long as it is mounted.

    Raises :class:`~cloister.errors.UsageError` for a path that may come to mean something else, and
    :class:`~cloister.errors.WorkloadError`.
    """
    try:
        with open_fixed(target) as covered:
            linux.syscall("mount", _text(source), _opened(covered), None, _MS_BIND | _MS_REC, None)
        with open_fixed(target) as shown:
            # Between measuring and this moment the name may have been moved to another place.
            if not os.path.samestat(os.fstat(shown), source.stat()):
                raise WorkloadError(f"{target} is moved about while it is made ready", todo="start again")
            flags = _MS_BIND | _MS_REMOUNT | _MS_RDONLY
            linux.syscall("mount", None, _opened(shown), None, flags, None)
    except OSError as error:
        raise WorkloadError(
            f"the measured copy of {target} cannot be put over it: {error.strerror}"
        ) from None


def _tmpfs(
    path: Path,
    size: int,
    user: User,
    undo: ExitStack,
    *,
    mode: int = 0o700,
    huge: namespaces.Huge = "never",
) -> tuple[Finding, ...]:
    made = namespaces.private_tmpfs(str(path), size=size, uid=user.uid, gid=user.gid, mode=mode, huge=huge)
    undo.callback(made.unmount)
    return made.findings


def _opened(descriptor: int) -> ctypes.Array[ctypes.c_char]:
    return _text(Path(f"/proc/self/fd/{descriptor}"))


def _text(path: Path) -> ctypes.Array[ctypes.c_char]:
    return ctypes.create_string_buffer(os.fsencode(path))
