"""Shares of the state key from when they are made until their owners keep them.

They are in this process's memory alone, each is handed out to the owner it is for, and the document that says how the
state is opened names new owners only once enough of them signed that they keep theirs.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping

import sqlalchemy as sa

from cloister.broker.audit import Fact, damaged
from cloister.broker.state import DOCUMENT, State, kept_name, read_document, stage_document
from cloister.broker.state_key import (
    PassphraseLock,
    Share,
    ShareLock,
    StateDocument,
    StateKey,
    commitment,
    encode_document,
    lock_by_owners,
)
from cloister.broker.transaction import Transaction
from cloister.broker.wire import Progress
from cloister.encoding import encode_json
from cloister.errors import ManifestError, SignatureRefused, UnknownResource, UsageError
from cloister.manifest.acceptance import AcceptedManifest
from cloister.manifest.manifest import Manifest
from cloister.manifest.owner_key import parse_public_key
from cloister.manifest.signed import Signed, encode_signed, verified_signers


class NewShares:
    """Of one state. Not thread-safe: :class:`~cloister.broker.custody.Custody` takes its lock first."""

    def __init__(self, engine: sa.Engine, state: Callable[[], State]) -> None:
        """``state`` is the opened one, or raises ``Locked``."""
        self._engine = engine
        self._state = state
        self._shares: dict[str, Share] = {}

    def keep(self, shares: Mapping[str, Share]) -> None:
        """Hand these out from now on, and none that were made before."""
        self._shares = dict(shares)

    def checked(self, state: State) -> tuple[int, StateDocument]:
        """The document, if it is the one that the state tree names, and that record's version."""
        document = read_document(self._engine)
        stored = state.journal.read("share", DOCUMENT)
        if stored is None or stored.body != _digest(document):
            raise damaged("the document that says how this state is opened is not the newest one")
        return stored.version, document

    def hand_out(self, owner: str) -> Share:
        """The share of ``owner``, as long as it was not acknowledged. Raises :class:`UnknownResource`."""
        share = self._shares.get(owner)
        if share is not None:
            document = self.checked(self._state())[1]
            newest = document.next or document.lock
            if not isinstance(newest, ShareLock) or newest.commitments.get(owner) != commitment(share):
                self._shares.clear()  # another replica has made newer ones
                share = None
        if share is None:
            raise UnknownResource(
                f"there is no share for {owner} here (any more)",
                todo="shares are handed out once; if yours is lost, the owners sign a manifest that changes who they are",
            )
        return share

    def acknowledge(self, owner: str, signed: Signed) -> Progress:
        """``owner`` keeps its share, and signed so: forget it here, and note that. Tells how many are kept.

        Raises :class:`~cloister.errors.ManifestError` for anything but exactly what has to be signed.
        """
        share = self.hand_out(owner)
        state = self._state()
        version, document = self.checked(state)
        lock = document.next or document.lock
        if not isinstance(lock, ShareLock) or lock.commitments.get(owner) != commitment(share):
            raise UnknownResource("this share is not of the newest owners", todo="fetch it again")
        if signed.document != encode_json(state.kept(lock, owner)):
            raise ManifestError(
                "what was signed is not that this share is kept here", todo="use `cloister owner share`"
            )
        if verified_signers("share", signed, {owner: parse_public_key(lock.keys[owner])}) != {owner}:
            raise SignatureRefused("nobody signed that this share is kept", todo="use `cloister owner share`")
        kept = {*state.acknowledged(lock), owner}
        following = document
        if document.next is not None and len(kept) >= lock.threshold:
            following = document.opened_by(lock)

        def work(transaction: Transaction) -> None:
            _require_unchanged(transaction, version)
            transaction.put("share", kept_name(lock, owner), encode_signed(signed))
            reason = (
                f"{owner} keeps its share; {len(kept)} of {len(lock.commitments)}, {lock.threshold} needed"
            )
            transaction.log(Fact("share", "done", signers=(owner,), reason=reason))
            if following is not document:
                stage_document(transaction, following)

        state.journal.transact(work)
        del self._shares[owner]
        return Progress(open=True, have=len(kept), need=lock.threshold)

    def submit_manifest(self, signed: Signed) -> AcceptedManifest:
        """Put the next manifest in force, with new shares in the same transaction if it has other owners."""
        state = self._state()
        version, document = self.checked(state)
        made: dict[str, Share] = {}

        def renew(transaction: Transaction, accepted: AcceptedManifest) -> None:
            _require_unchanged(transaction, version)
            following = self._renewed(document, accepted.manifest, state, made)
            if following is not None:
                stage_document(transaction, following)

        accepted = state.authority.submit_manifest(signed, also=renew)
        if made:
            self._shares = made
        return accepted

    def renew_lost(self, state: State) -> None:
        """Shares that were made for new owners and not kept by enough of them ended with the process that held them."""
        version, document = self.checked(state)
        if document.next is None:
            return
        lock, shares = locked(state.authority.manifest.manifest, document.id, state.key)
        following = StateDocument(id=document.id, created=document.created, lock=document.lock, next=lock)

        def work(transaction: Transaction) -> None:
            if transaction.version("share", DOCUMENT) == version:
                stage_document(transaction, following)

        state.journal.transact(work)
        if self.checked(state)[1] == following:
            self._shares = dict(shares)

    def _renewed(
        self, document: StateDocument, manifest: Manifest, state: State, made: dict[str, Share]
    ) -> StateDocument | None:
        """The document with shares of a manifest's owners, which are put into ``made``; None if they are the same."""
        newest = document.next or document.lock
        update = manifest.update
        if isinstance(newest, PassphraseLock):
            return None
        keys = {name: manifest.owners[name] for name in update.owners}
        if (newest.threshold, newest.keys) == (update.threshold, keys):
            return None
        lock, shares = locked(manifest, document.id, state.key)
        made.clear()
        made.update(shares)
        if isinstance(document.lock, ShareLock) and (document.lock.threshold, document.lock.keys) == (
            update.threshold,
            keys,
        ):
            # Back to those who hold shares already: theirs go on, and nobody else's are needed.
            made.clear()
            return document.opened_by(document.lock)
        return StateDocument(id=document.id, created=document.created, lock=document.lock, next=lock)


def locked(manifest: Manifest, state: str, key: StateKey) -> tuple[ShareLock, Mapping[str, Share]]:
    """Shares of ``key`` for a manifest's owners."""
    owners = {name: manifest.owners[name] for name in manifest.update.owners}
    return lock_by_owners(owners, manifest.update.threshold, state=state, key=key)


def _digest(document: StateDocument) -> bytes:
    return hashlib.sha256(encode_document(document)).digest()


def _require_unchanged(transaction: Transaction, version: int) -> None:
    if transaction.version("share", DOCUMENT) != version:
        raise UsageError("another replica changed how this state is opened just now", todo="ask again")
