"""A TCP relay that keeps what passes: what any proxy, load balancer or network tap between client and TEE has."""

from __future__ import annotations

import contextlib
import socket
import threading
from dataclasses import dataclass, field

MAX_RECORDED = 64 << 20


@dataclass
class Recording:
    """The bytes of one connection, each way, in the order they passed."""

    sent: bytearray = field(default_factory=bytearray)
    received: list[bytes] = field(default_factory=list)


class RecordingProxy:
    """Relays every connection to ``target`` and records it. Use as a context manager."""

    def __init__(self, target: tuple[str, int]) -> None:
        self._target = target
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.recordings: list[Recording] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._listener.getsockname()[1]}"

    def __enter__(self) -> RecordingProxy:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            server = socket.create_connection(self._target)
            recording = Recording()
            self.recordings.append(recording)
            threading.Thread(target=self._relay, args=(client, server, recording, True), daemon=True).start()
            threading.Thread(target=self._relay, args=(server, client, recording, False), daemon=True).start()

    @staticmethod
    def _relay(source: socket.socket, target: socket.socket, recording: Recording, outward: bool) -> None:
        kept = 0
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                if kept < MAX_RECORDED:
                    recording.sent.extend(data) if outward else recording.received.append(data)
                    kept += len(data)
                target.sendall(data)
        with contextlib.suppress(OSError):
            target.shutdown(socket.SHUT_WR)


def split_requests(sent: bytes) -> list[tuple[bytes, bytes]]:
    """The (head, body) of each HTTP/1.1 request with a content length in ``sent``."""
    requests = []
    while b"\r\n\r\n" in sent:
        head, _, rest = sent.partition(b"\r\n\r\n")
        length = 0
        for line in head.split(b"\r\n")[1:]:
            name, _, value = line.partition(b":")
            if name.strip().lower() == b"content-length":
                length = int(value)
        requests.append((head, rest[:length]))
        sent = rest[length:]
    return requests
