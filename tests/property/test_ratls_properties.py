"""Attested certificates under flipped bits, cuts and random bytes: refused by our own errors, and nothing else happens."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

import ratls_parts as parts
from cloister.channel.ratls_certificate import verify_attested_certificate
from cloister.errors import CloisterError, FormatError
from cloister.evidence.cmw import encode_cmw, parse_cmw
from ratls_parts import NOW, honest

CERTIFICATE = parts.attested().certificate
media_types = st.text(min_size=1, max_size=60)


def verify(der: bytes) -> None:
    verify_attested_certificate(der, policy=honest()[1], now=NOW)


@given(at=st.integers(0, len(CERTIFICATE) * 8 - 1))
def test_any_flipped_bit_of_a_certificate_is_refused(at: int) -> None:
    altered = bytearray(CERTIFICATE)
    altered[at // 8] ^= 1 << at % 8
    with pytest.raises(CloisterError):
        verify(bytes(altered))


@given(length=st.integers(0, len(CERTIFICATE) - 1))
def test_any_prefix_of_a_certificate_is_refused(length: int) -> None:
    with pytest.raises(CloisterError):
        verify(CERTIFICATE[:length])


@given(tail=st.binary(min_size=1, max_size=40))
def test_nothing_may_follow_a_certificate(tail: bytes) -> None:
    with pytest.raises(CloisterError):
        verify(CERTIFICATE + tail)


@given(data=st.binary(max_size=400))
def test_random_bytes_are_no_certificate(data: bytes) -> None:
    with pytest.raises(CloisterError):
        verify(data)


@given(media_type=media_types, value=st.binary(max_size=400))
def test_what_was_wrapped_is_unwrapped(media_type: str, value: bytes) -> None:
    assert parse_cmw(encode_cmw(media_type, value), media_type=media_type, limit=1000) == value


@given(media_type=media_types, other=media_types, value=st.binary(max_size=40))
def test_a_wrapper_is_read_as_no_other_media_type(media_type: str, other: str, value: bytes) -> None:
    if media_type != other:
        with pytest.raises(FormatError):
            parse_cmw(encode_cmw(media_type, value), media_type=other, limit=1000)


@given(data=st.binary(max_size=100))
def test_a_wrapper_is_read_in_one_spelling_only(data: bytes) -> None:
    try:
        value = parse_cmw(data, media_type="t", limit=200)
    except FormatError:
        return
    assert encode_cmw("t", value) == data


@given(value=st.binary(max_size=60), at=st.integers(0, 10_000), extra=st.integers(1, 255))
def test_a_changed_byte_of_a_wrapper_changes_what_is_read_or_refuses_it(
    value: bytes, at: int, extra: int
) -> None:
    record = bytearray(encode_cmw("t", value))
    record[at % len(record)] ^= extra
    try:
        found = parse_cmw(bytes(record), media_type="t", limit=200)
    except FormatError:
        return
    assert found != value
