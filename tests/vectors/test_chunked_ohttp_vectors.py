"""The worked example of draft-ietf-ohai-chunked-ohttp, byte for byte, in both directions."""

from __future__ import annotations

import json

import pytest

from cloister.channel import ohttp
from cloister.channel.hpke import Kem, KeyPair
from shared_data import vectors

CUTS = [(0, 12), (12, 25)]
"""How the example cuts its request; the final chunk is empty."""


class Example:
    def __init__(self) -> None:
        self.text = json.loads(vectors("ietf-chunked-ohttp/example.json").read_text())
        config = ohttp.parse_key_config(self["key_config"])
        assert config is not None
        self.config = config
        self.key = ohttp.ServerKey(config, KeyPair.from_private_bytes(Kem.X25519, self["gateway_sk"]))

    def __getitem__(self, name: str) -> bytes:
        value = self.text[name]
        return bytes.fromhex(value if isinstance(value, str) else "".join(value))

    def sealer(self) -> ohttp.RequestSealer:
        client = KeyPair.from_private_bytes(Kem.X25519, self["client_sk"])
        return ohttp.RequestSealer(self.config, ephemeral=client)

    def opener(self) -> ohttp.RequestOpener:
        return ohttp.RequestOpener(lambda key_id: self.key)


@pytest.fixture
def example() -> Example:
    return Example()


def test_the_request_is_sealed_as_the_draft_shows(example: Example) -> None:
    sealer = example.sealer()
    sent = sealer.header
    for start, end in CUTS:
        sent += sealer.seal(example["bhttp_request"][start:end], final=False)
    sent += sealer.seal(b"", final=True)
    assert sealer.enc == example["enc"]
    assert sent == example["encapsulated_request"]


def test_the_request_is_opened_as_the_draft_shows(example: Example) -> None:
    opener = example.opener()
    opened = opener.feed(example["encapsulated_request"])
    assert opened == [example["bhttp_request"][start:end] for start, end in CUTS]
    assert opener.finish() == []
    assert (opener.complete, opener.key_id, opener.enc) == (True, 1, example["enc"])


def test_the_response_is_sealed_as_the_draft_shows(example: Example) -> None:
    opener = example.opener()
    opener.feed(example["encapsulated_request"])
    opener.finish()
    response = opener.response(lambda length: example["response_nonce"][:length])
    sent = response.header
    sent += response.seal(example["bhttp_response"][:1], final=False)
    sent += response.seal(example["bhttp_response"][1:], final=False)
    sent += response.seal(b"", final=True)
    assert sent == example["encapsulated_response"]


def test_the_response_is_opened_as_the_draft_shows(example: Example) -> None:
    response = example.sealer().response()
    assert response.feed(example["encapsulated_response"]) == [b"\x01", b"\x40\xc8"]
    assert response.finish() == []
    assert response.complete
