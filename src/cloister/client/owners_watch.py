"""One broker, looked at again and again by an owner or auditor: what is shown is verified here, or it is not shown.

1. The channel is sealed to a broker whose evidence met the policy, and its evidence names the manifest in force.
2. The manifests are a chain of its owners' signatures from the pinned origin on, and not older than those seen before.
3. The newest tree head is signed by the log's key and extends the head that was kept at the last visit.
4. Co-signatures are of the manifest's witnesses, and of a head that the newest one extends.
5. Every entry was hashed into the newest head; each rule is the one that the log says, signed by its quorum.

What contradicts what was seen before is an alarm: it stays, and nothing of what came with it is believed.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Final, TypeVar

import httpx2

from cloister.appraisal.policy import Policy
from cloister.broker.audit import AuditDamaged, Change, Entry, damaged
from cloister.broker.owner_client import OwnerClient, require_ours
from cloister.broker.tree_head import (
    ForkFound,
    HeadRefused,
    RollbackFound,
    SignedHead,
    TreeHead,
    verify_head,
)
from cloister.broker.wire import Status
from cloister.channel.transport import SealedClient
from cloister.client.heads import Heads, KeptHead
from cloister.client.owners_ledger import Ledger, Wanted, newest
from cloister.client.owners_seen import (
    Alarm,
    InForce,
    Reading,
    Seen,
    Witnessed,
    require_known,
    rule_signers,
    witnessed,
)
from cloister.errors import CloisterError, ManifestError, NetworkError, UnknownResource, UsageError
from cloister.manifest.acceptance import AcceptedManifest
from cloister.manifest.rule import read_rule
from cloister.manifest.signed import encode_signed

T = TypeVar("T")

MAX_LOG: Final = 500_000
"""Entries of a log that is read as a whole."""
MAX_STEP: Final = 5000
"""Entries that are read at one look."""
MAX_RULES: Final = 20
"""Rules that are asked for at one look: a broker limits how often it is asked."""
MAX_ALARMS: Final = 20
TRIES: Final = 4
"""How often a head is asked for anew because the log grew meanwhile."""
_ALARMS: Final = (AuditDamaged, RollbackFound, ForkFound, HeadRefused, ManifestError)


@dataclass(frozen=True, slots=True)
class _Head:
    """A head that extends what was kept."""

    head: TreeHead
    signed: SignedHead
    log_key: str
    witnessed: Witnessed


class Watch:
    """``client`` speaks through ``channel``, which is verified. ``origin`` None shows laptop mode only. Thread-safe."""

    def __init__(
        self,
        client: OwnerClient,
        channel: SealedClient,
        *,
        address: str,
        origin: str | None,
        signing: bool,
        heads: Heads,
        now: Callable[[], int],
    ) -> None:
        self._client = client
        self._channel = channel
        self._origin = origin
        self._heads = heads
        self._now = now
        self._lock = threading.Lock()
        self._blank = Seen(address=address, now=0, signing=signing, pinned=origin is not None)
        self._first: KeptHead | None = None
        self._alarms: list[Alarm] = []
        self._rules: dict[str, InForce] = {}
        self._target: _Head | None = None
        self._unproven: list[bytes] = []
        self._manifests: tuple[AcceptedManifest, ...] = ()
        self.ledger = Ledger()

    def look(self, make: Callable[[Seen, Ledger], T]) -> T:
        """Ask and verify everything once, and ``make`` something of it while nobody else looks.

        A long log is read in steps, of which each look does one.
        """
        with self._lock:
            seen = replace(self._blank, now=self._now())
            try:
                for found in self._steps(seen):
                    seen = found
            except _ALARMS as error:
                seen = replace(seen, problem=error)
                self._alarm(seen.now, error)
                self._target, self._unproven = None, []
            except httpx2.TransportError as error:
                seen = replace(seen, problem=_broke_off(error))
            except CloisterError as error:
                seen = replace(seen, problem=error)
            return make(replace(seen, alarms=tuple(self._alarms)), self.ledger)

    def page(self, wanted: Wanted, *, before: int, limit: int) -> tuple[list[Entry], int | None]:
        """Proven entries, the newest first."""
        with self._lock:
            return newest(self.ledger, wanted, before=before, limit=limit)

    def evidence(self, number: int) -> tuple[Entry, bytes, Policy | None]:
        """A proven entry, the evidence that it names, and the policy that accepted it, if a signed document has it.

        Raises :class:`UnknownResource` and what asking raises.
        """
        with self._lock:
            entry = self.ledger.entry(number)
            if entry is None or not entry.evidence:
                raise UnknownResource("this entry names no evidence", todo="choose one of an attestation")
            return entry, self._client.evidence(entry.evidence), self._policy(entry.policy)

    def close(self) -> None:
        """End the channel."""
        self._channel.close()

    def _alarm(self, now: int, error: CloisterError) -> None:
        known = {str(one.error) for one in self._alarms}
        if str(error) not in known and len(self._alarms) < MAX_ALARMS:
            self._alarms.append(Alarm(now, error))

    def _steps(self, seen: Seen) -> Iterator[Seen]:
        """What is established, step by step: whatever raises takes nothing back of the steps before it."""
        status = self._client.status()
        shown = self._channel.attestation or self._channel.verify()
        seen = replace(
            seen,
            status=status,
            tee=shown.claims.tee,
            simulated=shown.claims.simulated,
            policy=shown.policy_digest,
        )
        yield seen
        if not status.open:
            return
        origin = self._origin or (status.origin if status.laptop else None)
        if origin is None:
            raise UsageError(
                "owners hold this broker's key, and nobody said who they have to be",
                todo="give --origin, or --manifest with version 1",
            )
        kept = self._heads.of(status.log)
        if kept is None:
            self._require_no_other(status, origin)
        elif self._first is None:
            self._first = kept
        manifests = tuple(self._client.manifests(origin=origin))
        require_manifest_shown(self._channel, require_ours(status, manifests))
        require_known(manifests, kept)
        self._manifests = manifests
        seen = replace(seen, manifests=manifests)
        yield seen
        newest = self._newest(status, kept, manifests[-1])
        if self._blank.signing:
            step = self._read(newest, kept)
            if isinstance(step, Reading):
                yield replace(seen, reading=step)
                return
            newest = step
        seen = replace(
            seen, head=newest.head, log_key=newest.log_key, witnessed=newest.witnessed, since=self._first
        )
        self._keep(seen, newest.signed, origin)
        yield seen
        if self._blank.signing:
            rules, reading = self._rules_of(seen)
            yield replace(seen, rules=rules, reading=reading, keys=self._client.keys().keys)

    def _require_no_other(self, status: Status, origin: str) -> None:
        others = self._heads.at(self._blank.address, origin)
        if others:
            last = max(others, key=lambda one: one.seen)
            raise ForkFound(
                f"this address showed the log {last.head.log[:16]}… with {last.head.size} entries before, and now shows "
                f"another one, {status.log[:16]}…",
                todo=f"a new state of its owners' making? then remove {self._heads.path(last.head.log)}",
            )

    def _newest(self, status: Status, kept: KeptHead | None, manifest: AcceptedManifest) -> _Head:
        """The newest head, proven to extend what was kept, and what witnesses co-signed."""
        for _ in range(TRIES):
            head, answer = self._client.head()
            if head.log != status.log:
                raise damaged("the broker signs another log than it names")
            older = [kept.head] if kept is not None else []
            if answer.cosigned is not None:
                older.append(verify_head(answer.cosigned, log_key=bytes.fromhex(answer.log_key)))
            if all(self._client.extends(one) == head for one in older):
                return _Head(head, answer.signed, answer.log_key, witnessed(answer.cosigned, manifest))
        raise NetworkError("the log grows faster than it can be looked at", todo="look again in a moment")

    def _read(self, newest: _Head, kept: KeptHead | None) -> _Head | Reading:
        """Read on, one step at most: the head that is proven by its entries, or how far reading has come."""
        if self._target is None:
            self._target, self._unproven = newest, []
        target = self._target
        size = target.head.size
        if size - self.ledger.size > MAX_LOG:
            self._target = None
            raise UsageError(
                f"the log has {size} entries, more than this page reads",
                todo="`cloister audit export` it, and `cloister audit verify` that",
            )
        start = self.ledger.size + len(self._unproven)
        stop = min(size, start + MAX_STEP)
        if start < stop:
            self._unproven += self._client.entries(start, stop)
        if stop < size:
            return Reading("entries", stop, size)
        passing = [] if kept is None else [kept.head]
        self.ledger.extend(self._unproven, target.head, passing=passing)
        self._target, self._unproven = None, []
        return target

    def _rules_of(self, seen: Seen) -> tuple[dict[str, InForce], Reading | None]:
        """Every rule in force, out of memory where the log names the same one still; new ones a few at a time."""
        found = {name: change for (kind, name), change in self.ledger.changes.items() if kind == "rule"}
        missing = [
            path
            for path, change in sorted(found.items())
            if path not in self._rules or self._rules[path].digest != change.digest
        ]
        for path in missing[:MAX_RULES]:
            self._rules[path] = self._rule(path, found[path], seen)
        left = missing[MAX_RULES:]
        current = {path: rule for path, rule in self._rules.items() if path not in left}
        return current, Reading("rules", len(current), len(found)) if left else None

    def _rule(self, path: str, change: Change, seen: Seen) -> InForce:
        signed = self._client.rule(path)
        digest = hashlib.sha256(encode_signed(signed)).hexdigest()
        if digest != change.digest:
            if self._client.head()[0] != seen.head:
                raise NetworkError(f"the rule of {path} is being replaced", todo="look again in a moment")
            raise damaged(f"the broker shows another rule of {path} than its log names")
        rule, policies = read_rule(signed.document)
        if rule.resource != path or rule.application != seen.manifests[-1].manifest.application:
            raise ManifestError(f"the rule of {path} is of {rule.resource}, in {rule.application}")
        version, signers = rule_signers(signed, path, seen.manifests)
        return InForce(rule, digest, signed.digest, signers, version, policies)

    def _policy(self, digest: str) -> Policy | None:
        for manifest in reversed(self._manifests):
            named = [policy for name in manifest.manifest.workloads for policy in manifest.policies(name)]
            for policy in (*named, *manifest.broker_policies):
                if policy.digest == digest:
                    return policy
        inline = (policy for rule in self._rules.values() for policy in rule.policies.values())
        return next((policy for policy in inline if policy.digest == digest), None)

    def _keep(self, seen: Seen, signed: SignedHead, origin: str) -> None:
        kept = KeptHead(
            broker=self._blank.address,
            origin=origin,
            log_key=seen.log_key,
            signed=signed,
            manifest_version=seen.manifests[-1].manifest.version,
            manifest=seen.manifests[-1].digest,
            seen=seen.now,
        )
        self._heads.keep(kept)


def require_manifest_shown(channel: SealedClient, newest: AcceptedManifest) -> None:
    """Raise :class:`ManifestError` unless the evidence behind ``channel`` names the manifest in force."""
    shown = channel.attestation
    if shown is None or shown.keys.manifest_sha256 != newest.digest:
        shown = channel.verify()  # the evidence may be of a moment before the last change
    if shown.keys.manifest_sha256 != newest.digest:
        raise ManifestError(
            "the broker's evidence names another manifest than it shows", todo="do not send it anything"
        )


def _broke_off(error: httpx2.TransportError) -> NetworkError:
    return NetworkError(f"the broker broke off ({type(error).__name__})", todo="look again in a moment")
