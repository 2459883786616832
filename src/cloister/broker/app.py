"""The broker's ASGI application: HTTP around the service and the administration (docs/spec/kbs.md,
docs/spec/broker-admin.md).

Bodies are bounded while they arrive, paths are read undecoded, errors are RFC 9457 problems of fixed text. It speaks
in the clear: whoever serves it puts the sealed gateway, or attested TLS, in front.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from http import HTTPStatus

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from cloister.broker import protocol
from cloister.broker.desk import Asked, Desk
from cloister.broker.endpoints import ENDPOINTS, Endpoint
from cloister.broker.openapi import openapi
from cloister.broker.problems import Refusal, TooLarge, problem_of, refusal
from cloister.broker.service import Answer
from cloister.encoding import encode_json
from cloister.errors import CloisterError, SessionRefused

Handler = Callable[[Request], Awaitable[Response]]


def create_broker(desk: Desk) -> Starlette:
    """The application over one :class:`Desk`."""

    async def auth(request: Request) -> Response:
        body = await _body(request, protocol.MAX_AUTH)
        return _json(await run_in_threadpool(desk.broker.challenge, body))

    async def attest(request: Request) -> Response:
        body = await _body(request, protocol.MAX_ATTEST)
        return _json(await run_in_threadpool(desk.broker.attest, _cookie(request), body))

    async def resource(request: Request) -> Response:
        if request.method != "GET":  # Starlette lets HEAD through, which would be a release that nobody reads
            raise HTTPException(405)
        path, query = request.scope["raw_path"], request.scope["query_string"]
        answer = await run_in_threadpool(
            desk.broker.resource, path, query, _cookie(request), _bearer(request)
        )
        return _json(answer)

    async def description(_request: Request) -> Response:
        return _document(encode_json(openapi()))

    kbs: list[tuple[str, str, Handler]] = [
        ("POST", protocol.AUTH_PATH, auth),
        ("POST", protocol.ATTEST_PATH, attest),
        ("GET", protocol.RESOURCE_PATH + "{rest:path}", resource),
        ("GET", "/cloister/v1/openapi.json", description),
    ]
    return Starlette(
        routes=[
            *(Route(path, _timed(desk, path, handler), methods=[method]) for method, path, handler in kbs),
            *(
                Route(one.path, _timed(desk, one.path, _served(desk, one)), methods=[one.method])
                for one in ENDPOINTS
            ),
        ],
        exception_handlers={CloisterError: _refuse, HTTPException: _refuse_http, Exception: _refuse_internal},
    )


def _served(desk: Desk, endpoint: Endpoint) -> Handler:
    async def handler(request: Request) -> Response:
        if request.method != endpoint.method:
            raise HTTPException(405)
        body = await _body(request, endpoint.max_body)
        path = request.scope["raw_path"].decode("ascii", "replace")
        query = request.scope["query_string"].decode("ascii", "replace")
        asked = Asked(
            endpoint=endpoint,
            path=f"{path}?{query}" if query else path,
            names={name: str(value) for name, value in request.path_params.items()},
            query=endpoint.parse_query(query),
            body=body,
            cookie=None if endpoint.access != "session" else _cookie(request),
            bearer=None if endpoint.access != "session" else _bearer(request),
            authorization=_authorization(request) if isinstance(endpoint.access, frozenset) else "",
        )
        return _document(await run_in_threadpool(desk.serve, asked))

    return handler


def _timed(desk: Desk, name: str, handler: Handler) -> Handler:
    histogram = desk.metrics.requests.labels(name.partition("{")[0])

    async def timed(request: Request) -> Response:
        began = time.perf_counter()
        try:
            return await handler(request)
        finally:
            histogram.observe(time.perf_counter() - began)

    return timed


async def _body(request: Request, limit: int) -> bytes:
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > limit:
            raise TooLarge(f"a body here is at most {limit} bytes long")
    return bytes(body)


def _cookie(request: Request) -> str | None:
    """The one session cookie. Two of them are refused: nobody should have to know which one counts."""
    values = [
        value.strip()
        for header in request.headers.getlist("cookie")
        for name, separator, value in (pair.partition("=") for pair in header.split(";"))
        if separator and name.strip() == protocol.COOKIE
    ]
    if len(values) > 1:
        raise SessionRefused("two session cookies came with one request", todo="send one")
    return values[0] if values else None


def _bearer(request: Request) -> str | None:
    value = _authorization(request)
    if not value:
        return None
    scheme, _, token = value.partition(" ")
    if scheme.lower() != "bearer" or not token:
        raise SessionRefused("only one bearer token is read here", todo="send Authorization: Bearer <token>")
    return token


def _authorization(request: Request) -> str:
    values = request.headers.getlist("authorization")
    if len(values) > 1:
        raise SessionRefused("two authorizations came with one request", todo="send one")
    return values[0] if values else ""


def _json(answer: Answer) -> Response:
    response = _document(answer.body)
    if answer.identifier is not None:
        cookie = f"{protocol.COOKIE}={answer.identifier}; Path={protocol.PREFIX}; HttpOnly; SameSite=Strict"
        response.headers["set-cookie"] = cookie
    return response


def _document(body: bytes) -> Response:
    return Response(body, media_type="application/json", headers={"cache-control": "no-store"})


def _problem(found: Refusal) -> Response:
    headers = {"cache-control": "no-store"}
    if found.status == HTTPStatus.SERVICE_UNAVAILABLE:
        headers["retry-after"] = "5"
    return Response(
        encode_json(problem_of(found)),
        status_code=found.status,
        media_type="application/problem+json",
        headers=headers,
    )


async def _refuse(_request: Request, error: Exception) -> Response:
    return _problem(refusal(error))


async def _refuse_http(_request: Request, error: Exception) -> Response:
    status = error.status_code if isinstance(error, HTTPException) else 500
    phrase = HTTPStatus(status).phrase.lower()
    return _problem(Refusal(phrase.replace(" ", "-"), status, phrase))


async def _refuse_internal(_request: Request, _error: Exception) -> Response:
    return _problem(Refusal("internal", 500, "the broker failed; its operator has the details"))
