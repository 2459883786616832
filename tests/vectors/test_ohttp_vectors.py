"""The worked example of RFC 9458, appendix A (without chunks), byte for byte, in both directions."""

from __future__ import annotations

from cloister.channel import bhttp, ohttp
from cloister.channel.hpke import Kem, KeyPair

GATEWAY = bytes.fromhex("3c168975674b2fa8e465970b79c8dcf09f1c741626480bd4c6162fc5b6a98e1a")
CLIENT = bytes.fromhex("bc51d5e930bda26589890ac7032f70ad12e4ecb37abb1b65b1256c9c48999c73")
KEY_CONFIG = bytes.fromhex(
    "01002031e1f05a740102115220e9af918f738674aec95f54db6e04eb705aae8e79815500080001000100010003"
)
REQUEST = bytes.fromhex("00034745540568747470730b6578616d706c652e636f6d012f")
SEALED_REQUEST = bytes.fromhex(
    "010020000100014b28f881333e7c164ffc499ad9796f877f4e1051ee6d31bad19dec96c208b4726374e4691359"
    "06992e1268c594d2a10c695d858c40a026e7965e7d86b83dd440b2c0185204b4d63525"
)
RESPONSE = bytes.fromhex("0140c8")
RESPONSE_NONCE = bytes.fromhex("c789e7151fcba46158ca84b04464910d")
SEALED_RESPONSE = bytes.fromhex("c789e7151fcba46158ca84b04464910d86f9013e404feea014e7be4a441f234f857fbd")


def key() -> ohttp.ServerKey:
    config = ohttp.parse_key_config(KEY_CONFIG)
    assert config is not None
    assert config.symmetric == ((1, 1), (1, 3))
    assert ohttp.encode_key_config(config) == KEY_CONFIG
    return ohttp.ServerKey(config, KeyPair.from_private_bytes(Kem.X25519, GATEWAY))


def test_the_request_is_sealed_and_opened_as_the_rfc_shows() -> None:
    client = KeyPair.from_private_bytes(Kem.X25519, CLIENT)
    sealer = ohttp.RequestSealer(key().config, chunked=False, ephemeral=client)
    assert sealer.header + sealer.seal(REQUEST, final=True) == SEALED_REQUEST

    opener = ohttp.RequestOpener(lambda key_id: key(), chunked=False)
    assert opener.feed(SEALED_REQUEST) == []
    assert opener.finish() == [REQUEST]


def test_the_response_is_sealed_and_opened_as_the_rfc_shows() -> None:
    opener = ohttp.RequestOpener(lambda key_id: key(), chunked=False)
    opener.feed(SEALED_REQUEST)
    opener.finish()
    sealer = opener.response(lambda length: RESPONSE_NONCE[:length])
    assert sealer.header + sealer.seal(RESPONSE, final=True) == SEALED_RESPONSE

    client = KeyPair.from_private_bytes(Kem.X25519, CLIENT)
    response = ohttp.RequestSealer(key().config, chunked=False, ephemeral=client).response()
    assert response.feed(SEALED_RESPONSE) == []
    assert response.finish() == [RESPONSE]


def test_the_sealed_messages_are_the_binary_http_that_the_rfc_means() -> None:
    request, response = bhttp.RequestDecoder(), bhttp.ResponseDecoder()
    head = bhttp.Head(bhttp.Request(b"GET", b"https", b"example.com", b"/"))
    assert request.feed(REQUEST) + request.finish() == [head, bhttp.End(())]
    assert response.feed(RESPONSE) + response.finish() == [bhttp.Head(bhttp.Response(200)), bhttp.End(())]
