"""One round's desk: whose update counts, once, in its run, in its round, in time. A state machine without I/O.

Time comes in from outside and only rises (a monotonic clock): the host sets the other kind. A party that was excluded, since
its evidence stopped to hold, cannot come back within the round, and what it had brought counts no more.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from cloister.errors import UpdateRefused, UsageError

State = Literal["waiting", "complete", "too few"]


@dataclass(frozen=True, slots=True)
class Head:
    """What an update says of itself."""

    run: str
    """Digest of the federation and the number that its run has."""
    round: int
    party: str


class Round:
    """Collects updates until all are there or time is over."""

    def __init__(
        self, run: str, number: int, parties: Iterable[str], *, minimum: int, begun: float, deadline: float
    ) -> None:
        """``parties`` are those whose evidence holds; ``deadline`` is in seconds from ``begun``."""
        self.run = run
        self.number = number
        self._parties = set(parties)
        self._minimum = minimum
        self._until = begun + deadline
        self._brought: set[str] = set()
        if minimum < 1 or deadline <= 0 or number < 1:
            raise UsageError("a round has a number, time, and a party at least")

    @property
    def brought(self) -> frozenset[str]:
        """Parties whose update counts."""
        return frozenset(self._brought)

    def take(self, head: Head, *, now: float) -> None:
        """Count an update that was checked. Raises :class:`~cloister.errors.UpdateRefused`; then nothing has changed."""
        who = f"an update of {head.party[:80]!r}"
        if head.party not in self._parties:
            raise UpdateRefused(f"{who}, which takes no part in this round")
        if head.run != self.run:
            raise UpdateRefused(f"{who} is of another run")
        if head.round != self.number:
            raise UpdateRefused(f"{who} is of round {head.round}, and this is round {self.number}")
        if head.party in self._brought:
            raise UpdateRefused(f"{who} came already")
        if now > self._until:
            raise UpdateRefused(
                f"{who} came {now - self._until:.0f} s late", todo="agree on a longer deadline"
            )
        self._brought.add(head.party)

    def exclude(self, party: str) -> None:
        """Its evidence does not hold any more."""
        self._parties.discard(party)
        self._brought.discard(party)

    def state(self, *, now: float) -> State:
        """Whether the round goes on, has its updates, or ends without a result."""
        if len(self._parties) < self._minimum:
            return "too few"
        if self._brought == self._parties:
            return "complete"
        if now <= self._until:
            return "waiting"
        return "complete" if len(self._brought) >= self._minimum else "too few"
