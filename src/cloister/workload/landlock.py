"""Landlock: the kernel holds a process and all that it starts to the files and TCP ports that are named.

Reading and executing below ``read``, everything below ``write``, the devices of ``devices``, a few harmless device nodes,
and nothing else: not /tmp, not /dev/shm, not the working directory, not /proc. A ruleset is built purely, for one ABI
version of the kernel, and then applied, once and for ever. Source: Linux, Documentation/userspace-api/landlock.rst.

Landlock says nothing of modes, owners and times of files, of connecting to Unix sockets by path, nor of descriptors that
were open before: seccomp.py, namespaces.py and the launcher answer for some of it, docs/reference/isolation.md for the rest.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import stat
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from cloister.errors import IsolationRefused
from cloister.workload import linux
from cloister.workload.isolation import Isolation

NEWEST: Final = 7
"""The last ABI whose rights are known here. A newer kernel is asked for these alone."""
EXECUTE: Final = 1 << 0
WRITE_FILE: Final = 1 << 1
READ_FILE: Final = 1 << 2
READ_DIR: Final = 1 << 3
REMOVE_DIR: Final = 1 << 4
REMOVE_FILE: Final = 1 << 5
MAKE_CHAR: Final = 1 << 6
MAKE_DIR: Final = 1 << 7
MAKE_REG: Final = 1 << 8
MAKE_SOCK: Final = 1 << 9
MAKE_FIFO: Final = 1 << 10
MAKE_BLOCK: Final = 1 << 11
MAKE_SYM: Final = 1 << 12
REFER: Final = 1 << 13
TRUNCATE: Final = 1 << 14
IOCTL_DEV: Final = 1 << 15
BIND_TCP: Final = 1 << 0
CONNECT_TCP: Final = 1 << 1
SCOPE_ABSTRACT_UNIX: Final = 1 << 0
SCOPE_SIGNAL: Final = 1 << 1

_FIRST: Final = (1 << 13) - 1
_OF_FILES: Final = EXECUTE | WRITE_FILE | READ_FILE | TRUNCATE | IOCTL_DEV
"""What a rule on a file, not a directory, may hold."""
_READ: Final = EXECUTE | READ_FILE | READ_DIR
_DEVICE: Final = READ_FILE | WRITE_FILE | TRUNCATE | IOCTL_DEV
HARMLESS: Final = ("/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom", "/dev/tty")
"""What is written there is gone, or shown on the program's own terminal, to which it may write in any case."""
_PATH_RULE: Final = 1
_PORT_RULE: Final = 2


@dataclass(frozen=True, slots=True)
class PathRule:
    """``rights`` at ``path`` and below."""

    path: str
    rights: int
    optional: bool = False
    """Not every machine has it."""


@dataclass(frozen=True, slots=True)
class PortRule:
    """``rights`` on a TCP port."""

    port: int
    rights: int


@dataclass(frozen=True, slots=True)
class Ruleset:
    """What is handled is denied, but for what the rules give."""

    files: int
    tcp: int
    scopes: int
    paths: tuple[PathRule, ...]
    ports: tuple[PortRule, ...]
    size: int
    """Of the structure by which this ABI is told what is handled, in bytes."""


def handled_files(abi: int) -> int:
    """The rights to files that this ABI knows."""
    rights = _FIRST
    for least, right in ((2, REFER), (3, TRUNCATE), (5, IOCTL_DEV)):
        if abi >= least:
            rights |= right
    return rights


def ruleset(isolation: Isolation, abi: int, *, tcp: bool, scope_sockets: bool) -> Ruleset:
    """The rules for a kernel of ``abi`` (1 or more). ``tcp``: hold TCP to the listed ports (ABI 4).

    ``scope_sockets``: keep to the program's own abstract Unix sockets (ABI 6); signals are kept to its own processes there
    in any case.
    """
    handled = handled_files(abi)
    # Device nodes are never made: they would lead past every path.
    below = handled & ~(MAKE_CHAR | MAKE_BLOCK | IOCTL_DEV)
    read = ("/",) if isolation.read == "all" else isolation.read
    paths = [PathRule(path, _READ & handled) for path in read]
    paths += [PathRule(path, below) for path in isolation.write]
    paths += [PathRule(path, _DEVICE & handled) for path in isolation.devices]
    paths += [PathRule(path, _DEVICE & handled, optional=True) for path in HARMLESS]
    ports: dict[int, int] = {}
    if tcp:
        for listed, right in ((isolation.network.connect, CONNECT_TCP), (isolation.network.bind, BIND_TCP)):
            for port in listed:
                ports[port] = ports.get(port, 0) | right
    return Ruleset(
        files=handled,
        tcp=BIND_TCP | CONNECT_TCP if tcp else 0,
        scopes=(SCOPE_SIGNAL | (SCOPE_ABSTRACT_UNIX if scope_sockets else 0)) if abi >= 6 else 0,
        paths=tuple(paths),
        ports=tuple(PortRule(port, rights) for port, rights in sorted(ports.items())),
        size=24 if abi >= 6 else 16 if abi >= 4 else 8,
    )


def rights_of_open(mode: int, flags: int) -> int:
    """What reopening a descriptor by name (``/dev/stderr``) takes: no more than it is good for already.

    ``mode`` as of ``fstat``, ``flags`` as of ``F_GETFL``. 0 for pipes and sockets, which Landlock does not look at, and
    for directories.
    """
    if not (stat.S_ISREG(mode) or stat.S_ISCHR(mode)):
        return 0
    rights = IOCTL_DEV if stat.S_ISCHR(mode) else 0
    access = flags & os.O_ACCMODE
    if access != os.O_WRONLY:
        rights |= READ_FILE
    if access != os.O_RDONLY:
        rights |= WRITE_FILE | TRUNCATE
    return rights


class _RulesetAttributes(ctypes.Structure):
    _fields_ = (("files", ctypes.c_uint64), ("tcp", ctypes.c_uint64), ("scopes", ctypes.c_uint64))


class _PathAttributes(ctypes.Structure):
    _pack_ = 1
    _fields_ = (("rights", ctypes.c_uint64), ("parent", ctypes.c_int32))


class _PortAttributes(ctypes.Structure):
    _fields_ = (("rights", ctypes.c_uint64), ("port", ctypes.c_uint64))


def restrict(rules: Ruleset, *, reopened: Iterable[int] = ()) -> None:
    """Hold this thread, and all that it starts, to ``rules``. Needs no_new_privs, or CAP_SYS_ADMIN.

    ``reopened``: open descriptors whose files may be opened again, as they are open.
    Raises :class:`~cloister.errors.IsolationRefused`, and then nothing is restricted.
    """
    attributes = _RulesetAttributes(rules.files, rules.tcp, rules.scopes)
    try:
        held = linux.syscall("landlock_create_ruleset", attributes, rules.size, 0)
    except OSError as error:
        raise _refused(error) from None
    try:
        for rule in rules.paths:
            _add_path(held, rule)
        for descriptor in reopened:
            _add_open(held, descriptor, rules.files)
        for port in rules.ports:
            linux.syscall("landlock_add_rule", held, _PORT_RULE, _PortAttributes(port.rights, port.port), 0)
        linux.syscall("landlock_restrict_self", held, 0)
    except OSError as error:
        raise _refused(error) from None
    finally:
        os.close(held)


def _add_path(held: int, rule: PathRule) -> None:
    try:
        place = os.open(rule.path, os.O_PATH | os.O_CLOEXEC)
    except OSError as error:
        if rule.optional:
            return
        raise IsolationRefused(
            f"the program was to have {rule.path[:256]}, which cannot be opened: {error.strerror}",
            todo="make it before the program starts, where the program's user can reach it",
        ) from None
    try:
        directory = stat.S_ISDIR(os.fstat(place).st_mode)
        rights = rule.rights if directory else rule.rights & _OF_FILES
        linux.syscall("landlock_add_rule", held, _PATH_RULE, _PathAttributes(rights, place), 0)
    finally:
        os.close(place)


def _add_open(held: int, descriptor: int, handled: int) -> None:
    try:
        mode, flags = os.fstat(descriptor).st_mode, fcntl.fcntl(descriptor, fcntl.F_GETFL)
    except OSError:  # a program may be started without it
        return
    if rights := rights_of_open(mode, flags) & handled:
        linux.syscall("landlock_add_rule", held, _PATH_RULE, _PathAttributes(rights, descriptor), 0)


def _refused(error: OSError) -> IsolationRefused:
    return IsolationRefused(f"Landlock refuses the rules of this program: {error.strerror}")
