"""Asks a starter (starter.py) for one of Flower's programs, and stands for it as a process of its own.

Flower finds its programs by their names on the PATH: a SuperNode starts ``flower-superexec``, and that one
``flwr-clientapp`` for each message. Beside a starter these names lead here (programs.py). It is started often, so it loads
next to nothing.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import struct
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from cloister.federated.flower.tether import end_with_parent

SOCKET: Final = "CLOISTER_FLOWER_STARTER"
"""The variable that says where the starter listens."""
HEAD: Final = struct.Struct("!I")
"""Of a request: the bytes of its text."""
NUMBER: Final = struct.Struct("!i")
"""Of an answer: first the process, and when it has ended its exit code, or less than zero for the signal."""
MOST: Final = 1 << 18
"""Bytes of a request."""
START_SECONDS: Final = 60.0
STOP_SECONDS: Final = 2.0


class Started:
    """A program that a starter made a process of. It is killed when this is closed, or when who has it ends."""

    def __init__(self, connection: socket.socket, pid: int) -> None:
        self._connection = connection
        self.pid = pid
        self._code: int | None = None

    def poll(self) -> int | None:
        """Its exit code, when it has ended; less than zero for a signal."""
        return self.wait(0.0)

    def wait(self, seconds: float | None = None) -> int | None:
        """As :meth:`poll`, after ``seconds`` at the most."""
        if self._code is None:
            self._connection.settimeout(seconds)
            try:
                answer = _received(self._connection, NUMBER.size)
            except (BlockingIOError, TimeoutError):
                return None
            except OSError:  # closed
                answer = b""
            self._code = NUMBER.unpack(answer)[0] if answer else -signal.SIGKILL
        return self._code

    def close(self) -> None:
        """End it with all that it started: by asking, then by force."""
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGTERM)
            self.wait(STOP_SECONDS)
        self._connection.close()


def ask(
    place: str | Path, arguments: Sequence[str], environment: Mapping[str, str], *, out: int, errors: int
) -> Started:
    """Have the program ``arguments[0]`` started, its output to these descriptors. Raises OSError."""
    text = json.dumps([list(arguments), dict(environment)]).encode()
    connection = socket.socket(socket.AF_UNIX)
    try:
        connection.settimeout(START_SECONDS)
        connection.connect(str(place))
        socket.send_fds(connection, [HEAD.pack(len(text))], [out, errors])
        connection.sendall(text)
        answer = _received(connection, NUMBER.size)
        if not answer:
            raise ConnectionError("the starter refuses")
    except BaseException:
        connection.close()
        raise
    return Started(connection, NUMBER.unpack(answer)[0])


def _received(connection: socket.socket, size: int) -> bytes:
    """So many bytes, or none where it has ended before."""
    found = b""
    while len(found) < size:
        piece = connection.recv(size - len(found))
        if not piece:
            return b""
        found += piece
    return found


def main() -> None:
    """Be the program by whose name this was called."""
    end_with_parent()
    arguments = [Path(sys.argv[0]).name, *sys.argv[1:]]
    started = ask(os.environ[SOCKET], arguments, os.environ, out=1, errors=2)
    code = started.wait()
    sys.exit(code if code is not None and code >= 0 else 1)
