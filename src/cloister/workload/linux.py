"""What the kernel is asked for here beyond Python's ``os``: system calls by number, ``prctl``, and what this machine can do.

x86-64 and AArch64 only, the two that confidential machines have: on anything else nothing is guessed, and isolation is
refused. Numbers are from Linux's ``include/uapi``; those of system calls differ by processor and are in seccomp_numbers.py.
"""

from __future__ import annotations

import ctypes
import errno
import os
import resource
import signal
import struct
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Final, Literal

from cloister.errors import IsolationRefused
from cloister.workload.seccomp_numbers import ARCHITECTURES, Architecture, numbers
from cloister.workload.swap import Swap, parse_swaps

PR_SET_PDEATHSIG: Final = 1
PR_GET_DUMPABLE: Final = 3
PR_SET_DUMPABLE: Final = 4
PR_CAPBSET_READ: Final = 23
PR_CAPBSET_DROP: Final = 24
PR_SET_SECUREBITS: Final = 28
PR_SET_NO_NEW_PRIVS: Final = 38
PR_CAP_AMBIENT: Final = 47
PR_CAP_AMBIENT_CLEAR_ALL: Final = 4
CLONE_NEWNS: Final = 0x00020000
CLONE_NEWIPC: Final = 0x08000000
CLONE_NEWUSER: Final = 0x10000000
CLONE_NEWNET: Final = 0x40000000
CAP_SETPCAP: Final = 8
CAP_IPC_LOCK: Final = 14
CAP_SYS_ADMIN: Final = 21
_CAPABILITIES_VERSION: Final = 0x20080522
"""The third, with 64 bits (``linux/capability.h``)."""

State = Literal["ok", "weak", "missing"]


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that this machine gives (``ok``), gives in part (``weak``) or does not give (``missing``)."""

    check: str
    state: State
    found: str
    """One line, whole without ``check``."""
    todo: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """What can be asked of this kernel by this process."""

    kernel: str
    """Its release, such as ``6.16.3-cloud-amd64``."""
    architecture: Architecture | None
    """None where this package does not know the numbers of system calls."""
    user: int
    """Effective user id."""
    capable: bool
    """CAP_SYS_ADMIN in its user namespace."""
    landlock: int
    """Landlock's ABI; 0 where there is none."""
    seccomp: bool
    """The kernel takes filters."""
    own_network: bool
    """A network namespace can be made."""
    secret_memory: bool
    """``memfd_secret`` answers."""
    lockable: int | None
    """Bytes that this process may lock into memory; None without limit."""
    swaps: tuple[Swap, ...]
    core_pattern: str
    """Where the kernel sends core dumps (core(5))."""


@cache
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


@cache
def architecture() -> Architecture | None:
    """The processor's, as far as its system calls are known."""
    machine = os.uname().machine
    return machine if machine in ARCHITECTURES and ctypes.sizeof(ctypes.c_void_p) == 8 else None


def number(name: str) -> int:
    """Of a system call on this processor. Raises :class:`~cloister.errors.IsolationRefused`."""
    known = architecture()
    if known is None:
        raise IsolationRefused(
            f"the system calls of {os.uname().machine[:32]} are not known here",
            todo="use an x86-64 or AArch64 machine",
        )
    return numbers(known)[name]


def syscall(name: str, *arguments: int | ctypes.Array[ctypes.c_char] | ctypes.Structure | None) -> int:
    """Ask the kernel. Integers are passed as 64 bits, buffers by address. Raises :class:`OSError`."""
    passed = [
        ctypes.c_long(argument)
        if isinstance(argument, int)
        else ctypes.c_void_p(None)
        if argument is None
        else ctypes.byref(argument)
        for argument in arguments
    ]
    call = _libc().syscall
    call.restype = ctypes.c_long
    result = int(call(ctypes.c_long(number(name)), *passed))
    if result < 0:
        failed = ctypes.get_errno()
        raise OSError(failed, os.strerror(failed), name)
    return result


def prctl(option: int, *arguments: int) -> int:
    """Raises :class:`OSError`."""
    padded = [ctypes.c_ulong(argument) for argument in (*arguments, 0, 0, 0, 0)[:4]]
    result = int(_libc().prctl(ctypes.c_int(option), *padded))
    if result < 0:
        failed = ctypes.get_errno()
        raise OSError(failed, os.strerror(failed), f"prctl {option}")
    return result


def end_with(parent: int) -> None:
    """Have this process killed when ``parent`` ends, whose main thread started it; at once where it has."""
    prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


def mlock(address: int, length: int) -> None:
    """Keep these pages out of swap. Raises :class:`OSError`."""
    if _libc().mlock(ctypes.c_void_p(address), ctypes.c_size_t(length)):
        failed = ctypes.get_errno()
        raise OSError(failed, os.strerror(failed), "mlock")


def mlockall(flags: int) -> None:
    """Raises :class:`OSError`."""
    if _libc().mlockall(ctypes.c_int(flags)):
        failed = ctypes.get_errno()
        raise OSError(failed, os.strerror(failed), "mlockall")


def has_capability(bit: int) -> bool:
    """In this process's effective set (``/proc/self/status``)."""
    for line in Path("/proc/self/status").read_text("ascii", "replace").splitlines():
        if line.startswith("CapEff:"):
            return bool(int(line.split()[1], 16) >> bit & 1)
    return False


def clear_capabilities() -> None:
    """None effective, permitted or inheritable. Raises :class:`OSError`."""
    header = ctypes.create_string_buffer(struct.pack("=Ii", _CAPABILITIES_VERSION, 0), 8)
    syscall("capset", header, ctypes.create_string_buffer(bytes(24), 24))


def landlock_abi() -> int:
    """0 where the kernel has no Landlock, or it was switched off at boot."""
    try:
        return syscall("landlock_create_ruleset", None, 0, 1)
    except OSError:
        return 0


def look() -> Machine:
    """What this process can have of this kernel. Nothing is changed: a child tries what only trying shows."""
    known = architecture()
    soft, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    free = soft == resource.RLIM_INFINITY or has_capability(CAP_IPC_LOCK)
    return Machine(
        kernel=os.uname().release[:64],
        architecture=known,
        user=os.geteuid(),
        capable=has_capability(CAP_SYS_ADMIN),
        landlock=landlock_abi() if known else 0,
        seccomp=known is not None and takes_filters(),
        own_network=known is not None and _tried(_own_network),
        secret_memory=known is not None and _has_secret_memory(),
        lockable=None if free else soft,
        swaps=parse_swaps(_text("/proc/swaps")),
        core_pattern=_text("/proc/sys/kernel/core_pattern").strip()[:128],
    )


def unshare(flags: int) -> None:
    """Leave namespaces for fresh ones. Raises :class:`OSError`."""
    syscall("unshare", flags)


def _own_network() -> None:
    try:
        unshare(CLONE_NEWNET)
    except OSError:
        unshare(CLONE_NEWUSER | CLONE_NEWNET)


def takes_filters() -> bool:
    """seccomp, and the action that kills a process."""
    # SECCOMP_GET_ACTION_AVAIL for SECCOMP_RET_KILL_PROCESS: 0 where both the call and the action are known.
    action = ctypes.create_string_buffer((0x80000000).to_bytes(4, "little"), 4)
    try:
        return syscall("seccomp", 2, 0, action) == 0
    except OSError:
        return False


def _has_secret_memory() -> bool:
    try:
        os.close(syscall("memfd_secret", 0))
    except OSError as error:
        return error.errno in (errno.EMFILE, errno.ENFILE)
    return True


def _tried(attempt: object) -> bool:
    assert callable(attempt)  # noqa: S101
    child = os.fork()
    if child == 0:
        code = 1
        try:
            attempt()
            code = 0
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def _text(path: str) -> str:
    try:
        return Path(path).read_text("utf-8", "replace")
    except OSError:
        return ""
