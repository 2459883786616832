"""Launch events: replayed as TDX extends its registers, never believed, one form."""

from __future__ import annotations

import hashlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloister.errors import EventLogMismatch, FormatError
from cloister.evidence.eventlog import (
    MAX_EVENTS,
    MAX_PAYLOAD,
    LaunchEvent,
    encode_event_log,
    event_digest,
    extend,
    parse_event_log,
    replay,
)
from spec_vectors import spec_vectors

EVENT = st.builds(LaunchEvent, name=st.text(min_size=1, max_size=64), payload=st.binary(max_size=64))
LOGS = st.lists(EVENT, min_size=1, max_size=8, unique_by=lambda event: event.name)


def test_events_are_extended_as_specified() -> None:
    vectors = spec_vectors("event-log.md")
    events = parse_event_log(json.dumps(vectors["log"]).encode())
    assert [event_digest(event).hex() for event in events] == vectors["digests"]
    assert replay(events).hex() == vectors["register"]
    assert json.loads(encode_event_log(events)) == vectors["log"]


def test_a_register_is_extended_as_tdx_does() -> None:
    digest = b"\1" * 48
    assert extend(bytes(48), digest) == hashlib.sha384(bytes(48) + digest).digest()
    assert replay([]) == bytes(48)


def test_a_digest_covers_label_name_and_payload_behind_their_lengths() -> None:
    parts = (b"cloister/launch-event/v1", b"name", b"payload")
    whole = b"".join(len(part).to_bytes(8, "big") + part for part in parts)
    assert event_digest(LaunchEvent(name="name", payload=b"payload")) == hashlib.sha384(whole).digest()
    assert event_digest(LaunchEvent(name="ab", payload=b"c")) != event_digest(
        LaunchEvent(name="a", payload=b"bc")
    )


@given(LOGS)
def test_a_log_is_read_back_as_it_was(events: list[LaunchEvent]) -> None:
    assert parse_event_log(encode_event_log(events)) == tuple(events)


@given(LOGS, st.data())
def test_any_change_of_a_log_changes_the_register(events: list[LaunchEvent], data: st.DataObject) -> None:
    register = replay(events)
    place = data.draw(st.integers(0, len(events) - 1))
    event = events[place]
    others = [
        [*events[:place], *events[place + 1 :]],
        [*events, event],
        [*events[:place], LaunchEvent(name=event.name + "x", payload=event.payload), *events[place + 1 :]],
        [*events[:place], LaunchEvent(name=event.name, payload=event.payload + b"x"), *events[place + 1 :]],
    ]
    if len(events) > 1:
        others.append(events[::-1])
    for other in others:
        assert replay(other) != register


LOGS_REFUSED = {
    "empty": ([], EventLogMismatch),
    "too-many": ([(f"e{number}", "") for number in range(MAX_EVENTS + 1)], EventLogMismatch),
    "a-name-twice": ([("a", ""), ("b", ""), ("a", "AA==")], EventLogMismatch),
    "no-name": ([("", "")], EventLogMismatch),
    "long-name": ([("n" * 65, "")], EventLogMismatch),
    "payload-not-base64": ([("a", "?")], FormatError),
}


@pytest.mark.parametrize("case", LOGS_REFUSED)
def test_a_log_out_of_its_bounds_is_refused(case: str) -> None:
    events, error = LOGS_REFUSED[case]
    document = {
        "format": "cloister/launch-events/v1",
        "events": [{"name": name, "payload": payload} for name, payload in events],
    }
    with pytest.raises(error):
        parse_event_log(json.dumps(document).encode())


def test_a_payload_is_bounded() -> None:
    log = encode_event_log([LaunchEvent(name="a", payload=bytes(MAX_PAYLOAD + 1))])
    with pytest.raises(EventLogMismatch, match="bounds"):
        parse_event_log(log)


@pytest.mark.parametrize("extra", ["digest", "register"])
def test_a_log_cannot_supply_digests_of_its_own(extra: str) -> None:
    event = {"name": "a", "payload": "", extra: "00" * 48}
    with pytest.raises(FormatError):
        parse_event_log(json.dumps({"format": "cloister/launch-events/v1", "events": [event]}).encode())


@given(st.binary(max_size=300))
def test_arbitrary_bytes_raise_only_our_errors(data: bytes) -> None:
    with pytest.raises((FormatError, EventLogMismatch)):
        parse_event_log(data)
