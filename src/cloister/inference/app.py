"""The OpenAI API on an engine, as an ASGI application.

It knows nothing of the sealed channel, which wraps it from outside. It refuses unknown fields, models and keys in
OpenAI's own error shape, bounds what it reads, notices a client that leaves at once and frees its slot, and logs
neither prompts nor answers: of an unexpected failure only the type's name.
"""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any, Final

import msgspec
from starlette.applications import Starlette
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import Message, Receive, Scope, Send

from cloister.encoding import labelled_hash
from cloister.errors import InferenceError
from cloister.inference.answers import StreamedAnswer, embeddings, gathered
from cloister.inference.api_errors import RequestRefused, plain_status, unknown_model
from cloister.inference.api_keys import ApiKeys
from cloister.inference.engines import Engine
from cloister.inference.generation import Generations, Moment
from cloister.inference.openai_requests import (
    MAX_BODY,
    ChatRequest,
    EmbeddingsRequest,
    EngineRequest,
    Json,
    TextRequest,
    chat_request,
    convert,
    embeddings_requests,
    parse_body,
    text_request,
)
from cloister.inference.openai_responses import ResponsesRequest, ResponseWriter, as_chat

LOG: Final = logging.getLogger("cloister.inference")
CADENCE: Final = "cloister.cadence"
"""Key of a scope's ``extensions``: a :data:`Moment` of whoever carries the answers (docs/spec/inference-api.md)."""
TENANT: Final = "cloister/tenant/v1"
PARSE_IN_THREAD: Final = 64 << 10
"""Bodies over this many bytes are parsed beside the event loop."""

Fields = tuple[tuple[bytes, bytes], ...]


def create_app(
    engine: Engine,
    *,
    model_name: str,
    api_keys: ApiKeys,
    now: Callable[[], float] = time.time,
    entropy: Callable[[int], bytes] = os.urandom,
) -> Starlette:
    """The API of one model under the name ``model_name``. The engine stays the caller's to close."""
    generations = Generations(engine)
    salt = entropy(32)
    api = _Api(engine, generations, model_name, now)
    model: Json = {"id": model_name, "object": "model", "created": int(now()), "owned_by": "cloister"}

    async def models(request: Request) -> Response:
        api_keys.check(request.headers.get("authorization"))
        return JSONResponse({"object": "list", "data": [model]})

    async def one_model(request: Request) -> Response:
        api_keys.check(request.headers.get("authorization"))
        if request.path_params["model"] != model_name:
            raise unknown_model(request.path_params["model"])
        return JSONResponse(model)

    async def health(_: Request) -> Response:
        return JSONResponse({"status": "ok"})

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        yield
        generations.close()

    def tenant_of(authorization: str | None) -> bytes | None:
        # Salted: what an engine or a core of its memory shows of tenants leads to no key.
        identity = api_keys.check(authorization)
        return None if identity is None else labelled_hash(TENANT, salt, identity)

    def post(path: str, answer: _Answer) -> Route:
        return Route(path, _Exchange(answer, tenant_of), methods=["POST"])

    app = Starlette(
        routes=[
            post("/v1/chat/completions", api.chat),
            post("/v1/completions", api.text),
            post("/v1/responses", api.responses),
            post("/v1/embeddings", api.embeddings),
            Route("/v1/models", models),
            Route("/v1/models/{model:path}", one_model),
            Route("/healthz", health),
        ],
        exception_handlers={RequestRefused: _refused, HTTPException: _not_routed},
        lifespan=lifespan,
    )
    app.router.redirect_slashes = False
    return app


class _Reply:
    """One HTTP answer being sent: JSON at once, or server-sent events as they come."""

    def __init__(self, send: Send, moment: Moment | None) -> None:
        self._send = send
        self.moment = moment
        """When what is written can be sent, if whoever carries the answer says so."""
        self.started = False
        self.named_events = False
        self._events = 0

    async def json(self, value: Mapping[str, Any], status: int = 200, more: Fields = ()) -> None:
        await self._start(status, b"application/json", more)
        await self._send({"type": "http.response.body", "body": msgspec.json.encode(value)})

    async def events(self, data: bytes) -> None:
        """One or more events in their form on the wire."""
        if not self.started:
            await self._start(200, b"text/event-stream; charset=utf-8")
        await self._send({"type": "http.response.body", "body": data, "more_body": True})

    async def event(self, value: Mapping[str, Any]) -> None:
        self._events += 1
        name = b"event: %s\n" % value["type"].encode() if self.named_events else b""
        await self.events(name + b"data: " + msgspec.json.encode(value) + b"\n\n")

    async def end(self, last: bytes = b"") -> None:
        if not self.started:
            await self._start(200, b"text/event-stream; charset=utf-8")
        await self._send({"type": "http.response.body", "body": last})

    async def refuse(self, refusal: RequestRefused) -> None:
        if not self.started:
            await self.json(refusal.body(), refusal.status, _told_by(refusal))
        elif self.named_events:
            error = refusal.body()["error"]
            await self.event(error | {"type": "error", "sequence_number": self._events})
            await self.end()
        else:
            await self.event(refusal.body())
            await self.end()

    async def _start(self, status: int, content_type: bytes, more: Fields = ()) -> None:
        self.started = True
        headers = [
            (b"content-type", content_type),
            (b"cache-control", b"no-store"),
            (b"x-request-id", b"req_" + secrets.token_hex(16).encode()),
        ]
        headers.extend(more)
        await self._send({"type": "http.response.start", "status": status, "headers": headers})


def _told_by(refusal: RequestRefused) -> Fields:
    """What a refusal's header says: how to ask with a key, or when to ask again."""
    key = ((b"www-authenticate", b"Bearer"),) if refusal.status == 401 else ()
    when = refusal.retry_after
    return key if when is None else (*key, (b"retry-after", str(when).encode("ascii")))


_Answer = Callable[[Json, _Reply, bytes | None], Awaitable[None]]
"""Body, reply, and the tenant who asks."""


class _Api:
    """What each POST endpoint does with its body."""

    def __init__(
        self, engine: Engine, generations: Generations, model_name: str, now: Callable[[], float]
    ) -> None:
        self._engine = engine
        self._generations = generations
        self._model_name = model_name
        self._now = now

    async def chat(self, body: Json, reply: _Reply, tenant: bytes | None) -> None:
        await self._complete(chat_request(convert(body, ChatRequest)), reply, tenant)

    async def text(self, body: Json, reply: _Reply, tenant: bytes | None) -> None:
        await self._complete(text_request(convert(body, TextRequest)), reply, tenant)

    async def responses(self, body: Json, reply: _Reply, tenant: bytes | None) -> None:
        request = convert(body, ResponsesRequest)
        asked = as_chat(request)
        self._check(asked)
        writer = ResponseWriter(request, identity=secrets.token_hex(16), created=int(self._now()))
        async with self._generations.chunks("chat", asked.body, tenant=tenant, moment=reply.moment) as chunks:
            if not asked.stream:
                await reply.json(await writer.gathered(aiter(chunks)))
                return
            reply.named_events = True
            async for event in writer.events(aiter(chunks)):
                await reply.event(event)
            await reply.end()

    async def embeddings(self, body: Json, reply: _Reply, tenant: bytes | None) -> None:
        request = convert(body, EmbeddingsRequest)
        self._check_model(request.model)
        asked = embeddings_requests(request, length=self._engine.embedding_length)
        await reply.json(embeddings(await self._generations.embed(asked, tenant=tenant), request.model))

    async def _complete(self, request: EngineRequest, reply: _Reply, tenant: bytes | None) -> None:
        self._check(request)
        async with self._generations.chunks(
            request.kind, request.body, tenant=tenant, moment=reply.moment
        ) as chunks:
            if not request.stream:
                await reply.json(await gathered(chunks, request))
                return
            answer = StreamedAnswer(request)
            async for batch in chunks.batches():
                data = answer.events(batch)
                if data:
                    await reply.events(data)
            await reply.end(answer.last())

    def _check(self, request: EngineRequest) -> None:
        self._check_model(request.model)
        if request.body.get("n", 1) > self._engine.slots:
            raise RequestRefused(
                f"n is over the {self._engine.slots} choices made at once here",
                code="invalid_value",
                param="n",
            )
        if request.body.get("tools") and not self._engine.tools:
            raise RequestRefused("This model cannot call tools", code="unsupported", param="tools")

    def _check_model(self, name: str) -> None:
        if name != self._model_name:
            raise unknown_model(name)


class _Exchange:
    """One POST: key, body, answer; ended at once when the client leaves."""

    def __init__(self, answer: _Answer, tenant_of: Callable[[str | None], bytes | None]) -> None:
        self._answer = answer
        self._tenant_of = tenant_of

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        reply = _Reply(send, scope.get("extensions", {}).get(CADENCE))
        try:
            headers = Headers(scope=scope)
            tenant = self._tenant_of(headers.get("authorization"))
            data = await _read_body(headers, receive)
            body = (
                await asyncio.to_thread(parse_body, data) if len(data) > PARSE_IN_THREAD else parse_body(data)
            )
            await _unless_disconnected(self._answer(body, reply, tenant), receive)
        except _Disconnected:
            return
        except RequestRefused as refusal:
            await reply.refuse(refusal)
        except InferenceError as error:
            LOG.error("%s", error)
            await reply.refuse(RequestRefused("The engine failed", status=500))
        except Exception as error:
            # Its text could quote the prompt, so only its type is told.
            LOG.error("a request failed: %s", type(error).__name__)
            await reply.refuse(RequestRefused("The service failed", status=500))


class _Disconnected(Exception):
    """The client left before its answer was complete."""


async def _unless_disconnected(answer: Awaitable[None], receive: Receive) -> None:
    working = asyncio.ensure_future(answer)
    leaving = asyncio.ensure_future(_disconnect(receive))
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise _Disconnected
        await working
    finally:
        for task in (working, leaving):
            task.cancel()
        await asyncio.gather(working, leaving, return_exceptions=True)


async def _disconnect(receive: Receive) -> None:
    message: Message = {"type": ""}
    while message["type"] != "http.disconnect":
        message = await receive()


async def _read_body(headers: Headers, receive: Receive) -> bytes:
    kind = headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise RequestRefused(
            "The Content-Type must be application/json", status=415, code="unsupported_media_type"
        )
    too_large = RequestRefused(
        f"The request body is over {MAX_BODY} bytes", status=413, code="request_too_large"
    )
    declared = headers.get("content-length", "0")
    if declared.isdecimal() and int(declared[:20]) > MAX_BODY:
        raise too_large
    parts: list[bytes] = []
    size = 0
    more = True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise _Disconnected
        part = message.get("body", b"")
        size += len(part)
        if size > MAX_BODY:
            raise too_large
        parts.append(part)
        more = message.get("more_body", False)
    return b"".join(parts)


async def _refused(_: Request, error: Exception) -> Response:
    assert isinstance(error, RequestRefused)  # noqa: S101 -- registered for this type
    return JSONResponse(error.body(), status_code=error.status)


async def _not_routed(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)  # noqa: S101 -- registered for this type
    refusal = plain_status(error.status_code)
    return JSONResponse(refusal.body(), status_code=refusal.status, headers=error.headers)
