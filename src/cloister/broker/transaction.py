"""One operation on the state: what it sees, stages and tells. Nothing of it counts before the journal wrote all of
it.

What an operation stages is seen by itself and by those after it in the same batch; what it leaves without an audit
entry is a mistake of ours, and stops it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final, Protocol

import sqlalchemy as sa

from cloister.broker import tables
from cloister.broker.audit import Fact, Kind
from cloister.errors import KeystoreError

EVIDENCE_KEPT: Final = 1000
EVIDENCE_SWEPT: Final = 64
"""After how many attestations old evidence is looked for."""


@dataclass(frozen=True, slots=True)
class Stored:
    """One record of the state, as the trees vouch for it."""

    version: int
    body: bytes
    wrapped: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class Held:
    """What memory knows of a record without reading it."""

    version: int
    slot: int
    digest: bytes


@dataclass(slots=True)
class Staged:
    """One record as an operation wants it."""

    version: int
    body: bytes
    wrapped: bytes


@dataclass(frozen=True, slots=True)
class Told:
    """A fact, and version and digest of each record that had changed when it was told."""

    fact: Fact
    changed: dict[tuple[Kind, str], tuple[int, bytes]]


class View(Protocol):
    """What a transaction sees of the journal below it."""

    def held(self, kind: Kind, name: str) -> Held | None:
        """What memory knows of a record."""
        ...

    def fetch(self, connection: sa.Connection, kind: Kind, name: str) -> Stored | None:
        """A record on this connection, compared with memory."""
        ...

    def sweeps(self) -> bool:
        """Is it time to look for old evidence?"""
        ...


@dataclass(slots=True)
class Batch:
    """What a transaction is about to write."""

    staged: dict[tuple[Kind, str], Staged] = field(default_factory=dict)
    facts: list[Told] = field(default_factory=list)
    beside: list[Callable[[sa.Connection], None]] = field(default_factory=list)


class Transaction:
    """What one operation sees and stages; it counts only if the operation returns."""

    def __init__(self, view: View, connection: sa.Connection, staged: dict[tuple[Kind, str], Staged]) -> None:
        self._view = view
        self._connection = connection
        self._below = staged
        self._staged: dict[tuple[Kind, str], Staged] = {}
        self._unlogged: list[tuple[Kind, str]] = []
        self._facts: list[Told] = []
        self._beside: list[Callable[[sa.Connection], None]] = []

    def version(self, kind: Kind, name: str) -> int:
        """The version of a record as this transaction sees it; 0 where there is none."""
        staged = self._staged.get((kind, name)) or self._below.get((kind, name))
        if staged is not None:
            return staged.version
        held = self._view.held(kind, name)
        return 0 if held is None else held.version

    def get(self, kind: Kind, name: str) -> Stored | None:
        """A record as this transaction sees it. Raises :class:`~cloister.broker.audit.AuditDamaged`."""
        staged = self._staged.get((kind, name)) or self._below.get((kind, name))
        if staged is not None:
            return Stored(staged.version, staged.body, staged.wrapped)
        return self._view.fetch(self._connection, kind, name)

    def put(self, kind: Kind, name: str, body: bytes, wrapped: bytes = b"") -> int:
        """Stage the next version of a record; its number. :meth:`log` must follow."""
        version = self.version(kind, name) + 1
        self._staged[kind, name] = Staged(version, body, wrapped)
        self._unlogged.append((kind, name))
        return version

    def rewrap(self, kind: Kind, name: str, wrapped: bytes) -> None:
        """Exchange how a record's data key is wrapped; what it says stays as it is, and so does its version."""
        stored = self.get(kind, name)
        if stored is None:
            raise KeystoreError(f"there is no {kind} {name} to wrap anew")
        self._staged[kind, name] = Staged(stored.version, stored.body, wrapped)

    def log(self, fact: Fact) -> None:
        """Tell of what was staged since the last call, or of something that changes nothing."""
        changed = {}
        for key in self._unlogged:
            staged = self._staged[key]
            changed[key] = (staged.version, hashlib.sha256(staged.body).digest())
        self._facts.append(Told(fact, changed))
        self._unlogged = []

    def keep_document(self, state: str, document: bytes) -> None:
        """Write the state's own document (state_key.py), its only row."""

        def write(connection: sa.Connection) -> None:
            connection.execute(sa.delete(tables.state))
            connection.execute(sa.insert(tables.state).values(one=1, id=state, document=document))

        self._beside.append(write)

    def keep_evidence(self, digest: str, body: bytes, *, now: int, kept: int = EVIDENCE_KEPT) -> None:
        """Keep what an attestation was granted on, for audits; of all of it, the newest ``kept``."""
        table = tables.evidence
        sweeps = self._view.sweeps()

        def write(connection: sa.Connection) -> None:
            if connection.execute(sa.select(table.c.digest).where(table.c.digest == digest)).first() is None:
                connection.execute(sa.insert(table).values(digest=digest, time=now, body=body))
            if sweeps:
                old = sa.select(table.c.digest).order_by(table.c.time.desc(), table.c.digest).offset(kept)
                connection.execute(sa.delete(table).where(table.c.digest.in_(old)))

        self._beside.append(write)

    def finish(self, batch: Batch) -> None:
        """Add all of it to what is written next."""
        if self._unlogged:
            raise AssertionError("a change of the state without an audit entry")
        batch.staged.update(self._staged)
        batch.facts += self._facts
        batch.beside += self._beside
