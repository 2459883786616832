"""The chat page's back end: what its door lets change something, and what it keeps."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import httpx2
import pytest

import cloister
from broker_parts import call
from cloister.channel.evidence_service import EvidenceService
from cloister.channel.keyring import KeyRing
from cloister.channel.middleware import SealedGateway
from cloister.channel.receipt_file import ReceiptFile
from cloister.channel.transport import AsyncSealedTransport, prepare
from cloister.client.chat_page import MAX_RECEIPTS, Receipts, create_chat_page
from cloister.client.guard import CHANGES, CONTENT_POLICY, COOKIE, OWN_FIELD, Guard, Secrets
from cloister.client.proxy import Proxy
from cloister.client.proxy_door import Door
from cloister.encoding import encode_json
from sealed_service import MODEL, Service, launched, listen, policy_for, running, serving

PORT = 8789
SECRETS = Secrets("place", "token", "cookie")
OWN = {
    "host": f"127.0.0.1:{PORT}", "cookie": f"{COOKIE}=cookie", "origin": f"http://127.0.0.1:{PORT}",
    "sec-fetch-site": "same-origin", OWN_FIELD: "1",
}  # fmt: skip


def guard(app: Any = None) -> Guard:
    async def echo(scope: Any, _receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send(
            {"type": "http.response.body", "body": b"%s %s" % (scope["method"].encode(), scope["raw_path"])}
        )

    return Guard(app or echo, SECRETS, port=PORT, methods=CHANGES)


def test_the_page_itself_changes_something_and_names_come_through_as_they_were_written() -> None:
    for method in ("POST", "PUT", "DELETE"):
        answer = call(guard(), method, b"/place/v1/a%20b%2Fc", headers=OWN)
        assert (answer.status, answer.body) == (200, b"%s /v1/a%%20b%%2Fc" % method.encode())


@pytest.mark.parametrize(
    ("change", "status"),
    [
        ({"origin": "http://evil.example"}, 403),
        ({"origin": f"http://127.0.0.1:{PORT + 1}"}, 403),
        ({"origin": "null"}, 403),
        ({"origin": ""}, 403),
        ({"sec-fetch-site": "cross-site"}, 403),
        ({"sec-fetch-site": "same-site"}, 403),
        ({"sec-fetch-site": "none"}, 403),
        ({OWN_FIELD: ""}, 403),
        ({"cookie": ""}, 403),
        ({"cookie": f"{COOKIE}=guess"}, 403),
        ({"host": "evil.example"}, 421),
    ],
)
@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE"])
def test_what_changes_something_comes_from_the_page_itself(
    method: str, change: dict[str, str], status: int
) -> None:
    assert call(guard(), method, b"/place/v1/chat/completions", headers=OWN | change).status == status


@pytest.mark.parametrize("method", ["OPTIONS", "PATCH", "TRACE", "CONNECT"])
def test_other_methods_are_refused(method: str) -> None:
    assert call(guard(), method, b"/place/v1/models", headers=OWN).status == 405


def test_a_page_that_only_shows_still_changes_nothing() -> None:
    shows = Guard(guard(), SECRETS, port=PORT)
    assert call(shows, "POST", b"/place/v1/models", headers=OWN).status == 405


def page_of(service: Service, receipts: Receipts) -> tuple[Any, AsyncSealedTransport]:
    origin, verification = prepare(service.url, service.policy)
    sealed = AsyncSealedTransport(origin, verification, receipts=receipts)
    proxy = Proxy(origin, sealed, Door.of_page(), service_key="service-key-0123456789")
    return create_chat_page(
        origin, sealed, proxy, receipts, lambda shown: f"<p>{len(shown.evidence)}</p>"
    ), sealed


def test_the_page_says_who_is_verified_passes_on_sealed_and_hands_out_receipts() -> None:
    async def main(service: Service) -> None:
        app, sealed = page_of(service, Receipts())
        async with httpx2.AsyncClient(
            transport=httpx2.ASGITransport(app=app), base_url="http://page"
        ) as client:
            assert (await client.get("/report")).status_code == 409
            state = (await client.get("/state")).json()
            assert (state["state"], state["simulated"], state["tee"], state["verifications"]) == (
                "verified",
                True,
                "tdx",
                1,
            )
            assert len(state["checks"]) > 10
            assert state["events"]["cloister.program"]
            body = {"model": MODEL, "messages": [{"role": "user", "content": "hello"}]}
            answer = await client.post(
                "/v1/chat/completions", json=body, headers={OWN_FIELD: "1", "cookie": "a=b"}
            )
            assert answer.status_code == 200
            receipt = await client.get(f"/receipts/{answer.headers['x-cloister-request-id']}")
            assert json.loads(receipt.content)["format"] == "cloister/receipt-file/v1"
            assert (await client.get("/receipts/00")).status_code == 404
            assert (await client.get("/report")).text.startswith("<p>")
            assert (await client.post("/state")).json()["verifications"] == 2
            assert (await client.get("/chat.js")).headers["content-type"].startswith("text/javascript")
            assert (await client.get("/package.json")).status_code == 404
        await sealed.aclose()
        headers = service.asked[-1].headers
        assert headers["authorization"] == "Bearer service-key-0123456789"
        assert OWN_FIELD not in headers
        assert "cookie" not in headers

    with running(keyring=KeyRing(replica="r", receipts=True)) as service:
        asyncio.run(main(service))


def test_a_service_of_another_measurement_is_told_and_asked_nothing() -> None:
    async def main(service: Service, other: Service) -> None:
        origin, verification = prepare(service.url, other.policy)
        sealed = AsyncSealedTransport(origin, verification)
        proxy = Proxy(origin, sealed, Door.of_page())
        app = create_chat_page(origin, sealed, proxy, Receipts(), lambda _: "")
        async with httpx2.AsyncClient(
            transport=httpx2.ASGITransport(app=app), base_url="http://page"
        ) as client:
            state = (await client.get("/state")).json()
            assert state["state"] == "not-verified"
            assert state["problem"]
            assert (await client.get("/v1/models")).status_code == 502
        await sealed.aclose()

    with running() as service, running(keyring=KeyRing(replica="x")) as same:
        same.policy = policy_for(launched(b"\x09" * 32))
        asyncio.run(main(service, same))
        assert service.asked == []


def test_a_service_s_cookies_and_policies_do_not_reach_the_page() -> None:
    async def hostile(_scope: Any, _receive: Any, send: Any) -> None:
        fields = [
            (b"content-type", b"text/html"), (b"set-cookie", b"sid=evil; Path=/"), (b"retry-after", b"3"),
            (b"content-security-policy", b"default-src *"), (b"x-content-type-options", b"sniff"),
        ]  # fmt: skip
        await send({"type": "http.response.start", "status": 200, "headers": fields})
        await send({"type": "http.response.body", "body": b"<script>1</script>"})

    async def main(url: str, policy: Any) -> None:
        origin, verification = prepare(url, policy)
        sealed = AsyncSealedTransport(origin, verification)
        app = create_chat_page(
            origin, sealed, Proxy(origin, sealed, Door.of_page()), Receipts(), lambda _: ""
        )
        async with httpx2.AsyncClient(
            transport=httpx2.ASGITransport(app=guard(app)), base_url=f"http://127.0.0.1:{PORT}", headers=OWN
        ) as client:
            answer = await client.get("/place/v1/anything")
        await sealed.aclose()
        assert answer.headers["content-security-policy"] == CONTENT_POLICY
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["retry-after"] == "3"
        assert "set-cookie" not in answer.headers

    keyring, tee, listener = KeyRing(replica="r"), launched(), listen()
    gateway = SealedGateway(hostile, keyring=keyring, evidence=EvidenceService(tee, keyring))
    with serving(gateway, listener):
        asyncio.run(main(f"http://127.0.0.1:{listener.getsockname()[1]}", policy_for(tee)))


def test_only_the_newest_receipts_are_held() -> None:
    found: list[ReceiptFile] = []
    with (
        running(keyring=KeyRing(replica="r", receipts=True)) as service,
        cloister.connect(service.url, policy=service.policy, receipts=found.append) as client,
    ):
        client.get("/v1/models")
        client.get("/v1/models")
    receipts = Receipts()
    for file in found:
        receipts(file)
    assert all(receipts.get(json.loads(file.receipt)["request_id"]) == file for file in found)
    import msgspec

    for number in range(MAX_RECEIPTS):
        content = json.loads(found[0].receipt) | {"request_id": f"{number:032x}"}
        receipts(msgspec.structs.replace(found[0], receipt=encode_json(content)))
    assert receipts.get(json.loads(found[1].receipt)["request_id"]) is None
    assert receipts.get(f"{MAX_RECEIPTS - 1:032x}") is not None
