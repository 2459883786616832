"""Which header fields cross the seal."""

from __future__ import annotations

from cloister.channel import headers


def test_fields_of_one_hop_and_of_the_seal_itself_stay_out_of_a_request():
    fields = (
        (b"Host", b"a"),
        (b"Authorization", b"Bearer k"),
        (b"Connection", b"keep-alive"),
        (b"Accept-Encoding", b"gzip"),
        (b"Content-Length", b"3"),
        (b"Cloister-Request-Id", b"0" * 32),
        (b"Cloister-Padding", b"v2"),
        (b"X-Spaced", b"  v\t"),
    )
    assert headers.to_seal(fields) == ((b"authorization", b"Bearer k"), (b"x-spaced", b"v"))


def test_a_caller_does_not_see_the_padding_of_an_answer_nor_its_padded_length():
    fields = ((b"content-type", b"text/plain"), (b"content-length", b"9"), (b"cloister-padding", b"v1"))
    assert headers.to_present(fields) == ((b"content-type", b"text/plain"),)


def test_the_first_of_several_values_counts():
    assert headers.first(((b"A", b"1"), (b"a", b"2")), b"a") == b"1"
    assert headers.first((), b"a") is None
