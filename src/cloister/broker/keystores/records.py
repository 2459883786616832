"""The versions of a key as records beside the keys, for stores whose own attributes cannot tell them (an HSM, KMIP).

A record is written once and never changed: one says that a version was made and which object is its key, a second that it
was destroyed. What no such record names is never used, so a key that a crash left without one does no harm.

Two brokers may make a version at one moment, and these stores write nothing under a condition. So who makes one claims its
number first, by a record that nobody reads as a version, and looks whether others claim it too. Of two claims the later one
sees the earlier, unless that has become a version, which it sees as well: both cannot find themselves alone. Only who does
writes that the version was made, and that is for ever: another broker may have wrapped under it the next moment.
"""

from __future__ import annotations

import threading
from abc import abstractmethod
from collections.abc import Callable, Collection, Iterable
from contextlib import suppress
from dataclasses import dataclass
from typing import ClassVar, Final, Literal

from cloister.broker.keystores import KeyDescription
from cloister.broker.keystores.versioned import ForeignVersion, VersionedKeystore, numbered
from cloister.broker.keystores.versions import MAX_VERSIONS
from cloister.encoding import Record, decode_json, encode_json
from cloister.errors import FormatError, KeystoreError, KeystoreUnavailable

FORMAT: Final = "cloister/keystore-record/v1"
MAX_RECORD: Final = 1024
MAX_CLAIMS: Final = 100
"""Of brokers at this moment, and of those that crashed in the last minutes."""
MAX_RECORDS: Final = 2 * MAX_VERSIONS + MAX_CLAIMS
"""Of one key."""
CLAIM_SECONDS: Final = 60
"""After that a claim is not made a version any more, by the clock of the broker whose claim it is."""
CLAIM_ENDS: Final = 600
"""After that other brokers take a claim away. The time between is for their clocks' difference and for the last request."""


class VersionRecord(Record, frozen=True, kw_only=True):
    """``object`` is the store's own name of the key: CKA_ID in hexadecimal, or a KMIP unique identifier."""

    format: Literal["cloister/keystore-record/v1"] = FORMAT
    key: str
    version: int
    owner: str
    created: int
    state: Literal["claimed", "made", "destroyed"]
    object: str


def claimed(key: str, number: int, owner: str, now: int, name: str) -> VersionRecord:
    """The record that the object ``name`` is to be the key of a new version."""
    return VersionRecord(key=key, version=number, owner=owner, created=now, state="claimed", object=name)


def made(key: str, number: int, owner: str, now: int, name: str) -> VersionRecord:
    """The record of a new version whose key is the object ``name``."""
    return VersionRecord(key=key, version=number, owner=owner, created=now, state="made", object=name)


def destroyed(key: str, version: ForeignVersion) -> VersionRecord:
    """The record that ends ``version``."""
    return VersionRecord(
        key=key,
        version=version.number,
        owner=version.owner,
        created=version.created,
        state="destroyed",
        object=version.handle,
    )


def encode_record(record: VersionRecord) -> bytes:
    """Canonical JSON."""
    return encode_json(record)


def decode_record(data: bytes, key: str, store: str) -> VersionRecord:
    """A record of ``key``. Raises :class:`~cloister.errors.KeystoreError` on any other."""
    try:
        record = decode_json(data, VersionRecord, what="record", limit=MAX_RECORD)
    except FormatError:
        record = None
    if record is None or record.key != key or not 1 <= record.version <= MAX_VERSIONS:
        raise KeystoreError(
            f"{store} has a record of the key {key} that is malformed",
            todo="restore the store from its backup",
        )
    return record


def told(key: str, records: Iterable[VersionRecord], store: str) -> tuple[ForeignVersion, ...]:
    """The versions that ``records`` tell, oldest first; none for a key that was never made."""
    found: dict[int, VersionRecord] = {}
    ended = set[int]()
    for record in records:
        if record.state == "claimed":
            continue
        if record.state == "destroyed":
            ended.add(record.version)
        elif found.get(record.version, record) != record:  # an equal one was written twice, its answer lost
            raise KeystoreError(
                f"{store} has two objects that are said to be version {record.version} of the key {key}",
                todo="remove the record there that nothing was wrapped under",
            )
        else:
            found[record.version] = record
    if not ended <= set(found):
        raise KeystoreError(f"{store} has an incomplete record of a key's versions", todo="restore it there")
    return numbered(
        [
            ForeignVersion(
                number=one.version,
                created=one.created,
                owner=one.owner,
                destroyed=one.version in ended,
                handle=one.object,
            )
            for one in found.values()
        ],
        store,
    )


def has_ended(record: VersionRecord, now: int) -> bool:
    """Whether this is a claim that nobody makes a version any more."""
    # One of the future never is: it may be ``now`` that is old, of a broker that stood still.
    return record.state == "claimed" and now - record.created >= CLAIM_ENDS


@dataclass
class _Claim:
    """A claim of this process; ``began`` is by its own clock, which goes on while the machine sleeps."""

    record: VersionRecord
    began: float
    state: Literal["open", "confirming", "leaving"] = "open"


class _TooLate(Exception):
    """A claim must not become a version any more."""


class RecordedKeystore(VersionedKeystore):
    """A :class:`~cloister.broker.keystores.Keystore` that keeps its versions as records, over a store's primitives.

    Each is done whole or raises; after :class:`~cloister.errors.KeystoreUnavailable` it may have been done, or be done yet.
    """

    store: ClassVar[str]
    """As errors call it."""

    def __init__(self, clock: Callable[[], float]) -> None:
        super().__init__()
        self._clock = clock
        self._claiming = threading.Lock()
        self._asked = threading.local()
        # By key. What the store did not answer is gone on with or taken back when it is asked again.
        self._claims: dict[str, _Claim] = {}

    @abstractmethod
    def _records(self, key: str, *, certain: bool = False) -> Collection[VersionRecord]:
        """The records of ``key``. Where ``certain``, each that was there when it was asked or, of a claim, its version."""

    @abstractmethod
    def _create(self, key: str, number: int) -> str:
        """Make a key, and give the store's own name of it."""

    @abstractmethod
    def _write(self, record: VersionRecord, *, may: Callable[[], None] = lambda: None) -> None:
        """Keep ``record``, once or, as an equal one does no harm, twice. ``may`` is asked when it is sent, and may raise."""

    @abstractmethod
    def _remove(self, record: VersionRecord) -> None:
        """Take away every record that is equal to this one."""

    @abstractmethod
    def _erase(self, key: str, number: int, name: str) -> None:
        """Destroy a key, or what is left to do of that; never an object that is not of this version."""

    def generate(self, key: str, *, owner: str, now: int) -> KeyDescription:
        self._asked.at = self._clock()  # before anything is waited for: ``now`` grows old meanwhile
        return super().generate(key, owner=owner, now=now)

    def rotate(self, key: str, *, now: int, number: int | None = None) -> KeyDescription:
        self._asked.at = self._clock()
        return super().rotate(key, now=now, number=number)

    def describe(self, key: str) -> tuple[KeyDescription, ...]:
        for one in self._known(key):
            if one.destroyed:  # so it is true, also after a crash in the middle
                self._shred(key, one)
        return super().describe(key)

    def _read(self, key: str) -> tuple[ForeignVersion, ...]:
        return self._seen(key)[1]

    def _seen(
        self, key: str, *, certain: bool = False
    ) -> tuple[Collection[VersionRecord], tuple[ForeignVersion, ...]]:
        """The records of ``key``, and the versions that they tell."""
        records = self._records(key, certain=certain)
        try:
            return records, told(key, records, self.store)
        except KeystoreError:
            if certain:
                raise
            return self._seen(key, certain=True)  # the search may have missed some

    def _shred(self, key: str, version: ForeignVersion) -> None:
        # The record first: from here on the version is refused, whatever happens to the rest.
        if not self._read(key)[version.number - 1].destroyed:
            self._write(destroyed(key, version))
        self._erase(key, version.number, version.handle)

    def _make(self, key: str, number: int, owner: str, now: int) -> ForeignVersion:
        began: float = self._asked.at
        with self._claiming:
            records, versions = self._seen(key)
            if len(versions) >= number:  # made by another thread or broker, or before an answer was lost
                return self._found(key, versions, number)
            ours = self._claims.get(key)
            if ours is None or not self._serves(ours, records, number, owner, now):
                if ours is not None:
                    self._leave(key, versions)
                    records = self._records(key)
                if any(one.version == number for one in self._cleared(key, records, now)):
                    raise KeystoreUnavailable(
                        f"version {number} of the key {key} is being made already, or a broker crashed while it made it",
                        todo=f"ask again, at the latest in {CLAIM_ENDS // 60} minutes",
                    )
                ours = _Claim(claimed(key, number, owner, now, self._create(key, number)), began)
                self._claims[key] = ours
            if ours.state == "open":
                if ours.record not in records:
                    self._write(ours.record)
                versions = self._read_alone(key, ours.record)
                if len(versions) >= number:
                    return self._found(key, versions, number)
            return self._confirmed(key, ours)

    def _serves(
        self, ours: _Claim, records: Collection[VersionRecord], number: int, owner: str, now: int
    ) -> bool:
        """Whether an earlier attempt can be gone on with."""
        return (
            (ours.record.version, ours.record.owner) == (number, owner)
            and (ours.state == "open" or (ours.state == "confirming" and ours.record in records))
            and not has_ended(ours.record, now)
            and self._clock() - ours.began <= CLAIM_SECONDS
        )

    def _cleared(self, key: str, records: Collection[VersionRecord], now: int) -> list[VersionRecord]:
        """``records`` without the claims that have ended, which the store loses too, and their keys."""
        over = {one for one in records if has_ended(one, now)}
        for one in over:
            self._remove(one)
        if over:
            # It may be the key of a version: whoever made that crashed before taking the claim away.
            named = {one.object for one in self._records(key, certain=True)}
            for one in over:
                if one.object not in named:
                    self._erase(key, one.version, one.object)
        return [one for one in records if one not in over]

    def _read_alone(self, key: str, ours: VersionRecord) -> tuple[ForeignVersion, ...]:
        """The versions, unless another broker claims ours too."""
        records, versions = self._seen(key, certain=True)
        rivals = {one.object for one in records if one.version == ours.version} != {ours.object}
        if len(versions) < ours.version and (rivals or len(versions) != ours.version - 1):
            self._leave(key, versions)
            raise KeystoreUnavailable(
                f"another broker makes version {ours.version} of the key {key} at the same moment",
                todo="ask again",
            )
        return versions

    def _confirmed(self, key: str, ours: _Claim) -> ForeignVersion:
        one = ours.record

        def may() -> None:
            if self._clock() - ours.began > CLAIM_SECONDS:
                raise _TooLate
            ours.state = "confirming"

        try:
            self._write(made(key, one.version, one.owner, one.created, one.object), may=may)
        except _TooLate:
            # Others may have taken the claim away meanwhile, and a store may have given its key's name to a version.
            self._leave(key, self._seen(key, certain=True)[1])
            raise KeystoreUnavailable(
                f"{self.store} took too long to make version {one.version} of the key {key}", todo="ask again"
            ) from None
        del self._claims[key]
        with suppress(KeystoreError):  # it is made all the same; the claim ends by itself
            self._remove(one)
        return ForeignVersion(one.version, one.created, one.owner, destroyed=False, handle=one.object)

    def _found(self, key: str, versions: tuple[ForeignVersion, ...], number: int) -> ForeignVersion:
        with suppress(KeystoreError):  # our claim ends by itself
            self._leave(key, versions)
        return versions[number - 1]

    def _leave(self, key: str, versions: tuple[ForeignVersion, ...]) -> None:
        """Take back what an attempt of ours has left."""
        ours = self._claims.get(key)
        if ours is None:
            return
        one = ours.record
        if any(version.handle == one.object for version in versions):
            self._remove(one)
        elif ours.state != "confirming":  # else it may become a version yet: it ends like a crashed broker's
            ours.state = "leaving"  # and is never gone on with: its key may be destroyed already
            self._remove(one)
            self._erase(key, one.version, one.object)
        del self._claims[key]
