"""The filter, run by a small interpreter of classic BPF over every kind of call, and by the kernel itself."""

from __future__ import annotations

import errno
import shutil
import socket
import struct
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloister.workload import linux, seccomp
from cloister.workload.isolation import Sockets
from cloister.workload.seccomp import ALLOW, ERRNO, KILL
from cloister.workload.seccomp_numbers import ARCHITECTURES, AUDIT_ARCH, HIGHEST, Architecture, numbers
from real_parts import absent

EVERY = pytest.mark.parametrize("architecture", ARCHITECTURES)
ANSWERS = {
    ALLOW,
    *(
        ERRNO | number
        for number in (errno.EPERM, errno.ENOSYS, errno.EOPNOTSUPP, errno.EAFNOSUPPORT, errno.EACCES)
    ),
}
SOCKETS: tuple[Sockets, ...] = ("none", "tcp", "tcp+udp", "all")


def run(program: bytes, data: bytes) -> int:
    """What the kernel would return (Documentation/networking/filter.rst)."""
    steps = [struct.unpack_from("<HBBI", program, at) for at in range(0, len(program), 8)]
    accumulator, at = 0, 0
    while True:
        code, true, false, value = steps[at]
        at += 1
        match code:
            case 0x20:
                accumulator = struct.unpack_from("<I", data, value)[0]
            case 0x54:
                accumulator &= value
            case 0x15:
                at += true if accumulator == value else false
            case 0x25:
                at += true if accumulator > value else false
            case 0x45:
                at += true if accumulator & value else false
            case 0x06:
                return int(value)
            case _:
                raise AssertionError(f"no such instruction: {code:#x}")


def asked(
    architecture: Architecture,
    call: str | int,
    *arguments: int,
    sockets: Sockets = "all",
    audit: int | None = None,
) -> int:
    number = numbers(architecture)[call] if isinstance(call, str) else call
    words = [argument & 0xFFFFFFFFFFFFFFFF for argument in (*arguments, 0, 0, 0, 0, 0, 0)[:6]]
    data = struct.pack("<IIQ6Q", number, AUDIT_ARCH[architecture] if audit is None else audit, 0, *words)
    return run(seccomp.encode(seccomp.filter_for(sockets, architecture)), data)


@EVERY
@pytest.mark.parametrize("call", seccomp.DENIED)
def test_a_denied_call_answers_eperm(architecture: Architecture, call: str):
    if call in numbers(architecture):
        assert asked(architecture, call) == ERRNO | errno.EPERM


@EVERY
def test_calls_that_programs_do_without_answer_as_in_an_older_kernel(architecture: Architecture):
    for call in seccomp.UNKNOWN:
        assert asked(architecture, call) == ERRNO | errno.ENOSYS
    for call in seccomp.ATTRIBUTES:
        assert asked(architecture, call) == ERRNO | errno.EOPNOTSUPP


@EVERY
@given(number=st.integers(0, 2**32 - 1))
def test_every_number_is_allowed_denied_or_unknown(architecture: Architecture, number: int):
    answer = asked(architecture, number)
    if number & 0x40000000 and architecture == "x86_64":
        assert answer == KILL
    elif number > HIGHEST:
        assert answer == ERRNO | errno.ENOSYS
    else:
        assert answer in ANSWERS


@EVERY
def test_what_is_not_named_is_allowed(architecture: Architecture):
    named = set(numbers(architecture).values())
    assert all(asked(architecture, number) == ALLOW for number in range(HIGHEST + 1) if number not in named)


@EVERY
@pytest.mark.parametrize(
    "audit",
    [
        pytest.param(0x40000003, id="32-bit x86"),
        pytest.param(0x40000028, id="32-bit ARM"),
        pytest.param(0xC0000015, id="another processor"),
        pytest.param(0, id="none"),
    ],
)
def test_another_calling_convention_kills(architecture: Architecture, audit: int):
    assert asked(architecture, 0, audit=audit) == KILL


def test_one_processors_numbers_are_not_taken_for_the_others():
    assert asked("x86_64", "socket", audit=AUDIT_ARCH["aarch64"]) == KILL
    assert asked("aarch64", "socket", audit=AUDIT_ARCH["x86_64"]) == KILL


STREAM, DATAGRAM, RAW, SEQUENCED = (
    socket.SOCK_STREAM,
    socket.SOCK_DGRAM,
    socket.SOCK_RAW,
    socket.SOCK_SEQPACKET,
)
FLAGS = socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK


@EVERY
@pytest.mark.parametrize(
    ("family", "kind", "protocol", "allowed"),
    [
        pytest.param(socket.AF_INET, STREAM, 0, ("tcp", "tcp+udp", "all"), id="TCP"),
        pytest.param(
            socket.AF_INET6, STREAM, socket.IPPROTO_TCP, ("tcp", "tcp+udp", "all"), id="TCP by its protocol"
        ),
        pytest.param(socket.AF_INET, DATAGRAM, 0, ("tcp+udp", "all"), id="UDP"),
        pytest.param(
            socket.AF_INET6, DATAGRAM, socket.IPPROTO_UDP, ("tcp+udp", "all"), id="UDP by its protocol"
        ),
        pytest.param(socket.AF_INET, STREAM, 262, ("all",), id="MPTCP, which Landlock does not hold"),
        pytest.param(socket.AF_INET, STREAM, socket.IPPROTO_SCTP, ("all",), id="SCTP as a stream"),
        pytest.param(socket.AF_INET, SEQUENCED, socket.IPPROTO_SCTP, ("all",), id="SCTP"),
        pytest.param(socket.AF_INET, DATAGRAM, socket.IPPROTO_ICMP, ("all",), id="ICMP echo"),
        pytest.param(socket.AF_INET6, DATAGRAM, 136, ("all",), id="UDP-Lite"),
        pytest.param(socket.AF_INET, RAW, socket.IPPROTO_RAW, ("all",), id="raw"),
        pytest.param(socket.AF_UNIX, STREAM, 0, SOCKETS, id="Unix"),
        pytest.param(socket.AF_NETLINK, RAW, 0, SOCKETS, id="route netlink"),
        pytest.param(socket.AF_NETLINK, RAW, 12, (), id="netfilter netlink"),
        pytest.param(socket.AF_PACKET, RAW, 0, (), id="packet"),
        pytest.param(socket.AF_VSOCK, STREAM, 0, (), id="vsock, to the host"),
        pytest.param(38, SEQUENCED, 0, (), id="the kernel's cryptography"),
        pytest.param(43, STREAM, 0, (), id="SMC"),
        pytest.param(44, RAW, 0, (), id="XDP"),
        pytest.param(45, DATAGRAM, 0, (), id="a family of tomorrow"),
    ],
)
def test_sockets_are_made_as_the_network_says(
    architecture: Architecture, family: int, kind: int, protocol: int, allowed: tuple[Sockets, ...]
):
    for sockets in SOCKETS:
        for flags in (0, FLAGS):
            # The upper half of an int argument is not looked at by the kernel, so it must not be here either.
            answer = asked(
                architecture, "socket", family | 1 << 32, kind | flags, protocol | 1 << 40, sockets=sockets
            )
            assert (answer == ALLOW) == (sockets in allowed)


@EVERY
@pytest.mark.parametrize(
    ("call", "arguments", "failed"),
    [
        pytest.param("clone", (0x3D0F00,), 0, id="a thread"),
        pytest.param("clone", (0x1200011,), 0, id="fork"),
        pytest.param("clone", (0x4111,), 0, id="vfork"),
        *(
            pytest.param("clone", (0x11 | flag,), errno.EPERM, id=f"clone into namespace {flag:#x}")
            for flag in (0x20000, 0x2000000, 0x4000000, 0x8000000, 0x10000000, 0x20000000, 0x40000000)
        ),
        pytest.param("unshare", (0x400,), 0, id="unshare the table of descriptors"),
        pytest.param("unshare", (0x10000000,), errno.EPERM, id="unshare into a user namespace"),
        pytest.param("unshare", (0x80,), errno.EPERM, id="unshare into a time namespace"),
        pytest.param("ioctl", (0, 0x5401), 0, id="ask a terminal"),
        pytest.param("ioctl", (0, 0x5412), errno.EPERM, id="type into a terminal"),
        pytest.param(
            "ioctl", (0, 0xFFFFFFFF00005412), errno.EPERM, id="type into a terminal, upper half set"
        ),
        pytest.param("ioctl", (0, 0x541C), errno.EPERM, id="paste into a console"),
        pytest.param("personality", (0xFFFFFFFF,), 0, id="ask for the personality"),
        pytest.param("personality", (0,), 0, id="the usual personality"),
        pytest.param("personality", (0x40000,), errno.EPERM, id="switch address randomisation off"),
        pytest.param("sendto", (3, 0, 9, 0x4000), 0, id="send"),
        pytest.param("sendto", (3, 0, 9, 0x20004000), errno.EPERM, id="connect by sendto"),
        pytest.param("sendmsg", (3, 0, 0x20000000), errno.EPERM, id="connect by sendmsg"),
        pytest.param("sendmmsg", (3, 0, 1, 0x20000000), errno.EPERM, id="connect by sendmmsg"),
    ],
)
def test_a_call_is_judged_by_its_argument(
    architecture: Architecture, call: str, arguments: tuple[int, ...], failed: int
):
    assert asked(architecture, call, *arguments) == (ERRNO | failed if failed else ALLOW)


@EVERY
@pytest.mark.parametrize("sockets", SOCKETS)
def test_the_filter_is_one_that_the_kernel_takes(architecture: Architecture, sockets: Sockets):
    steps = seccomp.filter_for(sockets, architecture)
    assert len(steps) <= 4096
    for at, step in enumerate(steps):
        if step.code & 0x07 == 0x05:  # a jump
            assert at + 1 + max(step.true, step.false) < len(steps)
    assert steps[-1].code == 0x06


def test_the_table_agrees_with_the_headers_of_this_machine():
    if shutil.which("cc") is None:
        absent("a C compiler, whose headers number the system calls")
    source = "\n".join(f"#ifdef __NR_{name}\n{name} __NR_{name}\n#endif" for name in numbers("x86_64"))
    found = subprocess.run(
        ["cc", "-E", "-P", "-include", "sys/syscall.h", "-"],
        input=source,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    known = linux.architecture()
    assert known is not None
    ours = numbers(known)
    theirs = dict(
        line.split() for line in found.splitlines() if len(line.split()) == 2 and line.split()[1].isdigit()
    )
    assert len(theirs) > 50
    assert {name: ours[name] for name in theirs if name in ours} == {
        name: int(number) for name, number in theirs.items()
    }


REAL = """
import ctypes, errno, os, socket, subprocess, threading
from cloister.workload import linux, seccomp
linux.prctl(linux.PR_SET_NO_NEW_PRIVS, 1)
seccomp.install("tcp")
def failed(name, *arguments):
    try:
        linux.syscall(name, *arguments)
    except OSError as error:
        return errno.errorcode[error.errno]
def refused(*arguments):
    try:
        socket.socket(*arguments).close()
    except OSError as error:
        return errno.errorcode[error.errno]
buffer = ctypes.create_string_buffer(4096)
print(failed("ptrace", 0, 0, 0, 0), failed("io_uring_setup", 4, buffer))
print(failed("unshare", 0x10000000), failed("bpf", 0, buffer, 4))
inet, stream = socket.AF_INET, socket.SOCK_STREAM
print(refused(inet, socket.SOCK_DGRAM), refused(inet, stream, 262), refused(38, socket.SOCK_SEQPACKET))
print(refused(inet, stream), refused(socket.AF_UNIX, socket.SOCK_DGRAM))
thread = threading.Thread(target=print, args=("a thread",))
thread.start(); thread.join()
print(subprocess.run(["/bin/echo", "a child"], capture_output=True, text=True).stdout.strip())
"""


def test_the_kernel_answers_as_the_interpreter_does():
    said = subprocess.run(
        [sys.executable, "-c", REAL], check=True, capture_output=True, text=True
    ).stdout.splitlines()
    assert said == [
        "EPERM ENOSYS",
        "EPERM EPERM",
        "EACCES EACCES EAFNOSUPPORT",
        "None None",
        "a thread",
        "a child",
    ]
