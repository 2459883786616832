"""The versions of a key as records beside the keys, for stores whose own attributes cannot tell them (an HSM, KMIP). Pure.

A record is written once and never changed: one says that a version was made and which object is its key, a second that it
was destroyed. What no record names is never used, so a key that a crash left without one does no harm.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, Literal

from cloister.broker.keystores.versioned import ForeignVersion, numbered
from cloister.broker.keystores.versions import MAX_VERSIONS
from cloister.encoding import Record, decode_json, encode_json
from cloister.errors import FormatError, KeystoreError, KeystoreUnavailable

FORMAT: Final = "cloister/keystore-record/v1"
MAX_RECORD: Final = 1024
MAX_RECORDS: Final = 2 * MAX_VERSIONS
"""Of one key."""


class VersionRecord(Record, frozen=True, kw_only=True):
    """``object`` is the store's own name of the key: CKA_ID in hexadecimal, or a KMIP unique identifier."""

    format: Literal["cloister/keystore-record/v1"] = FORMAT
    key: str
    version: int
    owner: str
    created: int
    state: Literal["made", "destroyed"]
    object: str


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
        if record.state == "destroyed":
            ended.add(record.version)
        elif found.get(record.version, record) != record:  # an equal one was written twice, its answer lost
            # Two brokers at one moment: whoever sees it takes its own back, so it passes by itself.
            raise KeystoreUnavailable(
                f"{store} has two objects that claim to be version {record.version} of the key {key}",
                todo="ask again; if it stays, remove the record there that nothing was wrapped under",
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
