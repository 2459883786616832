"""The ASGI side's words: types of the interface, and plain answers with bounded input."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from cloister.channel.problems import PROBLEM_TYPE, Problem, encode_problem
from cloister.errors import CloisterError, OversizedChunk

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]


class ClientGone(CloisterError):
    """Who asked has left; there is nobody to answer."""

    layer = "channel"


async def next_part(receive: Receive) -> tuple[bytes, bool]:
    """The next bytes of the outer body, and whether more follow. Raises :class:`ClientGone`."""
    message = await receive()
    if message["type"] != "http.request":
        raise ClientGone("the client left before its request was complete")
    return message.get("body", b""), message.get("more_body", False)


async def read_body(receive: Receive, *, limit: int, seconds: float) -> bytes:
    """A whole outer body. Raises :class:`OversizedChunk`, :class:`TimeoutError`, :class:`ClientGone`."""
    parts, length, more = [], 0, True
    async with asyncio.timeout(seconds):
        while more:
            part, more = await next_part(receive)
            length += len(part)
            if length > limit:
                raise OversizedChunk(f"the body is over its bound of {limit} bytes")
            parts.append(part)
    return b"".join(parts)


async def answer(send: Send, status: int, media_type: str, body: bytes, *extra: tuple[bytes, bytes]) -> None:
    """One complete plain answer."""
    fields = [
        (b"content-type", media_type.encode("ascii")),
        (b"content-length", str(len(body)).encode("ascii")),
        (b"cache-control", b"no-store"),
        *extra,
    ]
    await send({"type": "http.response.start", "status": status, "headers": fields})
    await send({"type": "http.response.body", "body": body})


async def refuse(send: Send, problem: Problem, detail: str) -> None:
    """A problem in plaintext."""
    extra = ((b"retry-after", b"1"),) if problem.status == 503 else ()
    await answer(send, problem.status, PROBLEM_TYPE, encode_problem(problem, detail), *extra)
