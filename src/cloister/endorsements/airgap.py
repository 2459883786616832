"""Endorsements carried to a site without a network: one strict JSON file (docs/spec/endorsements.md).

Pure: bytes in, entries out. Every entry is read as the endorsement that it says it is before any is taken, so that a
damaged or truncated file changes nothing. Nothing in it is trusted for having been carried: it fills a cache, and
what comes out of a cache is verified.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, Literal

from cloister.encoding import MAX_SAFE_INTEGER, Record, decode_json, encode_json
from cloister.endorsements.asking import MAX_CONTENT, Entry, Vendor, check_key
from cloister.endorsements.plans import part_ends
from cloister.errors import EndorsementError, FormatError

FORMAT: Final = "cloister/endorsements-bundle/v1"
MAX_BUNDLE: Final = 32 << 20
MAX_ENTRIES: Final = 2048


class BundledEntry(Record, frozen=True, kw_only=True):
    """One part by vendor and key; ``content`` is standard base64 on the wire."""

    vendor: Vendor
    key: str
    fetched_at: int
    """Unix seconds."""
    content: bytes


class EndorsementsBundle(Record, frozen=True, kw_only=True):
    """What `cloister endorsements export` writes."""

    format: Literal["cloister/endorsements-bundle/v1"] = FORMAT
    created_at: int
    """Unix seconds."""
    entries: tuple[BundledEntry, ...]


def parse_bundle(data: bytes) -> tuple[Entry, ...]:
    """Decode, with every entry looked into. Raises :class:`~cloister.errors.EndorsementError`."""
    try:
        bundle = decode_json(data, EndorsementsBundle, what="the endorsements bundle", limit=MAX_BUNDLE)
    except FormatError as error:
        raise EndorsementError(error.what, todo="export it again") from None
    if not 1 <= len(bundle.entries) <= MAX_ENTRIES:
        raise EndorsementError(f"the bundle holds {len(bundle.entries)} entries, not 1 to {MAX_ENTRIES}")
    seen: set[tuple[str, str]] = set()
    for entry in bundle.entries:
        name = (entry.vendor, check_key(entry.key))
        if name in seen:
            raise EndorsementError(f"the bundle holds {entry.vendor}/{entry.key} twice")
        seen.add(name)
        if not 0 <= entry.fetched_at <= MAX_SAFE_INTEGER or len(entry.content) > MAX_CONTENT:
            raise EndorsementError(f"{entry.vendor}/{entry.key} in the bundle is out of its bounds")
        part_ends(entry.vendor, entry.key, entry.content)
    return tuple(Entry(one.vendor, one.key, one.fetched_at, one.content) for one in bundle.entries)


def encode_bundle(entries: Iterable[Entry], *, created_at: int) -> bytes:
    """The canonical wire form of ``entries``, each name once.

    Raises :class:`~cloister.errors.EndorsementError` if there are none, or they are over the bounds.
    """
    named = {(entry.vendor, entry.key): entry for entry in entries}
    if not 1 <= len(named) <= MAX_ENTRIES:
        raise EndorsementError(
            f"there are {len(named)} endorsements to export, not 1 to {MAX_ENTRIES}",
            todo="name the evidence that they are for",
        )
    data = encode_json(
        EndorsementsBundle(
            created_at=created_at,
            entries=tuple(
                BundledEntry(
                    vendor=entry.vendor, key=entry.key, fetched_at=entry.fetched_at, content=entry.content
                )
                for _, entry in sorted(named.items())
            ),
        )
    )
    if len(data) > MAX_BUNDLE:
        raise EndorsementError(f"the bundle would be {len(data)} bytes long, over its bound of {MAX_BUNDLE}")
    return data
