"""What a party remembers of rounds whose updates nobody sees, sealed on its host's disk: it outlives the workload.

Two sums of one round over other parties differ by one party's update. So it is written down, whole and synced, that a masked
vector goes out, and again whose sum was opened, before either is sent. A round before the last that is remembered is over.
Refused: a file of another federation, party or key, one with a bit changed, a second process on the same one.

That its host laid an older file in its place, or none, no file can tell: docs/spec/secure-aggregation.md says what is left.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final, Literal

from msgspec import structs

from cloister.encoding import Record
from cloister.errors import FederationError, UpdateRefused
from cloister.federated.sealed_record import SealedRecord
from cloister.federated.secure.masks import Tried
from cloister.sealing import KeySource

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
        path = folder / memory_name(first, party)
        self._kept = SealedRecord(path, _Book, keys=keys, key_uri=key_uri, limit=MAX_MEMORY, user="workload")
        try:
            self._book = self._kept.read() or _Book(federation=first, party=party, runs={})
            if (self._book.federation, self._book.party) != (first, party):
                raise FederationError(
                    f"{path.name} is of another party or federation", todo="give back the one that was there"
                )
        except BaseException:
            self.close()
            raise

    def __repr__(self) -> str:
        return f"Memory({self._kept.name!r})"

    def close(self) -> None:
        """Let another process have it. Again it does nothing."""
        self._kept.close()

    def before(self, run: str, number: int) -> Tried | None:
        """What is remembered of a round. Raises :class:`~cloister.errors.UpdateRefused` for one that is over."""
        last = self._book.runs.get(run)
        if last is None:
            if len(self._book.runs) >= MAX_RUNS:
                raise FederationError(f"{self._kept.name} has {MAX_RUNS} runs, and takes no more")
            return None
        if number < last.number:
            raise UpdateRefused(f"this party has taken part in round {last.number}, which is later")
        return last.tried if number == last.number else None

    def keep(self, run: str, number: int, tried: Tried) -> None:
        """For good, and before anything that it is about is sent. Raises UsageError."""
        self.before(run, number)
        last = _Last(number=number, tried=tried)
        self._book = self._kept.write(structs.replace(self._book, runs=self._book.runs | {run: last}))
