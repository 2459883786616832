"""Any bytes: recognised, or refused by an error of our own."""

from __future__ import annotations

import base64
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloister.cli.inspection import inspect
from cloister.errors import CloisterError
from cloister.evidence.recognise import MAX_INPUT, recognise
from simulated_evidence import honest

MAGIC = (
    b"",
    bytes(12) + bytes.fromhex("939a7233f79c4ca9940a0db3957f0607"),
    b"HCLA",
    b"\x11\xe0\x01\xff" + bytes(33) + b"\x11\x60",
    bytes(32) + b"Spec ID Event03\0",
    b"\x30\x82",
    b"{",
    b"[",
    b"<SoftwareIdentity ",
    b"-----BEGIN CERTIFICATE-----\n",
    b"0x",
    b"eyJhbGciOiJFUzM4NCJ9.",
    b'{"quote":"',
    b'{"format":"cloister/evidence/v1",',
)
NAMES = [
    *(
        "quote",
        "event_log",
        "cc_eventlog",
        "report_data",
        "format",
        "tcb_info",
        "certificate",
        "evidence",
        "kty",
        "d",
    ),
    *("verification_requests", "tee", "imr", "submods", "eat_profile", "keys"),
]
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(NAMES),
            inner,
            max_size=5,
        )
    ),
    max_leaves=12,
)


def look(data: bytes) -> None:
    """What `cloister inspect` does with a file."""
    try:
        sections = inspect(recognise(data), full=False)
    except CloisterError:
        return
    for section in sections:
        assert section.title.isprintable()
        for line in section.lines:
            assert (line.name + line.value + line.meaning).isprintable()


@given(magic=st.sampled_from(MAGIC), rest=st.binary(max_size=3000))
def test_any_bytes_are_recognised_or_refused(magic: bytes, rest: bytes) -> None:
    look(magic + rest)
    look((magic + rest).hex().encode())
    look(base64.b64encode(magic + rest))


@given(JSON)
def test_any_json_is_recognised_or_refused(value: object) -> None:
    look(json.dumps(value).encode())


@given(st.data())
def test_any_prefix_and_any_flip_of_a_quote_is_read_or_refused(data: st.DataObject) -> None:
    quote = bytearray(honest().quote)
    at = data.draw(st.integers(0, len(quote) - 1))
    look(bytes(quote[:at]))
    quote[at] ^= 1 << data.draw(st.integers(0, 7))
    look(bytes(quote))


@pytest.mark.parametrize(
    "filler", [b"\0", b"a", b"[", b"{", b"<", b"-----BEGIN CERTIFICATE-----\n", b"A.", b"\x30\x82"]
)
def test_a_whole_mebibyte_of_anything_is_refused_in_bounded_time(filler: bytes) -> None:
    whole = (filler * (MAX_INPUT // len(filler) + 1))[:MAX_INPUT]
    look(whole)
    with pytest.raises(CloisterError, match="over 1048576 bytes"):
        recognise(whole + b"a")
