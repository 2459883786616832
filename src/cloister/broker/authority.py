"""What owners signed, as it is in force: the manifest and the rules, out of the journal.

A new manifest or rule takes effect only through the checks of the manifest room, in one transaction with its audit
entry. Nothing here can be changed by whoever runs the broker: without the owners' signatures there is no new version,
and an older one that is put back into the database is not what the state tree says.
"""

from __future__ import annotations

import functools
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Final

import sqlalchemy as sa

from cloister.appraisal.policy import Policy
from cloister.broker import tables
from cloister.broker.audit import Fact, Kind
from cloister.broker.journal import Journal
from cloister.broker.release import Reader
from cloister.broker.transaction import Stored, Transaction
from cloister.errors import KeystoreError, ManifestError, UsageError
from cloister.manifest.acceptance import AcceptedManifest, accept_genesis, accept_successor
from cloister.manifest.manifest import origin, parse_manifest
from cloister.manifest.quorum import Quorum
from cloister.manifest.rule import AcceptedRule, accept_rule, governing_quorum, parse_rule, recall_rule
from cloister.manifest.signed import Signed, encode_signed, parse_signed

MAX_POLICIES: Final = 64
"""How many different policies all rules together bring, beside the manifest's (64, too): an attestation may be tried
against each."""
MAX_INLINE: Final = 8
"""How many one rule brings, so that no owner alone takes up the room of all."""
READ_AT_ONCE: Final = 500


@dataclass(frozen=True, slots=True)
class InForce:
    """A rule and the version of its record in the state."""

    version: int
    rule: AcceptedRule


class Authority:
    """The manifest and rules in force. Thread-safe.

    ``origin`` (hexadecimal) pins who may sign the first manifest; None takes the one that is there, which is laptop mode.
    """

    def __init__(self, journal: Journal, *, origin: str | None) -> None:
        self._journal = journal
        self._origin = origin
        self._lock = threading.RLock()
        self._manifests: list[AcceptedManifest] = []
        self._dirty: deque[str] = deque()
        self._inline: dict[str, tuple[str, ...]] = {}
        self._count: Counter[str] = Counter()
        self._policies: dict[str, Policy] = {}
        journal.listen(self._changed)

    def load(self) -> None:
        """Check the chain of manifests from the first on, and note what policies the rules bring."""
        with self._lock:
            self._manifests = []
            self._take_manifests()
            paths = self._journal.names("rule")
            for start in range(0, len(paths), READ_AT_ONCE):
                found = self._journal.read_many("rule", paths[start : start + READ_AT_ONCE])
                for path, stored in found.items():
                    self._note(path, InForce(stored.version, _recalled(stored)))

    @property
    def manifest(self) -> AcceptedManifest:
        """The newest manifest."""
        with self._lock:
            self._take_manifests()
            return self._manifests[-1]

    def manifests(self) -> tuple[AcceptedManifest, ...]:
        """Every version, the first first."""
        with self._lock:
            self._take_manifests()
            return tuple(self._manifests)

    @property
    def origin(self) -> str:
        """Who signed the first manifest: what owners and clients pin, hexadecimal."""
        return origin(self.manifests()[0].manifest)

    def rule(self, path: str) -> InForce | None:
        """The rule of a resource. Raises :class:`~cloister.broker.audit.AuditDamaged` if it is not what was accepted."""
        stored = self._journal.read("rule", path)
        return None if stored is None else InForce(stored.version, _recalled(stored))

    @staticmethod
    def readers(rule: AcceptedRule, manifest: AcceptedManifest) -> tuple[Reader, ...]:
        """Who may read by ``rule`` under ``manifest``."""
        return tuple(Reader(name, policy) for name, policy in rule.policies_under(manifest))

    def quorum(self, path: str) -> Quorum:
        """The owners of a resource. Raises :class:`ManifestError` where it has none."""
        return governing_quorum(self.manifest, path)

    def policies(self) -> tuple[Policy, ...]:
        """Every different policy by which anybody may read anything: the manifest's, then those of rules."""
        with self._lock:
            self._clean()
            found = {
                policy.digest: policy
                for name in self.manifest.manifest.workloads
                for policy in self.manifest.policies(name)
            }
            found.update(self._policies)
            return tuple(found.values())

    def submit_manifest(
        self, signed: Signed, *, also: Callable[[Transaction, AcceptedManifest], None] | None = None
    ) -> AcceptedManifest:
        """Put the next manifest in force. Raises what :func:`accept_successor` raises.

        ``also`` stages what has to change with it, in the same transaction.
        """
        accepted = accept_successor(signed, predecessor=self.manifest)
        body = encode_signed(accepted.signed)

        def work(transaction: Transaction) -> None:
            name = str(accepted.manifest.version)
            if transaction.version("manifest", name):
                raise UsageError(
                    "another manifest came first", todo="look at the newest, and sign its successor"
                )
            transaction.put("manifest", name, body)
            transaction.log(manifest_fact(accepted, "manifest"))
            if also is not None:
                also(transaction, accepted)

        self._journal.transact(work)
        return accepted

    def submit_rule(self, signed: Signed) -> AcceptedRule:
        """Put a rule in force. Raises what :func:`accept_rule` raises."""
        path = parse_rule(signed.document).resource
        before = self.rule(path)
        manifest = self.manifest
        accepted = accept_rule(signed, manifest=manifest, predecessor=None if before is None else before.rule)
        self._require_room(path, accepted.policies)
        body = encode_signed(accepted.signed)

        def work(transaction: Transaction) -> None:
            known = 0 if before is None else before.version
            newest = transaction.version("manifest", str(manifest.manifest.version + 1))
            if transaction.version("rule", path) != known or newest:
                raise UsageError(
                    f"the rule of {path} or the manifest was changed just now", todo="look, and sign anew"
                )
            transaction.put("rule", path, body)
            transaction.log(
                Fact(
                    "rule",
                    "done",
                    resource=f"kbs:///{path}",
                    rule=accepted.digest,
                    manifest=manifest.digest,
                    signers=signer_names(signed, manifest),
                    reason=f"version {accepted.rule.version}",
                )
            )

        self._journal.transact(work)
        return accepted

    def _changed(self, keys: Iterable[tuple[Kind, str]]) -> None:
        # Under the journal's lock: no lock of ours, or two threads could wait for each other.
        self._dirty.extend(name for kind, name in keys if kind == "rule")

    def _clean(self) -> None:
        while self._dirty:
            path = self._dirty[0]
            self._note(path, self.rule(path))
            self._dirty.popleft()  # only now: if the database failed above, it is looked at again

    def _note(self, path: str, found: InForce | None) -> None:
        """Keep count of the policies that rules bring themselves."""
        for digest in self._inline.pop(path, ()):
            self._count[digest] -= 1
            if not self._count[digest]:
                del self._count[digest], self._policies[digest]
        if found is None or not found.rule.policies:
            return
        self._inline[path] = tuple(policy.digest for policy in found.rule.policies)
        for policy in found.rule.policies:
            self._count[policy.digest] += 1
            self._policies[policy.digest] = policy

    def _take_manifests(self) -> None:
        while self._journal.held("manifest", str(len(self._manifests) + 1)) is not None:
            stored = self._journal.read("manifest", str(len(self._manifests) + 1))
            if stored is None:
                break
            signed = parse_signed(stored.body)
            if self._manifests:
                accepted = accept_successor(signed, predecessor=self._manifests[-1])
            else:
                pinned = self._origin or origin(parse_manifest(signed.document))
                accepted = accept_genesis(signed, origin=pinned)
            self._manifests.append(accepted)
        if not self._manifests:
            raise KeystoreError("this state has no manifest", todo="restore a backup")

    def _require_room(self, path: str, policies: Sequence[Policy]) -> None:
        """Raise :class:`UsageError` over the bounds on what rules bring themselves; manifests have their own."""
        if len(policies) > MAX_INLINE:
            raise UsageError(
                f"a rule brings at most {MAX_INLINE} policies of its own",
                todo="name workloads of the manifest",
            )
        with self._lock:
            self._clean()
            replaced = set(self._inline.get(path, ()))
            kept = {digest for digest, count in self._count.items() if count > (digest in replaced)}
        if len(kept | {policy.digest for policy in policies}) > MAX_POLICIES:
            raise UsageError(
                f"rules bring at most {MAX_POLICIES} different policies",
                todo="name workloads of the manifest",
            )


def newest_in(engine: sa.Engine, origin: str) -> AcceptedManifest:
    """The newest manifest in a database that is not open yet. Its signatures count; that there is no newer one does not."""
    accepted: AcceptedManifest | None = None
    with tables.reading(engine) as connection:
        while True:
            name = str(1 if accepted is None else accepted.manifest.version + 1)
            body = connection.execute(
                sa.select(tables.records.c.body).where(
                    tables.records.c.kind == "manifest", tables.records.c.name == name
                )
            ).scalar()
            if body is None:
                break
            signed = parse_signed(body)
            accepted = (
                accept_genesis(signed, origin=origin)
                if accepted is None
                else accept_successor(signed, predecessor=accepted)
            )
    if accepted is None:
        raise KeystoreError("this state has no manifest", todo="restore a backup")
    return accepted


def key_quorums(manifest: AcceptedManifest, repository: str) -> tuple[Quorum, ...]:
    """Who decides about a repository's key: whoever decides about anything below it, all of them.

    Raises :class:`ManifestError` where that is nobody.
    """
    found = [
        quorum
        for prefix, quorum in sorted(manifest.manifest.resources.items())
        if prefix == repository or prefix.startswith(f"{repository}/")
    ]
    if not found:
        raise ManifestError(
            f"the manifest names no owners for {repository}",
            todo="its owners sign a manifest with an entry for it under [resources]",
        )
    return tuple(found)


def genesis(transaction: Transaction, accepted: AcceptedManifest) -> None:
    """Stage the first manifest of a new state."""
    transaction.put("manifest", "1", encode_signed(accepted.signed))
    transaction.log(manifest_fact(accepted, "genesis"))


def manifest_fact(accepted: AcceptedManifest, event: str) -> Fact:
    """What the log says of a manifest that is put in force."""
    return Fact(
        "genesis" if event == "genesis" else "manifest",
        "done",
        manifest=accepted.digest,
        signers=signer_names(accepted.signed, accepted),
        reason=f"{accepted.manifest.application} version {accepted.manifest.version}",
    )


def signer_names(signed: Signed, manifest: AcceptedManifest) -> tuple[str, ...]:
    """Whose signatures these are, by the names of the manifest; a key that it does not name by its beginning."""
    names = {key: name for name, key in manifest.manifest.owners.items()}
    return tuple(sorted(names.get(one.key, one.key[:24]) for one in signed.signatures))


def _recalled(stored: Stored) -> AcceptedRule:
    return _recall(stored.body)


@functools.lru_cache(maxsize=4096)
def _recall(body: bytes) -> AcceptedRule:
    # The state tree vouches for these bytes, which went in through accept_rule().
    signed = parse_signed(body)
    return recall_rule(signed, digest=signed.digest)
