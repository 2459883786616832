"""Shares that owners offered to a locked broker: who counts, whether they are enough, and what they know of the manifest."""

from __future__ import annotations

from collections.abc import Iterable

from cloister.broker.state_key import Share, ShareLock, StateDocument, check_share, commitment
from cloister.broker.tree_head import RollbackFound
from cloister.errors import KeystoreError


class Offers:
    """Genuine shares, so no more than the locks of one state name. Its representation shows none of them."""

    def __init__(self) -> None:
        self._offered: dict[str, tuple[Share, int]] = {}

    def __len__(self) -> int:
        return len(self._offered)

    @property
    def shares(self) -> list[Share]:
        """What was offered, one of each."""
        return [share for share, _ in self._offered.values()]

    @property
    def owners(self) -> list[str]:
        """Whose they are, sorted."""
        return sorted({share.owner for share in self.shares})

    def add(self, document: StateDocument, share: Share, floor: int) -> None:
        """Take a share, of an owner who knows version ``floor`` of the manifest. Raises ``ShareRefused``."""
        check_share(document, share)
        self._offered[commitment(share)] = (share, floor)

    def enough(self, document: StateDocument) -> bool:
        """Do they open one of the locks?"""
        return any(genuine(document, lock, self.shares) >= lock.threshold for lock in document.share_locks)

    def nearest(self, document: StateDocument) -> tuple[int, int]:
        """Of the lock that lacks the fewest: how many shares are here, and how many it needs."""
        counts = [(genuine(document, lock, self.shares), lock.threshold) for lock in document.share_locks]
        return min(counts or [(0, 1)], key=lambda one: one[1] - one[0])

    def require_known(self, document: StateDocument, version: int) -> None:
        """Raise :class:`RollbackFound` unless enough of these owners know no newer manifest than ``version``."""
        current = [share for share, floor in self._offered.values() if floor <= version]
        if any(genuine(document, lock, current) >= lock.threshold for lock in document.share_locks):
            return
        newest = max(floor for _, floor in self._offered.values())
        raise RollbackFound(
            f"the state has version {version} of the manifest, and an owner knows version {newest}",
            todo="an old copy was put in place of the newest: put the newest back",
        )


def genuine(document: StateDocument, lock: ShareLock, shares: Iterable[Share]) -> int:
    """How many owners of ``lock`` are among those whose genuine shares of it these are."""
    found = set()
    for share in shares:
        if share.owner in lock.commitments:
            try:
                check_share(document.opened_by(lock), share)
            except KeystoreError:
                continue
            found.add(share.owner)
    return len(found)
