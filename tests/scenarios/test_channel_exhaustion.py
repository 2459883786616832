"""Who may send sealed requests, and that is anybody, exhausts neither memory nor places; and no way leads around."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import httpx2
import pytest

import cloister
from cloister.channel import bhttp, httpx_adapter, inner_request
from cloister.channel.evidence_service import EvidenceService
from cloister.channel.keyring import KeyRing
from cloister.channel.middleware import SealedGateway
from cloister.channel.ohttp import CHUNKED_REQUEST_TYPE, REQUEST_TYPE, RequestSealer, parse_key_configs
from cloister.channel.transport import AsyncSealedClient, SealedClient, SealedTransport, prepare
from cloister.errors import UsageError
from sealed_service import launched, running

GATEWAY = "/.well-known/ohttp-gateway"
HEAD = bhttp.Request(method=b"POST", scheme=b"http", authority=b"x", path=b"/")

Message = dict[str, Any]


class Held:
    """A gateway without a network: what it is sent is a list, what it sends goes where a test says."""

    def __init__(self, app: Any, **settings: Any) -> None:
        self.keyring = KeyRing()
        evidence = EvidenceService(launched(), self.keyring)
        self.gateway = SealedGateway(app, keyring=self.keyring, evidence=evidence, **settings)

    def sealer(self, *, chunked: bool = True) -> RequestSealer:
        return RequestSealer(parse_key_configs(self.keyring.configs())[0], chunked=chunked)

    async def post(
        self,
        sealer: RequestSealer,
        parts: list[bytes],
        send: Callable[[Message], Awaitable[None]],
        *,
        ends: bool = True,
    ) -> None:
        waiting = [{"type": "http.request", "body": part, "more_body": True} for part in parts]
        waiting[-1]["more_body"] = not ends

        async def receive() -> Message:
            if not waiting:
                await asyncio.Event().wait()
            return waiting.pop(0)

        kind = CHUNKED_REQUEST_TYPE if sealer.chunked else REQUEST_TYPE
        fields = [(b"content-type", kind.encode())]
        scope = {"type": "http", "method": "POST", "path": GATEWAY, "headers": fields}
        await self.gateway(scope, receive, send)


async def answering(scope: Message, receive: Any, send: Any) -> None:
    await receive()
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"done"})


def collector(messages: list[Message]) -> Callable[[Message], Awaitable[None]]:
    async def send(message: Message) -> None:
        messages.append(message)

    return send


def opened(sealer: RequestSealer, messages: list[Message]) -> int:
    """The status inside the seal."""
    opener, decoder = sealer.response(), bhttp.ResponseDecoder()
    body = b"".join(message.get("body", b"") for message in messages)
    events = [e for part in (*opener.feed(body), *opener.finish()) for e in decoder.feed(part)]
    return next(event.message.status for event in events if isinstance(event, bhttp.Head))


def test_content_in_very_many_pieces_is_refused_inside_the_seal():
    # Each piece costs a hundred times its bytes: 32 MiB of them held the server up for half a minute.
    held, sent = Held(answering), []
    sealer = held.sealer()
    pieces = bhttp.body_chunk(b"ab") * (2 * inner_request.MAX_PIECES)
    message = bhttp.request_head(HEAD) + pieces + bhttp.body_end()
    asyncio.run(held.post(sealer, [sealer.header + sealer.seal(message, final=True)], collector(sent)))
    assert opened(sealer, sent) == 413


def test_content_in_many_pieces_still_arrives():
    held, sent = Held(answering), []
    sealer = held.sealer()
    message = bhttp.request_head(HEAD) + bhttp.body_chunk(b"a") * 50_000 + bhttp.body_end()
    asyncio.run(held.post(sealer, [sealer.header + sealer.seal(message, final=True)], collector(sent)))
    assert opened(sealer, sent) == 200


def test_requests_that_together_hold_too_much_are_turned_away_and_the_room_comes_back():
    held = Held(answering, max_received=100_000, receive_seconds=5)

    async def scenario() -> list[int]:
        statuses = []
        first, second, third = held.sealer(), held.sealer(), held.sealer()
        slow = asyncio.create_task(
            held.post(
                first, [first.header + first.seal(b"x" * 80_000, final=False)], collector([]), ends=False
            )
        )
        await asyncio.sleep(0.05)
        for sealer in (second, third):
            sent: list[Message] = []
            message = bhttp.encode_request(HEAD, b"y" * 40_000)
            await held.post(sealer, [sealer.header + sealer.seal(message, final=True)], collector(sent))
            statuses.append(sent[0]["status"])
            await slow
        return statuses

    assert asyncio.run(scenario()) == [503, 200]


def test_a_client_that_does_not_read_loses_its_place():
    seen: list[type[BaseException]] = []

    async def talking(scope: Message, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        try:
            while True:
                await send({"type": "http.response.body", "body": b"x" * 100_000, "more_body": True})
        except OSError as error:
            seen.append(type(error))
            raise

    held = Held(talking, max_open=1, send_seconds=0.05)

    async def stuck(message: Message) -> None:
        await asyncio.Event().wait()

    async def scenario() -> None:
        for _ in range(2):  # the second finds the one place free again
            sealer = held.sealer()
            message = bhttp.encode_request(HEAD)
            await held.post(sealer, [sealer.header + sealer.seal(message, final=True)], stuck)

    asyncio.run(asyncio.wait_for(scenario(), 20))
    assert seen == [OSError, OSError]


def test_a_client_that_does_not_read_its_refusal_is_no_failure_of_the_server():
    held = Held(answering, send_seconds=0.05)

    async def stuck(message: Message) -> None:
        await asyncio.Event().wait()

    sealer = held.sealer()
    parts = [sealer.header + sealer.seal(b"no request at all", final=True)]
    asyncio.run(asyncio.wait_for(held.post(sealer, parts, stuck), 20))


def test_an_answer_too_long_for_its_one_chunk_is_an_error_inside_the_seal():
    async def long(scope: Message, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": bytes(1 << 20)})

    held, sent = Held(long), []
    sealer = held.sealer(chunked=False)
    message = bhttp.encode_request(HEAD)
    asyncio.run(held.post(sealer, [sealer.header + sealer.seal(message, final=True)], collector(sent)))
    assert opened(sealer, sent) == 500


AROUND = [
    pytest.param({"proxy": "http://127.0.0.1:9"}, id="a proxy"),
    pytest.param({"mounts": {"http://": None}}, id="a mount"),
    pytest.param({"transport": httpx2.HTTPTransport()}, id="another transport"),
]


@pytest.mark.parametrize("settings", AROUND)
def test_a_setting_that_would_lead_requests_around_the_seal_is_refused(settings: dict[str, Any]):
    with running() as service:
        with pytest.raises(UsageError, match="in the clear"):
            httpx_adapter.connect(service.url, policy=service.policy, **settings)
        with pytest.raises(UsageError, match="in the clear"):
            httpx_adapter.connect_async(service.url, policy=service.policy, **settings)
        sealed = SealedTransport(*prepare(service.url, service.policy))
        for client in (SealedClient, AsyncSealedClient):
            with pytest.raises(UsageError, match="in the clear"):
                client(sealed, **settings)
        sealed.close()


def test_a_proxy_of_the_environment_sees_nothing(monkeypatch: pytest.MonkeyPatch):
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    with running() as service:
        with cloister.connect(service.url, policy=service.policy) as client:
            assert client.post("/echo", content=b"x").content == b"x"
        with httpx_adapter.connect(service.url, policy=service.policy) as older:
            assert older.post("/echo", content=b"x").content == b"x"
