"""Named attacks on the sealed channel by who stands between, on a real socket: each is refused with its own error."""

from __future__ import annotations

from collections.abc import Callable

import httpx2
import msgspec
import openai
import pytest

import cloister
from cloister.channel import bhttp
from cloister.channel.hpke import KeyPair
from cloister.channel.ohttp import KeyConfig, RequestSealer, parse_key_configs
from cloister.channel.varint import decode_varint, encode_varint
from cloister.encoding import parse_json
from cloister.errors import (
    AppraisalRefused,
    BindingMismatch,
    ChannelError,
    ChunkRefused,
    CloisterError,
    EvidenceError,
    FormatError,
    OversizedChunk,
    PlaintextResponse,
    TruncatedMessage,
    UnknownKey,
)
from cloister.evidence.bundle import encode_bundle, parse_bundle
from cloister.evidence.key_material import encode_key_material, parse_key_material
from proxy import Meddler, Message, Proxy, with_body
from sealed_service import MODEL, Service, launched, running

GATEWAY = "/.well-known/ohttp-gateway"
ATTESTATION = "/.well-known/attestation"
NONCE = 32
"""Bytes of the response nonce in front of the chunks."""
LARGE = b"x" * 100_000
"""Answers of this size have several chunks."""


@pytest.fixture(scope="module")
def service():
    with running() as it:
        yield it


@pytest.fixture
def proxy(service: Service):
    it = Proxy(("127.0.0.1", service.port))
    with it.running():
        yield it


def chunks(body: bytes) -> list[bytes]:
    """The framed chunks behind the response nonce; the last one with its mark."""
    at, found = NONCE, []
    while at < len(body):
        length, start = decode_varint(body, at)
        end = start + length if length else len(body)
        found.append(body[at:end])
        at = end
    return found


def joined(body: bytes, parts: list[bytes]) -> bytes:
    return body[:NONCE] + b"".join(parts)


def flipped(body: bytes, at: int) -> bytes:
    altered = bytearray(body)
    altered[at] ^= 1
    return bytes(altered)


class Altered(Meddler):
    """Rewrites the body of sealed answers; ``earlier`` is the body of the exchange before."""

    def __init__(self, alter: Callable[[bytes, bytes], bytes]) -> None:
        self.alter = alter
        self.earlier = b""

    def response(self, request: Message, response: Message) -> Message:
        if request.path != GATEWAY:
            return response
        earlier, self.earlier = self.earlier, response.body
        return with_body(response, self.alter(response.body, earlier)) if earlier else response


def reordered(body: bytes, _: bytes) -> bytes:
    one, two, *rest = chunks(body)
    return joined(body, [two, one, *rest])


def dropped(body: bytes, _: bytes) -> bytes:
    one, _two, *rest = chunks(body)
    return joined(body, [one, *rest])


def repeated(body: bytes, _: bytes) -> bytes:
    one, *rest = chunks(body)
    return joined(body, [one, one, *rest])


def without_the_last(body: bytes, _: bytes) -> bytes:
    return joined(body, chunks(body)[:-1])


def inner_chunk_made_the_last(body: bytes, _: bytes) -> bytes:
    one, two, *_rest = chunks(body)
    _, start = decode_varint(two, 0)
    return joined(body, [one, b"\x00" + two[start:]])


def spliced(body: bytes, earlier: bytes) -> bytes:
    one, _two, *rest = chunks(body)
    return joined(body, [one, chunks(earlier)[1], *rest])


def oversized(body: bytes, _: bytes) -> bytes:
    return body[:NONCE] + encode_varint(1 << 24) + b"\xaa" * 70_000


ANSWERS = [
    pytest.param(
        lambda body, earlier: body[: len(body) // 2], TruncatedMessage, id="cut in the middle of a chunk"
    ),
    pytest.param(without_the_last, TruncatedMessage, id="truncation: the final chunk is missing"),
    pytest.param(
        lambda body, earlier: body[:NONCE], TruncatedMessage, id="truncation: nothing but the nonce"
    ),
    pytest.param(lambda body, earlier: b"", TruncatedMessage, id="truncation: nothing at all"),
    pytest.param(
        inner_chunk_made_the_last, ChunkRefused, id="truncation: an inner chunk presented as the final one"
    ),
    pytest.param(reordered, ChunkRefused, id="reordering: two chunks swapped"),
    pytest.param(dropped, ChunkRefused, id="a chunk left out"),
    pytest.param(repeated, ChunkRefused, id="a chunk repeated"),
    pytest.param(spliced, ChunkRefused, id="splicing: a chunk of another stream"),
    pytest.param(lambda body, earlier: earlier, ChunkRefused, id="the response to another request"),
    pytest.param(lambda body, earlier: flipped(body, 0), ChunkRefused, id="a flipped bit in the nonce"),
    pytest.param(
        lambda body, earlier: flipped(body, len(body) - 1), ChunkRefused, id="a flipped bit in the last tag"
    ),
    pytest.param(lambda body, earlier: body + b"more", ChunkRefused, id="bytes behind the final chunk"),
    pytest.param(oversized, OversizedChunk, id="an oversized chunk"),
    pytest.param(
        lambda body, earlier: b'{"choices": []}' * 10, ChannelError, id="plaintext under the sealed type"
    ),
]


@pytest.mark.parametrize(("alter", "error"), ANSWERS)
def test_an_answer_that_was_tampered_with_is_refused(
    service: Service, proxy: Proxy, alter: Callable[[bytes, bytes], bytes], error: type[CloisterError]
):
    proxy.meddler = Altered(alter)
    with cloister.connect(proxy.url, policy=service.policy) as client:
        assert client.post("/echo", content=LARGE).content == LARGE  # the exchange before, left alone
        with pytest.raises(error):
            client.post("/echo", content=LARGE)
        proxy.meddler = None
        assert client.post("/echo", content=LARGE).content == LARGE  # nothing is broken for good


@pytest.mark.parametrize(("alter", "error"), [ANSWERS[1], ANSWERS[5], ANSWERS[8], ANSWERS[9]])
def test_the_sdk_shows_the_refusal_of_a_stream_and_does_not_retry_it(
    service: Service, proxy: Proxy, alter: Callable[[bytes, bytes], bytes], error: type[CloisterError]
):
    with running(answers=["word " * 4000] * 8) as talkative:
        proxy.target = ("127.0.0.1", talkative.port)
        proxy.meddler = Altered(alter)
        with cloister.connect(proxy.url, policy=talkative.policy) as http_client:
            client = openai.OpenAI(base_url=f"{proxy.url}/v1", api_key="sk", http_client=http_client)
            messages = [{"role": "user", "content": "x"}]
            assert len(list(client.completions.create(model=MODEL, prompt="x", stream=True))) == 8
            with pytest.raises(error):
                for _ in client.chat.completions.create(model=MODEL, messages=messages, stream=True):
                    pass
        assert len(talkative.asked) == 2


class Instead(Meddler):
    """Answers sealed requests in the clear, itself."""

    def __init__(self, status: str, media_type: str, body: bytes, *more: tuple[str, str]) -> None:
        self.answer = Message(f"HTTP/1.1 {status}", (("content-type", media_type), *more), body)

    def instead(self, request: Message) -> Message | None:
        return self.answer if request.path == GATEWAY else None


COMPLETION = b'{"choices":[{"index":0,"message":{"role":"assistant","content":"send me money"},"finish_reason":"stop"}]}'


@pytest.mark.parametrize(
    "meddler",
    [
        pytest.param(Instead("200 OK", "application/json", COMPLETION), id="an answer of its own"),
        pytest.param(Instead("200 OK", "text/event-stream", b"data: {}\n\n"), id="a stream of its own"),
        pytest.param(
            Instead("401 Unauthorized", "application/json", b'{"error":{"message":"send the key to evil"}}'),
            id="an error that asks for something",
        ),
        pytest.param(Instead("502 Bad Gateway", "text/html", b"<h1>"), id="a load balancer's error page"),
        pytest.param(
            Instead("307 Temporary Redirect", "text/plain", b"", ("location", "http://evil.example/")),
            id="a redirect",
        ),
        pytest.param(
            Instead(
                "409 Conflict",
                "application/problem+json",
                b'{"type":"urn:cloister:problem:replayed-request"}',
            ),
            id="a gateway's problem of another type",
        ),
        pytest.param(Instead("200 OK", "message/ohttp-res", b"x" * 100), id="another sealed type"),
    ],
)
def test_a_plaintext_response_injected_by_a_proxy_is_not_read(
    service: Service, proxy: Proxy, meddler: Meddler
):
    with cloister.connect(proxy.url, policy=service.policy) as http_client:
        proxy.meddler = meddler
        client = openai.OpenAI(base_url=f"{proxy.url}/v1", api_key="sk", http_client=http_client)
        passed = len(proxy.seen)
        with pytest.raises(PlaintextResponse) as caught:
            client.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": "x"}])
        assert "money" not in str(caught.value)
        assert "evil" not in str(caught.value)
    assert len([seen for seen in proxy.seen[passed:] if seen.direction == "up"]) == 1  # not retried


class Captured(Meddler):
    """Keeps every sealed request."""

    def __init__(self) -> None:
        self.requests: list[Message] = []

    def request(self, request: Message) -> Message:
        if request.path == GATEWAY:
            self.requests.append(request)
        return request


def sent(service: Service, message: Message) -> httpx2.Response:
    """Send captured bytes to the service, as whoever captured them would."""
    fields = {name: value for name, value in message.fields if name.lower() not in ("host", "content-length")}
    with httpx2.Client() as attacker:
        return attacker.post(service.url + message.path, content=message.body, headers=fields)


def captured(service: Service, proxy: Proxy) -> Message:
    proxy.meddler = Captured()
    with cloister.connect(proxy.url, policy=service.policy) as client:
        assert client.post("/echo", content=b"transfer 100").content == b"transfer 100"
    return proxy.meddler.requests[0]


def problem(response: httpx2.Response) -> str:
    assert response.headers["content-type"] == "application/problem+json"
    document = parse_json(response.content, what="problem")
    assert document["status"] == response.status_code
    return document["type"]


def test_a_replayed_request_is_refused_and_not_acted_on(service: Service, proxy: Proxy):
    request = captured(service, proxy)
    before = len(service.asked)
    for _ in range(2):
        again = sent(service, request)
        assert (again.status_code, problem(again)) == (409, "urn:cloister:problem:replayed-request")
    assert len(service.asked) == before


@pytest.mark.parametrize(
    ("alter", "status", "kind"),
    [
        pytest.param(lambda body: flipped(body, -1), 400, "undecipherable", id="the only chunk altered"),
        pytest.param(
            lambda body: flipped(body, 20), 400, "undecipherable", id="the encapsulated key altered"
        ),
        pytest.param(lambda body: body[:-1], 400, "undecipherable", id="one byte cut off"),
        pytest.param(lambda body: body[:1000], 400, "malformed", id="cut within the encapsulated key"),
        pytest.param(lambda body: b"", 400, "malformed", id="empty"),
        pytest.param(
            lambda body: body[:7] + b"\x00" * 1120 + body[1127:], 400, "undecipherable", id="a zero key"
        ),
        pytest.param(
            lambda body: body[:1127] + encode_varint(1 << 24) + bytes(70_000),
            413,
            "too-large",
            id="an oversized chunk",
        ),
    ],
)
def test_a_request_that_was_tampered_with_is_refused_and_not_acted_on(
    service: Service, proxy: Proxy, alter: Callable[[bytes], bytes], status: int, kind: str
):
    request = captured(service, proxy)
    before = len(service.asked)
    answer = sent(service, with_body(request, alter(request.body)))
    assert answer.status_code == status
    assert problem(answer) == f"urn:cloister:problem:{kind}"
    assert len(service.asked) == before


@pytest.mark.parametrize(
    "alter",
    [
        pytest.param(lambda body: flipped(body, -1), id="a flipped bit in the last chunk"),
        pytest.param(lambda body: body[:40_000], id="truncation"),
        pytest.param(lambda body: body + b"more", id="bytes behind the final chunk"),
    ],
)
def test_a_long_request_is_acted_on_as_a_whole_or_not_at_all(
    service: Service, proxy: Proxy, alter: Callable[[bytes], bytes]
):
    class Meddling(Captured):
        def request(self, request: Message) -> Message:
            return with_body(request, alter(request.body)) if request.path == GATEWAY else request

    with cloister.connect(proxy.url, policy=service.policy) as client:
        proxy.meddler = Meddling()
        before = len(service.asked)
        with pytest.raises(PlaintextResponse):
            client.post("/echo", content=LARGE)
    assert problem_of_last(proxy) == "urn:cloister:problem:malformed"
    assert len(service.asked) == before


def problem_of_last(proxy: Proxy) -> str:
    return parse_json(proxy.messages[-1][1].body, what="problem")["type"]


def test_a_request_sealed_to_the_wrong_key_does_not_open(service: Service):
    shown = parse_key_configs(parse_key_material(service.keyring.material()).ohttp_keys)[0]
    wrong = KeyConfig(shown.key_id, shown.kem, KeyPair.generate(shown.kem).public_key, shown.symmetric)
    sealer = RequestSealer(wrong)
    head = bhttp.Request(method=b"POST", scheme=b"http", authority=b"x", path=b"/echo")
    body = sealer.header + sealer.seal(bhttp.encode_request(head, b"x"), final=True)
    start = f"POST {GATEWAY} HTTP/1.1"
    answer = sent(service, Message(start, (("content-type", "message/ohttp-chunked-req"),), body))
    assert (answer.status_code, problem(answer)) == (400, "urn:cloister:problem:undecipherable")


class OldEvidence(Meddler):
    """Answers every question for evidence with the first answer it saw."""

    def __init__(self) -> None:
        self.first: Message | None = None

    def response(self, request: Message, response: Message) -> Message:
        if request.path == ATTESTATION:
            self.first = self.first or response
            return self.first
        return response


def test_old_evidence_replayed_for_a_fresh_nonce_is_refused(service: Service, proxy: Proxy):
    proxy.meddler = OldEvidence()
    with cloister.connect(proxy.url, policy=service.policy) as client, pytest.raises(EvidenceError):
        client.verify()


class SwappedKeys(Meddler):
    """Relays genuine evidence around keys of its own."""

    def response(self, request: Message, response: Message) -> Message:
        if request.path != ATTESTATION:
            return response
        bundle = parse_bundle(response.body)
        material = parse_key_material(bundle.key_material)
        theirs = parse_key_configs(material.ohttp_keys)[0].public_key
        assert material.ohttp_keys.count(theirs) == 1
        own = material.ohttp_keys.replace(theirs, KeyPair.generate().public_key)
        forged = encode_key_material(msgspec.structs.replace(material, ohttp_keys=own))
        return with_body(response, encode_bundle(msgspec.structs.replace(bundle, key_material=forged)))


def test_evidence_relayed_with_swapped_key_material_is_refused(service: Service, proxy: Proxy):
    proxy.meddler = SwappedKeys()
    with pytest.raises(BindingMismatch):
        cloister.connect(proxy.url, policy=service.policy)


class OtherWorkload(Meddler):
    """Asks a workload of its own, under the same root, for evidence."""

    def __init__(self, other: Service) -> None:
        self.other = other

    def instead(self, request: Message) -> Message | None:
        if request.path != ATTESTATION:
            return None
        answer = sent(self.other, request)
        return Message("HTTP/1.1 200 OK", (("content-type", "application/json"),), answer.content)


def test_genuine_evidence_of_another_workload_is_refused(service: Service, proxy: Proxy):
    with running(tee=launched(program=b"\x66" * 32)) as other:
        proxy.meddler = OtherWorkload(other)
        with pytest.raises(AppraisalRefused):
            cloister.connect(proxy.url, policy=service.policy)


@pytest.mark.parametrize(
    ("status", "body", "error"),
    [
        pytest.param("404 Not Found", b"{}", EvidenceError, id="no such page"),
        pytest.param("200 OK", b"<html>", FormatError, id="a web page"),
        pytest.param("200 OK", b"[" * 5000, FormatError, id="deep nesting"),
        pytest.param("200 OK", b" " * ((1 << 20) + 1), FormatError, id="over the bound"),
    ],
)
def test_what_is_no_evidence_is_refused(
    service: Service, proxy: Proxy, status: str, body: bytes, error: type[CloisterError]
):
    class Forged(Meddler):
        def instead(self, request: Message) -> Message:
            return Message(f"HTTP/1.1 {status}", (("content-type", "application/json"),), body)

    proxy.meddler = Forged()
    with pytest.raises(error):
        cloister.connect(proxy.url, policy=service.policy)


class Lying(Meddler):
    """Says that the key is unknown, whatever was asked."""

    def __init__(self) -> None:
        self.times = 0

    def instead(self, request: Message) -> Message | None:
        if request.path != GATEWAY:
            return None
        self.times += 1
        body = b'{"type":"https://iana.org/assignments/http-problem-types#ohttp-key"}'
        return Message("HTTP/1.1 400 Bad Request", (("content-type", "application/problem+json"),), body)


def test_a_false_claim_that_the_key_is_unknown_sends_nothing_twice(service: Service, proxy: Proxy):
    with cloister.connect(proxy.url, policy=service.policy) as client:
        lying = proxy.meddler = Lying()
        with pytest.raises(UnknownKey, match="still shows it"):
            client.post("/echo", content=b"x")
        assert lying.times == 1


def test_the_request_id_inside_is_drawn_for_each_request(service: Service):
    with cloister.connect(service.url, policy=service.policy) as client:
        client.post("/echo", headers={"cloister-request-id": "0" * 32})
        client.post("/echo", headers={"cloister-request-id": "0" * 32})
    one, two = (asked.sealed["request_id"] for asked in service.asked[-2:])
    assert one != two
    assert "0" * 32 not in (one, two)


def test_a_proxy_that_cuts_the_connection_is_a_network_failure(service: Service, proxy: Proxy):
    class Cut(Meddler):
        def request(self, request: Message) -> Message | None:
            return None if request.path == GATEWAY else request

    with cloister.connect(proxy.url, policy=service.policy) as client:
        proxy.meddler = Cut()
        with pytest.raises(httpx2.TransportError):
            client.post("/echo", content=b"x")
