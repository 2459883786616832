"""Event logs of any bytes: our own errors only, bounded, and what is read is what was extended."""

from __future__ import annotations

import hashlib
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloister.errors import CloisterError, EvidenceError, FormatError
from cloister.evidence.dstack_log import parse_dstack_log
from cloister.evidence.eventlog import parse_event_log
from cloister.evidence.measured import replay_registers
from cloister.evidence.quote import parse_quote
from cloister.evidence.tcg_log import MAX_LOG, parse_tcg_log
from tcg_logs import Logged, header, log, spec_id

EVENTS = st.lists(
    st.builds(
        Logged,
        index=st.integers(1, 4),
        kind=st.sampled_from((4, 5, 6, 8, 13, 0x80000001, 0x80000002, 0x80000003, 0x80000007, 0x99)),
        data=st.binary(max_size=64).filter(bool),
        digest=st.one_of(st.none(), st.binary(min_size=48, max_size=48)),
    ),
    max_size=12,
)
HEADER = header(spec_id(("sha384",)))
PARSERS = {
    "ccel": lambda data: parse_tcg_log(data, algorithm="sha384", registers="rtmr"),
    "tpm": lambda data: parse_tcg_log(data, algorithm="sha256", registers="pcr"),
    "dstack": parse_dstack_log,
    "launch": parse_event_log,
    "quote": parse_quote,
}


@given(EVENTS, st.sampled_from([b"", bytes(100), b"\xff" * 100]))
def test_what_was_extended_is_what_is_read(events: list[Logged], padding: bytes) -> None:
    found = parse_tcg_log(log(*events, padding=padding), algorithm="sha384", registers="rtmr")
    assert [(event.register, event.digest, event.data) for event in found] == [
        (event.index - 1, event.extended("sha384"), event.data) for event in events
    ]
    registers: dict[int, bytes] = {}
    for event in events:
        before = registers.get(event.index - 1, bytes(48))
        registers[event.index - 1] = hashlib.sha384(before + event.extended("sha384")).digest()
    assert replay_registers(found, algorithm="sha384") == registers
    for event in found:
        assert event.vouched == (event.covered is not None)
        assert event.covered is None or hashlib.sha384(event.covered).digest() == event.digest


@given(EVENTS.filter(bool), st.data())
def test_a_flipped_bit_is_refused_or_shows(events: list[Logged], data: st.DataObject) -> None:
    original = log(*events)
    before = parse_tcg_log(original, algorithm="sha384", registers="rtmr")
    place = data.draw(st.integers(0, len(original) - 1))
    altered = bytearray(original)
    altered[place] ^= 1 << data.draw(st.integers(0, 7))
    try:
        after = parse_tcg_log(bytes(altered), algorithm="sha384", registers="rtmr")
    except EvidenceError:
        return
    # Fields of the header that mean nothing may differ (index, platform class, version); a digest never unseen.
    same = replay_registers(after, algorithm="sha384") == replay_registers(before, algorithm="sha384")
    assert same == ([(e.register, e.digest) for e in after] == [(e.register, e.digest) for e in before])


@pytest.mark.parametrize("parser", PARSERS)
@given(data=st.binary(max_size=4096))
def test_arbitrary_bytes_raise_only_our_errors(parser: str, data: bytes) -> None:
    for start in (b"", HEADER):
        try:
            PARSERS[parser](start + data)
        except CloisterError:
            continue


@pytest.mark.parametrize("parser", PARSERS)
@given(
    seed=st.integers(0, 1 << 32),
    size=st.integers(0, MAX_LOG),
    filler=st.sampled_from(["random", "zeros", "ones"]),
)
def test_large_garbage_is_answered_in_our_own_words(parser: str, seed: int, size: int, filler: str) -> None:
    rest = {"random": random.Random(seed).randbytes(size), "zeros": bytes(size), "ones": b"\xff" * size}[
        filler
    ]
    for data in (rest, (HEADER + rest)[:MAX_LOG]):
        try:
            PARSERS[parser](data)
        except CloisterError:
            continue


@pytest.mark.parametrize("parser", PARSERS)
def test_what_is_over_one_mebibyte_is_refused_at_once(parser: str) -> None:
    with pytest.raises((EvidenceError, FormatError), match="over its bound"):
        PARSERS[parser](HEADER + bytes(MAX_LOG))
