"""Sealed exchanges: key configurations, chunked and whole messages, and the named attacks on them."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from cloister.channel import ohttp
from cloister.channel.hpke import Kem, KeyPair
from cloister.errors import (
    ChannelError,
    ChunkRefused,
    CloisterError,
    DecapsulationFailed,
    FormatError,
    OversizedChunk,
    TruncatedMessage,
    UnknownKey,
    UsageError,
)


def server_key(kem: Kem = Kem.X25519, key_id: int = 7) -> ohttp.ServerKey:
    pair = KeyPair.generate(kem)
    return ohttp.ServerKey(ohttp.KeyConfig(key_id, kem, pair.public_key), pair)


KEY = server_key()


def find_key(key_id: int) -> ohttp.ServerKey:
    if key_id != KEY.config.key_id:
        raise UnknownKey(f"no key {key_id}")
    return KEY


def sealed_request(*chunks: bytes) -> tuple[ohttp.RequestSealer, bytes, list[bytes]]:
    """The sealer, its header, and the framed chunks, the last one final."""
    sealer = ohttp.RequestSealer(KEY.config)
    framed = [sealer.seal(chunk, final=at == len(chunks) - 1) for at, chunk in enumerate(chunks)]
    return sealer, sealer.header, framed


def open_request(data: bytes, **options: int) -> list[bytes]:
    opener = ohttp.RequestOpener(find_key, **options)
    return opener.feed(data) + opener.finish()


def answered(*chunks: bytes) -> tuple[ohttp.ResponseOpener, bytes, list[bytes]]:
    """The client's opener, the response's nonce, and the framed chunks of the response."""
    sealer, header, framed = sealed_request(b"question")
    opener = ohttp.RequestOpener(find_key)
    opener.feed(header + b"".join(framed))
    opener.finish()
    response = opener.response()
    sent = [response.seal(chunk, final=at == len(chunks) - 1) for at, chunk in enumerate(chunks)]
    return sealer.response(), response.header, sent


def read_all(opener: ohttp.RequestOpener | ohttp.ResponseOpener, sent: bytes, *, portion: int) -> list[bytes]:
    opened = [data for at in range(0, len(sent), portion) for data in opener.feed(sent[at : at + portion])]
    return opened + opener.finish()


def flip(data: bytes, at: int) -> bytes:
    changed = bytearray(data)
    changed[at] ^= 1
    return bytes(changed)


@pytest.mark.parametrize("kem", Kem)
@pytest.mark.parametrize("chunked", [True, False], ids=["chunked", "whole"])
@pytest.mark.parametrize("pair", ohttp.DEFAULT_SYMMETRIC, ids=str)
def test_a_request_and_its_response_come_through(kem: Kem, chunked: bool, pair: tuple[int, int]) -> None:
    keys = KeyPair.generate(kem)
    key = ohttp.ServerKey(ohttp.KeyConfig(3, kem, keys.public_key, (pair,)), keys)
    sealer = ohttp.RequestSealer(key.config, chunked=chunked)
    opener = ohttp.RequestOpener(lambda key_id: key, chunked=chunked)
    assert opener.key_id is opener.enc is None
    assert opener.feed(sealer.header + sealer.seal(b"question", final=True)) == []
    assert not opener.complete
    assert opener.finish() == [b"question"]
    assert (opener.complete, opener.key_id, opener.enc) == (True, 3, sealer.enc)

    answer, reader = opener.response(), sealer.response()
    assert reader.feed(answer.header + answer.seal(b"answer", final=True)) == []
    assert reader.finish() == [b"answer"]
    assert reader.complete


def test_chunks_open_as_they_arrive_and_may_have_any_size_up_to_the_bound() -> None:
    sizes = [1, 63, 64, 16383, 16384, ohttp.MAX_CHUNK]
    _, header, framed = sealed_request(*(bytes(size) for size in sizes), b"end")
    opener = ohttp.RequestOpener(find_key)
    assert opener.feed(header) == []
    for size, chunk in zip(sizes, framed, strict=False):
        assert opener.feed(chunk) == [bytes(size)]
    assert opener.feed(framed[-1]) == []
    assert opener.finish() == [b"end"]


def test_a_response_may_start_before_the_request_has_ended_but_not_before_any_of_it_opened() -> None:
    sealer, header, framed = sealed_request(b"first", b"last")
    opener = ohttp.RequestOpener(find_key)
    opener.feed(header)
    with pytest.raises(UsageError):
        opener.response()
    opener.feed(framed[0])
    response = opener.response()
    reader = sealer.response()
    assert reader.feed(response.header + response.seal(b"early", final=False)) == [b"early"]


def test_a_sealed_chunk_without_data_is_refused_although_it_would_open() -> None:
    sealer = ohttp.RequestSealer(KEY.config)
    opener = ohttp.RequestOpener(find_key)
    with pytest.raises(ChunkRefused):
        opener.feed(sealer.header + b"\x10" + sealer._sender.seal(b"", b""))


def altered_requests() -> dict[str, tuple[type[CloisterError], bytes]]:
    _, header, (one, two, last) = sealed_request(b"one", b"two", b"last")
    _, other_header, (other_one, other_two, other_last) = sealed_request(b"one", b"two", b"last")
    return {
        "first chunk altered": (DecapsulationFailed, header + flip(one, 5) + two + last),
        "later chunk altered": (ChunkRefused, header + one + flip(two, 5) + last),
        "final chunk altered": (ChunkRefused, header + one + two + flip(last, 5)),
        "encapsulated key altered": (DecapsulationFailed, header[:-1] + flip(header[-1:], 0) + one + last),
        "encapsulated key of low order": (DecapsulationFailed, header[:7] + bytes(32) + one + last),
        "encapsulated key of another request": (DecapsulationFailed, other_header + one + two + last),
        "chunks swapped": (DecapsulationFailed, header + two + one + last),
        "a chunk left out": (ChunkRefused, header + one + last),
        "a chunk repeated": (ChunkRefused, header + one + one + two + last),
        "a chunk of another request spliced in": (ChunkRefused, header + one + other_two + last),
        "the first chunk of another request": (DecapsulationFailed, header + other_one + two + last),
        "the end of another request": (ChunkRefused, header + one + two + other_last),
        "a middle chunk made the final one": (ChunkRefused, header + one + b"\x00" + two[1:]),
        "the final chunk made a middle one": (
            ChunkRefused,
            header + one + two + bytes([len(last) - 1]) + last[1:] + b"\x00" + last[1:],
        ),
        "data behind the final chunk": (ChunkRefused, header + one + two + last + b"\x00"),
        "another message behind the final chunk": (ChunkRefused, header + one + two + last + one),
        "an empty chunk in the middle": (ChunkRefused, header + one + b"\x10" + bytes(16)),
        "no final chunk": (TruncatedMessage, header + one + two),
        "cut inside a chunk": (TruncatedMessage, header + one + two[:-1]),
        "cut behind a length": (TruncatedMessage, header + one + two[:1]),
        "cut behind the final mark": (TruncatedMessage, header + one + two + last[:1]),
        "cut inside the final tag": (TruncatedMessage, header + one + two + last[:10]),
        "cut inside the final chunk": (ChunkRefused, header + one + two + last[:-1]),
        "cut inside the encapsulated key": (TruncatedMessage, header[:20]),
        "cut inside the head": (TruncatedMessage, header[:3]),
        "nothing at all": (TruncatedMessage, b""),
        "an unknown key": (UnknownKey, b"\x08" + header[1:] + one + last),
        "another KEM": (UnknownKey, header[:1] + b"\x64\x7a" + header[3:] + one + last),
        "an unknown KEM": (UnknownKey, header[:1] + b"\xff\xff" + header[3:] + one + last),
        "a KDF not offered": (UnknownKey, header[:3] + b"\x00\x03" + header[5:] + one + last),
        "an AEAD not offered": (UnknownKey, header[:5] + b"\xff\xff" + header[7:] + one + last),
        "an AEAD offered but not meant": (DecapsulationFailed, header[:5] + b"\x00\x01" + header[7:] + one),
        "a chunk of 2^62 - 1 bytes": (OversizedChunk, header + one + b"\xff" * 8),
        "plain HTTP": (UnknownKey, b"POST / HTTP/1.1\r\n\r\n" + bytes(64)),
    }


ALTERED = altered_requests()


@pytest.mark.parametrize(("error", "sent"), ALTERED.values(), ids=ALTERED)
def test_an_altered_request_is_refused_at_once_or_at_its_end(error: type[CloisterError], sent: bytes) -> None:
    with pytest.raises(error) as raised:
        open_request(sent)
    assert type(raised.value) is error


@pytest.mark.parametrize(("error", "sent"), ALTERED.values(), ids=ALTERED)
def test_an_altered_request_is_refused_byte_by_byte_alike(error: type[CloisterError], sent: bytes) -> None:
    opener = ohttp.RequestOpener(find_key)
    with pytest.raises(error):
        read_all(opener, sent, portion=1)
    assert not opener.complete
    with pytest.raises(ChannelError):
        opener.feed(b"more")
    with pytest.raises(ChannelError):
        opener.finish()


def altered_responses() -> dict[str, tuple[type[CloisterError], ohttp.ResponseOpener, bytes]]:
    def case(
        error: type[CloisterError], change: Callable[[bytes, bytes, bytes, bytes], bytes]
    ) -> tuple[type[CloisterError], ohttp.ResponseOpener, bytes]:
        reader, nonce, (one, two, last) = answered(b"one", b"two", b"last")
        return error, reader, change(nonce, one, two, last)

    _, other_nonce, others = answered(b"one", b"two", b"last")
    other = other_nonce + b"".join(others)
    return {
        "response to another request": case(ChunkRefused, lambda nonce, one, two, last: other),
        "chunk of another response spliced in": case(
            ChunkRefused, lambda nonce, one, two, last: nonce + one + others[1] + last
        ),
        "nonce altered": case(ChunkRefused, lambda nonce, one, two, last: flip(nonce, 0) + one + last),
        "first chunk altered": case(ChunkRefused, lambda nonce, one, two, last: nonce + flip(one, 3) + last),
        "chunks swapped": case(ChunkRefused, lambda nonce, one, two, last: nonce + two + one + last),
        "a chunk left out": case(ChunkRefused, lambda nonce, one, two, last: nonce + two + last),
        "a chunk repeated": case(ChunkRefused, lambda nonce, one, two, last: nonce + one + one),
        "final chunk left out": case(TruncatedMessage, lambda nonce, one, two, last: nonce + one + two),
        "a middle chunk made the final one": case(
            ChunkRefused, lambda nonce, one, two, last: nonce + one + b"\x00" + two[1:]
        ),
        "data behind the final chunk": case(
            ChunkRefused, lambda nonce, one, two, last: nonce + one + two + last + b"\x00"
        ),
        "an empty chunk": case(ChunkRefused, lambda nonce, one, two, last: nonce + b"\x10" + bytes(16)),
        "an oversized chunk": case(
            OversizedChunk, lambda nonce, one, two, last: nonce + b"\xbf\xff\xff\xff" + bytes(99)
        ),
        "cut inside the nonce": case(TruncatedMessage, lambda nonce, one, two, last: nonce[:11]),
        "nothing at all": case(TruncatedMessage, lambda nonce, one, two, last: b""),
        "a plaintext answer": case(
            ChunkRefused,
            lambda nonce, one, two, last: b'{"text":"injected by a proxy"}' * 999,
        ),
    }


ANSWERS = altered_responses()


@pytest.mark.parametrize(("error", "reader", "sent"), ANSWERS.values(), ids=ANSWERS)
def test_an_altered_response_is_refused(
    error: type[CloisterError], reader: ohttp.ResponseOpener, sent: bytes
) -> None:
    with pytest.raises(error) as raised:
        read_all(reader, sent, portion=len(sent) or 1)
    assert type(raised.value) is error
    assert not reader.complete
    with pytest.raises(ChannelError):
        reader.feed(b"more")


def test_a_request_sealed_to_another_key_under_the_same_id_is_refused() -> None:
    stranger = server_key(key_id=KEY.config.key_id)
    sealer = ohttp.RequestSealer(stranger.config)
    with pytest.raises(DecapsulationFailed):
        open_request(sealer.header + sealer.seal(b"question", final=True))


def test_a_chunked_request_is_no_whole_one_and_the_other_way_round() -> None:
    _, header, (chunk,) = sealed_request(b"question")
    whole = ohttp.RequestOpener(find_key, chunked=False)
    whole.feed(header + chunk)
    with pytest.raises(DecapsulationFailed):
        whole.finish()
    sealer = ohttp.RequestSealer(KEY.config, chunked=False)
    sealed = sealer.seal(b"question", final=True)
    for framed in (b"\x00" + sealed, bytes([len(sealed)]) + sealed):
        with pytest.raises(DecapsulationFailed):
            open_request(sealer.header + framed)


@pytest.mark.parametrize("final", [True, False])
def test_a_chunk_over_the_bound_is_refused_and_one_at_the_bound_is_not(final: bool) -> None:
    for size, refused in ((100, False), (101, True)):
        sealer = ohttp.RequestSealer(KEY.config)
        sent = sealer.header + sealer.seal(bytes(size), final=final)
        sent += b"" if final else sealer.seal(b"", final=True)
        if refused:
            with pytest.raises(OversizedChunk):
                open_request(sent, max_chunk=100)
        else:
            assert open_request(sent, max_chunk=100) == [bytes(size)]


def test_an_oversized_chunk_is_refused_by_its_length_before_its_bytes_arrive() -> None:
    opener = ohttp.RequestOpener(find_key, max_chunk=100)
    sealer = ohttp.RequestSealer(KEY.config)
    opener.feed(sealer.header)
    with pytest.raises(OversizedChunk):
        opener.feed(b"\x40\x75")


def test_an_endless_final_chunk_is_refused_while_it_arrives() -> None:
    opener = ohttp.RequestOpener(find_key, max_chunk=100)
    sealer = ohttp.RequestSealer(KEY.config)
    opener.feed(sealer.header + b"\x00" + bytes(116))
    with pytest.raises(OversizedChunk):
        opener.feed(b"\x00")


def test_a_length_may_be_spelled_longer_than_it_needs_to_be() -> None:
    _, header, (one, last) = sealed_request(b"one", b"last")
    assert open_request(header + b"\xc0" + bytes(6) + one + b"\x40\x00" + last[1:]) == [b"one", b"last"]


def test_sealing_goes_on_until_the_final_chunk_and_no_further() -> None:
    sealer = ohttp.RequestSealer(KEY.config)
    assert sealer.seal(b"", final=False) == b""
    with pytest.raises(OversizedChunk):
        sealer.seal(bytes(ohttp.MAX_CHUNK + 1), final=True)
    sealer.seal(b"", final=True)
    for final in (True, False):
        with pytest.raises(UsageError):
            sealer.seal(b"more", final=final)
    whole = ohttp.RequestSealer(KEY.config, chunked=False)
    with pytest.raises(UsageError):
        whole.seal(b"part", final=False)


def test_a_request_has_one_response_on_either_side() -> None:
    sealer, header, framed = sealed_request(b"question")
    opener = ohttp.RequestOpener(find_key)
    opener.feed(header + framed[0])
    opener.finish()
    for side in (sealer, opener):
        side.response()
        with pytest.raises(UsageError):
            side.response()


def test_key_configurations_survive_their_encoding_in_order() -> None:
    configs = (server_key(Kem.X_WING, 9).config, server_key(Kem.X25519, 1).config)
    assert ohttp.parse_key_configs(ohttp.encode_key_configs(configs)) == configs


def test_a_configuration_of_a_kem_unknown_here_is_passed_over() -> None:
    config = server_key().config
    known = ohttp.encode_key_configs([config])
    newer = b"\x05\x00\x51" + bytes(40)
    assert ohttp.parse_key_configs(len(newer).to_bytes(2, "big") + newer + known) == (config,)


def test_the_gateways_first_known_algorithms_are_chosen() -> None:
    keys = KeyPair.generate(Kem.X25519)
    config = ohttp.KeyConfig(1, Kem.X25519, keys.public_key, ((0x10, 1), (1, 0xFFFF), (3, 3), (1, 2)))
    suite = config.choose_suite()
    assert (suite.kdf, suite.aead) == (3, 3)
    assert ohttp.parse_key_config(ohttp.encode_key_config(config)) == config
    with pytest.raises(ChannelError):
        ohttp.KeyConfig(1, Kem.X25519, keys.public_key, ((9, 9),)).choose_suite()


def malformed_lists() -> dict[str, bytes]:
    one = ohttp.encode_key_config(server_key().config)
    other = ohttp.encode_key_config(server_key().config)

    def listed(*items: bytes) -> bytes:
        return b"".join(len(item).to_bytes(2, "big") + item for item in items)

    return {
        "empty": b"",
        "half a length": b"\x00",
        "a bare configuration": one,
        "cut": listed(one)[:-1],
        "bytes left over": listed(one) + b"\x00",
        "an empty configuration": listed(b""),
        "only unknown KEMs": listed(b"\x01\x00\x51" + bytes(50)),
        "one key id twice": listed(one, other),
        "too many": listed(*(bytes([at]) + one[1:] for at in range(9))),
        "no algorithms": listed(one[:35] + b"\x00\x00"),
        "half a pair of algorithms": listed(one[:35] + b"\x00\x02\x00\x01"),
        "an algorithm length too long": listed(one[:35] + b"\x00\x08" + one[37:41]),
        "an algorithm length too short": listed(one[:35] + b"\x00\x04" + one[37:]),
        "a pair named twice": listed(one[:35] + b"\x00\x08" + b"\x00\x01\x00\x02" * 2),
        "too long altogether": listed(one, b"\x09\x00\x51" + bytes(16 * 1024)),
    }


MALFORMED = malformed_lists()


@pytest.mark.parametrize("data", MALFORMED.values(), ids=MALFORMED)
def test_a_malformed_key_list_is_refused(data: bytes) -> None:
    with pytest.raises(FormatError):
        ohttp.parse_key_configs(data)


def test_a_private_half_of_another_public_key_is_refused() -> None:
    with pytest.raises(UsageError):
        ohttp.ServerKey(KEY.config, KeyPair.generate(Kem.X25519))


def test_a_gateway_offers_no_algorithms_that_it_does_not_know() -> None:
    pair = KeyPair.generate(Kem.X25519)
    with pytest.raises(UsageError):
        ohttp.ServerKey(ohttp.KeyConfig(1, Kem.X25519, pair.public_key, ((1, 2), (1, 9))), pair)


def test_a_response_nonce_of_another_length_is_refused() -> None:
    _, header, framed = sealed_request(b"question")
    opener = ohttp.RequestOpener(find_key)
    opener.feed(header + framed[0])
    opener.finish()
    with pytest.raises(UsageError):
        opener.response(lambda length: bytes(length - 1))
