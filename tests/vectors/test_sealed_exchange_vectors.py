"""The project's own vector of a whole sealed exchange with X-Wing (docs/spec/vectors), from the gateway's side."""

from __future__ import annotations

import json
from pathlib import Path

from cloister.channel import ohttp
from cloister.channel.hpke import Kem, KeyPair

VECTOR = json.loads(
    (Path(__file__).parents[2] / "docs" / "spec" / "vectors" / "sealed-exchange.json").read_text()
)


def vector(name: str) -> bytes:
    value = VECTOR[name]
    return bytes.fromhex(value if isinstance(value, str) else "".join(value))


def test_the_request_opens_and_the_response_seals_to_the_vectors_bytes() -> None:
    (config,) = ohttp.parse_key_configs(vector("key_configs"))
    key = ohttp.ServerKey(config, KeyPair.from_private_bytes(Kem.X_WING, vector("gateway_seed")))
    opener = ohttp.RequestOpener(lambda key_id: key)
    opened = opener.feed(vector("sealed_request")) + opener.finish()
    assert b"".join(opened) == vector("request")
    assert [len(part) for part in opened] == [64, 64]

    sealer = opener.response(lambda length: vector("response_nonce")[:length])
    response = vector("response")
    sent = [
        sealer.header,
        sealer.seal(response[:40], final=False),
        sealer.seal(response[40:], final=False),
        sealer.seal(b"", final=True),
    ]
    assert [part.hex() for part in sent] == VECTOR["sealed_response"]
