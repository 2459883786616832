"""Strict decoding and labelled hashing: one reading per document, and only our own error for the rest."""

from __future__ import annotations

import hashlib
import json

import cbor2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloister.encoding import (
    MAX_DEPTH,
    MAX_SAFE_INTEGER,
    Record,
    b64url_decode,
    b64url_encode,
    decode_cbor,
    decode_json,
    encode_json,
    from_hex,
    labelled_hash,
    parse_json,
)
from cloister.errors import FormatError


class Sample(Record, frozen=True, kw_only=True):
    name: str
    data: bytes = b""
    count: int = 0


SAFE = st.integers(-MAX_SAFE_INTEGER, MAX_SAFE_INTEGER)
PLAIN = st.recursive(
    st.none() | st.booleans() | SAFE | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)


@given(PLAIN)
def test_canonical_json_is_read_back_as_it_was(value: object) -> None:
    data = encode_json(value)
    assert parse_json(data, what="value") == value
    assert encode_json(parse_json(data, what="value")) == data


@given(st.text(max_size=40), st.binary(max_size=40), SAFE)
def test_a_record_is_read_back_as_it_was(name: str, data: bytes, count: int) -> None:
    sample = Sample(name=name, data=data, count=count)
    assert decode_json(encode_json(sample), Sample, what="sample") == sample


def test_canonical_json_has_sorted_names_and_no_white_space() -> None:
    assert encode_json({"b": [1, True, None], "a": "ä\n"}) == '{"a":"ä\\n","b":[1,true,null]}'.encode()
    assert encode_json(Sample(name="n", data=b"\xff")) == b'{"count":0,"data":"/w==","name":"n"}'


JSON_REFUSED = {
    "empty": b"",
    "two-documents": b"{}{}",
    "trailing-comma": b'{"name":"a",}',
    "a-name-twice": b'{"name":"a","name":"b"}',
    "a-name-twice-deep": b'{"name":"a","x":{"y":1,"y":2}}',
    "a-name-twice-by-escape": b'{"name":"a","n\\u0061me":"b"}',
    "unknown-field": b'{"name":"a","extra":1}',
    "missing-field": b"{}",
    "null-for-text": b'{"name":null}',
    "number-for-text": b'{"name":1}',
    "text-for-number": b'{"name":"a","count":"1"}',
    "float-for-number": b'{"name":"a","count":1.0}',
    "true-for-number": b'{"name":"a","count":true}',
    "nan": b'{"name":"a","count":NaN}',
    "infinity": b'{"name":"a","count":-Infinity}',
    "beyond-floating-point": b'{"name":"a","count":1e999}',
    "over-2^53": b'{"name":"a","count":9007199254740993}',
    "a-hundred-digits": b'{"name":"a","count":' + b"9" * 100 + b"}",
    "ten-thousand-digits": b'{"name":"a","count":' + b"9" * 10_000 + b"}",
    "not-utf-8": b'{"name":"\xff"}',
    "byte-order-mark": b'\xef\xbb\xbf{"name":"a"}',
    "utf-16": '{"name":"a"}'.encode("utf-16-le"),
    "too-deep": b"[" * (MAX_DEPTH + 1) + b"]" * (MAX_DEPTH + 1),
    "very-deep": b"[" * 100_000,
    "not-base64": b'{"name":"a","data":"?"}',
    "base64-without-padding": b'{"name":"a","data":"/w"}',
    "a-list": b"[]",
    "comment": b'{"name":"a"} // b',
    "half-a-surrogate-pair": b'{"name":"\\ud800"}',
    "half-a-surrogate-pair-in-a-name": b'{"name":"a","\\uDC00":1}',
    "unfinished-escape": b'{"name":"\\',
    "single-quotes": b"{'name':'a'}",
}


@pytest.mark.parametrize("case", JSON_REFUSED)
def test_json_that_two_readers_could_read_differently_is_refused(case: str) -> None:
    with pytest.raises(FormatError, match=r"^encoding: sample") as refusal:
        decode_json(JSON_REFUSED[case], Sample, what="sample")
    assert len(str(refusal.value)) < 400


def test_json_over_its_bound_is_not_even_parsed() -> None:
    with pytest.raises(FormatError, match="over its bound of 4"):
        parse_json(b"[1,2]", what="list", limit=4)
    assert parse_json(b"[1]", what="list", limit=4) == [1]
    with pytest.raises(FormatError, match="over its bound of 4"):
        parse_json('"ää"', what="text", limit=4)  # bounds are bytes, not characters


def test_depth_is_counted_outside_of_strings_only() -> None:
    assert parse_json(json.dumps("[" * 100 + '"' + "[" * 100), what="text") == "[" * 100 + '"' + "[" * 100
    nested = b"[" * MAX_DEPTH + b"]" * MAX_DEPTH
    parse_json(nested, what="list")


def test_a_whole_surrogate_pair_is_one_character() -> None:
    assert parse_json(b'"\\ud83d\\ude00 \\\\ud800"', what="text") == "\U0001f600 \\ud800"
    with pytest.raises(FormatError, match="surrogate"):
        encode_json("\ud800")
    with pytest.raises(FormatError, match="surrogate"):
        parse_json('"\ud800"', what="text")


@given(st.binary(max_size=300))
def test_arbitrary_bytes_raise_only_our_error(data: bytes) -> None:
    for decode in (
        lambda: decode_json(data, Sample, what="sample"),
        lambda: parse_json(data, what="value"),
        lambda: decode_cbor(data, what="item"),
    ):
        try:
            decode()
        except FormatError:
            continue


@pytest.mark.parametrize("value", [1.0, [0.5], {"a": {"b": [float("nan")]}}])
def test_canonical_json_has_no_floating_point(value: object) -> None:
    with pytest.raises(FormatError, match="floating point"):
        encode_json(value)


@given(st.binary(max_size=64), st.data())
def test_base64url_has_one_spelling(data: bytes, draw: st.DataObject) -> None:
    text = b64url_encode(data)
    assert b64url_decode(text, what="value", length=len(data)) == data
    with pytest.raises(FormatError):
        b64url_decode(text, what="value", length=len(data) + 1)
    wrong = draw.draw(
        st.sampled_from([text + "=", text + "\n", " " + text, text + "+", text + "A==", "ä" + text])
    )
    with pytest.raises(FormatError):
        b64url_decode(wrong, what="value", length=len(data))


@pytest.mark.parametrize("text", ["QR", "A", "-_=", "+/", "Q Q", "QQ\n"])
def test_other_spellings_of_base64url_are_refused(text: str) -> None:
    with pytest.raises(FormatError):
        b64url_decode(text, what="value")


@given(st.binary(max_size=64))
def test_hexadecimal_is_lower_case_and_of_its_length(data: bytes) -> None:
    assert from_hex(data.hex(), len(data), what="digest") == data
    with pytest.raises(FormatError):
        from_hex(data.hex() + "00", len(data), what="digest")
    with pytest.raises(FormatError):
        from_hex("AB" + data.hex(), len(data) + 1, what="digest")


@pytest.mark.parametrize("text", ["0x00", " 00 ", "gggg", "٠٠٠٠", "00 0", "é000"])
def test_what_is_no_hexadecimal_is_refused(text: str) -> None:
    with pytest.raises(FormatError):
        from_hex(text, len(text) // 2, what="digest")


CBOR_REFUSED = {
    "trailing": cbor2.dumps(1) + b"\0",
    "a-key-twice": bytes.fromhex("a2616101616102"),
    "unsorted-keys": bytes.fromhex("a2616201616101"),
    "non-minimal-integer": bytes.fromhex("1800"),
    "indefinite-length": bytes.fromhex("9f01ff"),
    "truncated": bytes.fromhex("8201"),
    "empty": b"",
    "cyclic": bytes.fromhex("d81c81d81d00"),
    "infinity": bytes.fromhex("f97c00"),
    "infinity-inside": bytes.fromhex("81a16161f97c00"),
    "deep": b"\x81" * 10_000 + b"\0",
}


@pytest.mark.parametrize("case", CBOR_REFUSED)
def test_cbor_that_is_not_deterministic_is_refused(case: str) -> None:
    with pytest.raises(FormatError):
        decode_cbor(CBOR_REFUSED[case], what="item")


@given(st.recursive(SAFE | st.binary(max_size=9) | st.text(max_size=9), st.lists, max_leaves=8))
def test_deterministic_cbor_is_read(value: object) -> None:
    assert decode_cbor(cbor2.dumps(value, canonical=True), what="item") == value


def test_cbor_over_its_bound_is_refused() -> None:
    with pytest.raises(FormatError, match="over its bound"):
        decode_cbor(b"\x42\0\0", what="item", limit=2)


def test_a_labelled_hash_is_the_hash_of_label_and_parts_behind_their_lengths() -> None:
    lengths = [(number).to_bytes(8, "big") for number in (1, 2, 0)]
    expected = hashlib.sha256(lengths[0] + b"l" + lengths[1] + b"ab" + lengths[2]).digest()
    assert labelled_hash("l", b"ab", b"") == expected
    assert len(labelled_hash("l", algorithm="sha512")) == 64


@given(st.lists(st.binary(max_size=8), max_size=4), st.lists(st.binary(max_size=8), max_size=4))
def test_two_lists_of_parts_never_hash_alike(one: list[bytes], other: list[bytes]) -> None:
    assert (labelled_hash("l", *one) == labelled_hash("l", *other)) is (one == other)
    assert labelled_hash("l", *one) != labelled_hash("m", *one)
    assert labelled_hash("l", *one) != labelled_hash("l", *one, b"")


@pytest.mark.parametrize("name", ["x" * 100_000, "\x1b[2J\x1b]0;owned\x07", "one\ntwo\r", "\u202egnp"])
def test_an_error_quotes_a_document_in_one_bounded_printable_line(name: str) -> None:
    with pytest.raises(FormatError) as refusal:
        decode_json(json.dumps({"name": "", name: 1}), Sample, what="sample")
    assert str(refusal.value).isprintable()
    assert len(str(refusal.value)) < 400
