"""Entries of a proven log in words, for the timeline of the page. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from cloister.broker.audit import Entry
from cloister.client.owners_words import Fact, Tone, inert, tee_name
from cloister.encoding import Record
from cloister.manifest.words import moment

_WHAT: Final = {
    "genesis": "The state was made, under its first manifest",
    "manifest": "A manifest came into force",
    "rule": "A rule came into force",
    "resource": "A resource was changed",
    "key": "A key-encryption key was changed",
    "counter": "A release was taken back",
    "tree": "The newest index of a sealed tree was recorded",
    "certificate": "A certificate of the mesh was issued",
    "share": "Shares of the state key were changed",
    "unlock": "The state was unlocked",
    "start": "The broker started",
}
_DIGESTS: Final = ("evidence", "measurements", "policy", "rule", "manifest", "session", "tee_key")
MAX_CHANGES: Final = 20
"""Changes of one entry that are shown."""


class Row(Record, frozen=True, kw_only=True):
    """One entry."""

    number: int
    time: int
    moment: str
    event: str
    tone: Tone
    what: str
    why: str
    """What the broker told of it."""
    resource: str
    simulated: bool
    evidence: bool
    facts: tuple[Fact, ...]


class Timeline(Record, frozen=True, kw_only=True):
    """A page of it, the newest first; ``before`` asks for the next, None: there is no more."""

    rows: tuple[Row, ...]
    before: int | None


def timeline(entries: Sequence[Entry], before: int | None) -> Timeline:
    """These entries in words."""
    return Timeline(rows=tuple(_row(entry) for entry in entries), before=before)


def _row(entry: Entry) -> Row:
    return Row(
        number=entry.number,
        time=entry.time,
        moment=moment(entry.time),
        event=entry.event,
        tone=_tone(entry),
        what=inert(_what(entry)),
        why=inert(entry.reason),
        resource=inert(entry.resource),
        simulated=entry.simulated,
        evidence=bool(entry.evidence),
        facts=tuple(_facts(entry)),
    )


def _tone(entry: Entry) -> Tone:
    if entry.outcome == "refused":
        return "bad"
    return "good" if entry.event == "release" else ""


def _what(entry: Entry) -> str:
    who = entry.workload or "a program that meets the rule's own policy"
    purpose = f" for {entry.purpose}" if entry.purpose else ""
    if entry.event == "attestation":
        said = "An attestation was accepted" if entry.outcome == "accepted" else "An attestation was refused"
        return said + purpose
    if entry.event == "release":
        if entry.outcome == "refused":
            return f"{entry.resource or 'A resource'} was refused"
        return f"{entry.resource} was released to {who}{purpose}"
    text = _WHAT.get(entry.event, entry.event)
    about = f": {entry.resource}" if entry.resource else f": {entry.workload}" if entry.workload else ""
    return text + about


def _facts(entry: Entry) -> list[Fact]:
    found = []
    if entry.signers:
        found.append(Fact(name="signed by", value=inert(", ".join(entry.signers))))
    if entry.tee:
        tone: Tone = "bad" if entry.simulated else ""
        found.append(
            Fact(
                name="TEE", value=tee_name(entry.tee) + (", simulated" if entry.simulated else ""), tone=tone
            )
        )
    for name in _DIGESTS:
        if value := getattr(entry, name):
            found.append(Fact(name=name.replace("_", " "), value=inert(value), code=True))
    for change in entry.changes[:MAX_CHANGES]:
        text = f"{change.kind} {change.name}, version {change.version}"
        found.append(Fact(name="changed", value=inert(text)))
    if len(entry.changes) > MAX_CHANGES:
        found.append(Fact(name="changed", value=f"{len(entry.changes) - MAX_CHANGES} more"))
    return found
