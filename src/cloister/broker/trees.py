"""The two trees of a journal in memory: one over its entries, one over the records of the state, by their slots.

They move along while a transaction is written or taken over, and go back if that fails.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from cloister import merkle
from cloister.broker.audit import Change, Kind, damaged, state_leaf
from cloister.broker.transaction import Held

Key = tuple[Kind, str]


@dataclass(slots=True)
class Mark:
    """Where the trees were; what was exchanged since."""

    log: int
    state: int
    undo: list[tuple[int, bytes]] = field(default_factory=list)


class Trees:
    """Not thread-safe: whoever moves them holds the journal's lock."""

    def __init__(self) -> None:
        self.log = merkle.Tree()
        self.state = merkle.Tree()
        self._mark = Mark(0, 0)

    def mark(self) -> Mark:
        """Remember this place, to come back to."""
        self._mark = Mark(self.log.size, self.state.size)
        return self._mark

    def back(self, mark: Mark) -> None:
        """As they were at ``mark``."""
        self.log.truncate(mark.log)
        for slot, leaf in reversed(mark.undo):
            self.state.set(slot, leaf)
        self.state.truncate(mark.state)

    def append(self, body: bytes) -> None:
        """One entry more."""
        self.log.append(merkle.leaf_hash(body))

    def place(self, key: Key, held: Held) -> Change:
        """A record in its slot, a new one behind the last. What an entry says of it. Raises ``AuditDamaged``."""
        kind, name = key
        leaf = merkle.leaf_hash(state_leaf(kind, name, held.version, held.digest))
        if held.slot == self.state.size:
            self.state.append(leaf)
        elif held.slot < self.state.size:
            self._mark.undo.append((held.slot, self.state.leaf(held.slot)))
            self.state.set(held.slot, leaf)
        else:
            raise damaged(f"the {kind} {name} has a slot that cannot be")
        return Change(kind=kind, name=name, version=held.version, slot=held.slot, digest=held.digest.hex())

    def take(self, change: Change, known: Held | None) -> Held:
        """What another process changed, ``known`` being what was there. Raises ``AuditDamaged``."""
        if (known is None) != (change.slot == self.state.size) or (known and known.slot != change.slot):
            raise damaged(f"an entry gives the {change.kind} {change.name} a slot that is not its own")
        taken = Held(change.version, change.slot, bytes.fromhex(change.digest))
        self.place((change.kind, change.name), taken)
        return taken
