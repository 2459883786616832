"""Audit entries: the leaves of the broker's log (docs/spec/audit-entry.md). Pure.

One entry for each attestation, release, refusal and change. An entry holds no key, passphrase, nonce, cookie or
token; it names what changed in the state tree and the root of that tree afterwards, so that a head of the log covers
all of the state.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

from cloister.encoding import Record, decode_json, encode_json, from_hex, labelled_hash
from cloister.errors import EXIT_VERIFICATION, BrokerError, FormatError
from cloister.verifier.claims import Claims

FORMAT: Final = "cloister/audit-entry/v1"
MEASUREMENTS_LABEL: Final = "cloister/measurements/v1"
STATE_LEAF_LABEL: Final = "cloister/state-leaf/v1"
MAX_ENTRY: Final = 64 * 1024
MAX_REASON: Final = 400
MAX_CHANGES: Final = 256

Event = Literal[
    "genesis",
    "attestation",
    "release",
    "manifest",
    "rule",
    "resource",
    "key",
    "counter",
    "tree",
    "certificate",
    "share",
    "unlock",
    "start",
]
"""What an entry can tell of."""
Outcome = Literal["accepted", "refused", "done"]
Kind = Literal["manifest", "rule", "resource", "key", "counter", "tree", "mesh", "share"]
"""Kinds of records of the state."""


class AuditDamaged(BrokerError):
    """The log or the state is not what its tree head says: something was edited, removed, restored or added."""

    exit_code = EXIT_VERIFICATION


class Change(Record, frozen=True, kw_only=True):
    """One record of the state after an entry: where it stands and SHA-256 of its body, hexadecimal."""

    kind: Kind
    name: str
    version: int
    slot: int
    digest: str


class Entry(Record, frozen=True, kw_only=True, omit_defaults=True):
    """One audit entry, as it is stored and hashed. What is empty is left out."""

    format: Literal["cloister/audit-entry/v1"]
    number: int
    time: int
    event: Event
    outcome: Outcome
    resource: str = ""
    workload: str = ""
    purpose: str = ""
    session: str = ""
    evidence: str = ""
    measurements: str = ""
    policy: str = ""
    rule: str = ""
    manifest: str = ""
    tee: str = ""
    tee_key: str = ""
    simulated: bool = False
    signers: tuple[str, ...] = ()
    reason: str = ""
    changes: tuple[Change, ...] = ()
    state: str


@dataclass(frozen=True, slots=True)
class Fact:
    """What there is to say; the journal adds number, time, changes and state. Fields as in :class:`Entry`."""

    event: Event
    outcome: Outcome
    resource: str = ""
    workload: str = ""
    purpose: str = ""
    session: str = ""
    evidence: str = ""
    measurements: str = ""
    policy: str = ""
    rule: str = ""
    manifest: str = ""
    tee: str = ""
    tee_key: str = ""
    simulated: bool = False
    signers: tuple[str, ...] = ()
    reason: str = ""


def make_entry(fact: Fact, *, number: int, now: int, changes: tuple[Change, ...], state: bytes) -> Entry:
    """The entry of a fact; ``reason`` is cut to one printable line."""
    reason = "".join(char if char.isprintable() else " " for char in fact.reason)[:MAX_REASON]
    return Entry(
        format=FORMAT,
        number=number,
        time=now,
        event=fact.event,
        outcome=fact.outcome,
        resource=fact.resource,
        workload=fact.workload,
        purpose=fact.purpose,
        session=fact.session,
        evidence=fact.evidence,
        measurements=fact.measurements,
        policy=fact.policy,
        rule=fact.rule,
        manifest=fact.manifest,
        tee=fact.tee,
        tee_key=fact.tee_key,
        simulated=fact.simulated,
        signers=fact.signers,
        reason=reason,
        changes=changes,
        state=state.hex(),
    )


def encode_entry(entry: Entry) -> bytes:
    """The canonical bytes, which are the leaf. Raises :class:`AuditDamaged` over the bound."""
    data = encode_json(entry)
    if len(data) > MAX_ENTRY or len(entry.changes) > MAX_CHANGES:
        raise AuditDamaged(f"an audit entry is at most {MAX_ENTRY} bytes long and has {MAX_CHANGES} changes")
    return data


def parse_entry(data: bytes, number: int) -> Entry:
    """Entry ``number`` in its one form. Raises :class:`AuditDamaged`."""
    try:
        entry = decode_json(data, Entry, what=f"audit entry {number}", limit=MAX_ENTRY)
        from_hex(entry.state, 32, what="state root")
        for change in entry.changes:
            from_hex(change.digest, 32, what="digest of a change")
            if not 1 <= change.version < 1 << 63 or change.slot < 0:
                raise FormatError(f"audit entry {number} changes a record to what cannot be")
    except FormatError as error:
        raise damaged(error.what) from None
    if entry.number != number or encode_json(entry) != data or len(entry.changes) > MAX_CHANGES:
        raise damaged(f"audit entry {number} is not in its place or form")
    return entry


def state_leaf(kind: str, name: str, version: int, digest: bytes) -> bytes:
    """The leaf of a record in the state tree: 32 bytes, before RFC 6962's own leaf hash."""
    return labelled_hash(STATE_LEAF_LABEL, kind.encode(), name.encode(), version.to_bytes(8, "big"), digest)


def measurements_digest(claims: Claims) -> str:
    """One digest over everything that was measured, hexadecimal."""
    parts: list[bytes] = [claims.tee.encode()]
    for table in (claims.measurements, claims.events):
        parts.append(len(table).to_bytes(8, "big"))
        for name, value in sorted(table.items()):
            parts += (name.encode(), value)
    return labelled_hash(MEASUREMENTS_LABEL, *parts).hex()


def damaged(what: str) -> AuditDamaged:
    """The error for whoever finds that log and state do not agree."""
    return AuditDamaged(
        what, todo="nothing is released on it: compare with a backup, and with your witnesses"
    )
