"""The page to talk to a verified service: served on the user's own machine, since a page from the cloud could not be
trusted to verify the cloud.

Requests of the page go on through the proxy's own code, sealed; beside it the page is told who is verified, gets that as a
report, and each answer's receipt. Nothing of a conversation is kept here but the newest receipts, which hold no text of it.
The door is guard.py's; what the browser runs is built from ``web/``.
"""

from __future__ import annotations

import hashlib
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from importlib import resources
from typing import Any, Final

import httpx2
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import HTMLResponse, PlainTextResponse, Response
from starlette.routing import Mount, Route
from starlette.types import ASGIApp

from cloister.appraisal.result import AttestationResult
from cloister.channel.receipt_file import ReceiptFile, Shown
from cloister.channel.receipts import parse_receipt
from cloister.channel.transport import AsyncSealedTransport
from cloister.encoding import encode_json
from cloister.errors import CloisterError
from cloister.evidence.key_material import KeyMaterial

MAX_RECEIPTS: Final = 256
"""The newest are kept."""
REPORT_POLICY: Final = (
    "default-src 'none'; style-src 'unsafe-inline'; form-action 'none'; frame-ancestors 'none'"
)
_FILES: Final[Mapping[str, str]] = {
    "chat.js": "text/javascript",
    "chat.css": "text/css",
    "cloister.svg": "image/svg+xml",
}
ShowReport = Callable[[Shown], str]
"""What was verified, as one HTML page that loads nothing. Raises CloisterError."""


class Receipts:
    """The newest receipts by their requests' ids."""

    def __init__(self) -> None:
        self._held: OrderedDict[str, ReceiptFile] = OrderedDict()

    def __call__(self, file: ReceiptFile) -> None:
        self._held[parse_receipt(file.receipt, file.signature).receipt.request_id] = file
        while len(self._held) > MAX_RECEIPTS:
            self._held.popitem(last=False)

    def get(self, identity: str) -> ReceiptFile | None:
        """The receipt of this request, if it is still held."""
        return self._held.get(identity)


class Standing:
    """Who is verified, as the page is told."""

    def __init__(self, origin: httpx2.URL, sealed: AsyncSealedTransport, now: Callable[[], float]) -> None:
        self._origin = origin
        self._sealed = sealed
        self._now = now
        self._seen = sealed.attestation
        self._verifications = 0 if self._seen is None else 1
        self._problem = ""

    async def look(self, *, again: bool) -> dict[str, Any]:
        """The state now; what was verified and has ended, or ``again``, is verified anew."""
        result = self._sealed.attestation
        if again or result is None or self._now() >= result.expires:
            try:
                result = await self._sealed.verify()
                self._problem = ""
            except CloisterError as error:
                result, self._problem = None, str(error)
        if result is not None and result is not self._seen:
            self._seen = result
            self._verifications += 1
        return self._told(result)

    def _told(self, result: AttestationResult[KeyMaterial] | None) -> dict[str, Any]:
        address = str(self._origin).rstrip("/")
        if result is None:
            return _NOTHING | {
                "address": address,
                "problem": self._problem,
                "verifications": self._verifications,
            }
        claims = result.claims
        return {
            "state": "verified",
            "problem": "",
            "simulated": claims.simulated,
            "address": address,
            "tee": claims.tee,
            "tcb": ", ".join(filter(None, (claims.tcb_status, *claims.advisory_ids))),
            "policy": result.policy_digest,
            "key": hashlib.sha256(result.keys.ohttp_keys).hexdigest(),
            "verified_at": result.verified_at,
            "expires": result.expires,
            "verifications": self._verifications,
            "measurements": {name: value.hex() for name, value in sorted(claims.measurements.items())},
            "events": {name: value.hex() for name, value in sorted(claims.events.items())},
            "checks": [
                {"number": one.number, "title": one.name, "outcome": "passed", "detail": one.outcome}
                for one in result.checks
            ],
        }


_NOTHING: Final[dict[str, Any]] = {
    "state": "not-verified", "simulated": False, "tee": "", "tcb": "", "policy": "", "key": "", "verified_at": 0,
    "expires": 0, "measurements": {}, "events": {}, "checks": [],
}  # fmt: skip


def create_chat_page(
    origin: httpx2.URL,
    sealed: AsyncSealedTransport,
    proxy: ASGIApp,
    receipts: Receipts,
    show: ShowReport,
    *,
    now: Callable[[], float] = time.time,
) -> Starlette:
    """The application; :class:`~cloister.client.guard.Guard` belongs before it. ``proxy`` answers what is below ``/v1``."""
    standing = Standing(origin, sealed, now)

    async def page(_request: Request) -> Response:
        return HTMLResponse(_file("index.html"))

    async def static(request: Request) -> Response:
        name = request.path_params["name"]
        if name not in _FILES:
            return PlainTextResponse("there is no such file\n", status_code=404)
        return Response(_file(name), media_type=_FILES[name])

    async def state(request: Request) -> Response:
        told = await standing.look(again=request.method == "POST")
        return Response(encode_json(told), media_type="application/json")

    async def report(_request: Request) -> Response:
        shown = sealed.shown
        if shown is None:
            return PlainTextResponse("nothing is verified\n", status_code=409)
        try:
            return HTMLResponse(show(shown), headers={"content-security-policy": REPORT_POLICY})
        except CloisterError as error:
            return PlainTextResponse(f"{error}\n", status_code=409)

    async def receipt(request: Request) -> Response:
        file = receipts.get(request.path_params["identity"])
        if file is None:
            return PlainTextResponse("there is no such receipt any more\n", status_code=404)
        return Response(file.encode(), media_type="application/json")

    return Starlette(
        routes=[
            Route("/", page),
            Route("/state", state, methods=["GET", "POST"]),
            Route("/report", report),
            Route("/receipts/{identity}", receipt),
            Route("/{name}", static),
            Mount("/v1", _whole_path(proxy)),
        ]
    )


def _whole_path(app: ASGIApp) -> ASGIApp:
    """A mounted application is told its path without what it is mounted at; the proxy wants all of it."""

    async def answer(scope: Any, receive: Any, send: Any) -> None:
        await app({**scope, "root_path": ""}, receive, send)

    return answer


def _file(name: str) -> bytes:
    return resources.files("cloister.client").joinpath("static", "chat", name).read_bytes()
