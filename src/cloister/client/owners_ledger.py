"""The broker's log as this machine has proven it: every entry hashed into the tree of a head that the broker signed. Pure.

Entries come in batches that count only when their tree has exactly the head's root, and passes through the head that
was seen the last time; until then nothing of a batch is shown. What the log says of the state (versions of resources,
rules and manifests, who received what) is gathered on the way, so nobody's word is needed for it.
"""

from __future__ import annotations

import copy
import hashlib
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from cloister import merkle
from cloister.broker.audit import Change, Entry, Kind, damaged, parse_entry
from cloister.broker.tree_head import TreeHead

MAX_HELD: Final = 50_000
"""Entries that are shown; older ones are proven as well, and counted, but not kept."""
MAX_NAMES: Final = 4096
"""Pairs of resource and workload about which something is remembered."""
NOTHING: Final = hashlib.sha256(b"").hexdigest()
"""The digest of a resource that was destroyed."""


@dataclass(frozen=True, slots=True)
class Received:
    """How often ``workload`` received a resource, and the last time. ``last`` is the newest such entry."""

    workload: str
    times: int
    last: Entry


@dataclass(slots=True)
class Ledger:
    """What is proven so far."""

    held: deque[Entry] = field(default_factory=lambda: deque(maxlen=MAX_HELD))
    """The newest entries, the oldest first."""
    changes: dict[tuple[Kind, str], Change] = field(default_factory=dict)
    """The newest version of each record of the state."""
    counted: Counter[str] = field(default_factory=Counter)
    """Releases under each rule, by its digest; what the witnesses did not confirm is taken back."""
    refused: Counter[str] = field(default_factory=Counter)
    """Refusals, by resource; empty for attestations."""
    events: Counter[str] = field(default_factory=Counter)
    simulated: int = 0
    """Entries about a simulated TEE."""
    tree: merkle.Frontier = field(default_factory=merkle.Frontier)
    _received: dict[tuple[str, str], Received] = field(default_factory=dict)

    @property
    def size(self) -> int:
        """How many entries are proven."""
        return self.tree.size

    def extend(self, bodies: Sequence[bytes], head: TreeHead, *, passing: Sequence[TreeHead] = ()) -> None:
        """Take the entries from :attr:`size` on, all that ``head`` covers, or none.

        ``passing`` are older heads that the log must have had. Raises :class:`~cloister.broker.audit.AuditDamaged`.
        """
        if self.size + len(bodies) != head.size:
            raise damaged(f"the log has {self.size + len(bodies)} entries, and its head covers {head.size}")
        tree = copy.deepcopy(self.tree)
        marks = {one.size: one for one in passing if one.size >= self.size}
        entries = []
        self._require(tree, marks)
        for body in bodies:
            entries.append(parse_entry(body, tree.size))
            tree.append(merkle.leaf_hash(body))
            self._require(tree, marks)
        if tree.root().hex() != head.root:
            raise damaged(f"the broker's {head.size} entries are not those of the tree head that it signed")
        if entries and entries[-1].state != head.state:
            raise damaged("the tree head vouches for another state than the last entry")
        for entry in entries:
            self._take(entry)
        self.tree = tree

    def received(self, path: str) -> list[Received]:
        """Who received ``path``, the last one first."""
        found = [one for (uri, _), one in self._received.items() if uri == f"kbs:///{path}"]
        return sorted(found, key=lambda one: -one.last.number)

    def receivers(self) -> list[Received]:
        """Who received anything."""
        return list(self._received.values())

    def entry(self, number: int) -> Entry | None:
        """A proven entry, if it is still held."""
        at = number - (self.size - len(self.held))
        return self.held[at] if 0 <= at < len(self.held) else None

    def paths(self) -> list[str]:
        """Every name that has a resource or a rule."""
        return sorted({name for kind, name in self.changes if kind in ("resource", "rule")})

    @staticmethod
    def _require(tree: merkle.Frontier, marks: dict[int, TreeHead]) -> None:
        mark = marks.get(tree.size)
        if mark is not None and tree.root().hex() != mark.root:
            raise damaged(f"the log was rewritten: its first {mark.size} entries are not what they were")

    def _take(self, entry: Entry) -> None:
        self.held.append(entry)
        self.events[f"{entry.event} {entry.outcome}"] += 1
        self.simulated += entry.simulated
        for change in entry.changes:
            self.changes[change.kind, change.name] = change
        if entry.outcome == "refused":
            if entry.resource in self.refused or len(self.refused) < MAX_NAMES:
                self.refused[entry.resource] += 1
        elif entry.event == "release":
            self.counted[entry.rule] += 1
            key = (entry.resource, entry.workload)
            before = self._received.get(key)
            if before is not None or len(self._received) < MAX_NAMES:
                times = 1 if before is None else before.times + 1
                self._received[key] = Received(entry.workload, times, entry)
        elif entry.event == "counter":
            self.counted[entry.rule] -= 1


@dataclass(frozen=True, slots=True)
class Wanted:
    """What of the log is asked for; empty is everything."""

    resource: str = ""
    workload: str = ""
    event: str = ""

    def meets(self, entry: Entry) -> bool:
        """Is this entry wanted?"""
        return (
            self.resource in ("", entry.resource)
            and self.workload in ("", entry.workload)
            and self.event in ("", entry.event)
        )


def newest(ledger: Ledger, wanted: Wanted, *, before: int, limit: int) -> tuple[list[Entry], int | None]:
    """At most ``limit`` wanted entries under ``before``, the newest first; and what to ask for next, if there is more."""
    found: list[Entry] = []
    for entry in reversed(ledger.held):
        if entry.number >= before or not wanted.meets(entry):
            continue
        if len(found) == limit:
            return found, found[-1].number
        found.append(entry)
    return found, None
