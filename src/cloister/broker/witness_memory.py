"""A witness at work over its directory: one file for each log, written and synced before any answer.

One process at a time holds the directory. Whoever can put back an old copy of it can make this witness sign a fork:
its owner guards it, the broker's host must not.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path

from cloister.broker.tree_head import Cosignature, cosign, parse_head
from cloister.broker.witness import (
    MAX_MEMORY,
    CosignRequest,
    Memory,
    NewestAnswer,
    NewestRequest,
    UnknownLog,
    consider,
    encode_memory,
    parse_memory,
    state_newest,
)
from cloister.errors import UsageError
from cloister.manifest.signers import Signer


class Witness:
    """One witness over a directory that :func:`held` holds. Thread-safe. ``logs``: log id -> public key (32 bytes), of
    each log that it serves; nothing else is ever answered.
    """

    def __init__(self, directory: Path, signer: Signer, logs: Mapping[str, bytes]) -> None:
        self._directory = directory
        self._signer = signer
        self._lock = threading.Lock()
        self._memories = {
            log: read_memory(directory, log) or Memory(log_key=log_key.hex()) for log, log_key in logs.items()
        }

    @property
    def key(self) -> str:
        """The public key that it signs with."""
        return self._signer.key

    @property
    def logs(self) -> list[str]:
        """The logs that it serves, by id."""
        return sorted(self._memories)

    def memory(self, log: str) -> Memory:
        """What it remembers of a log. Raises :class:`UnknownLog`."""
        found = self._memories.get(log)
        if found is None:
            raise UnknownLog(
                "this witness does not serve that log", todo="start it with --log and the log's key"
            )
        return found

    def cosign(self, request: CosignRequest) -> Cosignature:
        """Remember on disk, then co-sign. Raises :class:`UnknownLog`, and as :func:`consider`."""
        log = parse_head(request.head.head).log
        with self._lock:
            before = self.memory(log)
            after = consider(before, request)
            if after is not before:
                write_memory(self._directory, log, after)
                self._memories[log] = after
        return cosign(request.head.head, self._signer)

    def newest(self, request: NewestRequest) -> NewestAnswer:
        """The newest head of a log. Raises :class:`UnknownLog`."""
        with self._lock:
            memory = self.memory(request.log)
        return state_newest(memory, request, self._signer)


@contextlib.contextmanager
def held(directory: Path) -> Iterator[None]:
    """Hold a witness's directory (made if it is not there) against a second process. Raises :class:`UsageError`."""
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        if directory.stat().st_mode & 0o022:
            raise UsageError(f"others can write to {directory}", todo=f"run: chmod 700 {directory}")
        handle = os.open(directory / "lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise UsageError(f"cannot use {directory} ({error.strerror})", todo="check --state") from None
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise UsageError(
                f"another witness works in {directory}", todo="stop it, or use another --state"
            ) from None
        yield
    finally:
        os.close(handle)


def remembered(directory: Path) -> dict[str, Memory]:
    """Everything that is remembered in a directory, by log id. Raises as :func:`read_memory`."""
    if not directory.is_dir():
        raise UsageError(f"there is no directory {directory}", todo="check --state")
    found = {path.stem: read_memory(directory, path.stem) for path in sorted(directory.glob("*.json"))}
    return {log: memory for log, memory in found.items() if memory is not None}


def read_memory(directory: Path, log: str) -> Memory | None:
    """What is remembered of a log. Raises :class:`~cloister.broker.witness.MemoryDamaged` or :class:`UsageError`."""
    path = _path(directory, log)
    try:
        with path.open("rb") as file:
            data = file.read(MAX_MEMORY + 1)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise UsageError(f"cannot read {path} ({error.strerror})", todo="check --state") from None
    return parse_memory(data, log=log)


def write_memory(directory: Path, log: str, memory: Memory) -> None:
    """Remember, durably: after a crash the old or the new is there, whole. Raises :class:`UsageError`."""
    path, draft = _path(directory, log), directory / f".{log}.partial"
    try:
        handle = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        with os.fdopen(handle, "wb") as file:
            file.write(encode_memory(memory))
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
        folder = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError as error:
        raise UsageError(f"cannot write {path} ({error.strerror})", todo="nothing was signed") from None


def _path(directory: Path, log: str) -> Path:
    return directory / f"{log}.json"
