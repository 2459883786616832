"""The sealed gateway: an ASGI middleware that lets an application be reached through the seal alone.

It answers the well-known paths (docs/spec/attestation-endpoint.md), opens sealed requests and dispatches them
with a scope made of what was inside; nothing of the outer request reaches the application. A request is dispatched
only when all of it was opened and its encapsulated key was recorded as new. Other requests in plaintext are refused,
except for GET and HEAD of the paths allowed by name; web sockets are closed.

No prompt, answer or key is logged: of a failing application only the type of its exception.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Collection
from functools import partial
from typing import Final

from cloister.channel import asgi, bhttp, headers, padding, problems
from cloister.channel.cadence import EXTENSION as CADENCE
from cloister.channel.cadence import Cadence
from cloister.channel.evidence_service import EvidenceService
from cloister.channel.inner_request import decode_request, inner_scope
from cloister.channel.keyring import KeyRing
from cloister.channel.ohttp import CHUNKED_REQUEST_TYPE, KEYS_TYPE, REQUEST_TYPE, RequestOpener
from cloister.channel.receipts import EXTENSION as RECEIPT
from cloister.channel.receipts import Draft, commit_request, parse_salt
from cloister.channel.sealed_response import DEFAULT_CADENCE, SealedResponse
from cloister.encoding import Record, b64url_decode, decode_json
from cloister.errors import (
    ChannelError,
    CloisterError,
    FormatError,
    Overloaded,
    OversizedChunk,
    PlaintextRequest,
)
from cloister.evidence.binding import NONCE_SIZE
from cloister.evidence.bundle import encode_bundle

MAX_REQUEST: Final = 32 * 1024 * 1024
MAX_RECEIVED: Final = 256 * 1024 * 1024
"""Bytes of all requests together that are being received."""
MAX_QUESTION: Final = 1024
"""Bytes of a request for evidence."""
_HINT: Final = (
    "this workload answers sealed requests only; connect with cloister.connect(url, policy=…) and pass it as the "
    "http_client of your SDK. If a key or token was in this request, it was in the clear on its way: replace it"
)

_log = logging.getLogger("cloister.channel")


class _Question(Record, frozen=True, kw_only=True):
    nonce: str


class SealedGateway:
    """ASGI application around ``app``.

    ``allow`` names paths whose GET and HEAD pass in plaintext; ``max_request`` bounds an opened message in bytes,
    ``max_received`` all messages together while they arrive, ``max_open`` the requests that are received or
    answered at once, ``receive_seconds`` the time one may take to arrive, ``send_seconds`` the time a client may
    take to make room for more of its answer, ``cadence`` the seconds between two flushes of a streamed answer.
    ``manifest`` gives the newest signed manifest, if the workload has one; it is shown as it is, and must be quick.
    """

    def __init__(
        self,
        app: asgi.App,
        *,
        keyring: KeyRing,
        evidence: EvidenceService,
        allow: Collection[str] = ("/healthz",),
        max_request: int = MAX_REQUEST,
        max_received: int = MAX_RECEIVED,
        max_open: int = 256,
        receive_seconds: float = 60.0,
        send_seconds: float = 60.0,
        cadence: float = DEFAULT_CADENCE,
        manifest: Callable[[], bytes | None] | None = None,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._app = app
        self._keyring = keyring
        self._evidence = evidence
        self._allow = frozenset(allow)
        self._max_request = max_request
        self._max_received = max_received
        self._max_open = max_open
        self._receive_seconds = receive_seconds
        self._send_seconds = send_seconds
        self._cadence = Cadence(cadence)
        self._manifest = manifest
        self._now = now
        self._open = 0
        self._received = 0
        self._sweeping: asyncio.TimerHandle | None = None

    async def __call__(self, scope: asgi.Scope, receive: asgi.Receive, send: asgi.Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008, "reason": "sealed requests only"})
        elif scope["type"] == "http":
            self._keep_sweeping()
            await self._route(scope, receive, send)

    async def _route(self, scope: asgi.Scope, receive: asgi.Receive, send: asgi.Send) -> None:
        route = (scope["method"], scope["path"])
        if scope["path"] in self._allow and scope["method"] in ("GET", "HEAD"):
            await self._app(scope, receive, send)
            return
        try:
            if route == ("POST", headers.ATTESTATION_PATH):
                await self._attest(receive, send)
            elif route == ("POST", headers.GATEWAY_PATH):
                await self._serve(scope, receive, send)
            elif route == ("GET", headers.GATEWAY_PATH):
                await asgi.answer(send, 200, KEYS_TYPE, self._keyring.configs())
            elif route == ("GET", headers.MANIFEST_PATH):
                await self._show_manifest(send)
            elif scope["path"] in (headers.ATTESTATION_PATH, headers.GATEWAY_PATH, headers.MANIFEST_PATH):
                await asgi.refuse(send, problems.METHOD, "see docs/spec/attestation-endpoint.md")
            else:
                raise PlaintextRequest(_HINT)
        except asgi.ClientGone:
            return
        except TimeoutError:
            await asgi.refuse(send, problems.TOO_SLOW, "")
        except OSError:  # the client left, or does not read, while it was being answered
            return
        except CloisterError as error:
            await asgi.refuse(send, problems.problem_of(error), error.what)

    async def _attest(self, receive: asgi.Receive, send: asgi.Send) -> None:
        body = await asgi.read_body(receive, limit=MAX_QUESTION, seconds=self._receive_seconds)
        question = decode_json(body, _Question, what="request for evidence", limit=MAX_QUESTION)
        nonce = b64url_decode(question.nonce, what="nonce", length=NONCE_SIZE)
        try:
            bundle = await self._evidence.evidence(nonce)
        except Overloaded:
            raise
        except CloisterError as error:
            _log.error("no evidence: %s", error)
            await asgi.refuse(send, problems.FAILED, "the attester failed; its own log says why")
            return
        await asgi.answer(send, 200, "application/json", encode_bundle(bundle))

    async def _show_manifest(self, send: asgi.Send) -> None:
        """What owners signed needs no seal: the signatures are what a client believes."""
        signed = None if self._manifest is None else self._manifest()
        if signed is None:
            await asgi.refuse(
                send, problems.NO_MANIFEST, "this workload was given none; connect with a policy"
            )
        else:
            await asgi.answer(send, 200, "application/json", signed)

    async def _serve(self, scope: asgi.Scope, receive: asgi.Receive, send: asgi.Send) -> None:
        media_type = (headers.first(scope["headers"], b"content-type") or b"").decode("latin-1")
        if media_type not in (CHUNKED_REQUEST_TYPE, REQUEST_TYPE):
            await asgi.refuse(send, problems.MEDIA_TYPE, f"send {CHUNKED_REQUEST_TYPE} or {REQUEST_TYPE}")
            return
        if self._open >= self._max_open:
            raise Overloaded("too many requests are being answered", todo="try again in a moment")
        self._open += 1
        try:
            opener = RequestOpener(self._keyring.find, chunked=media_type == CHUNKED_REQUEST_TYPE)
            async with asyncio.timeout(self._receive_seconds):
                message = await self._receive_sealed(opener, receive)
            if opener.key_id is None or opener.enc is None:
                raise ChannelError("the request has no head")
            self._keyring.admit(opener.key_id, opener.enc)
            await self._dispatch(scope, opener, message, receive, send)
        finally:
            self._open -= 1

    async def _receive_sealed(self, opener: RequestOpener, receive: asgi.Receive) -> bytes:
        """The whole opened message: nothing is done with a request before its final chunk opened."""
        message, more, counted = bytearray(), True, 0
        try:
            while more:
                part, more = await asgi.next_part(receive)
                counted += len(part)
                self._received += len(part)
                if self._received > self._max_received:
                    raise Overloaded("too much is being received", todo="try again in a moment")
                # The final chunk may run to the end of the body, and is then opened only there.
                for plaintext in (*opener.feed(part), *(() if more else opener.finish())):
                    message += plaintext
                if len(message) > self._max_request:
                    raise OversizedChunk(f"the request is over its bound of {self._max_request} bytes")
            return bytes(message)
        finally:
            self._received -= counted

    async def _dispatch(
        self,
        outer: asgi.Scope,
        opener: RequestOpener,
        message: bytes,
        receive: asgi.Receive,
        send: asgi.Send,
    ) -> None:
        try:
            request, body = decode_request(message)
            scope = inner_scope(outer, request, body, opener.key_id)
            scope["extensions"][CADENCE] = self._cadence.before_tick
            draft = self._draft(request, body, opener.key_id)
            if draft is not None:
                scope["extensions"][RECEIPT] = draft
            refusal = None
        except CloisterError as error:
            request, body, scope, refusal, draft = None, b"", {}, error, None
        wanted = headers.first(request.headers, padding.PADDING_HEADER) if request is not None else None
        padded = opener.chunked and wanted == padding.PADDING_VERSION
        response = SealedResponse(
            send, opener.response(), padded=padded, cadence=self._cadence, send_seconds=self._send_seconds,
            receipt=None if draft is None else partial(self._receipt, draft),
        )  # fmt: skip
        if refusal is not None:
            await _answer_inside(response, problems.problem_of(refusal), refusal.what)
            return
        await self._run(scope, body, response, receive)

    def _draft(self, request: bhttp.Request, body: bytes, key_id: int | None) -> Draft | None:
        """Of the receipt that the request asks for, where this workload gives any. Raises :class:`FormatError`."""
        asked = headers.first(request.headers, headers.RECEIPT_HEADER)
        sign = None if asked is None or key_id is None else self._keyring.signer(key_id)
        if asked is None or sign is None:
            return None
        salt, identity = parse_salt(asked), headers.first(request.headers, headers.REQUEST_ID_HEADER)
        if identity is None:
            raise FormatError("a receipt is asked for, and the request has no id")
        committed = commit_request(salt, request.method, request.path, body)
        return Draft(salt, sign, identity.decode("ascii"), committed, int(self._now()))

    def _receipt(self, draft: Draft, status: int, body_sha256: bytes) -> bytes:
        manifest = None if self._manifest is None else self._manifest()
        return draft.trailer(status, body_sha256, manifest=manifest, ended=int(self._now()))

    async def _run(
        self, scope: asgi.Scope, body: bytes, response: SealedResponse, receive: asgi.Receive
    ) -> None:
        """The application answers; a client that leaves is told to it."""
        delivered = False

        async def inner_receive() -> asgi.Message:
            nonlocal delivered
            if not delivered:
                delivered = True
                return {"type": "http.request", "body": body, "more_body": False}
            await response.over.wait()
            return {"type": "http.disconnect"}

        watcher = asyncio.create_task(_watch(receive, response))
        try:
            await self._app(scope, inner_receive, response.send)
        except Exception as error:
            if not response.gone.is_set():
                _log.error("the application failed with %s", type(error).__name__)
        finally:
            watcher.cancel()
            await response.stop()
        if response.unsent and not response.gone.is_set():
            response.forget()
            await _answer_inside(response, problems.INTERNAL, "")
        # What began and did not finish stays without a final chunk; the server then closes the connection.

    def _keep_sweeping(self) -> None:
        """Keys that are over are erased on time, with or without requests."""
        if self._sweeping is None:
            self._sweep()

    def _sweep(self) -> None:
        try:
            seconds = self._keyring.sweep()
        except ChannelError:  # the ring was closed: nothing is left to erase
            self._sweeping = None
            return
        self._sweeping = asyncio.get_running_loop().call_later(seconds, self._sweep)


async def _watch(receive: asgi.Receive, response: SealedResponse) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    response.leave()


async def _answer_inside(response: SealedResponse, problem: problems.Problem, detail: str) -> None:
    fields = [(b"content-type", problems.PROBLEM_TYPE.encode("ascii"))]
    await response.send({"type": "http.response.start", "status": problem.status, "headers": fields})
    await response.send({"type": "http.response.body", "body": problems.encode_problem(problem, detail)})
