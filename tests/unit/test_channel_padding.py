"""Buckets and records: every size is one of a few, and the data comes out again."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloister.channel import bhttp
from cloister.channel.padding import (
    BUCKETS,
    LARGEST,
    PADDING_HEADER,
    RecordReader,
    ResponseComposer,
    encode_record,
    request_size,
)
from cloister.errors import ChunkRefused, CloisterError, OversizedChunk, TruncatedMessage

PADDED = ((b"content-type", b"text/event-stream"), (PADDING_HEADER, b"v1"))


def opened(plaintexts: list[bytes]) -> tuple[bhttp.Response, bytes]:
    """The response and the data inside, read as a client does."""
    decoder, reader = bhttp.ResponseDecoder(), RecordReader()
    head, data = None, []
    events = [event for plaintext in plaintexts for event in decoder.feed(plaintext)]
    for event in (*events, *decoder.finish()):
        if isinstance(event, bhttp.Head):
            head = event.message
        elif isinstance(event, bhttp.BodyChunk):
            data += reader.feed(event.data)
    reader.finish()
    assert head is not None
    return head, b"".join(data)


def test_the_vectors_of_the_specification_hold():
    assert encode_record(b"Hi", 16).hex() == "00000002000000064869000000000000"
    assert encode_record(b"", 8).hex() == "0000000000000000"


@given(st.lists(st.binary(max_size=3000), max_size=8), st.integers(min_value=0, max_value=9000))
def test_every_sealed_chunk_has_a_buckets_size_and_the_data_comes_out(parts: list[bytes], head_size: int):
    fields = (*PADDED, (b"x-long", b"h" * head_size))
    composer = ResponseComposer(bhttp.response_head(bhttp.Response(200, fields)), padded=True)
    plaintexts = [chunk for part in parts for chunk in composer.compose(part, final=False)]
    plaintexts += composer.compose(b"", final=True)
    assert {len(plaintext) for plaintext in plaintexts} <= set(BUCKETS)
    head, data = opened(plaintexts)
    assert data == b"".join(parts)
    assert head.headers == fields


def test_no_size_falls_between_the_buckets():
    for size in (*range(400, 520), *range(16_250, 16_400), 40_000, 70_000):
        composer = ResponseComposer(bhttp.response_head(bhttp.Response(200, PADDED)), padded=True)
        plaintexts = composer.compose(b"d" * size, final=True)
        assert {len(plaintext) for plaintext in plaintexts} <= set(BUCKETS)
        assert opened(plaintexts)[1] == b"d" * size


def test_tokens_of_any_length_look_alike():
    shapes = set()
    for token in (b"a", b"word", b"data: {}" * 50):
        composer = ResponseComposer(bhttp.response_head(bhttp.Response(200, PADDED)), padded=True)
        chunks = [composer.compose(token, final=number == 4) for number in range(5)]
        shapes.add(tuple(len(chunk) for group in chunks for chunk in group))
    assert shapes == {(512,) * 5}


@given(st.lists(st.binary(max_size=3000), max_size=8))
def test_without_padding_the_body_is_the_body(parts: list[bytes]):
    composer = ResponseComposer(bhttp.response_head(bhttp.Response(200)), padded=False)
    plaintexts = [chunk for part in parts for chunk in composer.compose(part, final=False)]
    plaintexts += composer.compose(b"", final=True)
    decoder = bhttp.ResponseDecoder()
    events = [event for plaintext in plaintexts for event in decoder.feed(plaintext)]
    assert b"".join(e.data for e in events if isinstance(e, bhttp.BodyChunk)) == b"".join(parts)


@given(st.lists(st.tuples(st.binary(max_size=100), st.integers(0, 100)), max_size=5), st.integers(1, 50))
def test_records_come_out_however_they_are_cut(records: list[tuple[bytes, int]], step: int):
    wire = b"".join(encode_record(data, 8 + len(data) + more) for data, more in records)
    reader, found = RecordReader(), []
    for at in range(0, len(wire), step):
        found += reader.feed(wire[at : at + step])
    reader.finish()
    assert b"".join(found) == b"".join(data for data, _ in records)


@given(st.binary(min_size=1, max_size=60), st.integers(0, 40), st.data())
def test_any_prefix_of_a_record_is_truncated(data: bytes, more: int, draw: st.DataObject):
    wire = encode_record(data, 8 + len(data) + more)
    reader = RecordReader()
    reader.feed(wire[: draw.draw(st.integers(1, len(wire) - 1))])
    with pytest.raises(TruncatedMessage):
        reader.finish()


@given(st.binary(max_size=200))
def test_noise_raises_nothing_but_our_own_errors(noise: bytes):
    reader = RecordReader()
    try:
        reader.feed(noise)
        reader.finish()
    except CloisterError:
        pass


@pytest.mark.parametrize(
    ("wire", "error"),
    [
        pytest.param("00000001 00000002 61 0001", ChunkRefused, id="padding that is not zero"),
        pytest.param("00004001 00000000", OversizedChunk, id="more data than a bucket"),
        pytest.param("00000000 00004001", OversizedChunk, id="more padding than a bucket"),
        pytest.param("ffffffff ffffffff", OversizedChunk, id="lengths without bound"),
    ],
)
def test_what_is_no_record_is_refused(wire: str, error: type[Exception]):
    with pytest.raises(error):
        RecordReader().feed(bytes.fromhex(wire))


@pytest.mark.parametrize(
    ("length", "size"),
    [(0, 512), (1, 512), (512, 512), (513, 1024), (16_384, 16_384), (16_385, 32_768), (32_769, 49_152)],
)
def test_requests_grow_in_buckets(length: int, size: int):
    assert request_size(length) == size


def test_a_record_is_not_shorter_than_its_data():
    with pytest.raises(ValueError, match="shorter"):
        encode_record(b"x" * LARGEST, 8)
