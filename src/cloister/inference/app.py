"""The OpenAI API on an engine, as an ASGI application.

It knows nothing of the sealed channel, which wraps it from outside. It refuses unknown fields, models and keys in
OpenAI's own error shape, bounds what it reads, notices a client that leaves at once and frees its slot, and logs
neither prompts nor answers: of an unexpected failure only the type's name.
"""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Final

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from cloister.encoding import labelled_hash
from cloister.inference.answers import StreamedAnswer, embeddings, gathered
from cloister.inference.api_errors import RequestRefused, plain_status, unknown_model
from cloister.inference.api_keys import ApiKeys
from cloister.inference.engines import Engine
from cloister.inference.exchange import Answer, Asked, Caller, Exchange, Reply
from cloister.inference.generation import Generations
from cloister.inference.openai_requests import (
    ChatRequest,
    EmbeddingsRequest,
    EngineRequest,
    Json,
    TextRequest,
    chat_request,
    convert,
    embeddings_requests,
    text_request,
)
from cloister.inference.openai_responses import ResponsesRequest, ResponseWriter, as_chat
from cloister.inference.rooms import Desk, OpenRoom, Room

TENANT: Final = "cloister/tenant/v1"


def create_app(
    engine: Engine,
    *,
    model_name: str,
    api_keys: ApiKeys,
    room: OpenRoom | None = None,
    now: Callable[[], float] = time.time,
    entropy: Callable[[int], bytes] = os.urandom,
) -> Starlette:
    """The API of one model under the name ``model_name``, and what ``room`` adds to it. The engine stays the caller's."""
    generations = Generations(engine)
    salt = entropy(32)

    def caller_of(authorization: str | None) -> Caller:
        # Salted: what an engine or a core of its memory shows of tenants leads to no key.
        identity = api_keys.check(authorization)
        return Caller(identity, None if identity is None else labelled_hash(TENANT, salt, identity))

    added = None if room is None else room(Desk(generations, engine.context_length, caller_of, now))
    api = _Api(engine, generations, model_name, added, now)
    created = int(now())

    def model(name: str) -> Json:
        return {"id": name, "object": "model", "created": created, "owned_by": "cloister"}

    def names(request: Request) -> list[str]:
        caller = caller_of(request.headers.get("authorization"))
        return [model_name, *(() if added is None else added.models(caller))]

    async def models(request: Request) -> Response:
        return JSONResponse({"object": "list", "data": [model(name) for name in names(request)]})

    async def one_model(request: Request) -> Response:
        name = request.path_params["model"]
        if name not in names(request):
            raise unknown_model(name)
        return JSONResponse(model(name))

    async def health(_: Request) -> Response:
        return JSONResponse({"status": "ok"})

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        yield
        generations.close()

    def post(path: str, answer: Answer) -> Route:
        return Route(path, Exchange(answer, caller_of), methods=["POST"])

    app = Starlette(
        routes=[
            post("/v1/chat/completions", api.chat),
            post("/v1/completions", api.text),
            post("/v1/responses", api.responses),
            post("/v1/embeddings", api.embeddings),
            Route("/v1/models", models),
            Route("/v1/models/{model:path}", one_model),
            Route("/healthz", health),
            *(() if added is None else added.routes),
        ],
        exception_handlers={RequestRefused: _refused, HTTPException: _not_routed},
        lifespan=lifespan,
    )
    app.router.redirect_slashes = False
    return app


class _Api:
    """What each POST endpoint does with its body."""

    def __init__(
        self,
        engine: Engine,
        generations: Generations,
        model_name: str,
        room: Room | None,
        now: Callable[[], float],
    ) -> None:
        self._engine = engine
        self._generations = generations
        self._model_name = model_name
        self._room = room
        self._now = now

    async def chat(self, asked: Asked, reply: Reply) -> None:
        request = convert(await asked.json(), ChatRequest)
        if self._room is not None and request.model.startswith(self._room.prefix):
            await self._room.chat(request, reply, asked)
        else:
            await self._complete(chat_request(request), reply, asked.caller.tenant)

    async def text(self, asked: Asked, reply: Reply) -> None:
        request = convert(await asked.json(), TextRequest)
        await self._complete(text_request(request), reply, asked.caller.tenant)

    async def responses(self, asked: Asked, reply: Reply) -> None:
        request = convert(await asked.json(), ResponsesRequest)
        chat = as_chat(request)
        self._check(chat)
        writer = ResponseWriter(request, identity=secrets.token_hex(16), created=int(self._now()))
        tenant = asked.caller.tenant
        async with self._generations.chunks("chat", chat.body, tenant=tenant, moment=reply.moment) as chunks:
            if not chat.stream:
                await reply.json(await writer.gathered(aiter(chunks)))
                return
            reply.named_events = True
            async for event in writer.events(aiter(chunks)):
                await reply.event(event)
            await reply.end()

    async def embeddings(self, asked: Asked, reply: Reply) -> None:
        request = convert(await asked.json(), EmbeddingsRequest)
        self._check_model(request.model)
        bodies = embeddings_requests(request, length=self._engine.embedding_length)
        found = await self._generations.embed(bodies, tenant=asked.caller.tenant)
        await reply.json(embeddings(found, request.model))

    async def _complete(self, request: EngineRequest, reply: Reply, tenant: bytes | None) -> None:
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


async def _refused(_: Request, error: Exception) -> Response:
    assert isinstance(error, RequestRefused)  # noqa: S101 -- registered for this type
    return JSONResponse(error.body(), status_code=error.status)


async def _not_routed(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)  # noqa: S101 -- registered for this type
    refusal = plain_status(error.status_code)
    return JSONResponse(refusal.body(), status_code=refusal.status, headers=error.headers)
