"""The page of a federated run as it goes: a small application for the loopback interface, over whatever the command shows.

It shows, and changes nothing: GET only. What is on it comes from callables of the command, which asks the verified
aggregator: this room knows neither federations nor their facts. However many windows ask, the aggregator is asked once in a
while, and by one at a time. The door is guard.py's.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping
from importlib import resources
from typing import Final

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import HTMLResponse, PlainTextResponse, Response
from starlette.routing import Route

from cloister.client.owners_words import Notice, inert, problem_notice
from cloister.encoding import encode_json
from cloister.errors import CloisterError, NetworkError, UsageError

AGAIN: Final = 1.0
"""Seconds in which an answer is not asked for again."""
REPORT_POLICY: Final = (
    "default-src 'none'; style-src 'unsafe-inline'; form-action 'none'; frame-ancestors 'none'"
)
"""For the report, whose own policy in its head allows nothing but its very style sheet."""
_FILES: Final[Mapping[str, str]] = {
    "federation.css": "text/css",
    "federation.js": "text/javascript",
    "elements.js": "text/javascript",
    "cloister.svg": "image/svg+xml",
}
_STYLE: Final = "report.css"

_log = logging.getLogger("cloister.client")


def create_federation_page(
    look: Callable[[], bytes],
    report: Callable[[], str],
    *,
    style: str,
    clock: Callable[[], float] = time.monotonic,
) -> Starlette:
    """The application; :class:`~cloister.client.guard.Guard` belongs before it.

    ``look`` gives the run as JSON: ``title``, ``said``, ``over``, and ``parts``, elements as ``[tag, {attribute: value},
    [child …]]``. ``report`` gives the same as a file of HTML that loads nothing, ``style`` is the style sheet of both.
    Both may raise :class:`~cloister.errors.CloisterError`; they run in a thread.
    """
    turn = asyncio.Lock()
    kept: list[tuple[float, int, bytes]] = []

    async def page(_request: Request) -> Response:
        return HTMLResponse(_file("federation.html"))

    async def static(request: Request) -> Response:
        name = request.path_params["name"]
        if name == _STYLE:
            return Response(style, media_type="text/css")
        if name not in _FILES:
            return PlainTextResponse("there is no such file\n", status_code=404)
        return Response(_file(name), media_type=_FILES[name])

    async def run(_request: Request) -> Response:
        async with turn:
            if not kept or clock() - kept[0][0] >= AGAIN:
                status, body = await run_in_threadpool(_looked, look)
                kept[:] = [(clock(), status, body)]
        _, status, body = kept[0]
        return Response(body, status_code=status, media_type="application/json")

    async def whole(_request: Request) -> Response:
        async with turn:
            try:
                text = await run_in_threadpool(report)
            except CloisterError as error:
                words = unanswered(error)
                return PlainTextResponse(f"{words.text}\n", status_code=_status(error))
        return HTMLResponse(text, headers={"content-security-policy": REPORT_POLICY})

    return Starlette(
        routes=[
            Route("/", page),
            Route("/static/{name}", static),
            Route("/api/run", run),
            Route("/report", whole),
        ]
    )


def unanswered(error: CloisterError) -> Notice:
    """Why there is nothing new, in plain words."""
    if isinstance(error, NetworkError):
        return Notice(
            tone="bad", text=f"The aggregator does not answer ({inert(error.what)}).", todo=inert(error.todo)
        )
    if isinstance(error, UsageError):
        return problem_notice(error)
    return problem_notice(error, before="What the aggregator answers is not believed: ")


def _looked(look: Callable[[], bytes]) -> tuple[int, bytes]:
    try:
        return 200, look()
    except CloisterError as error:
        return _status(error), encode_json(unanswered(error))
    except Exception:
        _log.exception("the page cannot be made")
        raise


def _status(error: CloisterError) -> int:
    return 502 if isinstance(error, NetworkError) else 409


def _file(name: str) -> bytes:
    return resources.files("cloister.client").joinpath("static", name).read_bytes()
