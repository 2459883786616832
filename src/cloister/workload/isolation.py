"""What a program is confined to, and what this kernel can give of it: in words for a person, as decisions for the launcher.

Everything is denied that is not named: writing, the network, other people's processes. Nothing is applied here
(landlock.py, seccomp.py and enter.py do) and nothing is asked of the kernel: the machine comes in as a
:class:`~cloister.workload.linux.Machine`. What is demanded and cannot be had is refused before the program starts.
"""

from __future__ import annotations

import posixpath
from dataclasses import dataclass
from typing import Final, Literal

from cloister.encoding import Record
from cloister.errors import IsolationRefused, UsageError
from cloister.workload.linux import Finding, Machine
from cloister.workload.swap import SwapPolicy, judge_swap

MAX_PATHS: Final = 256
MAX_PORTS: Final = 256
MAX_GROUPS: Final = 64
BOUNDED_WRITES: Final = 3
"""The first Landlock ABI (Linux 6.2) that holds truncating too: the length of a file is eight bytes that leak."""
BOUNDED_PORTS: Final = 4
BOUNDED_IOCTLS: Final = 5
BOUNDED_SIGNALS: Final = 6

Strictness = Literal["require", "where-possible", "off"]
Sockets = Literal["none", "tcp", "tcp+udp", "all"]
"""The internet sockets that a program may make. Unix sockets it may make in any case, of other families none."""


class Network(Record, frozen=True, kw_only=True):
    """Whom the program may talk to.

    ``none``: nobody, and itself over a loopback of its own. ``ports``: TCP to and from the ports that are listed.
    ``any``: whoever it likes, and sealed files then protect from the host alone, not from the program.
    """

    access: Literal["none", "ports", "any"]
    connect: tuple[int, ...] = ()
    """TCP ports of any machine that it may connect to, 1 to 65535."""
    bind: tuple[int, ...] = ()
    """TCP ports that it may listen on; 0 for one that the kernel picks."""
    udp: bool = False
    """With ``ports``: UDP as well, to any port of any machine, since the kernel cannot hold it to some."""

    def __post_init__(self) -> None:
        if self.access != "ports" and (self.connect or self.bind or self.udp):
            raise UsageError(
                f'a network of "{self.access}" takes no ports and no udp', todo='say `access = "ports"`'
            )
        for name, ports, least in (("connect", self.connect, 1), ("bind", self.bind, 0)):
            if len(ports) > MAX_PORTS or len(set(ports)) != len(ports):
                raise UsageError(f"`{name}` lists a port twice, or more than {MAX_PORTS}")
            if not all(least <= port <= 65535 for port in ports):
                raise UsageError(f"`{name}` lists what is no TCP port", todo=f"ports are {least} to 65535")


class User(Record, frozen=True, kw_only=True):
    """Who the program runs as."""

    uid: int
    gid: int
    groups: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        # 2**32 - 1 would mean "as it is" to the kernel.
        if not all(0 <= one < 2**32 - 1 for one in (self.uid, self.gid, *self.groups)):
            raise UsageError("a user or group id is not one", todo="ids are 0 to 4294967294")
        if len(self.groups) > MAX_GROUPS:
            raise UsageError(f"more than {MAX_GROUPS} groups")


class Isolation(Record, frozen=True, kw_only=True):
    """What the program may do. No new privileges, no capabilities and no core dumps are not for choice."""

    write: tuple[str, ...]
    """Absolute paths below which it may create, change and remove: sealed mounts and private tmpfs."""
    read: tuple[str, ...] | Literal["all"]
    """Absolute paths below which it may read and execute; ``all`` leaves that to the file modes."""
    landlock: Strictness
    network: Network
    seccomp: bool
    devices: tuple[str, ...] = ()
    """Device nodes that it may read, write and control besides the harmless ones: those of a GPU."""
    user: User | None = None
    """None: as whoever starts it."""
    swap: SwapPolicy = "refuse"

    def __post_init__(self) -> None:
        lists = {
            "write": self.write,
            "read": () if self.read == "all" else self.read,
            "devices": self.devices,
        }
        for name, paths in lists.items():
            if len(paths) > MAX_PATHS or len(set(paths)) != len(paths):
                raise UsageError(f"`{name}` lists a path twice, or more than {MAX_PATHS}")
            for path in paths:
                if not path.startswith("/") or posixpath.normpath(path) != path or "\0" in path:
                    raise UsageError(
                        f"`{name}` lists {path[:128]!r}, which is not absolute and plain",
                        todo="write it from / without ., .., // or a / at its end",
                    )
        if self.landlock == "off" and self.read != "all":
            raise UsageError(
                "`read` is held by Landlock, which is off",
                todo='say `landlock = "require"` or `read = "all"`',
            )
        if self.landlock == "off" and self.network.access == "ports":
            raise UsageError(
                "ports are held by Landlock, which is off",
                todo='say `landlock = "require"`, or another network',
            )


@dataclass(frozen=True, slots=True)
class Decision:
    """What is applied on this machine, and what that is worth."""

    landlock: int
    """The ABI whose rights are held; 0 for none."""
    tcp: bool
    """Landlock holds TCP to the listed ports."""
    scoped: bool
    """Landlock keeps the program from the abstract Unix sockets of others."""
    sockets: Sockets | None
    """What the seccomp filter lets it make; None without a filter."""
    findings: tuple[Finding, ...]


def check(isolation: Isolation, machine: Machine) -> tuple[Finding, ...]:
    """What this machine gives, one line each. Raises :class:`~cloister.errors.IsolationRefused` for what is missing."""
    if machine.architecture is None:
        raise IsolationRefused(
            "the system calls of this processor are not known here", todo="use an x86-64 or AArch64 machine"
        )
    decision = decide(
        isolation, landlock=machine.landlock, seccomp=machine.seccomp, own_network=machine.own_network
    )
    swapped = judge_swap(machine.swaps, isolation.swap)
    return (
        *decision.findings,
        _user(isolation.user, machine),
        Finding("swap", "weak", swapped, "`swapoff -a`")
        if swapped
        else Finding("swap", "ok", "there is none"),
        _cores(machine),
        _keys(machine),
    )


def decide(isolation: Isolation, *, landlock: int, seccomp: bool, own_network: bool) -> Decision:
    """What to apply, given what the kernel has. Raises :class:`~cloister.errors.IsolationRefused`."""
    held = 0 if isolation.landlock == "off" else landlock
    if isolation.landlock == "require" and held < BOUNDED_WRITES:
        have = f"its Landlock has ABI {held}" if held else "it has no Landlock"
        raise IsolationRefused(
            f"this kernel cannot hold the program's writes to sealed files: {have}",
            todo='use Linux 6.2 or later with Landlock on (`lsm=landlock,…`), or say `landlock = "where-possible"`',
        )
    if isolation.seccomp and not seccomp:
        raise IsolationRefused(
            "this kernel takes no seccomp filters", todo="use a kernel with CONFIG_SECCOMP_FILTER"
        )
    scoped = held >= BOUNDED_SIGNALS and isolation.network.access != "any"
    sockets, tcp, network = _network(isolation, held, own_network, scoped)
    return Decision(
        landlock=held,
        tcp=tcp,
        scoped=scoped,
        sockets=sockets if isolation.seccomp else None,
        findings=(_files(isolation, held), *network, _calls(isolation, held)),
    )


def _network(
    isolation: Isolation, held: int, own_network: bool, scoped: bool
) -> tuple[Sockets, bool, tuple[Finding, ...]]:
    network = isolation.network
    if network.access == "any":
        return (
            "all",
            False,
            (Finding("network", "weak", "the program may send what it likes to whom it likes"),),
        )
    if network.access == "none" and own_network:
        found = "none, but a loopback of its own"
        if isolation.seccomp:
            return "all", False, (Finding("network", "ok", found),)
        rest = "; without seccomp the host can be reached over vsock, where the kernel has it"
        return "all", False, (Finding("network", "weak", found + rest, "say `seccomp = true`"),)
    unscoped = (
        ()
        if scoped
        else (
            Finding(
                "abstract sockets",
                "weak",
                "abstract Unix sockets of other programs can be reached",
                "use Linux 6.12 or later (Landlock ABI 6)",
            ),
        )
    )
    if not isolation.seccomp:
        wanted = "no network" if network.access == "none" else "TCP alone"
        raise IsolationRefused(
            f"without a network namespace and without seccomp the program cannot be held to {wanted}",
            todo='say `seccomp = true`, or allow `access = "any"`',
        )
    if network.access == "none":
        found = "no internet sockets at all, not even loopback: no network namespace can be made here"
        return "none", held >= BOUNDED_PORTS, (Finding("network", "ok", found), *unscoped)
    if held < BOUNDED_PORTS:
        raise IsolationRefused(
            "this kernel cannot hold TCP to the listed ports",
            todo='use Linux 6.7 or later (Landlock ABI 4), or another network: "none" or "any"',
        )
    connect = ", ".join(map(str, network.connect)) or "none"
    bind = ", ".join(map(str, network.bind)) or "none"
    ports = Finding(
        "network",
        "weak",
        f"TCP to ports {connect} of any machine, on ports {bind} of this one; it may also listen where the kernel picks",
        "let the machine's firewall drop what comes in on other ports",
    )
    if not network.udp:
        return "tcp", True, (ports, *unscoped)
    udp = Finding("UDP", "weak", "to any port of any machine: the kernel cannot hold it to some")
    return "tcp+udp", True, (ports, udp, *unscoped)


def _files(isolation: Isolation, held: int) -> Finding:
    places = ", ".join(isolation.write) or "nowhere"
    if not held:
        why = "Landlock is off" if isolation.landlock == "off" else "this kernel has no Landlock"
        return Finding(
            "plaintext",
            "weak",
            f"may be written wherever file modes allow it: {why}",
            'say `landlock = "require"`',
        )
    if held < BOUNDED_WRITES:
        return Finding(
            "plaintext",
            "weak",
            f"is written to {places} alone, but lengths of other files can be changed (Landlock ABI {held})",
            "use Linux 6.2 or later",
        )
    names = "" if isolation.seccomp else "; extended attributes of other files can be set without seccomp"
    return Finding("plaintext", "weak" if names else "ok", f"is written to {places} alone{names}")


def _calls(isolation: Isolation, held: int) -> Finding:
    if not isolation.seccomp:
        return Finding("system calls", "weak", "are not filtered", "say `seccomp = true`")
    rest = [
        words
        for least, words in (
            (BOUNDED_IOCTLS, "ioctl on devices that can be opened"),
            (BOUNDED_SIGNALS, "signals to other processes of the same user"),
        )
        if held < least
    ]
    if rest:
        return Finding(
            "system calls", "weak", f"are filtered; not held: {', '.join(rest)}", "use Linux 6.12 or later"
        )
    return Finding("system calls", "ok", "are filtered; devices and signals are held too")


def _user(user: User | None, machine: Machine) -> Finding:
    changes = user is not None and user.uid != machine.user
    if changes and not machine.capable:
        raise IsolationRefused(
            f"user {machine.user} cannot start a program as another user",
            todo="start as root, or leave `user` out",
        )
    uid = machine.user if user is None else user.uid
    if uid == 0:
        return Finding(
            "user",
            "weak",
            "runs as root, without capabilities, and owns what root owns",
            "name a `user` of its own",
        )
    if not changes:
        return Finding(
            "user",
            "weak",
            f"runs as user {uid}, who started it and may look into it",
            "name a `user` of its own",
        )
    return Finding("user", "ok", f"runs as user {uid}")


def _cores(machine: Machine) -> Finding:
    if machine.core_pattern.startswith("@"):
        # Such a dump asks for no limit (Linux 6.16); its memory can be kept out, its registers, with keys in them, not.
        raise IsolationRefused(
            "this machine sends core dumps to a socket, which no limit of the program stops",
            todo="`sysctl kernel.core_pattern=core`",
        )
    return Finding("core dumps", "ok", "none is written or piped")


def _keys(machine: Machine) -> Finding:
    if machine.secret_memory:
        return Finding("keys", "ok", "are held in memory that the kernel itself does not map (memfd_secret)")
    if machine.lockable is None or machine.lockable >= 1 << 20:
        return Finding("keys", "ok", "are held in memory that is locked and left out of core dumps")
    return Finding("keys", "weak", "are held in memory that cannot be locked", "raise `ulimit -l`")
