"""The examples of RFC 9292, section 5: decoded, and encoded again to the same bytes."""

from __future__ import annotations

import pytest

from cloister.channel import bhttp

HELLO = bhttp.Request(
    b"GET",
    b"https",
    b"",
    b"/hello.txt",
    (
        (b"user-agent", b"curl/7.16.3 libcurl/7.16.3 OpenSSL/0.9.7l zlib/1.2.3"),
        (b"host", b"www.example.com"),
        (b"accept-language", b"en, mi"),
    ),
)
KNOWN_REQUEST = bytes.fromhex(
    "0003474554056874747073000a2f68656c6c6f2e747874406c0a757365722d6167656e74346375726c2f372e31362e33"
    "206c69626375726c2f372e31362e33204f70656e53534c2f302e392e376c207a6c69622f312e322e3304686f73740f77"
    "77772e6578616d706c652e636f6d0f6163636570742d6c616e677561676506656e2c206d690000"
)
INDETERMINATE_REQUEST = bytes.fromhex(
    "0203474554056874747073000a2f68656c6c6f2e7478740a757365722d6167656e74346375726c2f372e31362e33206c"
    "69626375726c2f372e31362e33204f70656e53534c2f302e392e376c207a6c69622f312e322e3304686f73740f777777"
    "2e6578616d706c652e636f6d0f6163636570742d6c616e677561676506656e2c206d6900000000000000000000000000"
)
INFORMATIONAL_RESPONSE = bytes.fromhex(
    "0340660772756e6e696e670a22736c65657020313522004067046c696e6b233c2f7374796c652e6373733e3b2072656c"
    "3d7072656c6f61643b2061733d7374796c65046c696e6b243c2f7363726970742e6a733e3b2072656c3d7072656c6f61"
    "643b2061733d7363726970740040c804646174651d4d6f6e2c203237204a756c20323030392031323a32383a35332047"
    "4d5406736572766572064170616368650d6c6173742d6d6f6469666965641d5765642c203232204a756c203230303920"
    "31393a31353a353620474d5404657461671422333461613338372d642d3135363865623030220d6163636570742d7261"
    "6e6765730562797465730e636f6e74656e742d6c656e67746802353104766172790f4163636570742d456e636f64696e"
    "670c636f6e74656e742d747970650a746578742f706c61696e003348656c6c6f20576f726c6421204d7920636f6e7465"
    "6e7420696e636c75646573206120747261696c696e672043524c462e0d0a0000"
)
CHUNKED_RESPONSE = bytes.fromhex(
    "0140c8001d5468697320636f6e74656e7420636f6e7461696e732043524c462e0d0a0d07747261696c65720474657874"
)
END = bhttp.End(())


@pytest.mark.parametrize("cut", range(3))
def test_the_known_length_request_decodes_and_may_lose_its_last_two_bytes(cut: int) -> None:
    decoder = bhttp.RequestDecoder()
    events = decoder.feed(KNOWN_REQUEST[: len(KNOWN_REQUEST) - cut])
    assert events + decoder.finish() == [bhttp.Head(HELLO), END]


def test_the_known_length_request_encodes_to_the_same_bytes() -> None:
    assert bhttp.encode_request(HELLO) == KNOWN_REQUEST


@pytest.mark.parametrize("cut", range(13))
def test_the_indeterminate_request_decodes_and_may_lose_up_to_twelve_bytes(cut: int) -> None:
    decoder = bhttp.RequestDecoder()
    events = decoder.feed(INDETERMINATE_REQUEST[: len(INDETERMINATE_REQUEST) - cut])
    assert events + decoder.finish() == [bhttp.Head(HELLO), END]


def test_the_indeterminate_request_encodes_to_the_same_bytes() -> None:
    assert bhttp.request_head(HELLO) + bhttp.body_end() + bytes(10) == INDETERMINATE_REQUEST


def test_informational_responses_are_passed_over_and_the_final_one_is_read() -> None:
    decoder = bhttp.ResponseDecoder()
    head, body, end = decoder.feed(INFORMATIONAL_RESPONSE) + decoder.finish()
    assert isinstance(head, bhttp.Head)
    assert head.message.status == 200
    assert [name for name, _ in head.message.headers] == [
        b"date",
        b"server",
        b"last-modified",
        b"etag",
        b"accept-ranges",
        b"content-length",
        b"vary",
        b"content-type",
    ]
    assert body == bhttp.BodyChunk(b"Hello World! My content includes a trailing CRLF.\r\n")
    assert end == END


def test_the_known_length_response_has_its_trailer() -> None:
    decoder = bhttp.ResponseDecoder()
    events = decoder.feed(CHUNKED_RESPONSE) + decoder.finish()
    body, trailers = b"This content contains CRLF.\r\n", ((b"trailer", b"text"),)
    assert events == [bhttp.Head(bhttp.Response(200)), bhttp.BodyChunk(body), bhttp.End(trailers)]
    assert bhttp.encode_response(bhttp.Response(200), body, trailers=trailers) == CHUNKED_RESPONSE
