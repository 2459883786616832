"""What a launcher and a mount's process say to each other over their socket: strict JSON, a line each, bounded.

The launcher's first line is the :class:`MountSpec`, with the keys in it: they are never in an argument or the environment.
Afterwards the mount reports and asks (:class:`Report`), the launcher answers and stops (:class:`Order`). Anything else ends
the conversation.
"""

from __future__ import annotations

import socket
import threading
from typing import Final, Literal, TypeVar

from cloister.encoding import Record, decode_json, encode_json
from cloister.errors import FormatError, WorkloadError
from cloister.sealing.envelope import erase
from cloister.sealing.tree.head import Head

MAX_LINE: Final = 256 * 1024
T = TypeVar("T")


class MountSpec(Record, frozen=True, kw_only=True):
    """What to mount, where, and with which keys."""

    source: str
    """The sealed directory or tree, absolute."""
    mountpoint: str
    """A folder that is there, absolute."""
    kind: Literal["directory", "tree"]
    writable: bool = False
    uid: int
    gid: int
    """To whom everything in the mount belongs."""
    signers: tuple[str, ...] = ()
    """Of a directory: who may have signed its index, 32 bytes each, hexadecimal."""
    minimum_version: int = 1
    """Of a directory's index."""
    index_digest: str = ""
    """Of a directory: the only index that will do, hexadecimal; empty: any that is signed and new enough."""
    verify: Literal["whole", "segments"] = "whole"
    keys: dict[str, bytes]
    """Key URI → 32 bytes."""
    minimum: Head | None = None
    """Of a tree: the newest head that is known to have been."""
    record_seconds: int = 30
    """Of a writable tree: how often its newest head is reported to be recorded; 0: before any ``fsync`` returns."""

    def __repr__(self) -> str:
        return f"MountSpec(source={self.source!r}, mountpoint={self.mountpoint!r}, kind={self.kind!r})"


class Report(Record, frozen=True, kw_only=True):
    """From the mount: it is ready, wants a head recorded, has stopped, or has failed."""

    kind: Literal["ready", "record", "stopped", "error"]
    head: Head | None = None
    what: str = ""
    todo: str = ""
    name: str = ""
    """Of the error's class."""


class Order(Record, frozen=True, kw_only=True):
    """From the launcher: the head was recorded or was not, or it is time to stop."""

    kind: Literal["recorded", "refused", "stop"]
    what: str = ""


class Line:
    """One end of the socket. Any thread may send; one receives."""

    def __init__(self, end: socket.socket) -> None:
        self._end = end
        self._received = bytearray()
        self._sending = threading.Lock()

    def send(self, message: Record) -> None:
        """Raises OSError where nobody listens any more."""
        data = encode_json(message) + b"\n"
        with self._sending:
            self._end.sendall(data)

    def receive(self, kind: type[T]) -> T | None:
        """The next message; None at the end. Raises :class:`~cloister.errors.FormatError`,
        :class:`~cloister.errors.WorkloadError` over the bound, and TimeoutError if the socket has a time."""
        while (end := self._received.find(b"\n")) < 0:
            if len(self._received) > MAX_LINE:
                raise WorkloadError("a message is over its bound")
            try:
                part = self._end.recv(65536)
            except ConnectionError:
                return None
            if not part:
                return None
            self._received += part
        line = self._received[:end]
        rest = self._received[end + 1 :]
        erase(self._received)  # there may have been keys in it
        self._received = rest
        message = decode_json(bytes(line), kind, what="a mount's message", limit=MAX_LINE)
        canonical = encode_json(message) == line
        erase(line)
        if not canonical:
            raise FormatError("a mount's message is not canonical JSON, or has fields that it should not")
        return message

    def wait_at_most(self, seconds: float | None) -> None:
        """From now on :meth:`receive` raises TimeoutError after so long; None: never."""
        self._end.settimeout(seconds)

    def close(self) -> None:
        """The other end reads the end."""
        self._end.close()
