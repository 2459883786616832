"""The door of a page that this machine serves to its own user: who may ask, and what the browser may do with answers.

A loopback port is open to every program and every web site of this machine. So the page lies below a random place,
to which its cookie is scoped too (cookies know no ports); a token opens it once; another name in ``Host`` (DNS
rebinding), another site's request, every method but the page's, and whoever has no cookie are refused before the
page sees anything. What changes something has to come from the page itself, by the browser's own word and a field of
ours. Answers are never stored and run no script but the page's own.
"""

from __future__ import annotations

import hmac
import ipaddress
import secrets
from collections.abc import Callable
from dataclasses import dataclass, field
from http.cookies import CookieError, SimpleCookie
from typing import Final
from urllib.parse import parse_qs

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import HTMLResponse, PlainTextResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cloister.errors import UsageError

COOKIE: Final = "cloister-page"
SHOWS: Final = frozenset(("GET", "HEAD"))
CHANGES: Final = SHOWS | {"POST", "PUT", "DELETE"}
OWN_FIELD: Final = "x-cloister-page"
"""Of what is not GET or HEAD: another site's page could send it only after asking, which is refused."""
CONTENT_POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    "require-trusted-types-for 'script'; trusted-types 'none'"
)
MAX_TARGET: Final = 4096
"""Bytes of path and query."""
_HEADERS: Final = {
    "cache-control": "no-store",
    "content-security-policy": CONTENT_POLICY,
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
}


@dataclass(frozen=True, slots=True)
class Secrets:
    """The three random texts of one run: where the page lies, what opens it once, and what its browser keeps."""

    place: str = field(repr=False)
    token: str = field(repr=False)
    cookie: str = field(repr=False)

    @classmethod
    def draw(cls, random: Callable[[int], str] = secrets.token_urlsafe) -> Secrets:
        """Fresh ones."""
        return cls(random(12), random(32), random(32))


def require_loopback(host: str) -> str:
    """``host`` as an address of this machine alone. Raises :class:`UsageError` for every other."""
    if host == "localhost":
        return "127.0.0.1"
    try:
        if ipaddress.ip_address(host).is_loopback:
            return host
    except ValueError:
        pass
    raise UsageError(
        f"{host[:64]!r} is not this machine's own address, and this is for its user alone",
        todo="listen on 127.0.0.1; from another machine: ssh -L 8097:127.0.0.1:8097, with the port it says",
    )


class Guard:
    """Wraps the page's application, which sees only what is below its place, as if it lay at ``/``."""

    def __init__(self, app: ASGIApp, secret: Secrets, *, port: int, methods: frozenset[str] = SHOWS) -> None:
        self._app = app
        self._methods = methods
        self._secret = secret
        self._hosts = frozenset(f"{name}:{port}" for name in ("127.0.0.1", "localhost", "[::1]"))
        self._entered = False

    @property
    def entrance(self) -> str:
        """Path and query that open the page, once."""
        return f"/{self._secret.place}/enter?token={self._secret.token}"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":
            return  # there are no WebSockets here: without an answer the server closes them

        async def guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        answer = self._answer(scope)
        if answer is not None:
            await answer(scope, receive, guarded)
            return
        place = f"/{self._secret.place}/"
        path = "/" + scope["path"].removeprefix(place)
        raw = b"/" + scope.get("raw_path", scope["path"].encode()).removeprefix(place.encode())
        await self._app({**scope, "path": path, "raw_path": raw, "root_path": ""}, receive, guarded)

    def _answer(self, scope: Scope) -> Response | None:
        """What is said at the door; None lets the request in."""
        headers = Headers(scope=scope)
        refusal = self._misdirected(scope, headers)
        if refusal is not None:
            return refusal
        if scope["path"] == f"/{self._secret.place}/enter":
            return self._enter(scope, headers)
        # Another port of this machine is the same *site*, and no more welcome than another site.
        if headers.get("sec-fetch-site", "none") not in ("same-origin", "none"):
            return _refused("another site asked for this page", 403)
        if scope["method"] not in SHOWS and not self._own(headers):
            return _refused("only the page itself changes something", 403)
        if not self._known(headers):
            return _refused("this browser did not open the page: start the command again", 403)
        return None

    def _misdirected(self, scope: Scope, headers: Headers) -> Response | None:
        """Why this request is none that the page answers at all."""
        place = f"/{self._secret.place}/".encode()
        if headers.getlist("host") != [headers.get("host", "")] or headers["host"] not in self._hosts:
            return _refused("this page answers to its own address only", 421)
        if scope["method"] not in self._methods:
            only = self._methods == SHOWS
            return _refused(
                "this page only shows: nothing is changed here" if only else "this page knows no such method",
                405,
            )
        if len(scope["path"]) + len(scope["query_string"]) > MAX_TARGET:
            return _refused("the address is too long", 414)
        if not hmac.compare_digest(scope["path"].encode()[: len(place)], place):
            return _refused("use the address that the command printed", 404)
        return None

    def _own(self, headers: Headers) -> bool:
        origin = headers.get("origin", "").removeprefix("http://")
        site = headers.get("sec-fetch-site", "same-origin")
        return site == "same-origin" and origin in self._hosts and headers.get(OWN_FIELD) == "1"

    def _enter(self, scope: Scope, headers: Headers) -> Response:
        given = parse_qs(scope["query_string"].decode("latin-1"), max_num_fields=4).get("token", [""])[0]
        right = hmac.compare_digest(given.encode(), self._secret.token.encode())
        if not right or (self._entered and not self._known(headers)):
            return _refused("this address was used, or is not the one that was printed: start again", 403)
        self._entered = True
        # No redirect: after one that began at another site the browser would hold a strict cookie back.
        response = HTMLResponse(
            '<!doctype html><html lang="en"><title>Cloister</title><meta http-equiv="refresh" content="0;url=./">'
            '<p><a href="./">Go on to the page</a></p></html>'
        )
        response.set_cookie(
            COOKIE, self._secret.cookie, path=f"/{self._secret.place}/", httponly=True, samesite="strict"
        )
        return response

    def _known(self, headers: Headers) -> bool:
        try:
            found = SimpleCookie(headers.get("cookie", "")).get(COOKIE)
        except CookieError:
            return False
        return found is not None and hmac.compare_digest(found.value.encode(), self._secret.cookie.encode())


def _refused(why: str, status: int) -> Response:
    return PlainTextResponse(f"{why}\n", status_code=status)
