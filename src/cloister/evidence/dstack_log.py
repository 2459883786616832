"""dstack's event log: firmware events and runtime events of a trust domain as one JSON list.

Source: Dstack-TEE/dstack, ``cc-eventlog/src/{tdx,runtime_events}.rs`` (version 1 and 2 of runtime events). A runtime
event's digest covers its name and payload, and is recomputed here; one that the log supplies beside it must be equal.
Of a firmware event the log has the digest, and what that covers is tried (coverage.py). Refused are runtime events
elsewhere than in RTMR3, anything else in RTMR3 (a runtime event could hide as such), and names that stand twice or
hold a colon: a digest of version 1 does not say where a name with one would end.
"""

from __future__ import annotations

import hashlib
from typing import Final, Literal

from cloister.encoding import Record, convert, encode_json, from_hex, parse_json
from cloister.errors import EvidenceError
from cloister.evidence.coverage import covered_part, event_name
from cloister.evidence.eventlog import MAX_PAYLOAD
from cloister.evidence.measured import MeasuredEvent
from cloister.evidence.tcg_log import EV_NO_ACTION, MAX_EVENTS, MAX_LOG, kind_name

RUNTIME_EVENT: Final = 0x08000001
RUNTIME_REGISTER: Final = 3
RUNTIME_KIND: Final = "dstack runtime event"
MAX_NAME: Final = 64
_DIGEST_SIZE: Final = 48


class _Event(Record, frozen=True, kw_only=True):
    """One event as dstack writes it; binary fields in hexadecimal."""

    imr: Literal[0, 1, 2, 3]
    event_type: int
    event: str
    event_payload: str
    digest: str = ""
    version: Literal[1, 2] = 1
    preimage: str | None = None


def parse_dstack_log(data: bytes) -> tuple[MeasuredEvent, ...]:
    """The events of a log, in order; runtime events have the kind :data:`RUNTIME_KIND` and their own names.

    At most 1 MiB and 4096 events. Raises :class:`~cloister.errors.EvidenceError` and
    :class:`~cloister.errors.FormatError`.
    """
    found = convert(
        parse_json(data, what="dstack event log", limit=MAX_LOG), tuple[_Event, ...], what="dstack event log"
    )
    if not 1 <= len(found) <= MAX_EVENTS:
        raise EvidenceError(f"a dstack event log has 1 to {MAX_EVENTS} events, not {len(found)}")
    events = [_measured(event) for event in found if event.event_type != EV_NO_ACTION]
    names = [event.name for event in events if event.kind == RUNTIME_KIND]
    if len(set(names)) != len(names):
        raise EvidenceError(
            "a dstack runtime event is named twice", todo="a policy could not say which one it means"
        )
    return tuple(events)


def runtime_digest(name: str, payload: bytes, *, version: Literal[1, 2] = 1) -> bytes:
    """The 48 bytes that dstack extends for a runtime event."""
    return hashlib.sha384(_hashed(name, payload, version)).digest()


def _hashed(name: str, payload: bytes, version: Literal[1, 2]) -> bytes:
    if version == 1:
        return RUNTIME_EVENT.to_bytes(4, "little") + b":" + name.encode() + b":" + payload
    return encode_json({"name": name, "payload": payload.hex(), "type": RUNTIME_EVENT})


def _measured(event: _Event) -> MeasuredEvent:
    payload = _bytes(event.event_payload, "payload")
    supplied = _bytes(event.digest, "digest")
    if event.event_type != RUNTIME_EVENT:
        return _firmware_event(event, supplied, payload)
    name = event.event
    if event.imr != RUNTIME_REGISTER:
        raise EvidenceError(f"the dstack log has a runtime event in RTMR{event.imr}, not in RTMR3")
    if not 1 <= len(name) <= MAX_NAME or ":" in name or len(payload) > MAX_PAYLOAD:
        raise EvidenceError(
            f"the dstack runtime event {name[:MAX_NAME]!r} is out of its bounds",
            todo=f"a name has 1 to {MAX_NAME} characters and no colon, a payload at most {MAX_PAYLOAD} bytes",
        )
    digest = runtime_digest(name, payload, version=event.version)
    preimage = event.preimage
    if supplied not in (b"", digest) or preimage not in (None, _hashed(name, payload, event.version).hex()):
        raise EvidenceError(
            f"the dstack runtime event {name!r} has another digest than its name and payload give",
            todo="the log was altered",
        )
    return MeasuredEvent(
        register=event.imr,
        kind=RUNTIME_KIND,
        digest=digest,
        data=payload,
        vouched=True,
        name=name,
        covered=payload,
    )


def _firmware_event(event: _Event, digest: bytes, data: bytes) -> MeasuredEvent:
    if event.imr == RUNTIME_REGISTER:
        raise EvidenceError("the dstack log has something else than runtime events in RTMR3")
    if len(digest) != _DIGEST_SIZE or not 0 <= event.event_type <= 0xFFFFFFFF:
        raise EvidenceError(f"a firmware event of the dstack log has a digest of {len(digest)} bytes, not 48")
    kind = kind_name(event.event_type)
    covered = covered_part(kind, data, digest, "sha384")
    return MeasuredEvent(
        register=event.imr,
        kind=kind,
        digest=digest,
        data=data,
        vouched=covered is not None,
        name=event_name(kind, data, covered),
        covered=covered,
    )


def _bytes(text: str, what: str) -> bytes:
    return from_hex(text, len(text) // 2, what=f"the {what} of a dstack event")
