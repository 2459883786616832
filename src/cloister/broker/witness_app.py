"""A witness's HTTP: two endpoints and a health check (docs/spec/witness.md). What it says is signed, so it may be served
in the clear.

Bodies are bounded in size and time; errors are RFC 9457 problems. A refusal to co-sign shows the newest head, which the
log itself signed.
"""

from __future__ import annotations

import asyncio
import logging
from http import HTTPStatus
from typing import Final, TypeVar

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from cloister.broker.protocol import PROBLEM_PREFIX, Problem
from cloister.broker.tree_head import ForkFound, HeadRefused, RollbackFound, parse_head
from cloister.broker.witness import (
    MAX_REQUEST,
    PREFIX,
    Conflict,
    CosignRequest,
    NewestRequest,
    ProofNeeded,
    UnknownLog,
)
from cloister.broker.witness_memory import Witness
from cloister.encoding import Record, decode_json, encode_json
from cloister.errors import BrokerError, CloisterError, FormatError

BODY_SECONDS: Final = 10.0
"""For a whole body to arrive."""
T = TypeVar("T", bound=Record)
_log = logging.getLogger("cloister.broker")


class _TooLarge(BrokerError):
    """A body over its bound."""


class _TooSlow(BrokerError):
    """A body that does not arrive."""


_CONFLICTS: Final[tuple[tuple[type[CloisterError], str], ...]] = (
    (ProofNeeded, "witness-elsewhere"),
    (RollbackFound, "witness-rollback"),
    (ForkFound, "witness-fork"),
)
_PROBLEMS: Final[tuple[tuple[type[CloisterError], str, int], ...]] = (
    (_TooLarge, "too-large", 413),
    (_TooSlow, "too-slow", 408),
    (UnknownLog, "unknown-log", 404),
    (HeadRefused, "head-refused", 422),
    (FormatError, "malformed", 400),
)


def create_witness(witness: Witness) -> Starlette:
    """The application."""

    async def cosign(request: Request) -> Response:
        asked = await _read(request, CosignRequest)
        try:
            return _document(await run_in_threadpool(witness.cosign, asked))
        except (ProofNeeded, RollbackFound, ForkFound) as error:
            return _conflict(witness, parse_head(asked.head.head).log, error)

    async def newest(request: Request) -> Response:
        asked = await _read(request, NewestRequest)
        return _document(await run_in_threadpool(witness.newest, asked))

    async def health(_request: Request) -> Response:
        return Response(encode_json({"status": "ok", "key": witness.key}), media_type="application/json")

    return Starlette(
        routes=[
            Route(f"{PREFIX}/cosign", cosign, methods=["POST"]),
            Route(f"{PREFIX}/newest", newest, methods=["POST"]),
            Route("/healthz", health, methods=["GET"]),
        ],
        exception_handlers={CloisterError: _refuse, HTTPException: _refuse_http, Exception: _refuse_internal},
    )


async def _read(request: Request, kind: type[T]) -> T:
    body = bytearray()
    try:
        async with asyncio.timeout(BODY_SECONDS):
            async for chunk in request.stream():
                body += chunk
                if len(body) > MAX_REQUEST:
                    raise _TooLarge(f"a body here is at most {MAX_REQUEST} bytes long")
    except TimeoutError:
        raise _TooSlow(f"a body here takes at most {BODY_SECONDS:g} seconds") from None
    return decode_json(bytes(body), kind, what="the body", limit=MAX_REQUEST)


def _document(answer: Record) -> Response:
    return Response(encode_json(answer), media_type="application/json", headers={"cache-control": "no-store"})


def _conflict(witness: Witness, log: str, error: CloisterError) -> Response:
    name = next(name for kind, name in _CONFLICTS if isinstance(error, kind))
    if not isinstance(error, ProofNeeded):
        _log.warning("witness: log %s: %s", log, error.what)
    memory = witness.memory(log)
    return _problem(
        Conflict(
            type=PROBLEM_PREFIX + name,
            title=name.replace("-", " "),
            status=409,
            detail=error.what,
            size=memory.size,
            root=memory.root,
            log_key=memory.log_key,
            newest=memory.newest,
        )
    )


def _problem(problem: Problem | Conflict) -> Response:
    return Response(
        encode_json(problem),
        status_code=problem.status,
        media_type="application/problem+json",
        headers={"cache-control": "no-store"},
    )


def _named(name: str, status: int, detail: str) -> Response:
    return _problem(
        Problem(type=PROBLEM_PREFIX + name, title=name.replace("-", " "), status=status, detail=detail)
    )


async def _refuse(_request: Request, error: Exception) -> Response:
    for kind, name, status in _PROBLEMS:
        if isinstance(error, kind):
            return _named(name, status, error.what)
    _log.error("witness: %s", error)
    return _named("internal", 500, "the witness failed; its owner has the details")


async def _refuse_http(_request: Request, error: Exception) -> Response:
    status = error.status_code if isinstance(error, HTTPException) else 500
    phrase = HTTPStatus(status).phrase.lower()
    return _named(phrase.replace(" ", "-"), status, phrase)


async def _refuse_internal(_request: Request, _error: Exception) -> Response:
    return _named("internal", 500, "the witness failed; its owner has the details")
