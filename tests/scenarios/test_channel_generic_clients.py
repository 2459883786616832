"""Clients that speak plain OHTTP and know nothing of padding are served too; malformed insides are answered inside."""

from __future__ import annotations

import json

import httpx2
import pytest

from cloister.channel import bhttp
from cloister.channel.ohttp import (
    CHUNKED_REQUEST_TYPE,
    CHUNKED_RESPONSE_TYPE,
    REQUEST_TYPE,
    RESPONSE_TYPE,
    RequestSealer,
    parse_key_configs,
)
from sealed_service import MODEL, Service, running

GATEWAY = "/.well-known/ohttp-gateway"


@pytest.fixture(scope="module")
def service():
    with running() as it:
        yield it


def exchange(
    service: Service, message: bytes, *, chunked: bool, key: int = 0
) -> tuple[bhttp.Response, bytes, httpx2.Response]:
    """Seal ``message`` to the listed key, send it, open the answer: head, content, outer answer."""
    with httpx2.Client(base_url=service.url) as client:
        sealer = RequestSealer(parse_key_configs(client.get(GATEWAY).content)[key], chunked=chunked)
        content = sealer.header + sealer.seal(message, final=True)
        media_type = CHUNKED_REQUEST_TYPE if chunked else REQUEST_TYPE
        outer = client.post(GATEWAY, content=content, headers={"content-type": media_type})
    opener, decoder = sealer.response(), bhttp.ResponseDecoder()
    plaintexts = [*opener.feed(outer.content), *opener.finish()]
    events = [event for plaintext in plaintexts for event in decoder.feed(plaintext)] + decoder.finish()
    head = next(event.message for event in events if isinstance(event, bhttp.Head))
    return head, b"".join(event.data for event in events if isinstance(event, bhttp.BodyChunk)), outer


def request(method: bytes, path: bytes, *fields: tuple[bytes, bytes], body: bytes = b"") -> bytes:
    head = bhttp.Request(method=method, scheme=b"https", authority=b"example", path=path, headers=fields)
    return bhttp.encode_request(head, body)


@pytest.mark.parametrize("key", [0, 1], ids=["X-Wing", "X25519"])
@pytest.mark.parametrize("chunked", [True, False], ids=["chunked", "RFC 9458"])
def test_a_plain_ohttp_client_gets_the_body_as_it_is(service: Service, chunked: bool, key: int):
    head, content, outer = exchange(service, request(b"GET", b"/v1/models"), chunked=chunked, key=key)
    assert head.status == 200
    assert json.loads(content)["data"][0]["id"] == MODEL
    assert outer.headers["content-type"] == (CHUNKED_RESPONSE_TYPE if chunked else RESPONSE_TYPE)
    asked = service.asked[-1]
    assert asked.sealed == {"request_id": None, "key_id": asked.sealed["key_id"]}
    assert asked.headers["host"] == "example"


def test_a_stream_in_one_chunk_arrives_whole(service: Service):
    body = json.dumps({"model": MODEL, "prompt": "x", "stream": True}).encode()
    message = request(b"POST", b"/v1/completions", (b"content-type", b"application/json"), body=body)
    _, content, _ = exchange(service, message, chunked=False)
    assert content.endswith(b"data: [DONE]\n\n")


@pytest.mark.parametrize(
    "message",
    [
        pytest.param(b"", id="nothing"),
        pytest.param(b"\x07", id="another framing"),
        pytest.param(b"\x01\x40\xc8\x00\x00\x00", id="a response"),
        pytest.param(request(b"POST", b"/echo", (b"content-length", b"5"), body=b"xy"), id="another length"),
        pytest.param(request(b"OPTIONS", b"*"), id="no path"),
        pytest.param(request(b"GET", b"/echo", (b"cloister-request-id", b"zz")), id="no request id"),
        pytest.param(request(b"GET", b"/echo") + b"x", id="padding that is not zero"),
    ],
)
@pytest.mark.parametrize("chunked", [True, False], ids=["chunked", "RFC 9458"])
def test_a_malformed_inner_request_is_refused_inside_the_seal(
    service: Service, message: bytes, chunked: bool
):
    before = len(service.asked)
    head, content, outer = exchange(service, message, chunked=chunked)
    assert outer.status_code == 200
    assert head.status == 400
    assert json.loads(content)["error"]["code"] == "malformed"
    assert len(service.asked) == before
