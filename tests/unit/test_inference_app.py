from __future__ import annotations

import asyncio
import json
import logging
import threading
from collections.abc import Mapping
from typing import Any

import httpx2
import pytest

from cloister.inference.api_errors import RequestRefused
from cloister.inference.api_keys import ApiKeys
from cloister.inference.app import create_app
from scripted_engine import ScriptedEngine, chunk

KEY = "sk-" + "k" * 40
CHAT: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "hello"}]}
CANARY = "canary-4711-quokka"


def call(
    engine: ScriptedEngine,
    method: str,
    path: str,
    *,
    keys: ApiKeys | None = None,
    headers: Mapping[str, str] | None = None,
    **fields: Any,
) -> httpx2.Response:
    app = create_app(engine, model_name="m", api_keys=keys or ApiKeys.nobody_asks(), now=lambda: 1000.5)

    async def main() -> httpx2.Response:
        transport = httpx2.ASGITransport(app=app)
        async with httpx2.AsyncClient(transport=transport, base_url="http://service") as client:
            return await client.request(method, path, headers=headers, **fields)

    return asyncio.run(main())


def events(response: httpx2.Response) -> list[str]:
    return [part for part in response.text.split("\n\n") if part]


def test_a_chat_is_gathered_into_one_answer_under_the_clients_own_model_name() -> None:
    answer = call(ScriptedEngine(), "POST", "/v1/chat/completions", json=CHAT)
    assert answer.status_code == 200
    assert answer.headers["cache-control"] == "no-store"
    assert answer.json() == {
        "id": "id-1",
        "object": "chat.completion",
        "created": 1,
        "model": "m",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "one two", "refusal": None},
                "logprobs": None,
                "finish_reason": "stop",
            }
        ],
        "usage": {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5},
    }


@pytest.mark.parametrize("wanted", [True, False])
def test_a_stream_ends_with_done_and_tells_usage_only_if_asked(wanted: bool) -> None:
    body = CHAT | {"stream": True, "stream_options": {"include_usage": wanted}}
    answer = call(ScriptedEngine(), "POST", "/v1/chat/completions", json=body)
    *lines, last = events(answer)
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert last == "data: [DONE]"
    chunks = [json.loads(line.removeprefix("data: ")) for line in lines]
    told = [chunk for chunk in chunks if chunk["choices"]]
    assert "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in told) == "one two"
    assert [chunk["model"] for chunk in chunks] == ["m"] * len(chunks)
    if wanted:
        assert chunks[-1]["usage"]["total_tokens"] == 5
        assert chunks[-1]["choices"] == []
    else:
        assert all("usage" not in chunk for chunk in chunks)


def test_a_completion_is_gathered_and_streamed() -> None:
    body = {"model": "m", "prompt": "a"}
    assert (
        call(ScriptedEngine(), "POST", "/v1/completions", json=body).json()["choices"][0]["text"] == "one two"
    )
    answer = call(ScriptedEngine(), "POST", "/v1/completions", json=body | {"stream": True})
    assert events(answer)[-1] == "data: [DONE]"


def test_a_response_has_openais_events_in_order_and_numbered() -> None:
    body = {"model": "m", "input": "hello", "stream": True}
    answer = call(ScriptedEngine(), "POST", "/v1/responses", json=body)
    pairs = [event.split("\n") for event in events(answer)]
    values = [json.loads(data.removeprefix("data: ")) for _, data in pairs]
    assert [name.removeprefix("event: ") for name, _ in pairs] == [value["type"] for value in values]
    assert [value["type"] for value in values] == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
        "response.output_text.delta",
        "response.output_text.delta",
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.completed",
    ]
    assert [value["sequence_number"] for value in values] == list(range(len(values)))
    final = values[-1]["response"]
    assert final["output"][0]["content"][0]["text"] == "one two"
    assert final["usage"]["total_tokens"] == 5
    assert final["created_at"] == 1000
    assert final["store"] is False


def test_embeddings_models_and_health_answer() -> None:
    answer = call(ScriptedEngine(), "POST", "/v1/embeddings", json={"model": "m", "input": "a"})
    assert answer.json()["model"] == "m"
    model = {"id": "m", "object": "model", "created": 1000, "owned_by": "cloister"}
    assert call(ScriptedEngine(), "GET", "/v1/models").json() == {"object": "list", "data": [model]}
    assert call(ScriptedEngine(), "GET", "/v1/models/m").json() == model
    assert call(ScriptedEngine(), "GET", "/healthz").json() == {"status": "ok"}


@pytest.mark.parametrize(
    ("method", "path", "fields", "status", "code"),
    [
        pytest.param(
            "POST",
            "/v1/chat/completions",
            {"json": CHAT | {"model": "x"}},
            404,
            "model_not_found",
            id="model",
        ),
        pytest.param("GET", "/v1/models/x", {}, 404, "model_not_found", id="model by name"),
        pytest.param("GET", "/v1/nothing", {}, 404, "not_found", id="route"),
        pytest.param("GET", "/v1/models/", {}, 404, "model_not_found", id="no redirect"),
        pytest.param("GET", "/v1/chat/completions", {}, 405, "method_not_allowed", id="method"),
        pytest.param(
            "POST",
            "/v1/chat/completions",
            {"content": b"{", "headers": {"content-type": "application/json"}},
            400,
            "invalid_json",
            id="malformed JSON",
        ),
        pytest.param(
            "POST",
            "/v1/chat/completions",
            {"content": json.dumps(CHAT), "headers": {"content-type": "text/plain"}},
            415,
            "unsupported_media_type",
            id="another site's form",
        ),
        pytest.param(
            "POST",
            "/v1/chat/completions",
            {"json": {"messages": "x" * (5 << 20)}},
            413,
            "request_too_large",
            id="body",
        ),
        pytest.param(
            "POST", "/v1/chat/completions", {"json": CHAT | {"n": 9}}, 400, "invalid_value", id="n over slots"
        ),
        pytest.param(
            "POST",
            "/v1/chat/completions",
            {"json": CHAT | {"tools": [{}]}},
            400,
            "unsupported",
            id="tools",
        ),
    ],
)
def test_refusals_have_openais_shape(
    method: str, path: str, fields: dict[str, Any], status: int, code: str
) -> None:
    answer = call(ScriptedEngine(), method, path, **fields)
    assert answer.status_code == status
    assert answer.json()["error"]["code"] == code
    assert set(answer.json()["error"]) == {"message", "type", "param", "code"}


@pytest.mark.parametrize(
    "path", ["/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/embeddings"]
)
def test_without_the_key_nothing_is_read_or_computed(path: str) -> None:
    engine = ScriptedEngine()
    keys = ApiKeys([KEY])
    assert call(engine, "POST", path, keys=keys, json=CHAT).status_code == 401
    wrong = call(engine, "POST", path, keys=keys, json=CHAT, headers={"Authorization": "Bearer " + "x" * 20})
    assert wrong.json()["error"]["code"] == "invalid_api_key"
    assert wrong.headers["www-authenticate"] == "Bearer"
    assert engine.asked == []
    assert call(engine, "GET", "/v1/models", keys=keys).status_code == 401
    assert call(engine, "GET", "/healthz", keys=keys).status_code == 200
    right = call(engine, "GET", "/v1/models", keys=keys, headers={"Authorization": f"Bearer {KEY}"})
    assert right.status_code == 200


def test_a_refusal_of_the_engine_before_the_first_token_is_a_status() -> None:
    engine = ScriptedEngine([], error=RequestRefused("too long", code="context_length_exceeded"))
    for path, body in (("/v1/chat/completions", CHAT), ("/v1/responses", {"model": "m", "input": "a"})):
        answer = call(engine, "POST", path, json=body | {"stream": True})
        assert (answer.status_code, answer.json()["error"]["code"]) == (400, "context_length_exceeded")


def test_a_failure_inside_a_stream_is_an_error_event_without_done() -> None:
    engine = ScriptedEngine(["a"], error=RequestRefused("it broke", status=500))
    answer = call(engine, "POST", "/v1/chat/completions", json=CHAT | {"stream": True})
    assert json.loads(events(answer)[-1].removeprefix("data: "))["error"]["message"] == "it broke"
    assert "[DONE]" not in answer.text
    response = call(engine, "POST", "/v1/responses", json={"model": "m", "input": "a", "stream": True})
    assert events(response)[-1].startswith("event: error\n")


def test_an_unexpected_failure_tells_and_logs_nothing_of_the_prompt(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    engine = ScriptedEngine([CANARY], error=RuntimeError(f"failed on {CANARY}"))
    body = CHAT | {"messages": [{"role": "user", "content": CANARY}]}
    answer = call(engine, "POST", "/v1/chat/completions", json=body)
    assert answer.status_code == 500
    assert CANARY not in answer.text
    assert CANARY not in caplog.text
    assert "RuntimeError" in caplog.text


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_stops_its_request_streamed_or_not(stream: bool) -> None:
    began = threading.Event()
    engine = ScriptedEngine(("a" for _ in iter(int, 1)), slots=1, before=lambda _: began.set())
    app = create_app(engine, model_name="m", api_keys=ApiKeys.nobody_asks())
    messages = [{"type": "http.request", "body": json.dumps(CHAT | {"stream": stream}).encode()}]
    scope = {
        "type": "http",
        "method": "POST",
        "path": "/v1/chat/completions",
        "headers": [(b"content-type", b"application/json")],
        "query_string": b"",
    }

    async def receive() -> dict[str, Any]:
        if messages:
            return messages.pop()
        await asyncio.to_thread(began.wait, 20)
        return {"type": "http.disconnect"}

    async def send(_: Any) -> None:
        pass

    async def main() -> None:
        await asyncio.wait_for(app(scope, receive, send), 20)
        assert await asyncio.to_thread(engine.stopped.wait, 20)

    asyncio.run(main())


def test_who_is_refused_for_want_of_room_is_told_when_to_come_back() -> None:
    refusal = RequestRefused("full", status=503, code="overloaded", retry_after=7)
    answer = call(ScriptedEngine([], error=refusal), "POST", "/v1/chat/completions", json=CHAT)
    assert answer.status_code == 503
    assert answer.headers["retry-after"] == "7"


def test_a_role_waits_for_the_first_words_and_a_late_refusal_stays_a_status() -> None:
    class RoleFirst(ScriptedEngine):
        def generate(self, kind: Any, request: Any, sink: Any, *, tenant: bytes | None = None) -> None:
            role = chunk("chat", None)
            role["choices"][0]["delta"] = {"role": "assistant", "content": None}
            sink(role)
            super().generate(kind, request, sink, tenant=tenant)

    body = CHAT | {"stream": True}
    refused = call(
        RoleFirst([], error=RequestRefused("no", status=400)), "POST", "/v1/chat/completions", json=body
    )
    assert refused.status_code == 400
    told = events(call(RoleFirst(), "POST", "/v1/chat/completions", json=body))
    assert json.loads(told[0].removeprefix("data: "))["choices"][0]["delta"]["role"] == "assistant"
    assert json.loads(told[1].removeprefix("data: "))["choices"][0]["delta"] == {"content": "one"}


def test_the_engine_is_told_a_tenant_for_each_key_and_none_where_nobody_is_asked() -> None:
    other = "sk-" + "o" * 40

    def tenants(keys: ApiKeys, *sent: str | None) -> list[bytes | None]:
        engine = ScriptedEngine()
        app = create_app(engine, model_name="m", api_keys=keys)

        async def main() -> None:
            transport = httpx2.ASGITransport(app=app)
            async with httpx2.AsyncClient(transport=transport, base_url="http://service") as client:
                for key in sent:
                    headers = {} if key is None else {"authorization": f"Bearer {key}"}
                    answer = await client.post("/v1/chat/completions", json=CHAT, headers=headers)
                    assert answer.status_code == 200

        asyncio.run(main())
        return engine.tenants

    one, same, another = tenants(ApiKeys([KEY, other]), KEY, KEY, other)
    assert one == same != another
    assert one is not None
    assert len(one) == 32
    assert tenants(ApiKeys([KEY]), KEY) != [one]  # salted in each process
    assert tenants(ApiKeys.nobody_asks(), None, KEY) == [None, None]


def test_nothing_of_the_engines_own_leaves_in_a_stream() -> None:
    class Talkative(ScriptedEngine):
        def generate(self, kind: Any, request: Any, sink: Any, *, tenant: bytes | None = None) -> None:
            def loud(part: Mapping[str, Any]) -> bool:
                return bool(sink(dict(part) | {"timings": {"secret": CANARY}, "__verbose": CANARY}))

            super().generate(kind, request, loud, tenant=tenant)

    for stream in (True, False):
        answer = call(Talkative(), "POST", "/v1/chat/completions", json=CHAT | {"stream": stream})
        assert answer.status_code == 200
        assert CANARY not in answer.text
