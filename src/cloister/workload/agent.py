"""Keys for the program's own libraries: the launcher answers for the URIs that were measured, over a private socket.

The socket lies in the private tmpfs; whoever connects must be the program's user. One request is one line, one answer is one
line, both bounded. A URI that the configuration does not name is refused without asking the broker.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import struct
import threading
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Final

from cloister.encoding import Record, decode_json, encode_json
from cloister.errors import CloisterError, FormatError, KeyUnavailable, UsageError
from cloister.sealing import KeySource
from cloister.sealing.access import Access
from cloister.sealing.signing import SigningKey

VARIABLE: Final = "CLOISTER_RUN"
"""Names the file below, in the private tmpfs."""
MAX_LINE: Final = 4096
MAX_CONNECTIONS: Final = 64
TIMEOUT: Final = 60.0
_CREDENTIALS: Final = struct.Struct("3i")
_log = logging.getLogger("cloister.workload")


class AccessFile(Record, frozen=True, kw_only=True):
    """What a program's libraries find at ``CLOISTER_RUN``; no secret is in it."""

    socket: str
    signers: tuple[str, ...]
    output_key: str | None = None
    signing_key: str | None = None
    """Key URI of the Ed25519 seed that signs what this program writes."""


class _Request(Record, frozen=True, kw_only=True):
    key: str


class _Answer(Record, frozen=True, kw_only=True):
    key: bytes = b""
    refused: str = ""

    def __repr__(self) -> str:
        return "_Answer()"


class KeyAgent:
    """Answers on ``path`` until closed. ``uris`` may be asked for, by processes of ``user`` and of root."""

    def __init__(self, path: Path, keys: KeySource, uris: Collection[str], *, user: int) -> None:
        self._keys = keys
        self._uris = frozenset(uris)
        self._users = {user, 0}
        self._slots = threading.BoundedSemaphore(MAX_CONNECTIONS)
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self._listener.bind(str(path))
            os.chown(path, user, -1)
            path.chmod(0o600)
            self._listener.listen(MAX_CONNECTIONS)
        except OSError:
            self._listener.close()
            raise
        threading.Thread(target=self._serve, name="key agent", daemon=True).start()

    def close(self) -> None:
        """No more answers."""
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:  # closed
                return
            self._slots.acquire()
            threading.Thread(target=self._converse, args=(connection,), daemon=True).start()

    def _converse(self, connection: socket.socket) -> None:
        try:
            with connection, connection.makefile("rwb") as stream:
                connection.settimeout(TIMEOUT)
                user = _CREDENTIALS.unpack(
                    connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
                )[1]
                if user not in self._users:
                    return
                while line := stream.readline(MAX_LINE):
                    stream.write(encode_json(self._answer(line)) + b"\n")
                    stream.flush()
        except OSError:
            pass  # the program went away
        finally:
            self._slots.release()

    def _answer(self, line: bytes) -> _Answer:
        try:
            uri = decode_json(line, _Request, what="a request for a key", limit=MAX_LINE).key
            if uri not in self._uris:
                raise KeyUnavailable(
                    "the configuration of this workload does not name that key",
                    todo="name it in `resources`, and measure again",
                )
            return _Answer(key=self._keys.key(uri))
        except CloisterError as error:
            _log.warning("a key was not given to the program: %s", error)
            return _Answer(refused=str(error))


class AgentKeys:
    """A :class:`~cloister.sealing.KeySource` that asks the launcher. Thread-safe; opens one connection for a question."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def key(self, uri: str) -> bytes:
        """The 32-byte key at ``uri``. Raises :class:`~cloister.errors.KeyUnavailable`."""
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
                connection.settimeout(TIMEOUT)
                connection.connect(str(self._path))
                connection.sendall(encode_json(_Request(key=uri)) + b"\n")
                with connection.makefile("rb") as stream:
                    line = stream.readline(MAX_LINE)
        except OSError as error:
            raise KeyUnavailable(f"the launcher does not answer ({error.strerror})") from None
        answer = decode_json(line, _Answer, what="the launcher's answer", limit=MAX_LINE)
        if answer.refused or len(answer.key) != 32:
            raise KeyUnavailable(answer.refused or "the launcher gave no key")
        return answer.key


def access_from_environment(environment: Callable[[str], str | None] = os.environ.get) -> Access:
    """What ``cloister run`` gave this process. Raises :class:`~cloister.errors.UsageError` where it did not start it."""
    path = environment(VARIABLE)
    if not path:
        raise UsageError(
            "this process was not started by `cloister run`", todo="start it with `cloister run`"
        )
    try:
        found = decode_json(Path(path).read_bytes(), AccessFile, what=VARIABLE, limit=MAX_LINE)
    except (OSError, FormatError):
        raise UsageError(f"{VARIABLE} does not name a file of `cloister run`") from None
    keys = AgentKeys(Path(found.socket))
    signing_key = None if found.signing_key is None else SigningKey(keys.key(found.signing_key))
    return Access(
        keys=keys,
        signers=frozenset(bytes.fromhex(text) for text in found.signers),
        signing_key=signing_key,
        output_key=found.output_key,
    )


def write_access_file(path: Path, found: AccessFile) -> None:
    """Put it where the program's libraries look."""
    path.write_bytes(encode_json(found))
    path.chmod(0o444)
