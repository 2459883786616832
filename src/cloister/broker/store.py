"""The broker's records: resources and their rules, sealed, in one SQLite file (docs/spec/broker-state.md).

Each record is sealed for its own kind, path and version: rows cannot be exchanged, copied or edited. What does not open
is refused, never skipped over. It does not find a whole directory that was replaced by its own older copy.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import sqlite3
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Self

from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from cloister.broker.keystores import Keystore
from cloister.broker.keystores.local import (
    FORMAT,
    KEY_SIZE,
    Cost,
    Entropy,
    LocalKeystore,
    SealedStateKey,
    create_state_key,
    open_state_key,
    seal,
    unseal,
)
from cloister.encoding import labelled_hash
from cloister.errors import KeystoreError, UsageError

RECORD_LABEL = "cloister/broker-record/v1"
DATABASE = "broker.sqlite"
MAX_RESOURCE = 64 * 1024
MAX_RULE = 256 * 1024
MAX_POLICIES = 64
"""How many different rule texts one state holds: an attestation is tried against each."""
BUSY_SECONDS = 5.0

Kind = Literal["resource", "rule"]
_LIMITS: dict[Kind, int] = {"resource": MAX_RESOURCE, "rule": MAX_RULE}

_SCHEMA = """
CREATE TABLE state (
  one INTEGER PRIMARY KEY CHECK (one = 1), format TEXT NOT NULL, salt BLOB NOT NULL, iterations INTEGER NOT NULL,
  lanes INTEGER NOT NULL, memory_kib INTEGER NOT NULL, wrapped BLOB NOT NULL) STRICT;
CREATE TABLE records (
  kind TEXT NOT NULL, path TEXT NOT NULL, version INTEGER NOT NULL, updated INTEGER NOT NULL, policy TEXT NOT NULL,
  wrapped_key BLOB NOT NULL, body BLOB NOT NULL, PRIMARY KEY (kind, path)) STRICT;
CREATE INDEX rules_by_policy ON records (policy) WHERE kind = 'rule';
"""


@dataclass(frozen=True, slots=True)
class Entry:
    """What a listing shows of one record: no content. ``updated`` is in Unix seconds."""

    kind: Kind
    path: str
    version: int
    updated: int


class Store:
    """Sealed records by kind and path. A connection per call, so threads and processes can share one file."""

    def __init__(self, file: Path, keystore: Keystore, *, entropy: Entropy = os.urandom) -> None:
        self._file = file
        self._keystore = keystore
        self._entropy = entropy

    @classmethod
    def create(
        cls, directory: Path, passphrase: bytes, *, cost: Cost | None = None, entropy: Entropy = os.urandom
    ) -> Self:
        """Make a new state directory (0700). Raises :class:`UsageError` if there is a state already."""
        file = directory / DATABASE
        sealed, state_key = create_state_key(passphrase, cost=cost or Cost(), entropy=entropy)
        try:
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            _require_private(directory)
            # Built under another name and linked at the end: a state is either whole or not there.
            draft = directory / f".{DATABASE}.{os.getpid()}"
            os.close(os.open(draft, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
            try:
                with contextlib.closing(sqlite3.connect(draft, isolation_level=None)) as database:
                    database.executescript(_SCHEMA)
                    database.execute(
                        "INSERT INTO state VALUES (1, ?, ?, ?, ?, ?, ?)",
                        (
                            FORMAT,
                            sealed.salt,
                            sealed.cost.iterations,
                            sealed.cost.lanes,
                            sealed.cost.memory_kib,
                            sealed.wrapped,
                        ),
                    )
                _sync(draft)
                os.link(draft, file)
                _sync(directory)
            finally:
                draft.unlink()
        except FileExistsError:
            raise UsageError(f"{directory} holds a broker's state already") from None
        except OSError as error:
            raise UsageError(f"cannot make a broker's state in {directory} ({error.strerror})") from None
        return cls(file, LocalKeystore(state_key, entropy=entropy), entropy=entropy)

    @classmethod
    def open(cls, directory: Path, passphrase: bytes, *, entropy: Entropy = os.urandom) -> Self:
        """Open a state directory. Raises :class:`UsageError` (none there) or :class:`KeystoreError`."""
        file = directory / DATABASE
        if not file.is_file():
            raise UsageError(
                f"{directory} holds no broker's state",
                todo="`cloister broker put` makes one when it is given --init",
            )
        _require_private(directory)
        with _connected(file) as database:
            row = database.execute(
                "SELECT format, salt, iterations, lanes, memory_kib, wrapped FROM state"
            ).fetchone()
        if row is None or row[0] != FORMAT:
            raise KeystoreError(f"{file} is not a broker's state of this release")
        sealed = SealedStateKey(bytes(row[1]), Cost(*(int(number) for number in row[2:5])), bytes(row[5]))
        keystore = LocalKeystore(open_state_key(sealed, passphrase), entropy=entropy)
        return cls(file, keystore, entropy=entropy)

    def put(
        self,
        kind: Kind,
        path: str,
        content: bytes,
        *,
        now: int,
        before_commit: Callable[[int], None] = lambda _version: None,
    ) -> int:
        """Seal ``content`` as the next version and return its number.

        ``before_commit`` (the audit line) runs inside the transaction: if it raises, nothing changes.
        """
        if not 1 <= len(content) <= _LIMITS[kind]:
            raise UsageError(f"a {kind} is 1 to {_LIMITS[kind]} bytes long, not {len(content)}")
        policy = hashlib.sha256(content).hexdigest() if kind == "rule" else ""
        data_key = self._entropy(KEY_SIZE)
        with _connected(self._file) as database:
            database.execute("BEGIN IMMEDIATE")
            try:
                row = database.execute(
                    "SELECT version FROM records WHERE kind = ? AND path = ?", (kind, path)
                ).fetchone()
                version = int(row[0]) + 1 if row else 1
                aad = associated_data(kind, path, version)
                database.execute(
                    "INSERT OR REPLACE INTO records VALUES (?, ?, ?, ?, ?, ?, ?)",
                    (
                        kind,
                        path,
                        version,
                        now,
                        policy,
                        self._keystore.wrap(data_key, aad),
                        seal(AESGCM(data_key), content, aad, self._entropy),
                    ),
                )
                before_commit(version)
                database.execute("COMMIT")
            except BaseException:
                database.execute("ROLLBACK")
                raise
        return version

    def get(self, kind: Kind, path: str) -> bytes | None:
        """The content, or None if there is no such record. Raises :class:`KeystoreError` if it does not open."""
        with _connected(self._file) as database:
            row = database.execute(
                "SELECT version, wrapped_key, body FROM records WHERE kind = ? AND path = ?", (kind, path)
            ).fetchone()
        return None if row is None else self._open(kind, path, *row)

    def distinct_rules(self, limit: int) -> list[bytes]:
        """One rule text for each different policy, at most ``limit``; those that do not open are left out."""
        with _connected(self._file) as database:
            rows = database.execute(
                "SELECT min(path), version, wrapped_key, body FROM records WHERE kind = 'rule' "
                "GROUP BY policy LIMIT ?",
                (limit,),
            ).fetchall()
        texts = []
        for row in rows:
            # A damaged rule only denies its own resource; it must not stop the others.
            with contextlib.suppress(KeystoreError):
                texts.append(self._open("rule", *row))
        return texts

    def different_rules(self, besides: str, text: bytes) -> int:
        """How many different rule texts there would be if ``text`` were the rule of ``besides``."""
        with _connected(self._file) as database:
            rows = database.execute(
                "SELECT DISTINCT policy FROM records WHERE kind = 'rule' AND path <> ? LIMIT ?",
                (besides, MAX_POLICIES + 1),
            ).fetchall()
        return len({row[0] for row in rows} | {hashlib.sha256(text).hexdigest()})

    def entries(self) -> list[Entry]:
        """Every record, without contents, by path."""
        with _connected(self._file) as database:
            rows = database.execute(
                "SELECT kind, path, version, updated FROM records ORDER BY path, kind"
            ).fetchall()
        return [Entry(*row) for row in rows]

    def _open(self, kind: Kind, path: str, version: object, wrapped: object, body: object) -> bytes:
        if not (
            isinstance(version, int)
            and version > 0
            and isinstance(wrapped, bytes)
            and isinstance(body, bytes)
        ):
            raise KeystoreError(f"the {kind} record of {path} is malformed", todo="restore a backup")
        aad = associated_data(kind, path, version)
        return unseal(AESGCM(self._keystore.unwrap(wrapped, aad)), body, aad)


def associated_data(kind: Kind, path: str, version: int) -> bytes:
    """What ties a sealed record to its place: 32 bytes."""
    return labelled_hash(RECORD_LABEL, kind.encode(), path.encode(), version.to_bytes(8, "big"))


@contextlib.contextmanager
def _connected(file: Path) -> Iterator[sqlite3.Connection]:
    try:
        with contextlib.closing(
            sqlite3.connect(
                f"{file.absolute().as_uri()}?mode=rw", uri=True, timeout=BUSY_SECONDS, isolation_level=None
            )
        ) as database:
            database.execute("PRAGMA journal_mode=WAL")
            database.execute("PRAGMA synchronous=FULL")
            database.execute("PRAGMA trusted_schema=OFF")
            yield database
    except sqlite3.Error as error:
        raise KeystoreError(
            f"the state {file.name} cannot be used ({error.__class__.__name__}: {error})",
            todo="check that it is a broker's state, that the disk is not full and that no other process holds it",
        ) from None


def _require_private(directory: Path) -> None:
    """Who can write there can exchange the database or lead the audit log elsewhere. Raises :class:`UsageError`."""
    if directory.stat().st_mode & 0o022:
        raise UsageError(
            f"others can write to the state directory {directory}", todo=f"run: chmod 700 {directory}"
        )


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
