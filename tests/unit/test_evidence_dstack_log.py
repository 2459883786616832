"""dstack's event log: runtime events are recomputed, firmware events are tried, and one reading only is possible."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloister.errors import EvidenceError, FormatError
from cloister.evidence.dstack_log import RUNTIME_EVENT, RUNTIME_KIND, parse_dstack_log, runtime_digest
from cloister.evidence.measured import replay_registers
from spec_vectors import spec_vectors


def runtime(name: str = "app-id", payload: bytes = b"\xde\xad", **fields: Any) -> dict[str, Any]:
    version = fields.get("version", 1)
    event = {
        "imr": 3,
        "event_type": RUNTIME_EVENT,
        "event": name,
        "event_payload": payload.hex(),
        "digest": runtime_digest(name, payload, version=version).hex(),
    }
    return {**event, **fields}


def firmware(data: bytes = bytes(4), **fields: Any) -> dict[str, Any]:
    digest = hashlib.sha384(data).hexdigest()
    return {"imr": 1, "event_type": 4, "event": "", "event_payload": data.hex(), "digest": digest, **fields}


def log(*events: dict[str, Any]) -> bytes:
    return json.dumps(list(events)).encode()


def test_a_runtime_digest_is_as_dstack_specifies() -> None:
    first = hashlib.sha384(b"\1\0\0\x08:app-id:\xde\xad").digest()
    assert runtime_digest("app-id", b"\xde\xad") == first
    second = hashlib.sha384(b'{"name":"compose-hash","payload":"abcd","type":134217729}').digest()
    assert runtime_digest("compose-hash", b"\xab\xcd", version=2) == second


def test_a_runtime_digest_is_as_specified_here() -> None:
    vectors = spec_vectors("event-log.md")["dstack"]
    name, payload = vectors["name"], bytes.fromhex(vectors["payload"])
    assert runtime_digest(name, payload, version=1).hex() == vectors["version-1"]
    assert runtime_digest(name, payload, version=2).hex() == vectors["version-2"]


def test_events_of_every_form_are_read() -> None:
    stripped = firmware(b"\1", event_payload="")
    found = parse_dstack_log(
        log(
            firmware(),
            stripped,
            runtime(),
            runtime("b", digest=""),
            runtime("c", version=2, preimage=b'{"name":"c","payload":"dead","type":134217729}'.hex()),
        )
    )
    assert [event.vouched for event in found] == [True, False, True, True, True]
    assert [event.name for event in found] == ["separator", "separator", "app-id", "b", "c"]
    assert [event.register for event in found] == [1, 1, 3, 3, 3]
    assert found[3].digest == runtime_digest("b", b"\xde\xad")
    assert found[2].kind == RUNTIME_KIND


def test_events_that_extend_nothing_are_left_out() -> None:
    found = parse_dstack_log(log(firmware(event_type=3), runtime()))
    assert len(found) == 1
    assert set(replay_registers(found, algorithm="sha384")) == {3}


REFUSED: dict[str, tuple[bytes, type[Exception], str]] = {
    "nothing": (b"", FormatError, "not JSON"),
    "an object": (b"{}", FormatError, "form it should"),
    "no events": (b"[]", EvidenceError, "1 to 4096 events, not 0"),
    "too many events": (log(*[firmware()] * 4097), EvidenceError, "not 4097"),
    "too large": (b"[" + b" " * (1 << 20) + b"]", FormatError, "over its bound"),
    "a register that does not exist": (log(firmware(imr=4)), FormatError, "form it should"),
    "an unknown field": (log(runtime(register=3)), FormatError, "unknown field"),
    "an unknown version": (log(runtime(version=1) | {"version": 3}), FormatError, "form it should"),
    "a digest that lies": (log(runtime(digest="00" * 48)), EvidenceError, "another digest"),
    "a digest of another payload": (
        log(runtime(event_payload="beef")),
        EvidenceError,
        "another digest than its name and payload",
    ),
    "a preimage that lies": (log(runtime(preimage="00")), EvidenceError, "another digest"),
    "a runtime event in RTMR2": (log(runtime(imr=2)), EvidenceError, "runtime event in RTMR2"),
    # A runtime event that shall not be judged could hide as a firmware event.
    "a firmware event in RTMR3": (log(firmware(imr=3)), EvidenceError, "something else than runtime events"),
    "a firmware event without digest": (log(firmware(digest="")), EvidenceError, "0 bytes, not 48"),
    "a firmware event of 32 bytes": (log(firmware(digest="00" * 32)), EvidenceError, "32 bytes, not 48"),
    "a negative type": (log(firmware(event_type=-1)), EvidenceError, "not 48"),
    "a name twice": (log(runtime(), runtime(payload=b"x")), EvidenceError, "named twice"),
    "no name": (log(runtime("")), EvidenceError, "out of its bounds"),
    "a long name": (log(runtime("n" * 65)), EvidenceError, "out of its bounds"),
    # "app-id:" with payload "x" and "app-id" with payload ":x" have one digest.
    "a name with a colon": (log(runtime("app-id:")), EvidenceError, "out of its bounds"),
    "a long payload": (log(runtime(payload=bytes(4097))), EvidenceError, "out of its bounds"),
    "an upper-case payload": (log(runtime(event_payload="DEAD")), FormatError, "lower-case"),
    "half a byte": (log(runtime(event_payload="dea")), FormatError, "lower-case"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_log_of_another_form_is_refused(case: str) -> None:
    data, error, text = REFUSED[case]
    with pytest.raises(error, match=text):
        parse_dstack_log(data)


@given(
    st.text(st.characters(exclude_characters=":", exclude_categories=["Cs"]), min_size=1, max_size=64),
    st.binary(max_size=64),
    st.text(st.characters(exclude_characters=":", exclude_categories=["Cs"]), min_size=1, max_size=64),
    st.binary(max_size=64),
)
def test_a_digest_has_one_name_and_one_payload(first: str, data: bytes, second: str, other: bytes) -> None:
    same = (first, data) == (second, other)
    for version in (1, 2):
        one = runtime_digest(first, data, version=version)  # type: ignore[arg-type]
        assert (one == runtime_digest(second, other, version=version)) == same  # type: ignore[arg-type]


@given(st.binary(max_size=300))
def test_arbitrary_bytes_raise_only_our_errors(data: bytes) -> None:
    with pytest.raises((EvidenceError, FormatError)):
        parse_dstack_log(data)
