"""Binary HTTP: both framings, any portions, truncation as allowed, and the named malformed messages."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from cloister.channel import bhttp
from cloister.channel.varint import MAX_VARINT, decode_varint, encode_varint
from cloister.errors import (
    ChannelError,
    CloisterError,
    FormatError,
    OversizedChunk,
    TruncatedMessage,
    UsageError,
)

POST = bhttp.Request(
    b"POST",
    b"https",
    b"example.com:8443",
    b"/v1/chat/completions?a=b%20c",
    (
        (b"content-type", b"application/json"),
        (b"x-empty", b""),
        (b"x-twice", b"1"),
        (b"x-twice", b"\xc3\xa9 2"),
    ),
)
TEAPOT = bhttp.Response(418, ((b"content-type", b"text/plain"),))
TRAILERS = ((b"checksum", b"abc"),)

Event = bhttp.Head[bhttp.Request] | bhttp.Head[bhttp.Response] | bhttp.BodyChunk | bhttp.End


def read(
    decoder: bhttp.RequestDecoder | bhttp.ResponseDecoder, data: bytes, portion: int | None = None
) -> list[Event]:
    """Every event, neighbouring body chunks joined."""
    step = portion or len(data) or 1
    events: list[Event] = []
    for at in range(0, len(data), step):
        events += decoder.feed(data[at : at + step])
    events += decoder.finish()
    joined: list[Event] = []
    for event in events:
        if isinstance(event, bhttp.BodyChunk) and joined and isinstance(joined[-1], bhttp.BodyChunk):
            joined[-1] = bhttp.BodyChunk(joined[-1].data + event.data)
        else:
            joined.append(event)
    return joined


def request(data: bytes) -> list[Event]:
    return read(bhttp.RequestDecoder(), data)


def response(data: bytes) -> list[Event]:
    return read(bhttp.ResponseDecoder(), data)


@pytest.mark.parametrize("portion", [1, 2, 7, 64, None])
@pytest.mark.parametrize("body", [b"", b"x", bytes(70), b"y" * 20000], ids=len)
def test_a_request_comes_through_in_both_framings_and_any_portions(body: bytes, portion: int | None) -> None:
    known = bhttp.encode_request(POST, body, trailers=TRAILERS)
    open_ended = bhttp.request_head(POST) + bhttp.body_chunk(body[:5]) + bhttp.body_chunk(body[5:])
    content = [bhttp.BodyChunk(body)] if body else []
    for message in (known, open_ended + bhttp.body_end(TRAILERS), known + bytes(33)):
        events = read(bhttp.RequestDecoder(), message, portion)
        assert events == [bhttp.Head(POST), *content, bhttp.End(TRAILERS)]


@pytest.mark.parametrize("portion", [1, 3, None])
def test_a_response_comes_through_in_both_framings_and_any_portions(portion: int | None) -> None:
    open_ended = (
        bhttp.response_head(TEAPOT) + bhttp.body_chunk(b"short") + bhttp.body_chunk(b"ly") + bhttp.body_end()
    )
    for message in (bhttp.encode_response(TEAPOT, b"shortly"), open_ended, open_ended + bytes(5)):
        events = read(bhttp.ResponseDecoder(), message, portion)
        assert events == [bhttp.Head(TEAPOT), bhttp.BodyChunk(b"shortly"), bhttp.End(())]


def test_content_is_handed_on_before_it_is_complete() -> None:
    decoder = bhttp.ResponseDecoder()
    head = bhttp.encode_response(TEAPOT, bytes(1000))[:-1001]
    assert decoder.feed(head) == [bhttp.Head(TEAPOT)]
    assert decoder.feed(b"abc") == [bhttp.BodyChunk(b"abc")]
    assert decoder.feed(bytes(997) + b"\x00") == [bhttp.BodyChunk(bytes(997)), bhttp.End(())]
    assert decoder.feed(bytes(10)) == []
    assert decoder.finish() == []


def test_a_message_may_leave_out_its_last_sections_where_they_are_empty() -> None:
    bare = b"\x00\x03GET\x05https\x01a\x01/"
    head = bhttp.Head(bhttp.Request(b"GET", b"https", b"a", b"/"))
    for framing in (b"\x00", b"\x02"):
        for sections in range(4):
            message = framing + bare[1:] + bytes(sections)
            assert request(message) == [head, bhttp.End(())]
    assert (
        response(b"\x01\x40\xc8")
        == response(b"\x03\x40\xc8")
        == [
            bhttp.Head(bhttp.Response(200)),
            bhttp.End(()),
        ]
    )
    assert request(bhttp.encode_request(POST, b"body")[:-1]) == [
        bhttp.Head(POST),
        bhttp.BodyChunk(b"body"),
        bhttp.End(()),
    ]


def test_padding_brings_a_message_to_the_length_asked_for() -> None:
    message = bhttp.encode_request(POST, b"body", pad_to=512)
    assert len(message) == 512
    assert request(message) == [bhttp.Head(POST), bhttp.BodyChunk(b"body"), bhttp.End(())]
    assert len(bhttp.encode_request(POST, bytes(600), pad_to=512)) > 600


def test_fields_that_steer_a_connection_are_left_out_on_both_sides() -> None:
    fields = ((b"connection", b"keep-alive"), (b"transfer-encoding", b"chunked"), (b"x", b"y"))
    assert bhttp.Request(b"GET", b"https", b"a", b"/", fields).headers == ((b"x", b"y"),)
    lines = b"\x0aconnection\x05close\x01x\x01y"
    head = request(b"\x00\x03GET\x05https\x01a\x01/" + bytes([len(lines)]) + lines)[0]
    assert head == bhttp.Head(bhttp.Request(b"GET", b"https", b"a", b"/", ((b"x", b"y"),)))


def test_an_informational_response_is_checked_and_passed_over() -> None:
    early = b"\x40\x67\x01a\x01b\x00"
    assert response(b"\x03" + early * 8 + b"\x40\xc8") == [bhttp.Head(bhttp.Response(200)), bhttp.End(())]
    with pytest.raises(OversizedChunk):
        response(b"\x03" + early * 9 + b"\x40\xc8")
    with pytest.raises(FormatError):
        response(b"\x03" + early.replace(b"a", b"A") + b"\x40\xc8")
    with pytest.raises(TruncatedMessage):
        response(b"\x03" + early)


def test_content_length_has_to_hold_in_a_request_and_not_in_a_response() -> None:
    def declaring(*values: bytes) -> bytes:
        head = bhttp.Request(b"PUT", b"https", b"a", b"/", tuple((b"content-length", v) for v in values))
        return bhttp.encode_request(head, b"four")

    assert request(declaring(b"4"))[-1] == bhttp.End(())
    for values in ([b"3"], [b"5"], [b"4", b"4"], [b"+4"], [b"4,4"], [b"0x4"], [b""], [b"9" * 19]):
        with pytest.raises(FormatError):
            request(declaring(*values))
    to_head = bhttp.Response(200, ((b"content-length", b"1000"),))
    assert response(bhttp.encode_response(to_head))[-1] == bhttp.End(())


BARE = b"\x00\x03GET\x05https\x01a\x01/"
WRONG_REQUESTS: dict[str, tuple[type[CloisterError], bytes]] = {
    "a response": (FormatError, bhttp.encode_response(TEAPOT)),
    "an unknown framing": (FormatError, b"\x04" + BARE[1:]),
    "plain HTTP": (FormatError, b"GET / HTTP/1.1\r\n\r\n"),
    "nothing at all": (TruncatedMessage, b""),
    "cut inside the method": (TruncatedMessage, BARE[:3]),
    "cut before the path": (TruncatedMessage, BARE[:-2]),
    "cut inside the header section": (TruncatedMessage, BARE + b"\x04\x01a"),
    "cut behind a field name": (TruncatedMessage, b"\x02" + BARE[1:] + b"\x01a"),
    "headers without their end": (TruncatedMessage, b"\x02" + BARE[1:] + b"\x01a\x01b"),
    "cut inside the content": (TruncatedMessage, BARE + b"\x00\x05abc"),
    "cut inside a portion of content": (TruncatedMessage, b"\x02" + BARE[1:] + b"\x00\x05abc"),
    "content without its end": (TruncatedMessage, b"\x02" + BARE[1:] + b"\x00\x03abc"),
    "cut inside the trailers": (TruncatedMessage, BARE + b"\x00\x00\x04\x01a"),
    "cut inside a length": (TruncatedMessage, BARE + b"\x00\x40"),
    "padding that is not zero": (FormatError, BARE + b"\x00\x00\x00\x00\x01"),
    "a second message behind the first": (FormatError, BARE + b"\x00\x00\x00" + b"\x02" + BARE),
    "a field over its section's end": (FormatError, BARE + b"\x03\x01a\x05hello"),
    "a field name over its section's end": (FormatError, BARE + b"\x02\x05hello\x00"),
    "a length over its section's end": (FormatError, BARE + b"\x03\x01a\x40\x01b"),
    "a huge header section": (OversizedChunk, BARE + b"\x80\x01\x00\x01"),
    "a header section of 2^62 - 1 bytes": (OversizedChunk, BARE + b"\xff" * 8),
    "a huge path": (OversizedChunk, BARE[:-2] + b"\x80\x00\x40\x01"),
    "a method of 2^62 - 1 bytes": (OversizedChunk, b"\x00" + b"\xff" * 8),
    "a huge value without a section length": (OversizedChunk, b"\x02" + BARE[1:] + b"\x01a\x80\x01\x00\x00"),
    "endless fields": (OversizedChunk, b"\x02" + BARE[1:] + b"\x01a\x01b" * 257),
    "an empty field name": (FormatError, BARE + b"\x02\x00\x00"),
    "a pseudo-field": (FormatError, BARE + b"\x09\x05:path\x02/x"),
    "an unknown pseudo-field": (FormatError, BARE + b"\x0d\x09:protocol\x02ws"),
    "an upper-case field name": (FormatError, BARE + b"\x04\x01A\x01b"),
    "a field name with a space": (FormatError, BARE + b"\x05\x02a \x01b"),
    "a field name with a line end": (FormatError, BARE + b"\x05\x02a\n\x01b"),
    "a value with a line end": (FormatError, BARE + b"\x08\x01a\x05b\r\nc:"),
    "a value with a zero byte": (FormatError, BARE + b"\x06\x01a\x03b\x00c"),
    "a value with an escape": (FormatError, BARE + b"\x06\x01a\x03b\x1bc"),
    "a value with space before it": (FormatError, BARE + b"\x05\x01a\x02 b"),
    "a value with a tab behind it": (FormatError, BARE + b"\x05\x01a\x02b\t"),
    "a trailer with a line end": (FormatError, BARE + b"\x00\x00\x06\x01a\x03b\nc"),
}
WRONG_RESPONSES: dict[str, tuple[type[CloisterError], bytes]] = {
    "a request": (FormatError, BARE),
    "status 99": (FormatError, b"\x01\x40\x63"),
    "status 600": (FormatError, b"\x01\x42\x58"),
    "status 0": (FormatError, b"\x01\x00"),
    "a status of 2^62 - 1": (FormatError, b"\x01" + b"\xff" * 8),
    "no status": (TruncatedMessage, b"\x01"),
    "cut content": (TruncatedMessage, bhttp.encode_response(TEAPOT, b"content")[:-2]),
    "a stream without its end": (TruncatedMessage, bhttp.response_head(TEAPOT) + bhttp.body_chunk(b"abc")),
    "padding that is not zero": (FormatError, bhttp.encode_response(TEAPOT) + b"\x00\x07"),
}


@pytest.mark.parametrize(("error", "data"), WRONG_REQUESTS.values(), ids=WRONG_REQUESTS)
@pytest.mark.parametrize("portion", [None, 1], ids=["at once", "byte by byte"])
def test_a_malformed_request_is_refused(error: type[CloisterError], data: bytes, portion: int | None) -> None:
    decoder = bhttp.RequestDecoder()
    with pytest.raises(error) as raised:
        read(decoder, data, portion)
    assert type(raised.value) is error
    with pytest.raises(ChannelError):
        decoder.feed(b"")


@pytest.mark.parametrize(("error", "data"), WRONG_RESPONSES.values(), ids=WRONG_RESPONSES)
@pytest.mark.parametrize("portion", [None, 1], ids=["at once", "byte by byte"])
def test_a_malformed_response_is_refused(
    error: type[CloisterError], data: bytes, portion: int | None
) -> None:
    with pytest.raises(error) as raised:
        read(bhttp.ResponseDecoder(), data, portion)
    assert type(raised.value) is error


CONTROL_DATA: dict[str, tuple[bytes, bytes, bytes, bytes]] = {
    "no method": (b"", b"https", b"a", b"/"),
    "a method with a space": (b"GET /", b"https", b"a", b"/"),
    "a method with a line end": (b"GET\r\n", b"https", b"a", b"/"),
    "no scheme": (b"GET", b"", b"a", b"/"),
    "an upper-case scheme": (b"GET", b"HTTPS", b"a", b"/"),
    "a scheme with a colon": (b"GET", b"https:", b"a", b"/"),
    "a user name in the authority": (b"GET", b"https", b"a@b", b"/"),
    "a path in the authority": (b"GET", b"https", b"a/b", b"/"),
    "a space in the authority": (b"GET", b"https", b"a b", b"/"),
    "a zero byte in the authority": (b"GET", b"https", b"a\x00", b"/"),
    "no path": (b"GET", b"https", b"a", b""),
    "a relative path": (b"GET", b"https", b"a", b"x/y"),
    "a whole URL as path": (b"GET", b"https", b"a", b"http://b/"),
    "a path with a space": (b"GET", b"https", b"a", b"/ HTTP/1.1"),
    "a path with a line end": (b"GET", b"https", b"a", b"/\r\nx: y"),
    "a path with a zero byte": (b"GET", b"https", b"a", b"/\x00"),
    "a path with a fragment": (b"GET", b"https", b"a", b"/#x"),
    "a path that is not ASCII": (b"GET", b"https", b"a", b"/\xc3\xa9"),
    "a star without OPTIONS": (b"GET", b"https", b"a", b"*"),
    "a tunnel": (b"CONNECT", b"", b"a:443", b""),
}


@pytest.mark.parametrize("parts", CONTROL_DATA.values(), ids=CONTROL_DATA)
def test_control_data_that_is_none_is_refused_on_both_sides(parts: tuple[bytes, bytes, bytes, bytes]) -> None:
    with pytest.raises(FormatError):
        bhttp.Request(*parts)
    with pytest.raises(FormatError):
        request(b"\x00" + b"".join(encode_varint(len(part)) + part for part in parts))


def test_control_data_that_is_none_is_refused_before_any_headers_arrive() -> None:
    with pytest.raises(FormatError):
        bhttp.RequestDecoder().feed(b"\x00\x03GET\x05https\x01a\x01x")
    with pytest.raises(FormatError):
        bhttp.ResponseDecoder().feed(b"\x01\x42\x58")


def test_options_may_ask_about_everything() -> None:
    asked = bhttp.Request(b"OPTIONS", b"https", b"a", b"*")
    assert request(bhttp.encode_request(asked)) == [bhttp.Head(asked), bhttp.End(())]


NOT_ENCODED: dict[str, tuple[type[CloisterError], Callable[[], object]]] = {
    "an informational final response": (FormatError, lambda: bhttp.Response(103)),
    "an upper-case field name": (FormatError, lambda: bhttp.Response(200, ((b"Date", b""),))),
    "a field that splits the response": (FormatError, lambda: bhttp.Response(200, ((b"a", b"b\r\nc: d"),))),
    "a pseudo-field in the trailers": (FormatError, lambda: bhttp.body_end(((b":status", b"200"),))),
    "too many fields": (OversizedChunk, lambda: bhttp.Response(200, ((b"a", b"b"),) * 257)),
    "too large a field": (OversizedChunk, lambda: bhttp.Response(200, ((b"a", bytes([65]) * 65536),))),
    "too long a path": (OversizedChunk, lambda: bhttp.Request(b"GET", b"https", b"a", b"/" + b"x" * 16384)),
}


@pytest.mark.parametrize(("error", "attempt"), NOT_ENCODED.values(), ids=NOT_ENCODED)
def test_what_would_not_be_read_is_not_written(
    error: type[CloisterError], attempt: Callable[[], object]
) -> None:
    with pytest.raises(error):
        attempt()


def test_an_error_never_repeats_a_fields_value() -> None:
    with pytest.raises(FormatError) as raised:
        bhttp.Response(200, ((b"authorization", b"secret\x00value"),))
    assert "secret" not in str(raised.value)


@pytest.mark.parametrize(
    ("value", "spelled"),
    [
        (0, "00"),
        (37, "25"),
        (63, "3f"),
        (64, "4040"),
        (15293, "7bbd"),
        (16384, "80004000"),
        (494878333, "9d7f3e7d"),
        (151288809941952652, "c2197c5eff14e88c"),
        (MAX_VARINT, "ff" * 8),
    ],
)
def test_variable_length_integers_are_spelled_as_rfc_9000_shows(value: int, spelled: str) -> None:
    encoded = bytes.fromhex(spelled)
    assert encode_varint(value) == encoded
    assert decode_varint(b"\xff" + encoded, 1) == (value, 1 + len(encoded))
    assert decode_varint(encoded[:-1], 0) is None


def test_a_longer_spelling_of_an_integer_is_read_and_one_out_of_range_not_written() -> None:
    assert decode_varint(bytes.fromhex("4025"), 0) == (37, 2)
    for value in (-1, MAX_VARINT + 1):
        with pytest.raises(UsageError):
            encode_varint(value)
