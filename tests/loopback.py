"""Everything that crosses the loopback interface, reassembled by TCP flow, as an attacker on this host sees it.

Needs CAP_NET_RAW. Without it the calling test is skipped with the reason; with ``CI=true`` that is a failure.
"""

from __future__ import annotations

import socket
import struct
import threading
from collections import defaultdict

from real_parts import absent

_ETH_P_ALL = 0x0003
_ETHERNET = 14
_MAX_BYTES = 512 << 20

Flow = tuple[bytes, int, bytes, int]


class LoopbackCapture:
    """A context that records while it is open. ``flows`` maps each direction of a connection to its bytes."""

    def __init__(self) -> None:
        try:
            self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(_ETH_P_ALL))
        except PermissionError:
            absent("capturing loopback needs CAP_NET_RAW (run as root)")
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 64 << 20)
        self._socket.bind(("lo", 0))
        self._socket.settimeout(0.1)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.flows: dict[Flow, dict[int, bytes]] = defaultdict(dict)
        self.packets = 0

    def __enter__(self) -> LoopbackCapture:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(60)
        self._socket.close()

    def _run(self) -> None:
        total = 0
        while total < _MAX_BYTES:
            # What came until then is read yet; what others send from then on is not waited for.
            ended = self._stop.is_set()
            self._socket.settimeout(0.0 if ended else 0.1)
            try:
                packet = self._socket.recv(1 << 17)
            except (TimeoutError, BlockingIOError):
                if ended:
                    return
                continue
            total += len(packet)
            self._take(packet[_ETHERNET:])

    def _take(self, packet: bytes) -> None:
        if not packet or packet[0] >> 4 != 4 or packet[9] != socket.IPPROTO_TCP:
            return
        header = (packet[0] & 15) * 4
        length = int.from_bytes(packet[2:4], "big") or len(packet)  # 0 under segmentation offload
        segment = packet[header:length]
        source, target, sequence = struct.unpack_from("!HHI", segment)
        payload = segment[(segment[12] >> 4) * 4 :]
        self.packets += 1
        if payload:
            # Loopback shows each packet twice (out and in); the sequence number folds them together.
            self.flows[packet[12:16], source, packet[16:20], target][sequence] = payload

    def streams(self) -> list[bytes]:
        """The bytes of each flow in order of their sequence numbers."""
        return [b"".join(parts[key] for key in sorted(parts)) for parts in list(self.flows.values())]
