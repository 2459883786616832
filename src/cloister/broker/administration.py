"""What owners order, and what everybody may look at, without HTTP: resources, keys, listings.

An order is signed by owners and works once (manifest/order.py); nothing here acts on anybody else's word, an
operator's least of all. In laptop mode the owner's key is derived from the state key, and the same checks run over
its signatures.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable
from dataclasses import dataclass

from cloister.broker.audit import Fact
from cloister.broker.authority import key_quorums, signer_names
from cloister.broker.counters import counted
from cloister.broker.keystores import KeyDescription
from cloister.broker.resources import MAX_RESOURCE, repository_of
from cloister.broker.state import State
from cloister.broker.state_key import StateDocument
from cloister.broker.transaction import Transaction
from cloister.broker.wire import Done, Listed, ListedKey
from cloister.errors import ManifestError, Superseded, UnknownResource, UsageError
from cloister.manifest.acceptance import AcceptedManifest
from cloister.manifest.order import AcceptedOrder, Order, accept_order, parse_order
from cloister.manifest.quorum import Quorum, require_quorum
from cloister.manifest.rule import governing_quorum
from cloister.manifest.signed import Signed

_ORDERS = threading.Lock()
MAX_OWNER = 128
"""Characters of owners' names that key stores keep."""


@dataclass(frozen=True, slots=True)
class Administration:
    """Orders on one state. ``document`` gives how the state is opened: nothing is put before that can be repeated."""

    state: State
    now: Callable[[], int]
    document: Callable[[], StateDocument]

    def execute(self, signed: Signed, content: bytes) -> Done:
        """Do what owners ordered. Raises :class:`~cloister.errors.ManifestError` and what the act itself raises."""
        order = parse_order(signed.document)
        manifest = self.state.authority.manifest
        first, *others = self._quorums(order, manifest)
        accepted = accept_order(signed, manifest=manifest, broker=self.state.id, quorum=first)
        for quorum in others:
            require_quorum(quorum, accepted.signers, f"the order to {order.action} {order.subject}")
        if content and order.action != "put":
            raise ManifestError(f"an order to {order.action} comes with no content")
        if order.action == "destroy":
            return self._destroy(accepted, manifest)
        if order.action == "reset-tree":
            return self._reset_tree(accepted, manifest)
        # A key store's own act is no part of our transaction: one at a time, each looked at again.
        with _ORDERS:
            if order.action == "put":
                return self._put(accepted, manifest, content)
            self.state.journal.catch_up()
            if self.state.authority.manifest is not manifest:
                raise UsageError(
                    "the manifest was replaced just now", todo="look who decides now, and sign anew"
                )
            return self._rotate(accepted) if order.action == "rotate-key" else self._destroy_key(accepted)

    def next_version(self, action: str, subject: str) -> int:
        """The version that an order has to name now."""
        if action in ("put", "destroy"):
            return self.state.resources.version(subject) + 1
        if action == "reset-tree":
            held = self.state.journal.held("tree", subject)
            return 1 if held is None else held.version + 1
        described = self._described(subject)
        return len(described) + 1 if action == "rotate-key" else len(described)

    def listing(self) -> list[Listed]:
        """Every name that has a resource or a rule, by name."""
        journal = self.state.journal
        journal.catch_up()
        names = sorted({*journal.names("resource"), *journal.names("rule")})
        return [self._listed(path) for path in names]

    def keys(self) -> list[ListedKey]:
        """Every version of every repository's key."""
        repositories = sorted({repository_of(path) for path in self.state.journal.names("resource")})
        return [
            ListedKey(
                store=store,
                id=one.id,
                version=one.version,
                algorithm=one.algorithm,
                owner=one.owner,
                created=one.created,
                state=one.state,
            )
            for store, described in map(self.state.resources.describe, repositories)
            for one in described
        ]

    def _listed(self, path: str) -> Listed:
        journal = self.state.journal
        resource, rule = journal.held("resource", path), journal.held("rule", path)
        found = self.state.authority.rule(path)
        try:
            owners = str(self.state.authority.quorum(path))
        except ManifestError:
            owners = "nobody"
        return Listed(
            uri=f"kbs:///{path}",
            resource=0 if resource is None else resource.version,
            rule=0 if rule is None else rule.version,
            destroyed=resource is not None and resource.digest == _NOTHING,
            owners=owners,
            released=0
            if found is None
            else counted(journal.read("counter", path), found.rule.digest).released,
        )

    def _described(self, repository: str) -> tuple[KeyDescription, ...]:
        if not self.state.resources.has_key(repository):
            raise UnknownResource(
                f"the repository {repository} has no key", todo="put a resource into it first"
            )
        return self.state.resources.describe(repository)[1]

    @staticmethod
    def _quorums(order: Order, manifest: AcceptedManifest) -> tuple[Quorum, ...]:
        if order.action in ("rotate-key", "destroy-key"):
            return key_quorums(manifest, order.subject)
        quorum = governing_quorum(manifest, order.subject)
        if order.action == "put" and order.version == 1:
            # Something where nothing was takes nothing from anybody: one owner is enough. What the order says decides,
            # and has to be the next version later: what is stored could change in between.
            return (Quorum(owners=quorum.owners, threshold=1),)
        return (quorum,)

    def _put(self, accepted: AcceptedOrder, manifest: AcceptedManifest, content: bytes) -> Done:
        order = accepted.order
        if len(content) > MAX_RESOURCE or hashlib.sha256(content).hexdigest() != order.content_sha256:
            raise ManifestError("the content is not what the order was signed for", todo="put it again")
        self.state.require_recoverable(self.document())
        self._require_next(order, self.state.resources.version(order.subject) + 1)
        owner = ", ".join(governing_quorum(manifest, order.subject).owners)[:MAX_OWNER]
        store = self.state.resources.prepare(order.subject, content, owner=owner, now=self.now())
        fact = self._fact(accepted, f"version {order.version} put")

        def work(transaction: Transaction) -> int:
            # What was decided by fewer owners, because nothing was there, must not replace what came in between.
            self._require_next(order, transaction.version("resource", order.subject) + 1)
            self._require_same(transaction, manifest)
            version = store(transaction)
            transaction.log(fact)
            return version

        return Done(action="put", subject=order.subject, version=self.state.journal.transact(work))

    def _destroy(self, accepted: AcceptedOrder, manifest: AcceptedManifest) -> Done:
        order = accepted.order
        fact = self._fact(accepted, f"destroyed; version {order.version} is nothing")

        def work(transaction: Transaction) -> int:
            self._require_next(order, transaction.version("resource", order.subject) + 1)
            self._require_same(transaction, manifest)
            version = self.state.resources.shred(transaction, order.subject)
            transaction.log(fact)
            return version

        return Done(action="destroy", subject=order.subject, version=self.state.journal.transact(work))

    def _reset_tree(self, accepted: AcceptedOrder, manifest: AcceptedManifest) -> Done:
        order = accepted.order
        fact = Fact(
            "tree",
            "done",
            resource=f"kbs:///{order.subject}",
            signers=signer_names(accepted.signed, manifest),
            reason="the newest index is forgotten: the next that is recorded counts",
        )

        def work(transaction: Transaction) -> int:
            self._require_next(order, transaction.version("tree", order.subject) + 1)
            self._require_same(transaction, manifest)
            version = transaction.put("tree", order.subject, b"")
            transaction.log(fact)
            return version

        return Done(action="reset-tree", subject=order.subject, version=self.state.journal.transact(work))

    @staticmethod
    def _require_same(transaction: Transaction, manifest: AcceptedManifest) -> None:
        if transaction.version("manifest", str(manifest.manifest.version + 1)):
            raise UsageError("the manifest was replaced just now", todo="look who decides now, and sign anew")

    def _rotate(self, accepted: AcceptedOrder) -> Done:
        order = accepted.order
        self._require_next(order, self.next_version("rotate-key", order.subject))
        described, rewrapped = self.state.resources.rotate(
            order.subject, now=self.now(), number=order.version
        )
        self._record_key(accepted, f"version {described.version} active, {rewrapped} data keys wrapped anew")
        return Done(
            action="rotate-key", subject=order.subject, version=described.version, rewrapped=rewrapped
        )

    def _destroy_key(self, accepted: AcceptedOrder) -> Done:
        order = accepted.order
        if order.version > len(self._described(order.subject)):
            raise UsageError(
                f"the key of {order.subject} has no version {order.version}", todo="list its keys"
            )
        described = self.state.resources.destroy_key(order.subject, order.version)
        self._record_key(accepted, f"version {described.version} destroyed")
        return Done(action="destroy-key", subject=order.subject, version=described.version)

    def _record_key(self, accepted: AcceptedOrder, reason: str) -> None:
        fact = Fact(
            "key",
            "done",
            resource=f"key:{accepted.order.subject}",
            signers=signer_names(accepted.signed, self.state.authority.manifest),
            reason=reason,
        )
        self.state.journal.transact(lambda transaction: transaction.log(fact))

    def _fact(self, accepted: AcceptedOrder, reason: str) -> Fact:
        # Made before the transaction: under the writers' lock nobody may wait for the authority's.
        return Fact(
            "resource",
            "done",
            resource=f"kbs:///{accepted.order.subject}",
            signers=signer_names(accepted.signed, self.state.authority.manifest),
            reason=reason,
        )

    @staticmethod
    def _require_next(order: Order, version: int) -> None:
        if order.version != version:
            raise Superseded(
                f"the order makes version {order.version} of {order.subject}, and the next is {version}",
                todo="it was done already, or something came between: look, and sign it anew",
            )


_NOTHING = hashlib.sha256(b"").digest()
