"""The filter of system calls: what the program, and all that it starts, cannot ask the kernel for.

A list of what is denied, not of what is allowed: programs that nobody changed have to run, whatever they call. Denied is
what reaches into other processes, changes what the machine is or what the other layers hold to (mounts, namespaces), hides
work from them (io_uring), takes large parts of the kernel into use that such programs do without (bpf, keyrings,
userfaultfd), or sends data where Landlock does not look: socket families, UDP, TCP fast open, extended attributes. Calls
that were not known when this list was made answer ENOSYS, as in an older kernel.
Source: Linux, Documentation/userspace-api/seccomp_filter.rst.

The filter is built purely, for either processor, and holds for ever. Another processor's calling convention in the same
process (32 bits, x32) kills it.
"""

from __future__ import annotations

import ctypes
import errno
import socket
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from cloister.errors import IsolationRefused
from cloister.workload import linux
from cloister.workload.isolation import Sockets
from cloister.workload.seccomp_numbers import AUDIT_ARCH, HIGHEST, X32_BIT, Architecture, numbers

KILL: Final = 0x80000000
ALLOW: Final = 0x7FFF0000
ERRNO: Final = 0x00050000

DENIED: Final = (
    # other processes
    *(
        "ptrace",
        "process_vm_readv",
        "process_vm_writev",
        "process_madvise",
        "kcmp",
        "pidfd_getfd",
        "perf_event_open",
    ),
    # mounts, roots and names of files that go past them
    *(
        "mount",
        "umount2",
        "move_mount",
        "open_tree",
        "open_tree_attr",
        "fsopen",
        "fsconfig",
        "fsmount",
        "fspick",
    ),
    *(
        "mount_setattr",
        "pivot_root",
        "chroot",
        "setns",
        "open_by_handle_at",
        "name_to_handle_at",
        "fanotify_init",
    ),
    # the machine
    *(
        "kexec_load",
        "kexec_file_load",
        "init_module",
        "finit_module",
        "delete_module",
        "swapon",
        "swapoff",
        "reboot",
    ),
    *(
        "quotactl",
        "quotactl_fd",
        "acct",
        "syslog",
        "iopl",
        "ioperm",
        "modify_ldt",
        "settimeofday",
        "clock_settime",
    ),
    *("clock_adjtime", "sethostname", "setdomainname", "uselib", "_sysctl", "lookup_dcookie", "nfsservctl"),
    # parts of the kernel with a history
    *("bpf", "userfaultfd", "add_key", "request_key", "keyctl"),
)
"""Answer EPERM."""
UNKNOWN: Final = ("clone3", "io_uring_setup", "io_uring_enter", "io_uring_register")
"""Answer ENOSYS, as in a kernel without them: programs then use `clone`, whose flags can be looked at, and `epoll`."""
ATTRIBUTES: Final = ("setxattr", "lsetxattr", "fsetxattr", "setxattrat")
"""Answer EOPNOTSUPP, as of a file system without them: Landlock does not hold them, and sealed files have none."""
NAMESPACES: Final = 0x7E020000
"""CLONE_NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET."""
NEW_TIME: Final = 0x80
"""CLONE_NEWTIME: of `unshare` alone, part of the exit signal in `clone`."""
TERMINAL_INPUT: Final = (0x5412, 0x541C)
"""TIOCSTI and TIOCLINUX: type into the terminal that the launcher's shell reads."""
SEND_FLAGS: Final = {"sendto": 3, "sendmsg": 2, "sendmmsg": 3}
FAST_OPEN: Final = 0x20000000
"""MSG_FASTOPEN: connects without `connect`, which is where Landlock looks."""
_AS_IT_IS: Final = 0xFFFFFFFF
_PROTOCOLS: Final = {socket.SOCK_STREAM: (0, socket.IPPROTO_TCP), socket.SOCK_DGRAM: (0, socket.IPPROTO_UDP)}
"""Landlock holds TCP alone: over the same kind of socket there are also MPTCP, SCTP and ICMP."""

_LOAD: Final = 0x20  # BPF_LD | BPF_W | BPF_ABS
_AND: Final = 0x54  # BPF_ALU | BPF_AND | BPF_K
_EQUAL: Final = 0x15  # BPF_JMP | BPF_JEQ | BPF_K
_OVER: Final = 0x25  # BPF_JMP | BPF_JGT | BPF_K
_ANY_BIT: Final = 0x45  # BPF_JMP | BPF_JSET | BPF_K
_RETURN: Final = 0x06  # BPF_RET | BPF_K
_NUMBER: Final = 0
_ARCHITECTURE: Final = 4


@dataclass(frozen=True, slots=True)
class Instruction:
    """One of classic BPF (``struct sock_filter``)."""

    code: int
    true: int
    false: int
    value: int


def _answer(value: int) -> Instruction:
    return Instruction(_RETURN, 0, 0, value)


def _refuse(number: int) -> Instruction:
    return _answer(ERRNO | number)


def _load(offset: int) -> Instruction:
    return Instruction(_LOAD, 0, 0, offset)


def _argument(index: int) -> Instruction:
    """Its low 32 bits: all that the kernel looks at in the arguments below, which are ints there."""
    return _load(16 + 8 * index)


def _if(code: int, value: int, body: Sequence[Instruction]) -> tuple[Instruction, ...]:
    """``body``, which always returns, where the accumulator compares so with ``value``."""
    return (Instruction(code, 0, len(body), value), *body)


def filter_for(sockets: Sockets, architecture: Architecture) -> tuple[Instruction, ...]:
    """The program. ``sockets``: which internet sockets may be made."""
    known = numbers(architecture)

    def calls(names: Iterable[str], failed: int) -> tuple[Instruction, ...]:
        there = [known[name] for name in names if name in known]
        return tuple(step for number in there for step in _if(_EQUAL, number, (_refuse(failed),)))

    def call(name: str, *body: Instruction) -> tuple[Instruction, ...]:
        return _if(_EQUAL, known[name], (*body, _answer(ALLOW)))

    denied = _refuse(errno.EPERM)
    return (
        _load(_ARCHITECTURE),
        Instruction(_EQUAL, 1, 0, AUDIT_ARCH[architecture]),
        _answer(KILL),
        _load(_NUMBER),
        *_if(_ANY_BIT, X32_BIT, (_answer(KILL if architecture == "x86_64" else ERRNO | errno.ENOSYS),)),
        *_if(_OVER, HIGHEST, (_refuse(errno.ENOSYS),)),
        *call("socket", *_socket(sockets)),
        *call("clone", _argument(0), *_if(_ANY_BIT, NAMESPACES, (denied,))),
        *call("unshare", _argument(0), *_if(_ANY_BIT, NAMESPACES | NEW_TIME, (denied,))),
        *call(
            "ioctl", _argument(1), *(step for code in TERMINAL_INPUT for step in _if(_EQUAL, code, (denied,)))
        ),
        *call("personality", _argument(0), *_only((0, _AS_IT_IS), denied)),
        *(
            step
            for name, index in SEND_FLAGS.items()
            for step in call(name, _argument(index), *_if(_ANY_BIT, FAST_OPEN, (denied,)))
        ),
        *calls(DENIED, errno.EPERM),
        *calls(UNKNOWN, errno.ENOSYS),
        *calls(ATTRIBUTES, errno.EOPNOTSUPP),
        _answer(ALLOW),
    )


def _only(values: Sequence[int], refusal: Instruction) -> tuple[Instruction, ...]:
    """Allow these values, and refuse."""
    return (*(step for value in values for step in _if(_EQUAL, value, (_answer(ALLOW),))), refusal)


def _socket(sockets: Sockets) -> tuple[Instruction, ...]:
    """By family, type and protocol: arguments 0, 1 and 2."""
    no_family, no_kind = _refuse(errno.EAFNOSUPPORT), _refuse(errno.EACCES)
    kinds = {
        "none": (),
        "tcp": (socket.SOCK_STREAM,),
        "tcp+udp": (socket.SOCK_STREAM, socket.SOCK_DGRAM),
        "all": None,
    }[sockets]
    internet: tuple[Instruction, ...] = (_answer(ALLOW),)
    if kinds is not None:
        internet = (_argument(1), Instruction(_AND, 0, 0, 0xF))  # without SOCK_CLOEXEC and SOCK_NONBLOCK
        for kind in kinds:
            internet += _if(_EQUAL, kind, (_argument(2), *_only(_PROTOCOLS[kind], no_kind)))
        internet += (no_kind,)
    return (
        _argument(0),
        *_if(_EQUAL, socket.AF_UNIX, (_answer(ALLOW),)),
        *_if(_EQUAL, socket.AF_INET, internet),
        *_if(_EQUAL, socket.AF_INET6, internet),
        # NETLINK_ROUTE, by which libc lists the addresses of this machine.
        *_if(_EQUAL, socket.AF_NETLINK, (_argument(2), *_only((0,), no_family))),
        no_family,
    )


def encode(instructions: Sequence[Instruction]) -> bytes:
    """As an array of ``struct sock_filter``."""
    return b"".join(struct.pack("<HBBI", one.code, one.true, one.false, one.value) for one in instructions)


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_void_p))


def install(sockets: Sockets) -> None:
    """Filter this thread, and all that it starts, for ever. Needs no_new_privs, or CAP_SYS_ADMIN.

    Raises :class:`~cloister.errors.IsolationRefused`, and then nothing is filtered.
    """
    architecture = linux.architecture()
    if architecture is None:
        raise IsolationRefused("there is no filter of system calls for this processor")
    code = encode(filter_for(sockets, architecture))
    buffer = ctypes.create_string_buffer(code, len(code))
    program = _Program(len(code) // 8, ctypes.addressof(buffer))
    try:
        linux.syscall("seccomp", 1, 0, program)  # SECCOMP_SET_MODE_FILTER
    except OSError as error:
        raise IsolationRefused(f"the kernel refuses the filter of system calls: {error.strerror}") from None


def available() -> bool:
    """The kernel takes filters, and this processor's system calls are known."""
    return linux.architecture() is not None and linux.takes_filters()
