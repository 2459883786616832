"""What a party remembers of rounds whose updates nobody sees, sealed on its host's disk: it outlives the workload.

Two sums of one round over other parties differ by one party's update. So it is written down, whole and synced, that a masked
vector goes out, and again whose sum was opened, before either is sent. A round before the last that is remembered is over.
Refused: a file of another federation, party or key, one with a bit changed, a second process on the same one.

That its host laid an older file in its place, or none, no file can tell: docs/spec/secure-aggregation.md says what is left.
"""

from __future__ import annotations

import fcntl
import io
import os
from pathlib import Path
from typing import Final, Literal

from msgspec import structs

from cloister.encoding import Record, decode_json, encode_json
from cloister.errors import FederationError, FormatError, UpdateRefused, UsageError
from cloister.federated.secure.masks import Tried
from cloister.manifest.storage import write_whole
from cloister.sealing import KeySource
from cloister.sealing.reader import SealedReader
from cloister.sealing.writer import SealedWriter

MAX_MEMORY: Final = 4 << 20
MAX_RUNS: Final = 256


class _Last(Record, frozen=True, kw_only=True):
    number: int
    tried: Tried


class _Book(Record, frozen=True, kw_only=True):
    format: Literal["cloister/secure-memory/v1"] = "cloister/secure-memory/v1"
    federation: str
    party: str
    runs: dict[str, _Last]
    """Run → the last of its rounds for which a masked vector went out."""


def memory_name(first: str, party: str) -> str:
    """What the file is called. ``first`` is the digest of the federation's version 1."""
    return f"secure-{first[:16]}-{party}.sealed"


class Memory:
    """One party's, in one federation, open for this process alone."""

    def __init__(self, folder: Path, *, first: str, party: str, keys: KeySource, key_uri: str) -> None:
        """Read, or begun where there is none. Raises UsageError, FederationError, and the errors of sealing."""
        self._name = memory_name(first, party)
        self._folder = folder
        self._kek, self._key_uri = keys.key(key_uri), key_uri
        self._held = _hold(folder, self._name)
        try:
            self._book = self._read(keys) or _Book(federation=first, party=party, runs={})
            if (self._book.federation, self._book.party) != (first, party):
                raise FederationError(
                    f"{self._name} is of another party or federation", todo="give back the one that was there"
                )
        except BaseException:
            self.close()
            raise

    def __repr__(self) -> str:
        return f"Memory({self._name!r})"

    def close(self) -> None:
        """Let another process have it. Again it does nothing."""
        if self._held >= 0:
            os.close(self._held)
            self._held = -1

    def before(self, run: str, number: int) -> Tried | None:
        """What is remembered of a round. Raises :class:`~cloister.errors.UpdateRefused` for one that is over."""
        last = self._book.runs.get(run)
        if last is None:
            if len(self._book.runs) >= MAX_RUNS:
                raise FederationError(f"{self._name} has {MAX_RUNS} runs, and takes no more")
            return None
        if number < last.number:
            raise UpdateRefused(f"this party has taken part in round {last.number}, which is later")
        return last.tried if number == last.number else None

    def keep(self, run: str, number: int, tried: Tried) -> None:
        """For good, and before anything that it is about is sent. Raises UsageError."""
        self.before(run, number)
        if self._held < 0:
            raise UsageError(f"{self._name} is closed")
        book = structs.replace(self._book, runs=self._book.runs | {run: _Last(number=number, tried=tried)})
        out = io.BytesIO()
        with SealedWriter(out, key_uri=self._key_uri, kek=self._kek, name=self._name) as writer:
            writer.write(encode_json(book))
        write_whole(self._folder / self._name, out.getvalue(), replace=True)
        self._book = book

    def _read(self, keys: KeySource) -> _Book | None:
        path = self._folder / self._name
        try:
            with path.open("rb") as file:
                reader = SealedReader(file, keys, name=self._name)
                if reader.size > MAX_MEMORY:
                    raise FormatError(f"{self._name} has over {MAX_MEMORY} bytes")
                data = reader.read(0, reader.size)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise UsageError(f"{path} cannot be read ({error.strerror})") from None
        return decode_json(data, _Book, what=self._name, limit=MAX_MEMORY)


def _hold(folder: Path, name: str) -> int:
    """A lock, as a descriptor. Raises UsageError."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(folder / f".{name}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise UsageError(f"{folder} cannot be used ({error.strerror})", todo="check --state") from None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        raise UsageError(f"another workload uses {folder / name}", todo="stop it first") from None
    return descriptor
