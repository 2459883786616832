"""One request to the API and its answer: key, bounded body, JSON or server-sent events, ended when the client leaves.

Refusals have OpenAI's error shape. Neither prompts nor answers are logged: of an unexpected failure only the type's name.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import msgspec
from starlette.datastructures import Headers
from starlette.types import Message, Receive, Scope, Send

from cloister.channel.receipts import EXTENSION as RECEIPT
from cloister.errors import InferenceError, KnowledgeError
from cloister.inference.api_errors import RequestRefused
from cloister.inference.generation import Moment
from cloister.inference.openai_requests import MAX_BODY, Json, parse_body

LOG: Final = logging.getLogger("cloister.inference")
CADENCE: Final = "cloister.cadence"
"""Key of a scope's ``extensions``: a :data:`Moment` of whoever carries the answers (docs/spec/inference-api.md)."""
PARSE_IN_THREAD: Final = 64 << 10
"""Bodies over this many bytes are parsed beside the event loop."""
JSON: Final = "application/json"
BYTES: Final = "application/octet-stream"

Fields = tuple[tuple[bytes, bytes], ...]
Commit = Callable[..., None]
"""Takes the parts (bytes) of one passage."""


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks. Both are None where nobody is asked for a key."""

    identity: bytes | None
    """SHA-256 of the API key."""
    tenant: bytes | None
    """What stands for it in the engine: 32 bytes that lead to no key."""


@dataclass(frozen=True, slots=True)
class Asked:
    """A request that was let in."""

    caller: Caller
    commit: Commit | None
    """Where the client asked for a receipt: commits to something that the answer is made from."""
    path: Mapping[str, str]
    """The parts of the path that the route names."""
    data: bytes

    async def json(self) -> Json:
        """The body's JSON object. Raises RequestRefused (400)."""
        if len(self.data) > PARSE_IN_THREAD:
            return await asyncio.to_thread(parse_body, self.data)
        return parse_body(self.data)


class Reply:
    """One HTTP answer being sent: JSON at once, or server-sent events as they come."""

    def __init__(self, send: Send, moment: Moment | None) -> None:
        self._send = send
        self.moment = moment
        """When what is written can be sent, if whoever carries the answer says so."""
        self.started = False
        self.named_events = False
        self._events = 0

    async def json(self, value: Mapping[str, Any], status: int = 200, more: Fields = ()) -> None:
        await self._start(status, b"application/json", more)
        await self._send({"type": "http.response.body", "body": msgspec.json.encode(value)})

    async def events(self, data: bytes) -> None:
        """One or more events in their form on the wire."""
        if not self.started:
            await self._start(200, b"text/event-stream; charset=utf-8")
        await self._send({"type": "http.response.body", "body": data, "more_body": True})

    async def event(self, value: Mapping[str, Any]) -> None:
        self._events += 1
        name = b"event: %s\n" % value["type"].encode() if self.named_events else b""
        await self.events(name + b"data: " + msgspec.json.encode(value) + b"\n\n")

    async def end(self, last: bytes = b"") -> None:
        if not self.started:
            await self._start(200, b"text/event-stream; charset=utf-8")
        await self._send({"type": "http.response.body", "body": last})

    async def refuse(self, refusal: RequestRefused) -> None:
        if not self.started:
            await self.json(refusal.body(), refusal.status, _told_by(refusal))
        elif self.named_events:
            error = refusal.body()["error"]
            await self.event(error | {"type": "error", "sequence_number": self._events})
            await self.end()
        else:
            await self.event(refusal.body())
            await self.end()

    async def _start(self, status: int, content_type: bytes, more: Fields = ()) -> None:
        self.started = True
        headers = [
            (b"content-type", content_type),
            (b"cache-control", b"no-store"),
            (b"x-request-id", b"req_" + secrets.token_hex(16).encode()),
        ]
        headers.extend(more)
        await self._send({"type": "http.response.start", "status": status, "headers": headers})


def _told_by(refusal: RequestRefused) -> Fields:
    """What a refusal's header says: how to ask with a key, or when to ask again."""
    key = ((b"www-authenticate", b"Bearer"),) if refusal.status == 401 else ()
    when = refusal.retry_after
    return key if when is None else (*key, (b"retry-after", str(when).encode("ascii")))


Answer = Callable[[Asked, Reply], Awaitable[None]]


class Exchange:
    """An endpoint, as an ASGI application: key, body, answer; ended at once when the client leaves."""

    def __init__(
        self, answer: Answer, caller_of: Callable[[str | None], Caller], *, content: str | None = JSON
    ) -> None:
        """``content`` is the media type of the body, None for an endpoint that reads none."""
        self._answer = answer
        self._caller_of = caller_of
        self._content = content

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        reply = Reply(send, scope.get("extensions", {}).get(CADENCE))
        try:
            headers = Headers(scope=scope)
            caller = self._caller_of(headers.get("authorization"))
            data = b"" if self._content is None else await _read_body(headers, receive, self._content)
            draft = scope.get("extensions", {}).get(RECEIPT)
            asked = Asked(
                caller, None if draft is None else draft.passage, scope.get("path_params", {}), data
            )
            await _unless_disconnected(self._answer(asked, reply), receive)
        except _Disconnected:
            return
        except RequestRefused as refusal:
            await reply.refuse(refusal)
        except InferenceError as error:
            LOG.error("%s", error)
            await reply.refuse(RequestRefused("The engine failed", status=500))
        except KnowledgeError as error:
            LOG.error("%s", error)
            told = f"{error.what}; {error.todo}" if error.todo else error.what
            await reply.refuse(RequestRefused(told, status=500, code="index_failed"))
        except Exception as error:
            # Its text could quote the prompt, so only its type is told.
            LOG.error("a request failed: %s", type(error).__name__)
            await reply.refuse(RequestRefused("The service failed", status=500))


class _Disconnected(Exception):
    """The client left before its answer was complete."""


async def _unless_disconnected(answer: Awaitable[None], receive: Receive) -> None:
    working = asyncio.ensure_future(answer)
    leaving = asyncio.ensure_future(_disconnect(receive))
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise _Disconnected
        await working
    finally:
        for task in (working, leaving):
            task.cancel()
        await asyncio.gather(working, leaving, return_exceptions=True)


async def _disconnect(receive: Receive) -> None:
    message: Message = {"type": ""}
    while message["type"] != "http.disconnect":
        message = await receive()


async def _read_body(headers: Headers, receive: Receive, content: str) -> bytes:
    kind = headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != content:
        raise RequestRefused(f"The Content-Type must be {content}", status=415, code="unsupported_media_type")
    too_large = RequestRefused(
        f"The request body is over {MAX_BODY} bytes", status=413, code="request_too_large"
    )
    declared = headers.get("content-length", "0")
    if declared.isdecimal() and int(declared[:20]) > MAX_BODY:
        raise too_large
    parts: list[bytes] = []
    size = 0
    more = True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise _Disconnected
        part = message.get("body", b"")
        size += len(part)
        if size > MAX_BODY:
            raise too_large
        parts.append(part)
        more = message.get("more_body", False)
    return b"".join(parts)
