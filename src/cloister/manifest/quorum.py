"""k of n owners, by name. An owner counts once, however many signatures stand there."""

from __future__ import annotations

from collections.abc import Collection

from cloister.encoding import Record
from cloister.errors import QuorumMissing


class Quorum(Record, frozen=True, kw_only=True):
    """``threshold`` of ``owners`` must sign."""

    owners: tuple[str, ...]
    threshold: int

    def __str__(self) -> str:
        names = ", ".join(self.owners)
        if len(self.owners) == 1:
            return names
        all_of = self.threshold == len(self.owners)
        return f"all of {names}" if all_of else f"{self.threshold} of {names}"


def require_quorum(quorum: Quorum, signers: Collection[str], what: str) -> None:
    """Raise :class:`~cloister.errors.QuorumMissing`, naming who is missing, unless enough of the owners signed ``what``."""
    present = set(quorum.owners) & set(signers)
    if len(present) >= quorum.threshold:
        return
    missing = [name for name in quorum.owners if name not in present]
    more = quorum.threshold - len(present)
    raise QuorumMissing(
        f"{what} must be signed by {quorum}, and {_signed(present)}",
        todo=f"have it signed by {_more(missing, more)}",
    )


def _signed(present: Collection[str]) -> str:
    return f"only {', '.join(sorted(present))} signed" if present else "none of them signed"


def _more(missing: list[str], more: int) -> str:
    names = ", ".join(missing)
    if more == len(missing):
        return names
    return f"{more} more of {names}"
