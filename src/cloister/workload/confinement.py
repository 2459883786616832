"""The steps by which a process gives up what the program must not have, in the one order in which each can be done.

Namespaces and ids need privileges, so they come first; then privileges go; then Landlock, and the filter of system calls
last of all, since it forbids some of what the steps before it do. Called once, in a process with one thread, right before
``execve``. What survives that call is noted at each step: the kernel resets some things when a program starts.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import resource
import signal
import socket
import struct
from collections.abc import Collection
from pathlib import Path
from typing import Final, Literal

from cloister.errors import IsolationRefused, UsageError, WorkloadError
from cloister.workload import landlock, linux, seccomp
from cloister.workload.isolation import Isolation, User, decide
from cloister.workload.namespaces import new_user_namespace

CORE_LIMIT: Final = 1
"""Bytes. Less than a page keeps the kernel from writing a file, exactly 1 from starting a pipe (Linux, fs/coredump.c)."""
_SECUREBITS: Final = 0x01 | 0x02 | 0x20 | 0x40 | 0x80
"""Root gains nothing by exec, locked; capabilities are never kept, locked; nor made ambient, locked (capabilities(7))."""
_LAST_CAPABILITY: Final = 63
_SIOCGIFFLAGS: Final = 0x8913
_SIOCSIFFLAGS: Final = 0x8914
_IFF_UP: Final = 1


def confine(
    isolation: Isolation,
    *,
    directory: str,
    keep_fds: Collection[int],
    group: Literal["same", "own", "session"],
    parent: int,
) -> None:
    """Give up everything but what ``isolation`` names, and go to ``directory``; only ``keep_fds`` and 0–2 stay open.

    ``parent``: die with that process; 0 not to. Raises :class:`~cloister.errors.IsolationRefused`,
    :class:`~cloister.errors.UsageError` and :class:`~cloister.errors.WorkloadError`; the process must then end.
    """
    _signals_as_they_were()
    no_core_dumps()
    if group == "session":
        os.setsid()
    elif group == "own":
        os.setpgid(0, 0)
    own_network = _namespaces(wanted=isolation.network.access == "none")
    decision = decide(
        isolation,
        landlock=linux.landlock_abi(),
        seccomp=seccomp.available(),
        own_network=own_network,
    )
    _become(isolation.user)
    # After the ids: the kernel forgets both when they change.
    if parent:
        linux.prctl(linux.PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            raise WorkloadError("the launcher ended before the program started")
    linux.prctl(linux.PR_SET_NO_NEW_PRIVS, 1)
    try:
        os.chdir(directory)
    except OSError as error:
        raise UsageError(f"the program cannot start in {directory[:256]}: {error.strerror}") from None
    _close_all_but(keep_fds)
    if decision.landlock:
        landlock.restrict(
            landlock.ruleset(isolation, decision.landlock, tcp=decision.tcp, scope_sockets=decision.scoped),
            reopened=(0, 1, 2),  # scripts write to /dev/stderr, and it may be a file
        )
    if decision.sockets is not None:
        seccomp.install(decision.sockets)


def _signals_as_they_were() -> None:
    # Python ignores the first two, and what is ignored stays so across exec. The third would be an exception here.
    for number in (signal.SIGPIPE, signal.SIGXFSZ, signal.SIGINT):
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())


def no_core_dumps() -> None:
    """Holds across exec, for all descendants. (``PR_SET_DUMPABLE`` does not: exec sets it to 1 again.)"""
    try:
        resource.setrlimit(resource.RLIMIT_CORE, (CORE_LIMIT, CORE_LIMIT))
    except ValueError:
        # Who started this process allowed none at all, and may not be overruled (LimitCORE=0 of systemd): no file is written
        # then, and a pipe gets what the filter below leaves.
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    # A core_pattern of `@/socket` (Linux 6.16) asks for no limit. isolation.check() refuses it; should it be set later, the
    # dump holds registers and no memory. Kernels without this switch (CONFIG_ELF_CORE) write no core dumps.
    with contextlib.suppress(OSError):
        Path("/proc/self/coredump_filter").write_text("0", "ascii")


def _namespaces(*, wanted: bool) -> bool:
    """Own System V IPC where that takes nothing; an own network, if it is ``wanted`` and can be had: then True."""
    with contextlib.suppress(OSError):
        linux.unshare(linux.CLONE_NEWIPC)
    if not wanted:
        return False
    try:
        linux.unshare(linux.CLONE_NEWNET)
    except OSError:
        try:
            new_user_namespace(linux.CLONE_NEWNET | linux.CLONE_NEWIPC)
        except OSError:
            return False
    try:
        _loopback_up()
    except OSError as error:
        raise IsolationRefused(
            f"the loopback of the program cannot be switched on: {error.strerror}"
        ) from None
    return True


def _loopback_up() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        request = struct.pack("16sH14x", b"lo", 0)
        flags = struct.unpack_from("16xH", fcntl.ioctl(any_socket, _SIOCGIFFLAGS, request))[0]
        fcntl.ioctl(any_socket, _SIOCSIFFLAGS, struct.pack("16sH14x", b"lo", flags | _IFF_UP))


def _become(user: User | None) -> None:
    """Another user, and no capabilities: not held, not inherited, not to be had by exec."""
    try:
        linux.prctl(linux.PR_CAP_AMBIENT, linux.PR_CAP_AMBIENT_CLEAR_ALL)
        if linux.has_capability(linux.CAP_SETPCAP):
            linux.prctl(linux.PR_SET_SECUREBITS, _SECUREBITS)
            for capability in range(_LAST_CAPABILITY + 1):
                try:
                    linux.prctl(linux.PR_CAPBSET_DROP, capability)
                except OSError:  # the first that this kernel does not have
                    break
        if user is not None and not _is(user):
            os.setgroups(user.groups)
            os.setresgid(user.gid, user.gid, user.gid)
            os.setresuid(user.uid, user.uid, user.uid)
        linux.clear_capabilities()
    except OSError as error:
        what = "its user cannot be changed" if user is not None else "its capabilities cannot be dropped"
        raise IsolationRefused(
            f"{what}: {error.strerror}", todo="start as root, or leave `user` out"
        ) from None


def _is(user: User) -> bool:
    """This process runs as that user already; its own group may or may not be listed among the others."""
    groups = {*os.getgroups(), os.getegid()}
    return (os.geteuid(), os.getegid(), groups) == (user.uid, user.gid, {*user.groups, user.gid})


def _close_all_but(kept: Collection[int]) -> None:
    for entry in list(Path("/proc/self/fd").iterdir()):
        number = int(entry.name)
        if number > 2 and number not in kept:
            with contextlib.suppress(OSError):  # the listing's own is closed by now
                os.close(number)
