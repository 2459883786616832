"""Between SuperNode and SuperLink: a relay at each end of a mutual TLS connection inside the federation's mesh.

Flower's SuperLink serves its Fleet API, by which nodes exchange messages, on one port with the APIs that start runs and
register nodes, and knows no client certificates. So nobody reaches it but through the aggregator's relay, which passes the
Fleet API's own paths alone, from a connection whose certificate is an admitted party's, with the node key of that very
party. The relay at the party's end carries the certificate; of what comes back it looks at one thing, the bundle of code
that Flower hands out: any other than the one that this program makes itself is refused.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import logging
import ssl
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Final

import urllib3
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_public_key

from cloister.channel import asgi
from cloister.errors import CloisterError, FederationError, FormatError
from cloister.federated.mesh import FederationMesh
from cloister.federated.roster import Roster

FLEET: Final = "/v1/fleet/"
GET_FAB: Final = f"{FLEET}get-fab"
PATHS: Final = frozenset(
    FLEET + name
    for name in (
        "activate-node", "deactivate-node", "send-node-heartbeat", "pull-messages", "push-messages", "get-run", "get-fab",
        "push-object", "pull-object", "confirm-message-received",
    )
)  # fmt: skip
"""All of the Fleet API but registration, which the aggregator does itself."""
KEY_HEADER: Final = b"flwr-public-key"
PEER: Final = "cloister.peer"
"""The scope's extension that has the certificate of the other side, DER (peer_protocol.py)."""
MAX_BODY: Final = 64 << 20
"""Bytes of one request or answer; Flower cuts large arrays into pieces of 5 MiB."""
MAX_FAB: Final = 1 << 20
MAX_CONNECTIONS: Final = 32
"""To the other side, and threads that wait for it."""
SECONDS: Final = 120.0
_HOP: Final = frozenset(
    (
        b"host", b"connection", b"transfer-encoding", b"content-length", b"keep-alive", b"te", b"upgrade",
        # What comes back is looked at as it is, and what goes through mutual TLS is not squeezed before.
        b"accept-encoding",
    )
)  # fmt: skip
_log = logging.getLogger("cloister.federated")

Check = Callable[[Mapping[str, Any]], None]
"""Looks at a request's scope. Raises FederationError for what is not passed on."""
CheckAnswer = Callable[[str, bytes], None]
"""Looks at an answer by the request's path. Raises FederationError."""


def connections(
    address: str, context: ssl.SSLContext, *, name: str | None = None
) -> urllib3.HTTPSConnectionPool:
    """To the server at ``address`` (host and port) by TLS, kept open. ``name`` is what its certificate has to be called,
    where that is not its host. Raises FederationError for what no address is.
    """
    host, _, number = address.rpartition(":")
    port = int(number) if number.isascii() and number.isdecimal() else 0
    if not host or not 1 <= port <= 65535:
        raise FederationError(f"the tunnel's address {address[:80]!r} is no HOST:PORT")
    return urllib3.HTTPSConnectionPool(
        host.strip("[]"), port, ssl_context=context, server_hostname=name, maxsize=MAX_CONNECTIONS, block=True,
        retries=False, timeout=urllib3.Timeout(connect=SECONDS, read=SECONDS),
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Answer:
    """What came back."""

    status: int
    fields: list[tuple[bytes, bytes]]
    body: bytes


class Relay:
    """ASGI application that passes requests on to the server of ``pool`` and answers back.

    A whole model goes through it each round. So bodies are sent and read in threads, from sockets that block: the same took
    three times as much of a processor where an event loop handed on 64 KiB at a time.
    """

    def __init__(
        self,
        pool: urllib3.HTTPConnectionPool,
        *,
        check: Check,
        check_answer: CheckAnswer = lambda _path, _body: None,
    ) -> None:
        self._pool = pool
        self._threads = ThreadPoolExecutor(MAX_CONNECTIONS, thread_name_prefix="relay")
        self._check = check
        self._check_answer = check_answer
        self.bytes = 0
        """Of all bodies passed on, both ways."""

    def use(self, pool: urllib3.HTTPConnectionPool) -> None:
        """Pass on by ``pool`` from now on: a renewed certificate. What is under way by the one before comes to its end."""
        before, self._pool = self._pool, pool
        before.close()

    def close(self) -> None:
        """Nothing is passed on any more. What is under way comes to its end."""
        self._pool.close()
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def __call__(self, scope: asgi.Scope, receive: asgi.Receive, send: asgi.Send) -> None:
        if scope["type"] == "lifespan":
            await self._live(receive, send)
            return
        if scope["type"] != "http":
            return
        path = scope["path"]
        try:
            if scope["method"] != "POST" or path not in PATHS or scope["query_string"]:
                raise FederationError("this is none of the paths by which parties exchange messages")
            self._check(scope)
            body = await asgi.read_body(receive, limit=MAX_BODY, seconds=SECONDS)
            fields = [(name, value) for name, value in scope["headers"] if name not in _HOP]
            answer = await asyncio.get_running_loop().run_in_executor(
                self._threads, self._passed_on, path, fields, body
            )
            self._check_answer(path, answer.body)
        except asgi.ClientGone:
            return
        except CloisterError as error:
            _log.warning("refused: %s", error)
            await _answer(send, 403, [], error.what.encode())
        except (urllib3.exceptions.HTTPError, OSError, TimeoutError) as error:
            _log.debug("not passed on (%s)", type(error).__name__)
            await _answer(send, 503, [], b"the other side does not answer")
        else:
            self.bytes += len(body) + len(answer.body)
            await _answer(send, answer.status, answer.fields, answer.body)

    def _passed_on(self, path: str, fields: list[tuple[bytes, bytes]], body: bytes) -> _Answer:
        """In a thread. Raises FormatError for more than there can be or in another form, urllib3's HTTPError, OSError."""
        headers = urllib3.HTTPHeaderDict(
            [(name.decode("latin-1"), value.decode("latin-1")) for name, value in fields]
        )
        while True:
            pool = self._pool
            try:
                answer = pool.urlopen("POST", path, body, headers, redirect=False, preload_content=False)
                break
            except urllib3.exceptions.ClosedPoolError:
                if pool is self._pool:  # and not replaced a moment ago
                    raise
        try:
            content = answer.read(MAX_BODY + 1, decode_content=False)
            if len(content) > MAX_BODY:
                raise FormatError(f"an answer is over its bound of {MAX_BODY} bytes")
            if answer.headers.get("content-encoding", "identity") != "identity":
                raise FormatError("an answer is compressed, which nobody asked for")
        except BaseException:
            answer.close()
            raise
        answer.release_conn()
        back = [
            (name.lower().encode("latin-1"), value.encode("latin-1"))
            for name, value in answer.headers.items()
        ]
        return _Answer(answer.status, [(name, value) for name, value in back if name not in _HOP], content)

    async def _live(self, receive: asgi.Receive, send: asgi.Send) -> None:
        while True:
            message = await receive()
            if message["type"] == "lifespan.shutdown":
                self.close()
            await send({"type": f"{message['type']}.complete"})
            if message["type"] == "lifespan.shutdown":
                return


def admitted_party(
    scope: Mapping[str, Any], certificate: bytes | None, *, mesh: FederationMesh, roster: Roster, now: int
) -> None:
    """The aggregator's check: an admitted party's certificate (DER), with that party's own node key.

    Raises FederationError, MeshRefused.
    """
    if certificate is None:
        raise FederationError("a connection showed no certificate")
    peer = mesh.peer(certificate, now=now)
    member = roster.by_key(peer.public_key)
    if member is None or member.party != peer.workload:
        raise FederationError(f"{peer.workload} is not admitted, or with another key")
    own_node(scope, peer.public_key)


def own_node(scope: Mapping[str, Any], spki: bytes) -> None:
    """Raise FederationError unless the request's node key is ``spki`` (DER)."""
    found = [value for name, value in scope["headers"] if name == KEY_HEADER]
    try:
        if len(found) != 1:
            raise ValueError
        key = load_pem_public_key(base64.b64decode(found[0], validate=True))
        shown = key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise FederationError("a request names no node key") from None
    if shown != spki:
        raise FederationError("a request names another node key than its connection's certificate has")


def own_bundle(digest: str) -> CheckAnswer:
    """The check of a party's relay: Flower's bundle is the one that this program makes itself."""

    def check(path: str, body: bytes) -> None:
        if path != GET_FAB:
            return
        from flwr.proto.fab_pb2 import GetFabResponse  # noqa: PLC0415 -- loads Flower
        from google.protobuf.message import DecodeError  # type: ignore[import-untyped, unused-ignore]  # noqa: PLC0415

        if len(body) > MAX_FAB:
            raise FederationError("the bundle of code is longer than it can be")
        try:
            answer = GetFabResponse.FromString(body)
        except DecodeError:
            raise FederationError("the bundle of code cannot be read") from None
        if hashlib.sha256(answer.fab.content).hexdigest() != digest:
            raise FederationError(
                "the aggregator sends other code than this program's own", todo="verify the aggregator anew"
            )

    return check


async def _answer(send: asgi.Send, status: int, fields: list[tuple[bytes, bytes]], body: bytes) -> None:
    fields = [*fields, (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": fields})
    await send({"type": "http.response.body", "body": body})
