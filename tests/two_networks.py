"""Two networks on one machine, joined by one cable, and whoever listens on it. Needs root, ``ip`` and tshark.

Processes that are started ``inside`` a network have its addresses alone: loopback of their own, and their end of the cable.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import signal
import subprocess
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from real_parts import absent

CLONE_NEWNET: Final = 0x40000000
CABLE: Final = "cable"
_START_SECONDS: Final = 30.0
_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True)
class Networks:
    """The names of both, and the address of each one's end."""

    one: str
    other: str
    one_address: str = "10.213.0.1"
    other_address: str = "10.213.0.2"

    @contextlib.contextmanager
    def inside(self, name: str) -> Iterator[None]:
        """What this thread opens or starts meanwhile is in the network ``name``."""
        with Path("/proc/thread-self/ns/net").open() as here, Path("/run/netns", name).open() as there:
            _enter(there.fileno())
            try:
                yield
            finally:
                _enter(here.fileno())


@contextlib.contextmanager
def two_networks() -> Iterator[Networks]:
    """Made, and gone at the end."""
    if os.geteuid() != 0 or shutil.which("ip") is None:
        absent("two networks need root, and `ip` of iproute2")
    found = Networks(f"cloister-{os.getpid()}-a", f"cloister-{os.getpid()}-b")
    try:
        for name in (found.one, found.other):
            _ip("netns", "add", name)
            _ip("-n", name, "link", "set", "lo", "up")
        _ip(
            "link",
            "add",
            CABLE,
            "netns",
            found.one,
            "type",
            "veth",
            "peer",
            "name",
            CABLE,
            "netns",
            found.other,
        )
        for name, address in ((found.one, found.one_address), (found.other, found.other_address)):
            _ip("-n", name, "addr", "add", f"{address}/30", "dev", CABLE)
            _ip("-n", name, "link", "set", CABLE, "up")
        yield found
    finally:
        for name in (found.one, found.other):
            subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True)


@contextlib.contextmanager
def overheard(networks: Networks, file: Path) -> Iterator[None]:
    """Everything that crosses the cable, into ``file``, by tshark."""
    if shutil.which("tshark") is None:
        absent("tshark is not installed")
    with networks.inside(networks.one):
        listener = subprocess.Popen(
            ["tshark", "-q", "-i", CABLE, "-B", "64", "-w", file],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
    try:
        until = time.monotonic() + _START_SECONDS
        while not (file.exists() and file.stat().st_size) and time.monotonic() < until:
            time.sleep(0.1)
        yield
        time.sleep(1)  # what is underway still comes
    finally:
        listener.send_signal(signal.SIGINT)
        listener.wait(30)


def streams(file: Path, port: int | None = None) -> list[bytes]:
    """The bytes of each direction of each connection, in order; of one server port, or of all. Fails where some lack."""
    parts: dict[tuple[str, str], dict[int, bytes]] = defaultdict(dict)
    shown = "tcp.len > 0" if port is None else f"tcp.len > 0 && tcp.port == {port}"
    for line in _tshark(file, shown, "tcp.stream", "ip.src", "tcp.seq", "tcp.payload"):
        stream, source, sequence, payload = line.split("\t")
        known = parts[stream, source].get(int(sequence), b"")
        parts[stream, source][int(sequence)] = max(known, bytes.fromhex(payload), key=len)
    return [_in_order(found) for found in parts.values()]


def _in_order(parts: dict[int, bytes]) -> bytes:
    """What was sent twice counts once, however it was cut."""
    begin = min(parts)
    found = bytearray()
    for at, payload in sorted(parts.items()):
        new = payload[begin + len(found) - at :] if at - begin < len(found) else payload
        assert at - begin <= len(found), "the listener missed something"
        found += new
    return bytes(found)


def tls_fields(file: Path, port: int, shown: str, field: str) -> list[str]:
    """``field`` of what tshark takes for TLS at ``port`` and ``shown`` selects."""
    return _tshark(file, f"tcp.port == {port} && {shown}", field, decode=port)


def _tshark(file: Path, shown: str, *fields: str, decode: int | None = None) -> list[str]:
    words = ["tshark", "-n", "-r", str(file), "-Y", shown, "-T", "fields"]
    words += [word for field in fields for word in ("-e", field)]
    # Payloads as they came, and not what a dissector puts together.
    words += ["-d", f"tcp.port=={decode},tls"] if decode else ["-o", "tcp.desegment_tcp_streams:FALSE"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=120, check=True)
    return [line for line in done.stdout.splitlines() if line.strip()]


def _enter(descriptor: int) -> None:
    if _libc.setns(descriptor, CLONE_NEWNET) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, timeout=30)
