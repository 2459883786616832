"""An opened state: the journal, what owners signed, resources, witnesses and the mesh's authority, each over the same
database.

Made once (:func:`create_state`), opened with its key (:func:`open_state`). Opening reads and checks all of it: log,
state tree, signatures of the whole chain of manifests; what does not agree is refused before anything is served.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final

import sqlalchemy as sa

from cloister.broker import tables
from cloister.broker.audit import AuditDamaged, Fact, damaged
from cloister.broker.authority import Authority, genesis
from cloister.broker.clock import RisingClock
from cloister.broker.journal import Journal
from cloister.broker.keystores import Keystore
from cloister.broker.keystores.local import LocalKeystore
from cloister.broker.mesh_authority import MeshAuthority, stage_mesh
from cloister.broker.resources import LOCAL, Resources
from cloister.broker.state_key import (
    KeptShare,
    PassphraseLock,
    ShareLock,
    StateDocument,
    StateKey,
    encode_document,
    parse_document,
)
from cloister.broker.transaction import Transaction
from cloister.broker.tree_head import log_id, parse_head
from cloister.broker.witnessing import Witnessing
from cloister.encoding import encode_json
from cloister.errors import KeystoreError, ManifestError, UsageError
from cloister.manifest.acceptance import AcceptedManifest
from cloister.manifest.owner_key import parse_public_key
from cloister.manifest.signed import parse_signed, verified_signers

ID_SIZE: Final = 16
DOCUMENT: Final = "document"
"""The ``share`` record that holds the digest of the state's own document."""


@dataclass(frozen=True, slots=True)
class State:
    """Everything an opened broker works on. Thread-safe."""

    id: str
    laptop: bool
    journal: Journal
    authority: Authority
    resources: Resources
    witnessing: Witnessing
    mesh: MeshAuthority
    key: StateKey = field(repr=False)

    @property
    def log(self) -> str:
        """The log's identity, hexadecimal."""
        return log_id(self.journal.log_key)

    def key_for_peer(self) -> bytes:
        """The state key, for a broker that was attested under this manifest."""
        return self.key.for_peer()

    def kept(self, lock: ShareLock, owner: str) -> KeptShare:
        """What ``owner`` signs when its share of ``lock`` is kept."""
        return KeptShare(
            application=self.authority.manifest.manifest.application,
            state=self.id,
            log_key=self.journal.log_key.hex(),
            owner=owner,
            commitment=lock.commitments[owner],
        )

    def acknowledged(self, lock: ShareLock) -> list[str]:
        """The owners who signed that they keep their share of ``lock``, in this very state."""
        found = []
        for owner, key in lock.keys.items():
            stored = self.journal.read("share", kept_name(lock, owner))
            if stored is None:
                continue
            try:
                signed = parse_signed(stored.body)
                signers = verified_signers("share", signed, {owner: parse_public_key(key)})
                if signers == {owner} and signed.document == encode_json(self.kept(lock, owner)):
                    found.append(owner)
            except ManifestError:
                continue
        return sorted(found)

    def require_genuine(self, document: StateDocument) -> None:
        """Raise unless owners vouch for this state: that a broker which they verified made it and its key.

        The host could write a whole state under a key of its own, with the owners' public manifest in it; what it cannot
        write is the owners' signatures over that state's log key.
        """
        updates = [
            (
                one.manifest.update.threshold,
                {name: one.manifest.owners[name] for name in one.manifest.update.owners},
            )
            for one in self.authority.manifests()
        ]
        for lock in document.share_locks:
            if (lock.threshold, lock.keys) in updates and len(self.acknowledged(lock)) >= lock.threshold:
                return
        raise damaged(
            "the owners did not sign that they keep shares of this state: it was never finished, or somebody else made it"
        )

    def require_recoverable(self, document: StateDocument) -> None:
        """Raise unless enough owners have their shares: before that, a crash would lose what is put."""
        if isinstance(document.lock, PassphraseLock):
            return
        kept = self.acknowledged(document.lock)
        if len(kept) < document.lock.threshold:
            raise UsageError(
                f"{len(kept)} of {document.lock.threshold} owners have their share of this broker's key",
                todo="each owner runs `cloister owner share` first, or nothing could be opened after a crash",
            )


def kept_name(lock: ShareLock, owner: str) -> str:
    """The ``share`` record of what ``owner`` signed about this very share: an owner may have one of two locks."""
    return f"kept/{lock.commitments[owner]}"


def new_state_id(entropy: Callable[[int], bytes] = os.urandom) -> str:
    """A random name for a new state: 32 hexadecimal digits."""
    return entropy(ID_SIZE).hex()


def create_state(
    engine: sa.Engine,
    document: StateDocument,
    key: StateKey,
    manifest: AcceptedManifest,
    *,
    clock: RisingClock,
) -> None:
    """Write a new state: its document, its first manifest and the mesh's root, in one transaction.

    Raises :class:`UsageError` where there is one already.
    """
    tables.migrate(engine)
    taken = UsageError("this database holds a broker's state already", todo="start again without making one")
    if tables.exists(engine):
        raise taken
    journal = Journal(engine, key.log_key(), now=clock)

    def work(transaction: Transaction) -> None:
        genesis(transaction, manifest)
        stage_mesh(transaction, key, manifest, now=clock())
        stage_document(transaction, document)

    try:
        journal.transact(work)
    except AuditDamaged:
        # Another broker made one since: its log is not this one's.
        if read_document(engine).id == document.id:
            raise
        raise taken from None


def stage_document(transaction: Transaction, document: StateDocument) -> None:
    """Stage how the state is opened from now on."""
    data = encode_document(document)
    transaction.keep_document(document.id, data)
    transaction.put("share", DOCUMENT, hashlib.sha256(data).digest())
    locks = document.share_locks
    reason = (
        " and ".join(f"{lock.threshold} of {len(lock.commitments)} shares" for lock in locks) or "passphrase"
    )
    transaction.log(Fact("share", "done", reason=f"opened by {reason}"))


def read_document(engine: sa.Engine) -> StateDocument:
    """The state's document, which is not believed before the state was opened by it. Raises :class:`UsageError`."""
    version = tables.schema_version(engine)
    if version > tables.SCHEMA:
        raise UsageError(f"this state has schema {version}, newer than this release's {tables.SCHEMA}")
    if version != tables.SCHEMA:
        raise UsageError(
            "there is no broker's state", todo="make one: `cloister broker put … --init`, or `serve`"
        )
    with tables.reading(engine) as connection:
        row = connection.execute(sa.select(tables.state.c.id, tables.state.c.document)).first()
    if row is None:
        raise UsageError(
            "there is no broker's state", todo="make one: `cloister broker put … --init`, or `serve`"
        )
    document = parse_document(row.document)
    if document.id != row.id:
        raise KeystoreError("the state's document is of another state", todo="restore a backup")
    return document


def open_state(
    engine: sa.Engine,
    key: StateKey,
    *,
    origin: str | None,
    clock: RisingClock,
    stores: Mapping[str, Keystore] | None = None,
    placed: Mapping[str, str] | None = None,
    witnesses: Mapping[str, str] | None = None,
) -> State:
    """Open and check a state. ``origin`` pins its first owners (None: laptop mode, where the state's own are taken).

    ``stores`` are key stores beside ``local``, ``placed`` says which repository's key is in which; ``witnesses`` are
    addresses by name. The witnesses are asked by :meth:`Witnessing.start`, not here.
    """
    document = read_document(engine)
    journal = Journal(engine, key.log_key(), now=clock)
    journal.load()
    clock.raise_to(parse_head(journal.head.head).time)
    stored = journal.read("share", DOCUMENT)
    if stored is None or stored.body != hashlib.sha256(encode_document(document)).digest():
        raise damaged("the document that says how this state is opened is not the newest one")
    authority = Authority(journal, origin=origin)
    authority.load()
    local = LocalKeystore(journal, key)
    return State(
        id=document.id,
        laptop=isinstance(document.lock, PassphraseLock),
        journal=journal,
        authority=authority,
        resources=Resources(journal, key, {**(stores or {}), LOCAL: local}, placed=placed),
        witnessing=Witnessing(journal, authority, witnesses or {}),
        mesh=MeshAuthority(journal, authority, key, clock=clock),
        key=key,
    )
