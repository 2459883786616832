"""The local proxy: what any program sends to this machine's loopback goes on sealed, to a workload that was verified.

Method, path, headers and body travel inside the seal, and the answer comes back as it streams. The proxy verifies before
its first request and again when keys rotate or its result ends, all by the client that it is given (channel/transport.py).
It keeps nothing and logs neither requests nor answers. An answer that is cut off on its way is cut off here, too: no
program takes half of one for the whole. The door is proxy_door.py's.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Final

import anyio
import httpx2

from cloister.channel import asgi, headers
from cloister.channel.transport import MAX_REQUEST, AsyncSealedClient
from cloister.client.proxy_door import Door, Refusal
from cloister.encoding import encode_json
from cloister.errors import CloisterError, OversizedChunk
from cloister.verifier.claims import Claims

RECEIVE_SECONDS: Final = 60.0
"""That a program may take to send its request."""
VERIFICATION: Final = "/v1/cloister/verification"
"""Answered here: who is verified, and until when."""
_STAYS: Final = frozenset((b"authorization", b"cookie", b"expect"))
"""What is between a program and its proxy, and goes no further."""
_log = logging.getLogger("cloister.client")


class Proxy:
    """ASGI application. ``service_key`` is the workload's API key, which takes the place of the proxy's own."""

    def __init__(
        self,
        client: AsyncSealedClient,
        door: Door,
        *,
        service_key: str | None = None,
        told: Callable[[str], None] = _log.info,
    ) -> None:
        """``client`` is closed at the end of the lifespan; ``told`` hears in one line what changes on the way."""
        self._client = client
        self._door = door
        self._credentials = (
            None if service_key is None else (b"authorization", f"Bearer {service_key}".encode())
        )
        self._told = told
        self._seen = client.attestation

    async def __call__(self, scope: asgi.Scope, receive: asgi.Receive, send: asgi.Send) -> None:
        if scope["type"] == "lifespan":
            await self._live(receive, send)
        elif scope["type"] == "http":
            try:
                await self._answer(scope, receive, send)
            except (asgi.ClientGone, OSError):  # nobody is there to be answered
                return

    async def _answer(self, scope: asgi.Scope, receive: asgi.Receive, send: asgi.Send) -> None:
        method, path, fields = scope["method"], scope["path"], list(scope["headers"])
        refusal = self._door.refusal(method, path, scope["query_string"], fields)
        if refusal is not None:
            await _refuse(send, refusal)
            return
        if path == VERIFICATION:
            await self._show(send)
            return
        try:
            body = await asgi.read_body(receive, limit=MAX_REQUEST, seconds=RECEIVE_SECONDS)
        except OversizedChunk as error:
            await _refuse(send, Refusal(413, "request_too_large", error.what))
            return
        except TimeoutError:
            await _refuse(send, Refusal(408, "too_slow", "the request did not arrive in time"))
            return
        target = scope["raw_path"] + (b"?" + scope["query_string"] if scope["query_string"] else b"")
        url = self._client.base_url.copy_with(raw_path=target)
        request = self._client.build_request(method, url, headers=self._sent(fields), content=body)
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
        own = (
            []
            if self._door.key is not None
            else [field for field in fields if field[0].lower() == b"authorization"]
        )
        return kept + own

    async def _pass_on(self, request: httpx2.Request, send: asgi.Send) -> None:
        try:
            answer = await self._client.send(request, stream=True)
        except CloisterError as error:
            self._told(f"refused: {error}")
            await _refuse(
                send,
                Refusal(502, f"cloister_{error.layer}", f"not sent, or its answer not believed: {error}"),
            )
            return
        except httpx2.TimeoutException:
            await _refuse(send, Refusal(504, "service_timeout", "the service does not answer in time"))
            return
        except httpx2.TransportError as error:
            why = f"the service does not answer ({type(error).__name__})"
            await _refuse(send, Refusal(502, "service_unreachable", why))
            return
        finally:
            self._notice()
        try:
            fields = headers.to_present(answer.headers.raw)
            await send({"type": "http.response.start", "status": answer.status_code, "headers": list(fields)})
            async for part in answer.aiter_raw():
                await send({"type": "http.response.body", "body": part, "more_body": True})
        except (CloisterError, httpx2.TransportError) as error:
            # Without its last word: the server closes the connection, and the program knows that this was not all.
            self._told(f"an answer was cut off: {error}")
            return
        finally:
            with anyio.CancelScope(shield=True):
                await answer.aclose()
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    def _notice(self) -> None:
        """Say it when another verification has taken the place of the one before."""
        newest = self._client.attestation
        if newest is not None and newest is not self._seen:
            if self._seen is not None:
                self._told("keys rotated, or the result ended: verified again")
            self._seen = newest

    async def _show(self, send: asgi.Send) -> None:
        result = self._client.attestation
        if result is None:
            await _refuse(send, Refusal(503, "not_verified", "nothing was verified yet"))
            return
        claims = result.claims
        shown = {
            "verified": True,
            "simulated": claims.simulated,
            "tee": claims.tee,
            "policy_digest": result.policy_digest,
            "verified_at": result.verified_at,
            "expires": result.expires,
            "checks": [{"name": one.name, "outcome": one.outcome} for one in result.checks],
        }
        await _send(send, 200, encode_json(shown))

    async def _live(self, receive: asgi.Receive, send: asgi.Send) -> None:
        while True:
            message = await receive()
            over = message["type"] == "lifespan.shutdown"
            if over:
                await self._client.aclose()
            await send({"type": f"{message['type']}.complete"})
            if over:
                return


def in_words(claims: Claims, expires: int) -> str:
    """Who is verified, in one line."""
    tee = f"{claims.tee.upper()}, SIMULATED: nothing is protected" if claims.simulated else claims.tee.upper()
    return f"verified: {tee}; until {datetime.fromtimestamp(expires, UTC):%Y-%m-%d %H:%M:%S} UTC, then verified again"


async def _leave(receive: asgi.Receive, scope: anyio.CancelScope) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    scope.cancel()


async def _refuse(send: asgi.Send, refusal: Refusal) -> None:
    await _send(send, refusal.status, refusal.body())


async def _send(send: asgi.Send, status: int, body: bytes) -> None:
    await asgi.answer(send, status, "application/json", body)
