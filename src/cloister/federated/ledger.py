"""What a party has spent of its people's privacy, sealed on its host's disk: it outlives the process that spends.

A charge is written down, whole and synced, before anything is learned for it, and is never taken back. The secret of the
noise lies beside the charges: a round that is computed again has the same noise, and costs nothing more. One ledger is of
one party in one federation, in all its versions and runs: they learn from the same people. Refused: a file of another
federation, party or key, one with a bit changed, a second process on the same one.

That its host laid an older file in its place, or none, no file can tell. The aggregator can, by what the party said before
(:meth:`~cloister.federated.privacy.Budget.check_claim`); docs/spec/federation.md says what is left.
"""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Final, Literal

import msgspec
from msgspec import structs

from cloister.encoding import Record, labelled_hash
from cloister.errors import FederationError
from cloister.federated.privacy import Charge, keyed_source, require_within, spent
from cloister.federated.sealed_record import SealedRecord
from cloister.federated.tasks import ExamplePrivacy, Spending
from cloister.sealing import KeySource

MAX_ENTRIES: Final = 100_000
MAX_LEDGER: Final = 32 << 20
SECRET_SIZE: Final = 32
_LABEL: Final = "cloister/federation-charge/v1"


class _Entry(Record, frozen=True, kw_only=True):
    round: bytes
    """Digest of what the round's outcome depends on, beside the noise."""
    charge: Charge


class _Book(Record, frozen=True, kw_only=True):
    format: Literal["cloister/federation-ledger/v1"] = "cloister/federation-ledger/v1"
    federation: str
    """Digest of its version 1."""
    party: str
    secret: bytes
    entries: tuple[_Entry, ...]


def ledger_name(first: str, party: str) -> str:
    """What the file is called. ``first`` is the digest of the federation's version 1."""
    return f"privacy-{first[:16]}-{party}.sealed"


class Ledger:
    """An open ledger, which nobody else has open. Threads may share it."""

    def __init__(
        self,
        folder: Path,
        *,
        first: str,
        version: str,
        party: str,
        privacy: ExamplePrivacy,
        keys: KeySource,
        key_uri: str,
    ) -> None:
        """Read, or begun where there is none. ``first`` and ``version`` are digests: of version 1, and of the one in force.

        Raises UsageError where ``folder`` cannot be used, FederationError, and the errors of sealing.
        """
        self._version = version
        self._privacy = privacy
        self._lock = threading.Lock()
        path = folder / ledger_name(first, party)
        self._kept = SealedRecord(path, _Book, keys=keys, key_uri=key_uri, limit=MAX_LEDGER, user="workload")
        try:
            self._book = self._open(first, party)
        except BaseException:
            self.close()
            raise

    def __repr__(self) -> str:
        return f"Ledger({self._kept.name!r})"

    def close(self) -> None:
        """Let another process have it. Again it does nothing."""
        self._kept.close()

    def spent(self) -> float:
        """Epsilon of all that is written down."""
        return spent([one.charge for one in self._book.entries], delta=self._privacy.delta)

    def spend(self, outcome: bytes, charge: Charge) -> Spending:
        """As :data:`~cloister.federated.tasks.Spend` says."""
        # The version has the clip, the code and the settings in it.
        place = labelled_hash(_LABEL, self._version.encode(), outcome, msgspec.json.encode(charge))
        with self._lock:
            entries = self._book.entries
            before = tuple(one.charge for one in entries if one.round != place)
            epsilon = spent([*before, charge], delta=self._privacy.delta)
            require_within(epsilon, self._privacy.epsilon, what="this round")
            if len(before) == len(entries):
                if len(entries) >= MAX_ENTRIES:
                    raise FederationError(f"{self._kept.name} has {len(entries)} charges, and takes no more")
                entry = _Entry(round=place, charge=charge)
                self._book = self._kept.write(structs.replace(self._book, entries=(*entries, entry)))
            return Spending(before, keyed_source(self._book.secret, place))

    def _open(self, first: str, party: str) -> _Book:
        book = self._kept.read()
        if book is None:
            secret = os.urandom(SECRET_SIZE)
            return self._kept.write(_Book(federation=first, party=party, secret=secret, entries=()))
        if (book.federation, book.party) != (first, party) or len(book.secret) != SECRET_SIZE:
            raise FederationError(
                f"{self._kept.name} is the ledger of another party or federation",
                todo="give back the one that was there; without it nobody knows what was spent",
            )
        return book
