"""The channel's formats under random bytes, cuts, flips and splices."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloister.channel import bhttp, ohttp
from cloister.channel.hpke import Kem, KeyPair
from cloister.channel.varint import MAX_VARINT, decode_varint, encode_varint
from cloister.errors import (
    ChunkRefused,
    CloisterError,
    DecapsulationFailed,
    FormatError,
    OversizedChunk,
    TruncatedMessage,
    UnknownKey,
)


def server_key(kem: Kem) -> ohttp.ServerKey:
    pair = KeyPair.generate(kem)
    return ohttp.ServerKey(ohttp.KeyConfig(1, kem, pair.public_key), pair)


KEYS = {kem: server_key(kem) for kem in Kem}

kems = st.sampled_from(Kem)
chunks = st.lists(st.binary(min_size=1, max_size=300), max_size=6)
cuts = st.lists(st.integers(1, 40), min_size=1, max_size=8)
field_name = st.text("abcdefghijklmnopqrstuvwxyz0123456789-_", min_size=1, max_size=20).map(str.encode)
field_value = (
    st.binary(max_size=40)
    .filter(lambda value: value == value.strip(b" \t"))
    .map(lambda value: bytes(byte for byte in value if byte >= 0x21 and byte != 0x7F))
)
fields = st.lists(
    st.tuples(field_name.filter(lambda name: name not in bhttp.CONNECTION_FIELDS), field_value), max_size=6
).map(lambda lines: tuple(line for line in lines if line[0] != b"content-length"))
requests = st.builds(
    bhttp.Request,
    method=st.sampled_from([b"GET", b"POST", b"PATCH"]),
    scheme=st.sampled_from([b"https", b"http"]),
    authority=st.sampled_from([b"", b"example.com", b"[::1]:8000"]),
    path=st.text("abc/?&=%20-._~", max_size=60).map(lambda text: b"/" + text.encode()),
    headers=fields,
)
responses = st.builds(bhttp.Response, status=st.integers(200, 599), headers=fields)


def portions(data: bytes, sizes: list[int]) -> list[bytes]:
    """``data`` cut into portions of these sizes, over and over."""
    found, at, turn = [], 0, 0
    while at < len(data):
        size = sizes[turn % len(sizes)]
        found.append(data[at : at + size])
        at, turn = at + size, turn + 1
    return found


def sealed_request(kem: Kem, texts: list[bytes], last: bytes) -> tuple[ohttp.RequestSealer, bytes]:
    sealer = ohttp.RequestSealer(KEYS[kem].config)
    body = b"".join(sealer.seal(text, final=False) for text in texts)
    return sealer, sealer.header + body + sealer.seal(last, final=True)


def open_all(opener: ohttp.RequestOpener | ohttp.ResponseOpener, data: list[bytes]) -> list[bytes]:
    opened = [text for portion in data for text in opener.feed(portion)]
    return opened + opener.finish()


def opener_for(kem: Kem) -> ohttp.RequestOpener:
    def find_key(key_id: int) -> ohttp.ServerKey:
        if key_id != 1:
            raise UnknownKey(f"no key {key_id}")
        return KEYS[kem]

    return ohttp.RequestOpener(find_key, max_chunk=4096)


def exchange(kem: Kem, texts: list[bytes], last: bytes) -> tuple[ohttp.ResponseOpener, bytes]:
    """A response that carries ``texts`` and ``last``, and its opener."""
    sealer, sent = sealed_request(kem, [], b"question")
    opener = opener_for(kem)
    open_all(opener, [sent])
    response = opener.response()
    body = b"".join(response.seal(text, final=False) for text in texts)
    return sealer.response(), response.header + body + response.seal(last, final=True)


@given(kems, chunks, st.binary(max_size=300), cuts)
def test_requests_and_responses_come_through_in_any_portions(
    kem: Kem, texts: list[bytes], last: bytes, sizes: list[int]
) -> None:
    expected = texts + ([last] if last else [])
    _, sent = sealed_request(kem, texts, last)
    assert open_all(opener_for(kem), portions(sent, sizes)) == expected
    reader, answer = exchange(kem, texts, last)
    assert open_all(reader, portions(answer, sizes)) == expected


@given(kems, chunks, st.binary(max_size=60), st.data())
def test_any_flipped_bit_of_a_request_is_refused(
    kem: Kem, texts: list[bytes], last: bytes, data: st.DataObject
) -> None:
    _, sent = sealed_request(kem, texts, last)
    at = data.draw(st.integers(0, len(sent) * 8 - 1))
    changed = bytearray(sent)
    changed[at // 8] ^= 1 << at % 8
    with pytest.raises((UnknownKey, DecapsulationFailed, ChunkRefused, TruncatedMessage, OversizedChunk)):
        open_all(opener_for(kem), [bytes(changed)])


@given(chunks, st.binary(max_size=60), st.data())
def test_any_flipped_bit_of_a_response_is_refused(
    texts: list[bytes], last: bytes, data: st.DataObject
) -> None:
    reader, answer = exchange(Kem.X25519, texts, last)
    at = data.draw(st.integers(0, len(answer) * 8 - 1))
    changed = bytearray(answer)
    changed[at // 8] ^= 1 << at % 8
    with pytest.raises((ChunkRefused, TruncatedMessage, OversizedChunk)):
        open_all(reader, [bytes(changed)])


@given(chunks, st.binary(max_size=60), st.data())
def test_any_truncated_message_is_refused(texts: list[bytes], last: bytes, data: st.DataObject) -> None:
    _, sent = sealed_request(Kem.X25519, texts, last)
    reader, answer = exchange(Kem.X25519, texts, last)
    for opener, whole in ((opener_for(Kem.X25519), sent), (reader, answer)):
        length = data.draw(st.integers(0, len(whole) - 1))
        final_starts = len(whole) - len(last) - 16
        # Once a final chunk is long enough to be one, a cut looks like tampering, and is refused as such.
        expected = TruncatedMessage if length < final_starts + 16 else (ChunkRefused, DecapsulationFailed)
        with pytest.raises(expected):
            open_all(opener, [whole[:length]])


@given(st.lists(st.binary(min_size=1, max_size=40), min_size=2, max_size=6, unique=True), st.data())
def test_any_other_order_of_chunks_is_refused(texts: list[bytes], data: st.DataObject) -> None:
    sealer = ohttp.RequestSealer(KEYS[Kem.X25519].config)
    framed = [sealer.seal(text, final=False) for text in texts]
    last = sealer.seal(b"", final=True)
    order = data.draw(st.permutations(range(len(framed))).filter(lambda found: found != sorted(found)))
    with pytest.raises((DecapsulationFailed, ChunkRefused)):
        open_all(opener_for(Kem.X25519), [sealer.header, *(framed[at] for at in order), last])


@given(st.lists(st.booleans(), min_size=2, max_size=6), st.booleans())
def test_any_splice_of_two_streams_is_refused(sources: list[bool], of_responses: bool) -> None:
    """Chunk ``n`` of either stream has the same place, length and plaintext; only one stream's may open."""
    if of_responses:
        (reader, one), (_, two) = (exchange(Kem.X25519, [b"text"] * len(sources), b"end") for _ in "12")
        head, opener = 32, reader
    else:
        (_, one), (_, two) = (sealed_request(Kem.X25519, [b"text"] * len(sources), b"end") for _ in "12")
        head, opener = 7 + 32, opener_for(Kem.X25519)
    size = 1 + 4 + 16
    spliced = one[:head]
    for place, from_other in enumerate(sources):
        spliced += (two if from_other else one)[head + place * size : head + (place + 1) * size]
    spliced += one[len(spliced) :]
    if spliced == one:
        assert open_all(opener, [spliced]) == [b"text"] * len(sources) + [b"end"]
    else:
        with pytest.raises((DecapsulationFailed, ChunkRefused)):
            open_all(opener, [spliced])


@given(st.binary(max_size=300), cuts)
def test_readers_raise_nothing_but_their_own_errors(data: bytes, sizes: list[int]) -> None:
    _, sent = sealed_request(Kem.X25519, [b"text"], b"end")
    reader, answer = exchange(Kem.X25519, [b"text"], b"end")
    attempts = (
        (opener_for(Kem.X25519), data),
        (opener_for(Kem.X25519), sent[:39] + data),
        (reader, answer[:32] + data),
        (bhttp.RequestDecoder(), data),
        (bhttp.RequestDecoder(), b"\x00\x03GET\x05https\x01a\x01/" + data),
        (bhttp.RequestDecoder(), b"\x02\x03GET\x05https\x01a\x01/" + data),
        (bhttp.ResponseDecoder(), data),
        (bhttp.ResponseDecoder(), b"\x01\x40\xc8" + data),
        (bhttp.ResponseDecoder(), b"\x03\x40\xc8" + data),
    )
    for decoder, message in attempts:
        try:
            for portion in portions(message, sizes):
                decoder.feed(portion)
            decoder.finish()
        except CloisterError:
            continue
    for parse in (ohttp.parse_key_configs, ohttp.parse_key_config):
        try:
            parse(data)
        except CloisterError:
            continue


@given(requests, st.binary(max_size=400), fields, cuts, st.integers(0, 70))
def test_requests_survive_both_framings_and_any_portions(
    request: bhttp.Request, body: bytes, trailers: bhttp.Fields, sizes: list[int], padding: int
) -> None:
    known = bhttp.encode_request(request, body, trailers=trailers)
    content = b"".join(bhttp.body_chunk(portion) for portion in portions(body, sizes))
    open_ended = bhttp.request_head(request) + content + bhttp.body_end(trailers)
    for message in (known, open_ended):
        decoder = bhttp.RequestDecoder()
        events = [
            event for portion in portions(message + bytes(padding), sizes) for event in decoder.feed(portion)
        ]
        assert decoder.finish() == []
        check(events, request, body, trailers)


@given(responses, st.binary(max_size=400), fields, cuts)
def test_responses_survive_both_framings_and_any_portions(
    response: bhttp.Response, body: bytes, trailers: bhttp.Fields, sizes: list[int]
) -> None:
    known = bhttp.encode_response(response, body, trailers=trailers)
    content = b"".join(bhttp.body_chunk(portion) for portion in portions(body, sizes))
    open_ended = bhttp.response_head(response) + content + bhttp.body_end(trailers)
    for message in (known, open_ended):
        decoder = bhttp.ResponseDecoder()
        events = [event for portion in portions(message, sizes) for event in decoder.feed(portion)]
        assert decoder.finish() == []
        check(events, response, body, trailers)


def check(
    events: list[bhttp.Head[bhttp.Request] | bhttp.Head[bhttp.Response] | bhttp.BodyChunk | bhttp.End],
    head: bhttp.Request | bhttp.Response,
    body: bytes,
    trailers: bhttp.Fields,
) -> None:
    assert events[0] == bhttp.Head(head)
    assert b"".join(event.data for event in events[1:-1] if isinstance(event, bhttp.BodyChunk)) == body
    assert all(isinstance(event, bhttp.BodyChunk) and event.data for event in events[1:-1])
    assert events[-1] == bhttp.End(trailers)


@given(requests, st.binary(min_size=1, max_size=100))
def test_a_message_cut_anywhere_but_between_two_sections_is_refused(
    request: bhttp.Request, body: bytes
) -> None:
    """RFC 9292 cannot tell a cut between sections from sections left out; the seal around it can."""
    message = bhttp.encode_request(request, body)
    bare = bhttp.Request(request.method, request.scheme, request.authority, request.path)
    control_ends = len(bhttp.encode_request(bare)) - 3
    content_starts = len(message) - 1 - len(body) - len(encode_varint(len(body)))
    for length in range(len(message)):
        decoder = bhttp.RequestDecoder()
        events = decoder.feed(message[:length])
        if length == len(message) - 1:
            check(events + decoder.finish(), request, body, ())
        elif length in (control_ends, content_starts):
            check(events + decoder.finish(), bare if length == control_ends else request, b"", ())
        else:
            with pytest.raises(TruncatedMessage):
                decoder.finish()


@given(st.integers(0, MAX_VARINT), st.binary(max_size=9))
def test_integers_survive_their_spelling_and_no_prefix_of_it_reads(value: int, behind: bytes) -> None:
    spelled = encode_varint(value)
    assert decode_varint(spelled + behind, 0) == (value, len(spelled))
    for length in range(len(spelled)):
        assert decode_varint(spelled[:length], 0) is None


@given(
    st.lists(
        st.tuples(kems, st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=1, unique=True)),
        min_size=1,
        max_size=4,
    ),
    st.data(),
)
def test_key_lists_survive_their_encoding_and_no_prefix_of_one_reads_as_the_same(
    entries: list[tuple[Kem, list[tuple[int, int]]]], data: st.DataObject
) -> None:
    configs = tuple(
        ohttp.KeyConfig(at, kem, KEYS[kem].config.public_key, tuple(pairs))
        for at, (kem, pairs) in enumerate(entries)
    )
    encoded = ohttp.encode_key_configs(configs)
    assert ohttp.parse_key_configs(encoded) == configs
    prefix = encoded[: data.draw(st.integers(0, len(encoded) - 1))]
    try:
        read = ohttp.parse_key_configs(prefix)
    except FormatError:
        return
    assert read == configs[: len(read)] != configs
