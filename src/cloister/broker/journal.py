"""The journal: an append-only log and the state it tells of, in one database, checked against two Merkle trees in
memory.

Every change is one transaction: records, the entry that names them, and a signed head over both trees. What is read
from the database is compared with the trees, so a row that was edited, swapped, removed or restored alone is refused.
Several processes may share a database: each first takes over what the others appended, after checking that it extends
what it knows. A database older than memory is refused; one that is older than what a *stopped* broker knew is the
witnesses' to find.
"""

from __future__ import annotations

import contextlib
import hashlib
import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Generic, TypeVar, cast

import sqlalchemy as sa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from cloister import merkle
from cloister.broker import journal_rows as rows
from cloister.broker import tables
from cloister.broker.audit import (
    AuditDamaged,
    Entry,
    Kind,
    damaged,
    encode_entry,
    make_entry,
    parse_entry,
)
from cloister.broker.transaction import EVIDENCE_SWEPT, Batch, Held, Stored, Transaction
from cloister.broker.tree_head import (
    HeadRefused,
    RollbackFound,
    SignedHead,
    TreeHead,
    encode_signed_head,
    log_id,
    parse_head,
    parse_signed_head,
    sign_head,
    verify_head,
)
from cloister.broker.trees import Mark, Trees
from cloister.errors import KeystoreError

MAX_BATCH: Final = 64
"""Operations that share one transaction, and so one sync of the disk."""
T = TypeVar("T")


@dataclass(slots=True)
class _Job(Generic[T]):
    work: Callable[[Transaction], T]
    done: bool = False
    value: T | None = None
    error: BaseException | None = None

    def result(self) -> T:
        if self.error is not None:
            raise self.error
        return cast("T", self.value)


class Journal:
    """One process's view of a log and its state. Thread-safe. ``now`` gives Unix seconds.

    Call :meth:`load` before anything else; it reads and checks everything, once.
    """

    def __init__(self, engine: sa.Engine, key: Ed25519PrivateKey, *, now: Callable[[], int]) -> None:
        self._engine = engine
        self._key = key
        self.log_key: bytes = key.public_key().public_bytes_raw()
        """The public key that tree heads are signed with, 32 bytes."""
        self._now = now
        self._trees = Trees()
        self._size = 0
        self._kept = 0
        self._held: dict[tuple[Kind, str], Held] = {}
        self._head: SignedHead | None = None
        self._cosigned: SignedHead | None = None
        self._queue: list[_Job[Any]] = []
        self._queue_lock = threading.Lock()
        self._writer = threading.RLock()
        self._listeners: list[Callable[[Iterable[tuple[Kind, str]]], None]] = []

    @property
    def _log(self) -> merkle.Tree:
        return self._trees.log

    @property
    def _state(self) -> merkle.Tree:
        return self._trees.state

    @property
    def size(self) -> int:
        """Entries that this process knows of, all of them on disk."""
        return self._size

    @property
    def head(self) -> SignedHead:
        """The newest signed head that this process knows of."""
        if self._head is None:
            raise KeystoreError("this journal is empty")
        return self._head

    @property
    def cosigned(self) -> SignedHead | None:
        """The newest head that witnesses co-signed."""
        return self._cosigned

    def listen(self, listener: Callable[[Iterable[tuple[Kind, str]]], None]) -> None:
        """Call ``listener`` with the records that changed, whoever changed them; it must be quick and not write."""
        self._listeners.append(listener)

    def sweeps(self) -> bool:
        """Is it time to look for old evidence? Asked once for each piece that is kept."""
        self._kept += 1
        return self._kept % EVIDENCE_SWEPT == 1

    def held(self, kind: Kind, name: str) -> Held | None:
        """What memory knows of a record."""
        return self._held.get((kind, name))

    def names(self, kind: Kind) -> list[str]:
        """Every record of this kind, by name."""
        with self._writer:
            return sorted(name for found, name in self._held if found == kind)

    def read(self, kind: Kind, name: str) -> Stored | None:
        """A record as it stands now. Raises :class:`~cloister.broker.audit.AuditDamaged`."""
        with tables.reading(self._engine) as connection:
            if self._stored_size(connection) == self._size:
                # Somebody may be committing right now: what does not agree here is looked at again, undisturbed.
                with contextlib.suppress(AuditDamaged):
                    return self.fetch(connection, kind, name)
        with self._writer, tables.reading(self._engine) as connection:
            self._catch_up(connection)
            return self.fetch(connection, kind, name)

    def read_many(self, kind: Kind, names: Sequence[str]) -> dict[str, Stored]:
        """Those of these records that there are, as they stand now, at one go. Raises as :meth:`read`."""
        with self._writer, tables.reading(self._engine) as connection:
            self._catch_up(connection)
            known = {
                row.name: row for row in connection.execute(rows.RECORDS, {"b_kind": kind, "b_names": names})
            }
            found = {name: self._compared(kind, name, known.get(name)) for name in names}
        return {name: stored for name, stored in found.items() if stored is not None}

    def fetch(self, connection: sa.Connection, kind: Kind, name: str) -> Stored | None:
        """A record on this connection, compared with memory."""
        row = connection.execute(rows.RECORD, {"b_kind": kind, "b_name": name}).first()
        return self._compared(kind, name, row)

    def _compared(self, kind: Kind, name: str, row: Any) -> Stored | None:
        held = self._held.get((kind, name))
        if row is None and held is None:
            return None
        if row is None or held is None:
            raise damaged(
                f"the {kind} {name} was {'removed from' if row is None else 'added to'} the database"
            )
        if row.version != held.version or hashlib.sha256(row.body).digest() != held.digest:
            raise damaged(f"the {kind} {name} is not what the log says: altered, exchanged or put back")
        return Stored(row.version, row.body, row.wrapped)

    def transact(self, work: Callable[[Transaction], T]) -> T:
        """Run ``work`` in a write transaction, with those of other threads, and return what it returns.

        If it raises, nothing of it happens. When this returns, everything is on disk. ``work`` must be quick and
        touch nothing but its transaction: it runs under the lock of all writers.
        """
        job: _Job[T] = _Job(work)
        with self._queue_lock:
            self._queue.append(job)
        while True:
            with self._writer:
                if job.done:
                    return job.result()
                with self._queue_lock:
                    batch, self._queue = self._queue[:MAX_BATCH], self._queue[MAX_BATCH:]
                self._run(batch)

    def catch_up(self) -> None:
        """Take over what other processes appended. Raises :class:`RollbackFound` or ``AuditDamaged``."""
        with self._writer, tables.reading(self._engine) as connection:
            self._catch_up(connection)

    def load(self) -> None:
        """Read the whole log and state and compare both with the signed head."""
        with self._writer, tables.reading(self._engine) as connection:
            self._trees = Trees()
            self._held = {}
            row = connection.execute(
                sa.select(tables.head.c.size, tables.head.c.signed, tables.head.c.cosigned)
            ).first()
            if row is None:
                raise damaged("the database has no tree head")
            signed, head = self._verified(row.signed)
            for number, body in enumerate(rows.entry_bodies(connection, 0)):
                if number >= head.size:
                    raise damaged(f"the log has more than the {head.size} entries of its head")
                self._trees.append(body)
            if self._log.size != head.size or self._log.root().hex() != head.root or row.size != head.size:
                raise damaged(f"the log is not the one of its head ({self._log.size} of {head.size} entries)")
            for key, held in rows.records(connection):
                if held.slot != self._state.size or held.version < 1:
                    raise damaged(f"the record in slot {self._state.size} of the state is missing or not one")
                self._trees.place(key, held)
                self._held[key] = held
            if self._state.root().hex() != head.state:
                raise damaged("the records of the state are not those of the newest tree head")
            self._head, self._size = signed, self._log.size
            self._cosigned = self._verified(row.cosigned)[0] if row.cosigned else None

    def entries(self, start: int, stop: int) -> list[bytes]:
        """The bytes of entries ``start`` to ``stop`` (exclusive), each compared with the log tree."""
        found: list[bytes] = []
        stop = min(stop, self._size)
        with tables.reading(self._engine) as connection:
            for number, body in enumerate(rows.entry_bodies(connection, start, stop), start):
                if self._log.leaf(number) != merkle.leaf_hash(body):
                    raise damaged(f"audit entry {number} was altered in the database")
                found.append(body)
        if len(found) != max(0, stop - start):
            raise damaged("audit entries are missing from the database")
        return found

    def evidence(self, digest: str) -> bytes | None:
        """The evidence of this digest (SHA-256, hexadecimal), if it is kept and is what it was."""
        with tables.reading(self._engine) as connection:
            body = connection.execute(
                sa.select(tables.evidence.c.body).where(tables.evidence.c.digest == digest)
            ).scalar()
        if body is None:
            return None
        if hashlib.sha256(body).hexdigest() != digest:
            raise damaged("evidence was altered in the database")
        return bytes(body)

    def inclusion(self, number: int, size: int) -> tuple[bytes, ...]:
        """The audit path of an entry in the tree of ``size``."""
        with self._writer:
            return tuple(self._log.inclusion(number, size))

    def consistency(self, old: int, new: int) -> tuple[bytes, ...]:
        """The proof that the tree of ``new`` extends that of ``old``."""
        with self._writer:
            return tuple(self._log.consistency(old, new))

    def root(self, size: int) -> bytes:
        """The root of the log's first ``size`` entries."""
        with self._writer:
            return self._log.root(size)

    def keep_cosigned(self, signed: SignedHead) -> None:
        """Store a head that witnesses co-signed, if it is newer than the one that is stored."""
        head = verify_head(signed, log_key=self.log_key)
        with self._writer:
            known = 0 if self._cosigned is None else _size_of(self._cosigned)
            if head.size < known:
                return
            with tables.writing(self._engine) as connection:
                connection.execute(sa.update(tables.head).values(cosigned=encode_signed_head(signed)))
            self._cosigned = signed

    # -- writing ------------------------------------------------------------------------------------------------------

    def _run(self, jobs: list[_Job[Any]]) -> None:
        """One transaction for all of these jobs; each ends done, with a value or an error."""
        mark: Mark | None = None
        try:
            with tables.writing(self._engine) as connection:
                self._catch_up(connection, lock=True)
                mark = self._trees.mark()
                batch = Batch()
                for job in jobs:
                    transaction = Transaction(self, connection, batch.staged)
                    try:
                        with tables.mapped():
                            job.value = job.work(transaction)
                        transaction.finish(batch)
                    except BaseException as error:
                        job.error = error
                after, signed = self._write(connection, batch)
        except BaseException as error:
            if mark is not None:
                self._trees.back(mark)
            for job in jobs:
                job.error = job.error or error
            if not isinstance(error, Exception):
                raise
        else:
            self._publish(after, signed)
        finally:
            for job in jobs:
                job.done = True

    def _write(
        self, connection: sa.Connection, batch: Batch
    ) -> tuple[dict[tuple[Kind, str], Held], SignedHead | None]:
        """Rows of ``batch`` and the head after it. The trees move along."""
        after: dict[tuple[Kind, str], Held] = {}
        self._write_records(connection, batch, after)
        for write in batch.beside:
            write(connection)
        if not batch.facts:
            return after, None
        # Replicas have clocks of their own, and witnesses refuse a head that is older than the one before.
        now = self._now() if self._head is None else max(self._now(), parse_head(self._head.head).time)
        entries = []
        for told in batch.facts:
            changes = tuple(
                self._trees.place(key, Held(version, after[key].slot, digest))
                for key, (version, digest) in told.changed.items()
            )
            entry = make_entry(
                told.fact, number=self._log.size, now=now, changes=changes, state=self._state.root()
            )
            body = encode_entry(entry)
            entries.append({"number": entry.number, "body": body})
            self._trees.append(body)
        connection.execute(rows.NEW_ENTRY, entries)
        signed = sign_head(
            TreeHead(
                log=log_id(self.log_key),
                size=self._log.size,
                root=self._log.root().hex(),
                state=self._state.root().hex(),
                time=now,
            ),
            self._key,
        )
        values = {"size": self._log.size, "signed": encode_signed_head(signed)}
        if self._head is None:
            connection.execute(sa.insert(tables.head).values(one=1, cosigned=b"", **values))
        else:
            connection.execute(rows.NEXT_HEAD, values)
        return after, signed

    def _write_records(
        self, connection: sa.Connection, batch: Batch, after: dict[tuple[Kind, str], Held]
    ) -> None:
        new, old = [], []
        slot = self._state.size
        for (kind, name), staged in batch.staged.items():
            held = self._held.get((kind, name))
            row = {"body": staged.body, "wrapped": staged.wrapped, "version": staged.version}
            if held is None:
                new.append({"kind": kind, "name": name, "slot": slot, **row})
            else:
                old.append({"b_kind": kind, "b_name": name, **row})
            digest = hashlib.sha256(staged.body).digest()
            after[kind, name] = Held(staged.version, slot if held is None else held.slot, digest)
            slot += held is None
        if new:
            connection.execute(rows.NEW_RECORD, new)
        if old:
            connection.execute(rows.NEXT_RECORD, old)

    # -- taking over --------------------------------------------------------------------------------------------------

    def _catch_up(self, connection: sa.Connection, *, lock: bool = False) -> None:
        row = connection.execute(rows.LOCKED_HEAD if lock else rows.HEAD).first()
        size = 0 if row is None else int(row.size)
        if size == self._log.size:
            return
        if row is None or size < self._log.size:
            raise RollbackFound(
                f"the database went back: it has {size} entries, this broker knew {self._log.size}",
                todo="it was restored under a running broker: put the newest state back",
            )
        signed, head = self._verified(row.signed)
        mark = self._trees.mark()
        after: dict[tuple[Kind, str], Held] = {}
        try:
            for number, body in enumerate(rows.entry_bodies(connection, mark.log, size), mark.log):
                entry = parse_entry(body, number)
                self._trees.append(body)
                for change in entry.changes:
                    key = (change.kind, change.name)
                    after[key] = self._trees.take(change, after.get(key) or self._held.get(key))
            agreed = (self._log.size, self._log.root().hex(), self._state.root().hex())
            if agreed != (head.size, head.root, head.state) or head.size != size:
                raise damaged("what was appended to the log does not lead to its tree head")
        except BaseException:
            self._trees.back(mark)
            raise
        self._publish(after, signed)

    def _publish(self, after: dict[tuple[Kind, str], Held], signed: SignedHead | None) -> None:
        self._held.update(after)
        if signed is not None:
            self._head, self._size = signed, self._log.size
        if after:
            for listener in self._listeners:
                listener(after.keys())

    def _verified(self, data: bytes) -> tuple[SignedHead, TreeHead]:
        try:
            signed = parse_signed_head(data)
            return signed, verify_head(signed, log_key=self.log_key)
        except HeadRefused as error:
            raise damaged(f"the tree head in the database is none of this log's: {error.what}") from None

    @staticmethod
    def _stored_size(connection: sa.Connection) -> int:
        return int(connection.execute(rows.SIZE).scalar() or 0)


def verified_entries(bodies: list[bytes], start: int) -> list[Entry]:
    """Bytes that :meth:`Journal.entries` gave, as entries."""
    return [parse_entry(body, number) for number, body in enumerate(bodies, start)]


def _size_of(signed: SignedHead) -> int:
    return parse_head(signed.head).size
