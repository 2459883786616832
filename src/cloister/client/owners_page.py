"""The page of owners and auditors: a small application over one :class:`Watch`, for the loopback interface. It shows,
and changes nothing: GET only.

Every answer is bounded; an error is one line with its layer. The door is guard.py's.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from importlib import resources
from typing import Final

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import HTMLResponse, PlainTextResponse, Response
from starlette.routing import Route

from cloister.appraisal.policy import Policy
from cloister.broker.audit import Entry
from cloister.client.owners_ledger import Wanted
from cloister.client.owners_timeline import timeline
from cloister.client.owners_view import overview
from cloister.client.owners_watch import Watch
from cloister.client.owners_words import problem_notice
from cloister.encoding import Record, encode_json
from cloister.errors import CloisterError, NetworkError, UnknownResource

PAGE_SIZE: Final = 50
"""Entries of one answer."""
MAX_FILTER: Final = 512
MAX_NUMBER: Final = 12
"""Digits."""
REPORT_POLICY: Final = (
    "default-src 'none'; style-src 'unsafe-inline'; form-action 'none'; frame-ancestors 'none'"
)
"""For the evidence report, whose own policy in its head allows nothing but its very style sheet."""
_FILES: Final[Mapping[str, str]] = {
    "owners.css": "text/css",
    "owners.js": "text/javascript",
    "elements.js": "text/javascript",
    "timeline.js": "text/javascript",
    "cloister.svg": "image/svg+xml",
}
ShowEvidence = Callable[[Entry, bytes, Policy | None], str]
"""The evidence report of an entry, as one HTML page that loads nothing."""

_log = logging.getLogger("cloister.client")


def create_owners_page(watch: Watch, show: ShowEvidence) -> Starlette:
    """The application; :class:`~cloister.client.guard.Guard` belongs before it."""

    async def page(_request: Request) -> Response:
        return HTMLResponse(_file("owners.html"))

    async def static(request: Request) -> Response:
        name = request.path_params["name"]
        if name not in _FILES:
            return PlainTextResponse("there is no such file\n", status_code=404)
        return Response(_file(name), media_type=_FILES[name])

    async def look(_request: Request) -> Response:
        def work() -> Record:
            return watch.look(overview)

        return await _answer(work)

    async def log(request: Request) -> Response:
        query = request.query_params
        wanted = Wanted(*(query.get(name, "")[:MAX_FILTER] for name in ("resource", "workload", "event")))
        before = _number(query.get("before", ""))

        def work() -> Record:
            return timeline(*watch.page(wanted, before=before, limit=PAGE_SIZE))

        return await _answer(work)

    async def evidence(request: Request) -> Response:
        number = _number(request.path_params["number"])
        try:
            return HTMLResponse(
                await run_in_threadpool(lambda: show(*watch.evidence(number))),
                headers={"content-security-policy": REPORT_POLICY},
            )
        except CloisterError as error:
            return PlainTextResponse(f"{error}\n", status_code=_status(error))

    return Starlette(
        routes=[
            Route("/", page),
            Route("/static/{name}", static),
            Route("/api/overview", look),
            Route("/api/log", log),
            Route("/evidence/{number}", evidence),
        ]
    )


async def _answer(work: Callable[[], Record]) -> Response:
    try:
        return Response(encode_json(await run_in_threadpool(work)), media_type="application/json")
    except CloisterError as error:
        return Response(
            encode_json(problem_notice(error)), status_code=_status(error), media_type="application/json"
        )
    except Exception:
        _log.exception("the page cannot be made")
        raise


def _status(error: CloisterError) -> int:
    if isinstance(error, UnknownResource):
        return 404
    return 502 if isinstance(error, NetworkError) else 409


def _number(text: str) -> int:
    """A number of an entry; what is none is beyond every log."""
    return int(text) if text.isascii() and text.isdigit() and len(text) <= MAX_NUMBER else 10**MAX_NUMBER


def _file(name: str) -> bytes:
    return resources.files("cloister.client").joinpath("static", name).read_bytes()
