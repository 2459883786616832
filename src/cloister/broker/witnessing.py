"""What a broker asks of its witnesses: is my state the newest there is, and is it the only one?

A host owns the disk, the database and the clock, so a broker cannot know by itself that it was not started from an
old copy, or twice from one. Witnesses remember (witness.py). At its start a broker needs a threshold of them to say,
to a fresh nonce, that they have seen nothing newer; each counted release needs a head that they co-signed after it;
any other release one that is at most a minute old. ``witnesses = "none"`` does without, says so everywhere, and then
neither restored copies nor forks are found.
"""

from __future__ import annotations

import itertools
import logging
import os
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Final, Literal

from cloister.broker.audit import Fact, Kind, damaged
from cloister.broker.authority import Authority
from cloister.broker.journal import Journal
from cloister.broker.transaction import Transaction
from cloister.broker.tree_head import RollbackFound, log_id, parse_head
from cloister.broker.witness_client import WitnessClient, ask_newest, gather
from cloister.errors import NetworkError, UsageError
from cloister.manifest.acceptance import AcceptedManifest
from cloister.manifest.manifest import Witnesses
from cloister.manifest.owner_key import parse_public_key

FRESH_SECONDS: Final = 60
"""How old the newest co-signed head may be, by this machine's ticks, for a release that is not counted."""
FAILED_SECONDS: Final = 15.0
"""How long witnesses that did not answer are not asked again for somebody who only looks."""
NONCE_SIZE: Final = 32
ROUNDS: Final = 8
"""How often the newest head is shown while other replicas are ahead each time."""

_log = logging.getLogger("cloister.broker")


class Witnessing:
    """The witnesses of the manifest in force. ``addresses``: name in the manifest -> URL. Thread-safe."""

    def __init__(
        self,
        journal: Journal,
        authority: Authority,
        addresses: Mapping[str, str],
        *,
        ticks: Callable[[], float] = time.monotonic,
        entropy: Callable[[int], bytes] = os.urandom,
        timeout: float = 5.0,
    ) -> None:
        self._journal = journal
        self._authority = authority
        self._addresses = dict(addresses)
        self._ticks = ticks
        self._entropy = entropy
        self._timeout = timeout
        self._lock = threading.Lock()
        self._witnessed = 0
        self._by: Witnesses | None = None
        self._noted = 0
        journal.listen(self._changed)
        self._at = float("-inf")
        self._failed_at = float("-inf")

    @property
    def threshold(self) -> int:
        """How many witnesses must agree; 0 without any."""
        named = self._authority.manifest.manifest.witnesses
        return 0 if named == "none" else named.threshold

    def start(self) -> None:
        """Find out whether this state is the newest. Raises :class:`RollbackFound`, ``ForkFound`` or ``NetworkError``."""
        named = self._authority.manifest.manifest.witnesses
        if named == "none":
            _log.info("no witnesses: a restored copy of the state, or a second broker on it, is not found")
            self.require(self._journal.size)
            return
        clients = self._clients(named)
        nonce = self._entropy(NONCE_SIZE)
        log = log_id(self._journal.log_key)
        newest = ask_newest(clients, log=log, nonce=nonce, threshold=named.threshold, timeout=self._timeout)
        self._journal.catch_up()  # what another replica showed them meanwhile is no rollback
        for name, seen in newest.items():
            if seen.size > self._journal.size:
                raise RollbackFound(
                    f"the state has {self._journal.size} entries with root {self._journal.root(self._journal.size).hex()}, "
                    f"and the witness {name} has seen {seen.size}",
                    todo="an old copy was put in place of the newest: put the newest back",
                )
            if seen.size and self._journal.root(seen.size).hex() != seen.root:
                raise damaged(
                    f"the witness {name} has seen another history of this log (at entry {seen.size})"
                )
        self.require(self._journal.size)

    def require_recent(self) -> None:
        """Raise unless witnesses have lately seen this state and no other, with every change of a rule, key or resource."""
        named = self._authority.manifest.manifest.witnesses
        # With none, those of an earlier manifest may not have seen its end.
        seen = 0 if named == "none" else self._seen_by(named)
        if named == "none" or seen < self._noted or self._ticks() - self._at > FRESH_SECONDS:
            self.require(self._journal.size)

    def refresh(self, seconds: float) -> None:
        """For whoever only looks: ask for a newer co-signed head, unless somebody is asking already."""
        now = self._ticks()
        if not self.threshold or now - self._at <= seconds or now - self._failed_at <= FAILED_SECONDS:
            return
        if self._lock.locked():
            return
        try:
            self.require(self._journal.size)
        except NetworkError:
            self._failed_at = self._ticks()

    def require(self, size: int) -> None:
        """Raise unless a threshold of witnesses co-signs a head of at least ``size`` entries. Those who wait share one."""
        with self._lock:
            self._settle()
            named = self._authority.manifest.manifest.witnesses
            if named == "none" or (
                self._seen_by(named) >= size and self._ticks() - self._at <= FRESH_SECONDS
            ):
                return
            began = self._ticks()
            self._witnessed, self._by, self._at = self._gather(named), named, began

    def _seen_by(self, named: Witnesses) -> int:
        """How far these witnesses, and no earlier ones, have seen the log."""
        return self._witnessed if self._by == named else 0

    def _settle(self) -> None:
        """Witnesses that a manifest replaced see that manifest in the log first, and the log remembers that they did.

        Otherwise a copy from before it could be started, and its own witnesses would know of nothing newer.
        """
        for before, after in itertools.pairwise(self._authority.manifests()):
            old = before.manifest.witnesses
            if old == "none" or old == after.manifest.witnesses:  # noqa: PLR1714 -- mypy narrows by the first
                continue
            name = f"witnessed/{after.manifest.version}"
            if self._journal.held("share", name) is not None:
                continue
            self._gather(old)

            def work(transaction: Transaction, name: str = name, signed: AcceptedManifest = after) -> None:
                if not transaction.version("share", name):
                    transaction.put("share", name, b"1")
                    reason = f"the witnesses before version {signed.manifest.version} have seen it"
                    transaction.log(Fact("manifest", "done", manifest=signed.digest, reason=reason))

            self._journal.transact(work)

    def _gather(self, named: Witnesses) -> int:
        """Have these co-sign the newest head; how many entries that has."""
        for left in reversed(range(ROUNDS)):
            shown = self._journal.size
            signed = self._journal.head
            try:
                cosigned = gather(
                    self._clients(named),
                    signed,
                    consistency=self._journal.consistency,
                    known=self._seen_by(named),
                    threshold=named.threshold,
                    timeout=self._timeout,
                )
            except RollbackFound:
                # Other replicas on the same database may be ahead, and the witnesses with them: look, and ask again.
                self._journal.catch_up()
                if not left or self._journal.size <= shown:
                    raise
                continue
            self._journal.keep_cosigned(cosigned)
            return parse_head(signed.head).size
        raise NetworkError("other replicas are ahead each time", todo="ask again")

    def _changed(self, _keys: Iterable[tuple[Kind, str]]) -> None:
        self._noted = self._journal.size

    def _clients(self, named: Witnesses) -> Sequence[WitnessClient]:
        require_addresses(named, self._addresses)
        return [
            WitnessClient(name, self._addresses[name], parse_public_key(key))
            for name, key in named.keys.items()
            if name in self._addresses
        ]


def require_addresses(named: Literal["none"] | Witnesses, addresses: Mapping[str, str]) -> None:
    """Raise :class:`UsageError` unless enough witnesses can be asked at all."""
    if named == "none":
        return
    missing = sorted(set(named.keys) - set(addresses))
    if len(named.keys) - len(missing) < named.threshold:
        raise UsageError(
            f"the manifest demands {named.threshold} witnesses, and {len(named.keys) - len(missing)} addresses were given",
            todo="add --witness NAME=URL for " + ", ".join(missing),
        )
