"""The broker's ASGI application: HTTP around :class:`~cloister.broker.service.Broker` (docs/spec/kbs.md).

Bodies are bounded while they arrive, paths are read undecoded, errors are RFC 9457 problems of fixed text. It speaks in
the clear: whoever serves it puts the sealed gateway in front.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from http import HTTPStatus
from importlib.metadata import version

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from cloister.broker import protocol
from cloister.broker.audit import AuditDamaged, AuditLog
from cloister.broker.protocol import BadResource, Problem, Unsupported
from cloister.broker.release import NoRule
from cloister.broker.service import Answer, AttestationRefused, Broker
from cloister.broker.session import Sessions, TooManySessions
from cloister.broker.store import Store
from cloister.broker.token import TokenSigner
from cloister.encoding import encode_json
from cloister.errors import (
    BrokerError,
    CloisterError,
    FormatError,
    KeystoreError,
    ReleaseRefused,
    SessionRefused,
    UnknownResource,
)


class TooLarge(BrokerError):
    """A body over its bound."""


_DAMAGED = "the broker's state or audit log cannot be used; its operator has the details"
_PROBLEMS: tuple[tuple[type[CloisterError], str, int, str], ...] = (
    (BadResource, "bad-resource", 400, "this path names no resource"),
    (FormatError, "malformed", 400, "the body is not what this endpoint reads"),
    (AttestationRefused, "attestation-refused", 401, "no rule accepts this evidence"),
    (SessionRefused, "session-refused", 401, "no such session: unknown, spent, expired or not yours"),
    (NoRule, "no-rule", 403, "no rule lets anybody read this resource"),
    (ReleaseRefused, "release-refused", 403, "the rule of this resource does not allow this workload"),
    (UnknownResource, "unknown-resource", 404, "the rule allows it, but there is no such resource"),
    (TooLarge, "too-large", 413, "the body is over its bound"),
    (TooManySessions, "busy", 503, "too many sessions are open, try again in a minute"),
    (KeystoreError, "state-damaged", 503, _DAMAGED),
    (AuditDamaged, "state-damaged", 503, _DAMAGED),
)


def create_broker(
    store: Store, audit: AuditLog, *, now: Callable[[], int] | None = None, sessions: Sessions | None = None
) -> Starlette:
    """The application. ``now`` gives Unix seconds."""
    broker = Broker(
        store,
        audit,
        now=now or (lambda: int(time.time())),
        sessions=sessions or Sessions(),
        tokens=TokenSigner(build=version("cloister")),
    )

    async def auth(request: Request) -> Response:
        body = await _body(request, protocol.MAX_AUTH)
        return _json(await run_in_threadpool(broker.challenge, body))

    async def attest(request: Request) -> Response:
        body = await _body(request, protocol.MAX_ATTEST)
        return _json(await run_in_threadpool(broker.attest, _cookie(request), body))

    async def resource(request: Request) -> Response:
        if request.method != "GET":  # Starlette lets HEAD through, which would be a release that nobody reads
            raise HTTPException(405)
        path, query = request.scope["raw_path"], request.scope["query_string"]
        answer = await run_in_threadpool(broker.resource, path, query, _cookie(request), _bearer(request))
        return _json(answer)

    return Starlette(
        routes=[
            Route(protocol.AUTH_PATH, auth, methods=["POST"]),
            Route(protocol.ATTEST_PATH, attest, methods=["POST"]),
            Route(protocol.RESOURCE_PATH + "{rest:path}", resource, methods=["GET"]),
        ],
        exception_handlers={CloisterError: _refuse, HTTPException: _refuse_http, Exception: _refuse_internal},
    )


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
    values = request.headers.getlist("authorization")
    if not values:
        return None
    scheme, _, token = values[0].partition(" ")
    if len(values) > 1 or scheme.lower() != "bearer" or not token:
        raise SessionRefused("only one bearer token is read here", todo="send Authorization: Bearer <token>")
    return token


def _json(answer: Answer) -> Response:
    response = Response(answer.body, media_type="application/json", headers={"cache-control": "no-store"})
    if answer.identifier is not None:
        cookie = f"{protocol.COOKIE}={answer.identifier}; Path={protocol.PREFIX}; HttpOnly; SameSite=Strict"
        response.headers["set-cookie"] = cookie
    return response


def _problem(name: str, status: int, detail: str) -> Response:
    problem = Problem(
        type=protocol.PROBLEM_PREFIX + name, title=name.replace("-", " "), status=status, detail=detail
    )
    return Response(
        encode_json(problem),
        status_code=status,
        media_type="application/problem+json",
        headers={"cache-control": "no-store"},
    )


async def _refuse(_request: Request, error: Exception) -> Response:
    if isinstance(error, Unsupported):
        return _problem(f"unsupported-{error.kind}", 400, error.todo)
    for kind, name, status, detail in _PROBLEMS:
        if isinstance(error, kind):
            return _problem(name, status, detail)
    return _problem("internal", 500, "the broker failed; its operator has the details")


async def _refuse_http(_request: Request, error: Exception) -> Response:
    status = error.status_code if isinstance(error, HTTPException) else 500
    phrase = HTTPStatus(status).phrase.lower()
    return _problem(phrase.replace(" ", "-"), status, phrase)


async def _refuse_internal(_request: Request, _error: Exception) -> Response:
    return _problem("internal", 500, "the broker failed; its operator has the details")
