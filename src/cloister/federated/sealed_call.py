"""Records in, records out, inside the sealed channel: how the processes of a federation ask each other, and answer.

Who calls has verified the other side and has a client for it. Who answers gives a handler for each path; what a handler
raises goes back as a problem (RFC 9457) with its one line, sealed like everything else, and bodies are bounded.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, TypeVar

import httpx2
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from cloister.attester import Attester
from cloister.channel import problems
from cloister.channel.evidence_service import EvidenceService
from cloister.channel.keyring import KeyRing
from cloister.channel.middleware import SealedGateway
from cloister.channel.transport import SealedClient
from cloister.encoding import Record, decode_json, encode_json, parse_json
from cloister.errors import CloisterError, FederationError, FormatError, NetworkError

T = TypeVar("T", bound=Record)
SECONDS: Final = 60.0
MAX_ANSWER: Final = 64 << 20
_MEDIA: Final = "application/json"
_log = logging.getLogger("cloister.federated")


class Refused(FederationError):
    """The other side understood, and refuses."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """What is taken at a path, and who answers, in a thread."""

    takes: type[Any]
    answer: Callable[[Any], Record]
    limit: int


def call(client: SealedClient, path: str, request: Record, answer: type[T], *, seconds: float = SECONDS) -> T:
    """Raises :class:`Refused` with the other side's reason, NetworkError, FormatError, and what the channel raises."""
    try:
        response = client.post(
            path, content=encode_json(request), headers={"content-type": _MEDIA}, timeout=seconds
        )
        body = response.content
    except httpx2.TransportError as error:
        raise NetworkError(
            f"{client.base_url.host} does not answer ({type(error).__name__})", todo="is it running?"
        ) from None
    if response.status_code != 200:
        raise Refused(_reason(response.headers.get("content-type", ""), body))
    return decode_json(body, answer, what="the answer", limit=MAX_ANSWER)


def sealed_service(
    endpoints: Mapping[str, Endpoint],
    *,
    attester: Attester,
    keyring: KeyRing,
    max_request: int,
    started: Callable[[EvidenceService, asyncio.AbstractEventLoop], None] = lambda _evidence, _loop: None,
) -> SealedGateway:
    """The application to serve. ``started`` hears of its evidence, which the process shows by itself, too."""

    async def health(_request: Request) -> Response:
        return JSONResponse({"status": "ok"})

    routes = [Route("/healthz", health)]
    routes += [Route(path, _endpoint(path, one), methods=["POST"]) for path, one in endpoints.items()]
    evidence = EvidenceService(attester, keyring)

    @contextlib.asynccontextmanager
    async def lifespan(_app: Starlette) -> AsyncIterator[None]:
        started(evidence, asyncio.get_running_loop())
        yield

    app = Starlette(routes=routes, lifespan=lifespan)
    return SealedGateway(app, keyring=keyring, evidence=evidence, max_request=max_request + 64 * 1024)


def _endpoint(path: str, endpoint: Endpoint) -> Callable[[Request], Any]:
    async def answer(request: Request) -> Response:
        try:
            body = await request.body()
            asked = decode_json(body, endpoint.takes, what="the request", limit=endpoint.limit)
            said = await run_in_threadpool(endpoint.answer, asked)
        except CloisterError as error:
            _log.warning("%s refused: %s", path, error)
            problem = problems.problem_of(error)
            detail = f"{error.what}; {error.todo}" if error.todo else error.what
            return Response(
                problems.encode_problem(problem, detail),
                max(problem.status, 400),
                media_type=problems.PROBLEM_TYPE,
            )
        return Response(encode_json(said), media_type=_MEDIA)

    return answer


def _reason(kind: str, body: bytes) -> str:
    try:
        detail = parse_json(body, what="the problem").get("detail") if kind == problems.PROBLEM_TYPE else None
    except (FormatError, AttributeError):
        detail = None
    text = detail if isinstance(detail, str) else "the request was refused without a reason"
    return "".join(char if char.isprintable() else " " for char in text)[:400]
