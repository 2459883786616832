"""The local proxy: what any program sends to this machine's loopback goes on sealed, to a workload that was verified.

Method, path, headers and body travel inside the seal, and the answer comes back as it streams. The workload is verified
before the first request and again when keys rotate or the result ends, all by the transport that is given
(channel/transport.py). Nothing is kept, no cookie either, and neither requests nor answers are logged. An answer that is cut
off on its way is cut off here, too: no program takes half of one for the whole. The door is proxy_door.py's.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from typing import Final

import anyio
import httpx2

from cloister.channel import asgi, headers
from cloister.channel.transport import MAX_REQUEST, AsyncSealedTransport
from cloister.client.proxy_door import Door, Refusal
from cloister.encoding import encode_json
from cloister.errors import CloisterError, OversizedChunk
from cloister.verifier.claims import Claims

MAX_REQUESTS: Final = 128
"""At once."""
RECEIVE_SECONDS: Final = 60.0
"""That a program may take to send its request."""
VERIFICATION: Final = b"/v1/cloister/verification"
"""Answered here: who is verified, and until when."""
REQUEST_ID: Final = b"x-cloister-request-id"
"""Of an answer: under which id its request was sealed, by which its receipt is named."""
_STAYS: Final = frozenset((b"authorization", b"cookie", b"expect", b"x-cloister-page"))
"""What is between a program and its proxy, and goes no further."""
_FOR_A_PAGE: Final = frozenset((b"content-type", b"retry-after", b"cache-control"))
_NO_RETRY: Final = (b"x-should-retry", b"false")
"""OpenAI's clients ask again after a 502; a request whose answer is not believed may have been carried out."""
_log = logging.getLogger("cloister.client")


class Proxy:
    """ASGI application. ``service_key`` is the workload's API key, which takes the place of the proxy's own."""

    def __init__(
        self,
        origin: httpx2.URL,
        sealed: AsyncSealedTransport,
        door: Door,
        *,
        service_key: str | None = None,
        told: Callable[[str], None] = _log.info,
        now: Callable[[], float] = time.time,
    ) -> None:
        """``sealed`` is closed at the end of the lifespan; ``told`` hears in one line what changes on the way."""
        self._origin = origin
        self._sealed = sealed
        self._door = door
        self._credentials = (
            None if service_key is None else (b"authorization", f"Bearer {service_key}".encode())
        )
        self._told = told
        self._now = now
        self._seen = sealed.attestation
        self._open = 0

    async def __call__(self, scope: asgi.Scope, receive: asgi.Receive, send: asgi.Send) -> None:
        if scope["type"] == "lifespan":
            await self._live(receive, send)
        elif scope["type"] == "http":
            try:
                await self._answer(scope, receive, send)
            except (asgi.ClientGone, OSError):  # nobody is there to be answered
                return

    async def _answer(self, scope: asgi.Scope, receive: asgi.Receive, send: asgi.Send) -> None:
        method, path, query, fields = (
            scope["method"],
            scope["raw_path"],
            scope["query_string"],
            list(scope["headers"]),
        )
        refusal = self._door.refusal(method, path, query, fields)
        if refusal is None and self._open >= MAX_REQUESTS:
            refusal = Refusal(
                503, "overloaded", f"{MAX_REQUESTS} requests are under way: try again in a moment"
            )
        if refusal is not None:
            await _refuse(send, refusal)
        elif path == VERIFICATION:
            await self._show(send)
        else:
            self._open += 1
            try:
                await self._ask(method, path + (b"?" + query if query else b""), fields, receive, send)
            finally:
                self._open -= 1

    async def _ask(
        self,
        method: str,
        target: bytes,
        fields: list[tuple[bytes, bytes]],
        receive: asgi.Receive,
        send: asgi.Send,
    ) -> None:
        try:
            body = await asgi.read_body(receive, limit=MAX_REQUEST, seconds=RECEIVE_SECONDS)
        except OversizedChunk as error:
            await _refuse(send, Refusal(413, "request_too_large", error.what))
            return
        except TimeoutError:
            await _refuse(send, Refusal(408, "too_slow", "the request did not arrive in time"))
            return
        try:
            url = self._origin.copy_with(raw_path=target)
        except httpx2.InvalidURL:
            url = self._origin
        if url.raw_path != target:
            await _refuse(send, Refusal(400, "malformed_address", "this is no plain path and query"))
            return
        request = httpx2.Request(method, url, headers=self._sent(fields), content=body)
        async with anyio.create_task_group() as group:
            group.start_soon(_leave, receive, group.cancel_scope)
            await self._pass_on(request, send)
            group.cancel_scope.cancel()

    def _sent(self, fields: list[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
        """What of a program's header goes inside the seal."""
        kept = [field for field in headers.to_seal(fields) if field[0] not in _STAYS]
        if self._credentials is not None:
            return [*kept, self._credentials]
        # Where the proxy asks for no key, the program's own is the service's.
        asked = self._door.key is not None
        return kept + [field for field in fields if field[0].lower() == b"authorization" and not asked]

    async def _pass_on(self, request: httpx2.Request, send: asgi.Send) -> None:
        """Raises nothing: whoever asked hears of it, or has left."""
        try:
            answer = await self._sealed.handle_async_request(request)
        except Exception as error:
            self._notice()
            refusal, retry = _refusal_of(error)
            if isinstance(error, CloisterError):
                self._say(f"refused: {error}")
            with suppress(OSError):  # who asked may have left
                await _refuse(send, refusal, *(() if retry else (_NO_RETRY,)))
            return
        self._notice()
        try:
            presented = headers.to_present(answer.headers.raw)
            # In a browser a service's cookies and policies would be those of this machine's own page.
            fields = [
                *(one for one in presented if not self._door.page or one[0] in _FOR_A_PAGE),
                (REQUEST_ID, answer.extensions["cloister_request_id"]),
            ]
            with suppress(OSError):
                await send({"type": "http.response.start", "status": answer.status_code, "headers": fields})
                async for part in answer.stream:  # type: ignore[union-attr]
                    await send({"type": "http.response.body", "body": part, "more_body": True})
                await send({"type": "http.response.body", "body": b"", "more_body": False})
        except (CloisterError, httpx2.TransportError) as error:
            # Without its last word: the server closes the connection, and the program knows that this was not all.
            self._say(f"an answer was cut off: {error}")
        except Exception as error:
            _log.error("an answer was cut off with %s", type(error).__name__)
        finally:
            with anyio.CancelScope(shield=True):
                await answer.aclose()

    def _notice(self) -> None:
        """Say it when another verification has taken the place of the one before."""
        newest = self._sealed.attestation
        if newest is not None and newest is not self._seen:
            if self._seen is not None:
                self._say("keys rotated, or the result ended: verified again")
            self._seen = newest

    def _say(self, line: str) -> None:
        with suppress(OSError):  # whoever listened to the log
            self._told(line)

    async def _show(self, send: asgi.Send) -> None:
        result = self._sealed.attestation
        if result is None:
            await _refuse(send, Refusal(503, "not_verified", "nothing was verified yet"))
            return
        shown = {
            # Ended means: before the next request it is verified again.
            "verified": self._now() < result.expires,
            "simulated": result.claims.simulated,
            "tee": result.claims.tee,
            "policy_digest": result.policy_digest,
            "verified_at": result.verified_at,
            "expires": result.expires,
            "checks": [{"name": one.name, "outcome": one.outcome} for one in result.checks],
        }
        await asgi.answer(send, 200, "application/json", encode_json(shown))

    async def _live(self, receive: asgi.Receive, send: asgi.Send) -> None:
        while True:
            message = await receive()
            over = message["type"] == "lifespan.shutdown"
            if over:
                await self._sealed.aclose()
            await send({"type": f"{message['type']}.complete"})
            if over:
                return


def in_words(claims: Claims, expires: int) -> str:
    """Who is verified, in one line."""
    tee = f"{claims.tee.upper()}, SIMULATED: nothing is protected" if claims.simulated else claims.tee.upper()
    until = f"{datetime.fromtimestamp(expires, UTC):%Y-%m-%d %H:%M:%S} UTC"
    return f"verified: {tee}; until {until}, then verified again"


def _refusal_of(error: Exception) -> tuple[Refusal, bool]:
    """What is said of what became of a request, and whether it may be sent again."""
    if isinstance(error, CloisterError):
        text = f"not sent, or its answer not believed: {error}"
        return Refusal(502, f"cloister_{error.layer}", text), False
    if isinstance(error, httpx2.TimeoutException):
        return Refusal(504, "service_timeout", "the service does not answer in time"), True
    name = type(error).__name__
    if isinstance(error, httpx2.TransportError):
        return Refusal(502, "service_unreachable", f"the service does not answer ({name})"), True
    _log.error("a request failed with %s", name)
    return Refusal(502, "failed", f"the request could not be passed on ({name})"), False


async def _leave(receive: asgi.Receive, scope: anyio.CancelScope) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    scope.cancel()


async def _refuse(send: asgi.Send, refusal: Refusal, *fields: tuple[bytes, bytes]) -> None:
    await asgi.answer(send, refusal.status, "application/json", refusal.body(), *fields)
