"""The socket between a party's workload, which has model and data, and the ClientApp that Flower starts for each message.

A Unix socket in a private folder: one request, one reply, then it is closed. So the model stays loaded, and Flower's own
processes see sealed-in bytes alone: neither data nor keys are ever in them. Lengths come first and are bounded.
"""

from __future__ import annotations

import contextlib
import logging
import socket
import struct
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeVar

import msgspec

from cloister.encoding import Record, decode_json
from cloister.errors import CloisterError, FormatError
from cloister.federated.exchange import Request

SOCKET: Final = "CLOISTER_FEDERATION_SOCKET"
"""The environment variable that names it to the ClientApp."""
MAX_HEAD: Final = 64 * 1024
MAX_CONTENT: Final = 32 << 30
SECONDS: Final = 8 * 86_400.0
"""That a ClientApp waits for its reply: a round may take a week."""
T = TypeVar("T")
_LENGTHS: Final = struct.Struct(">IQ")
_log = logging.getLogger("cloister.federated")


class _Ask(Record, frozen=True, kw_only=True):
    kind: str
    run: str
    round: int
    model: str


class _Said(Record, frozen=True, kw_only=True):
    examples: int
    metrics: dict[str, float]
    error: str


@dataclass(frozen=True, slots=True)
class Answer:
    """What a workload answers."""

    content: bytes
    examples: int
    metrics: dict[str, float]
    error: str = ""


Work = Callable[[Request], Answer]


class Workshop:
    """Serves one request after another, until closed. Raises OSError where the socket cannot be made."""

    def __init__(self, path: Path, work: Work) -> None:
        self._work = work
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self._socket.bind(str(path))
            path.chmod(0o600)
            self._socket.listen(4)
        except OSError:
            self._socket.close()
            raise
        self._thread = threading.Thread(target=self._serve, name="workshop", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """No further request is taken."""
        with contextlib.suppress(OSError):
            # A thread that waits for a connection would take one more.
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            with connection:
                try:
                    self._answer(connection)
                except (OSError, FormatError, MemoryError) as error:
                    _log.warning("a request to the workload was dropped (%s)", type(error).__name__)

    def _answer(self, connection: socket.socket) -> None:
        head, content = _receive(connection)
        ask = _decode(head, _Ask)
        request = Request(ask.kind, ask.run, ask.round, ask.model, content)
        try:
            answer = self._work(request)
        except CloisterError as error:
            _log.warning("round %d: %s", request.number, error)
            answer = Answer(b"", 0, {}, error=error.what)
        except (
            Exception
        ) as error:  # whatever a library raises: the aggregator has to hear that there is nothing
            _log.exception("round %d failed", request.number)
            answer = Answer(b"", 0, {}, error=f"the task failed with {type(error).__name__}")
        said = _Said(examples=answer.examples, metrics=dict(answer.metrics), error=answer.error)
        _send(connection, _encode(said), answer.content)


def ask_workshop(path: str, request: Request) -> Answer:
    """One request over the socket at ``path``. Raises FormatError, OSError."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(SECONDS)
        connection.connect(path)
        ask = _Ask(kind=request.kind, run=request.run, round=request.number, model=request.model)
        _send(connection, _encode(ask), request.content)
        head, content = _receive(connection)
    said = _decode(head, _Said)
    return Answer(content, said.examples, said.metrics, said.error)


def _send(connection: socket.socket, head: bytes, content: bytes) -> None:
    connection.sendall(_LENGTHS.pack(len(head), len(content)) + head)
    if content:  # who has read all may be gone, and even an empty send fails then
        connection.sendall(content)


def _receive(connection: socket.socket) -> tuple[bytes, bytes]:
    head, content = _LENGTHS.unpack(_exactly(connection, _LENGTHS.size))
    if head > MAX_HEAD or content > MAX_CONTENT:
        raise FormatError("a message between ClientApp and workload is longer than it can be")
    return _exactly(connection, head), _exactly(connection, content)


def _exactly(connection: socket.socket, length: int) -> bytes:
    data = bytearray(length)
    view, done = memoryview(data), 0
    while done < length:
        got = connection.recv_into(view[done:])
        if not got:
            raise FormatError("a message between ClientApp and workload ended early")
        done += got
    view.release()
    return bytes(data)


def _encode(record: Record) -> bytes:
    return msgspec.json.encode(record)


def _decode(data: bytes, kind: type[T]) -> T:
    return decode_json(data, kind, what="a message between ClientApp and workload", limit=MAX_HEAD)
