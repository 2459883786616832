"""What a sealed workload answers in the clear: its two well-known paths, its health, and refusals."""

from __future__ import annotations

import asyncio
import socket

import httpx2
import openai
import pytest

import cloister
from cloister.attester import RawEvidence
from cloister.channel.evidence_service import EvidenceService
from cloister.channel.middleware import SealedGateway
from cloister.channel.ohttp import RequestSealer, parse_key_configs
from cloister.encoding import b64url_encode, parse_json
from cloister.errors import AttesterError, PlaintextResponse
from cloister.evidence.bundle import parse_bundle
from cloister.evidence.key_material import parse_key_material
from sealed_service import MODEL, Service, listen, running, serving

GATEWAY = "/.well-known/ohttp-gateway"
ATTESTATION = "/.well-known/attestation"


@pytest.fixture(scope="module")
def service():
    with running(receive_seconds=5.0, max_request=200_000) as it:
        yield it


@pytest.fixture
def http(service: Service):
    with httpx2.Client(base_url=service.url) as client:
        yield client


def problem(response: httpx2.Response) -> tuple[int, str]:
    assert response.headers["content-type"] == "application/problem+json"
    assert response.headers["cache-control"] == "no-store"
    document = parse_json(response.content, what="problem")
    assert document["status"] == response.status_code
    assert document["error"]["message"].startswith(document["title"])
    return response.status_code, document["type"].removeprefix("urn:cloister:problem:")


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/v1/chat/completions"),
        ("POST", "/v1/completions"),
        ("POST", "/v1/embeddings"),
        ("POST", "/v1/responses"),
        ("GET", "/v1/models"),
        ("GET", "/"),
        ("OPTIONS", "/v1/chat/completions"),
        ("POST", "/healthz"),
        ("GET", "/healthz/../v1/models"),
        ("GET", "/healthz/"),
    ],
)
def test_a_plaintext_request_is_refused_with_its_own_code(
    service: Service, http: httpx2.Client, method: str, path: str
):
    before = len(service.asked)
    request = http.build_request(method, path, json={"model": MODEL} if method == "POST" else None)
    request = httpx2.Request(
        method,
        httpx2.URL(service.url).copy_with(raw_path=path.encode()),
        headers=request.headers.raw,
        content=request.content,
    )
    answer = http.send(request)
    assert problem(answer) == (403, "sealed-request-required")
    assert answer.json()["error"]["code"] == "sealed_request_required"
    assert "cloister.connect" in answer.json()["detail"]
    assert len(service.asked) == before


def test_the_plain_sdk_shows_the_hint_and_does_not_retry(service: Service):
    with (
        openai.OpenAI(base_url=f"{service.url}/v1", api_key="sk") as client,
        pytest.raises(openai.PermissionDeniedError) as caught,
    ):
        client.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": "x"}])
    assert caught.value.code == "sealed_request_required"
    assert "cloister.connect" in caught.value.message
    assert service.asked == []


def test_the_health_path_answers(http: httpx2.Client):
    assert http.get("/healthz").text == "alive"


def test_evidence_over_a_nonce_and_the_key_list_agree(http: httpx2.Client):
    answer = http.post(ATTESTATION, json={"nonce": b64url_encode(b"\x05" * 32)})
    assert answer.status_code == 200
    assert answer.headers["cache-control"] == "no-store"
    material = parse_key_material(parse_bundle(answer.content).key_material)
    listed = http.get(GATEWAY)
    assert listed.headers["content-type"] == "application/ohttp-keys"
    assert listed.content == material.ohttp_keys
    assert [config.kem.name for config in parse_key_configs(listed.content)] == ["X_WING", "X25519"]


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(b"", id="nothing"),
        pytest.param(b"{}", id="no nonce"),
        pytest.param(b'{"nonce":"AAAA"}', id="a short nonce"),
        pytest.param(b'{"nonce":"' + b"!" * 43 + b'"}', id="not base64url"),
        pytest.param(b'{"nonce":"' + b"A" * 43 + b'","more":1}', id="an unknown field"),
        pytest.param(b'{"nonce":"' + b"A" * 43 + b'","nonce":"' + b"A" * 43 + b'"}', id="twice"),
    ],
)
def test_a_malformed_question_is_refused(http: httpx2.Client, body: bytes):
    assert problem(http.post(ATTESTATION, content=body)) == (400, "malformed")


def test_bounds_hold_before_anything_is_kept(http: httpx2.Client):
    assert problem(http.post(ATTESTATION, content=b"x" * 2000)) == (413, "too-large")


@pytest.mark.parametrize(
    ("method", "path"), [("GET", ATTESTATION), ("PUT", GATEWAY), ("DELETE", ATTESTATION)]
)
def test_other_methods_are_not_allowed(http: httpx2.Client, method: str, path: str):
    assert problem(http.request(method, path)) == (405, "method")


@pytest.mark.parametrize("media_type", ["application/json", "message/ohttp-chunked-res", ""])
def test_other_media_types_are_not_opened(http: httpx2.Client, media_type: str):
    answer = http.post(GATEWAY, content=b"x", headers={"content-type": media_type})
    assert problem(answer) == (415, "media-type")


@pytest.mark.parametrize("media_type", ["message/ohttp-chunked-req", "message/ohttp-req"])
def test_noise_is_refused(http: httpx2.Client, media_type: str):
    for noise in (b"", b"\x00", b"\xff" * 7, bytes(5000)):
        answer = http.post(GATEWAY, content=noise, headers={"content-type": media_type})
        assert problem(answer)[0] == 400


def test_a_request_over_the_bound_is_refused_while_it_arrives(service: Service):
    with cloister.connect(service.url, policy=service.policy) as client:
        assert client.post("/echo", content=b"x" * 100_000).status_code == 200
        with pytest.raises((PlaintextResponse, httpx2.TransportError)):
            client.post("/echo", content=b"x" * 300_000)


def test_a_final_chunk_may_not_carry_a_request_over_the_bound(service: Service, http: httpx2.Client):
    sealer = RequestSealer(parse_key_configs(service.keyring.configs())[0])
    sealed = (
        sealer.header + sealer.seal(bytes(150_000), final=False) + sealer.seal(bytes(150_000), final=True)
    )
    answer = http.post(GATEWAY, content=sealed, headers={"content-type": "message/ohttp-chunked-req"})
    assert problem(answer) == (413, "too-large")


def test_a_request_that_does_not_arrive_in_time_is_refused(service: Service):
    with socket.create_connection(("127.0.0.1", service.port)) as slow:
        slow.sendall(
            f"POST {GATEWAY} HTTP/1.1\r\nhost: x\r\ncontent-type: message/ohttp-chunked-req\r\n"
            "content-length: 5000\r\n\r\nx".encode()
        )
        slow.settimeout(30)
        assert slow.recv(4096).startswith(b"HTTP/1.1 408 ")


def test_a_web_socket_is_closed(service: Service):
    async def app(scope: object, receive: object, send: object) -> None:
        raise AssertionError("the application was reached")

    sent: list[dict[str, object]] = []

    async def send(message: dict[str, object]) -> None:
        sent.append(message)

    async def receive() -> dict[str, object]:
        return {"type": "websocket.connect"}

    gateway = SealedGateway(
        app, keyring=service.keyring, evidence=EvidenceService(service.tee, service.keyring)
    )
    asyncio.run(gateway({"type": "websocket", "path": "/v1/realtime"}, receive, send))
    assert [message["type"] for message in sent] == ["websocket.close"]


def test_more_requests_than_a_gateway_takes_are_turned_away():
    with running(max_open=0) as service, httpx2.Client(base_url=service.url) as http:
        answer = http.post(GATEWAY, content=b"x", headers={"content-type": "message/ohttp-req"})
        assert problem(answer) == (503, "overloaded")
        assert answer.headers["retry-after"] == "1"


def test_an_attester_that_fails_says_so_in_its_own_log_only(caplog: pytest.LogCaptureFixture):
    class Broken:
        def quote(self, report_data: bytes) -> RawEvidence:
            raise AttesterError("the quoting device at /dev/secret is gone")

    with running() as service:
        gateway = SealedGateway(
            lambda *_: None, keyring=service.keyring, evidence=EvidenceService(Broken(), service.keyring)
        )
        listener = listen()
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        with serving(gateway, listener):
            answer = httpx2.post(url + ATTESTATION, json={"nonce": b64url_encode(bytes(32))})
    assert problem(answer) == (503, "no-evidence")
    assert "/dev/secret" not in answer.text
    assert "/dev/secret" in caplog.text
