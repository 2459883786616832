"""The channel against other people's packages in Node: HPKE, Binary HTTP, and whole Oblivious HTTP exchanges.

``@hpke/core``, ``@hpke/hybridkem-x-wing`` and ``bhttp-js`` are installed by their committed lock file into
``build/npm``, without running anybody's install scripts.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from typing import Any

import pytest

from cloister.channel import bhttp, hpke, ohttp
from cloister.channel.hpke import Aead, Kem, KeyPair, Suite
from npm_packages import INSTALLED, SOURCES, install
from real_parts import absent

pytestmark = [pytest.mark.npm, pytest.mark.timeout(400)]  # the first test waits for npm

Peer = Callable[..., dict[str, Any]]

KEMS = pytest.mark.parametrize("kem", Kem, ids=lambda kem: kem.name)
AEADS = pytest.mark.parametrize("aead", [Aead.AES_128_GCM, Aead.AES_256_GCM], ids=lambda aead: aead.name)
PORTIONS = pytest.mark.parametrize("portion", [0, 64, 16384], ids=["whole", "chunks of 64", "one chunk"])

SEED = bytes(range(1, 33))
HEADERS = [["content-type", "application/json"], ["x-long", "v" * 100]]
BODY = b'{"question": "\xc3\xa9"}' * 20
REQUEST = {"method": "POST", "url": "https://example.com/v1/chat?a=b", "headers": HEADERS, "body": BODY.hex()}
NO_QUERY = {**REQUEST, "url": "https://example.com/v1/chat"}
"""bhttp-js 0.2.1 leaves the query of a URL out when it encodes; it keeps it when it decodes."""
RESPONSE = {"status": 201, "headers": HEADERS, "body": BODY.hex()}


@pytest.fixture(scope="session")
def peer() -> Peer:
    """Calls one operation of peer.mjs; installs what it needs when it is not there yet."""
    node = shutil.which("node")
    if node is None:
        absent("NOT RUN: the channel against npm packages; install nodejs (18 or later) and npm")
    install()

    def call(op: str, **options: Any) -> dict[str, Any]:
        done = subprocess.run(
            [node, INSTALLED / "peer.mjs"],
            input=json.dumps({"op": op, **options}),
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        answer: dict[str, Any] = json.loads(done.stdout)
        return answer

    return call


def test_the_lock_file_names_no_registry_and_pins_every_package() -> None:
    lock = json.loads((SOURCES / "package-lock.json").read_text())
    packages = {name: entry for name, entry in lock["packages"].items() if name}
    assert {"node_modules/@hpke/core", "node_modules/@hpke/hybridkem-x-wing", "node_modules/bhttp-js"} <= set(
        packages
    )
    for entry in packages.values():
        assert entry["integrity"].startswith("sha512-")
        assert "resolved" not in entry


@KEMS
@AEADS
def test_what_javascript_seals_python_opens(peer: Peer, kem: Kem, aead: Aead) -> None:
    pair = KeyPair.generate(kem)
    messages = [b"first", b"", b"third" * 1000]
    answer = peer(
        "hpke_seal",
        kem=kem,
        aead=aead,
        public_key=pair.public_key.hex(),
        info=b"about".hex(),
        aad=b"aad".hex(),
        messages=[message.hex() for message in messages],
        context=b"purpose".hex(),
        length=48,
    )
    recipient = hpke.setup_recipient(Suite(kem, aead=aead), pair, bytes.fromhex(answer["enc"]), b"about")
    assert [recipient.open(b"aad", bytes.fromhex(sealed)) for sealed in answer["sealed"]] == messages
    assert recipient.export(b"purpose", 48).hex() == answer["exported"]


@KEMS
@AEADS
def test_what_python_seals_javascript_opens(peer: Peer, kem: Kem, aead: Aead) -> None:
    pair = KeyPair.from_private_bytes(kem, SEED)
    enc, sender = hpke.setup_sender(Suite(kem, aead=aead), pair.public_key, b"about")
    messages = [b"first", b"", b"third" * 1000]
    answer = peer(
        "hpke_open",
        kem=kem,
        aead=aead,
        private_key=SEED.hex(),
        enc=enc.hex(),
        info=b"about".hex(),
        aad=b"aad".hex(),
        sealed=[sender.seal(b"aad", message).hex() for message in messages],
        context=b"purpose".hex(),
        length=48,
    )
    assert answer["messages"] == [message.hex() for message in messages]
    assert answer["exported"] == sender.export(b"purpose", 48).hex()


def test_a_request_that_bhttp_js_encodes_is_decoded(peer: Peer) -> None:
    decoder = bhttp.RequestDecoder()
    data = bytes.fromhex(peer("encode_request", **NO_QUERY)["message"])
    head, *content, end = decoder.feed(data) + decoder.finish()
    assert isinstance(head, bhttp.Head)
    request = head.message
    assert (request.method, request.scheme, request.path) == (b"POST", b"https", b"/v1/chat")
    assert request.authority == b"example.com"
    assert {(b"content-type", b"application/json"), (b"x-long", b"v" * 100)} <= set(request.headers)
    assert [chunk.data for chunk in content if isinstance(chunk, bhttp.BodyChunk)] == [BODY]
    assert end == bhttp.End(())


def test_a_response_that_bhttp_js_encodes_is_decoded(peer: Peer) -> None:
    decoder = bhttp.ResponseDecoder()
    data = bytes.fromhex(peer("encode_response", **RESPONSE)["message"])
    head, *content, end = decoder.feed(data) + decoder.finish()
    assert isinstance(head, bhttp.Head)
    assert head.message.status == 201
    assert (b"x-long", b"v" * 100) in head.message.headers
    assert [chunk.data for chunk in content if isinstance(chunk, bhttp.BodyChunk)] == [BODY]
    assert end == bhttp.End(())


def fields() -> tuple[tuple[bytes, bytes], ...]:
    return tuple((name.encode(), value.encode()) for name, value in HEADERS)


def our_request() -> bhttp.Request:
    return bhttp.Request(b"POST", b"https", b"example.com", b"/v1/chat?a=b", fields())


@pytest.mark.parametrize("known", [True, False], ids=["known length", "indeterminate length"])
def test_bhttp_js_decodes_what_we_encode(peer: Peer, known: bool) -> None:
    if known:
        request = bhttp.encode_request(our_request(), BODY, pad_to=1024)
        response = bhttp.encode_response(bhttp.Response(201, fields()), BODY, pad_to=1024)
    else:
        content = bhttp.body_chunk(BODY[:7]) + bhttp.body_chunk(BODY[7:]) + bhttp.body_end()
        request = bhttp.request_head(our_request()) + content
        response = bhttp.response_head(bhttp.Response(201, fields())) + content
    assert peer("decode_request", message=request.hex()) == REQUEST
    assert peer("decode_response", message=response.hex()) == RESPONSE


@KEMS
@PORTIONS
@pytest.mark.parametrize("pair", [0, 2], ids=["AES-256-GCM", "AES-128-GCM"])
def test_a_client_in_javascript_asks_and_python_answers(
    peer: Peer, kem: Kem, portion: int, pair: int
) -> None:
    keys = KeyPair.generate(kem)
    key = ohttp.ServerKey(ohttp.KeyConfig(5, kem, keys.public_key), keys)
    configs = ohttp.encode_key_configs([key.config])
    asked = peer("client_request", keys=configs.hex(), pair=pair, portion=portion, request=NO_QUERY)

    opener = ohttp.RequestOpener(lambda key_id: key, chunked=portion > 0)
    opened = opener.feed(bytes.fromhex(asked["sealed"])) + opener.finish()
    decoder = bhttp.RequestDecoder()
    events = [event for data in opened for event in decoder.feed(data)] + decoder.finish()
    body = b"".join(event.data for event in events if isinstance(event, bhttp.BodyChunk))
    assert isinstance(events[0], bhttp.Head)
    assert (events[0].message.path, body) == (b"/v1/chat", BODY)

    sealer = opener.response()
    message = bhttp.encode_response(bhttp.Response(201, fields()), BODY)
    sent = sealer.header
    if portion:
        sent += sealer.seal(message[:10], final=False) + sealer.seal(message[10:], final=False)
        sent += sealer.seal(b"", final=True)
    else:
        sent += sealer.seal(message, final=True)
    context = {name: asked[name] for name in ("aead", "enc", "secret")}
    assert peer("client_response", chunked=portion > 0, sealed=sent.hex(), **context) == RESPONSE


@KEMS
@PORTIONS
def test_python_asks_and_a_gateway_in_javascript_answers(peer: Peer, kem: Kem, portion: int) -> None:
    config = ohttp.KeyConfig(5, kem, KeyPair.from_private_bytes(kem, SEED).public_key)
    sealer = ohttp.RequestSealer(config, chunked=portion > 0)
    message = bhttp.encode_request(our_request(), BODY)
    sent = sealer.header
    if portion:
        sent += sealer.seal(message[:100], final=False)
        message = message[100:]
    sent += sealer.seal(message, final=True)
    answer = peer("gateway", private_key=SEED.hex(), sealed=sent.hex(), portion=portion, response=RESPONSE)
    assert answer["request"] == REQUEST

    opener = sealer.response()
    opened = opener.feed(bytes.fromhex(answer["sealed"])) + opener.finish()
    decoder = bhttp.ResponseDecoder()
    events = [event for data in opened for event in decoder.feed(data)] + decoder.finish()
    body = b"".join(event.data for event in events if isinstance(event, bhttp.BodyChunk))
    assert isinstance(events[0], bhttp.Head)
    assert (events[0].message.status, body) == (201, BODY)
