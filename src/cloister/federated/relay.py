"""Between SuperNode and SuperLink: a relay at each end of a mutual TLS connection inside the federation's mesh.

Flower's SuperLink serves its Fleet API, by which nodes exchange messages, on one port with the APIs that start runs and
register nodes, and knows no client certificates. So nobody reaches it but through the aggregator's relay, which passes the
Fleet API's own paths alone, from a connection whose certificate is an admitted party's, with the node key of that very
party. The relay at the party's end carries the certificate; of what comes back it looks at one thing, the bundle of code
that Flower hands out: any other than the one that this program makes itself is refused.
"""

from __future__ import annotations

import base64
import hashlib
import logging
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any, Final

import urllib3
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_public_key

from cloister.channel import asgi
from cloister.errors import CloisterError, FederationError
from cloister.federated.mesh import FederationMesh
from cloister.federated.roster import Roster
from cloister.federated.upstream import MAX_BODY, SECONDS, Upstream

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
MAX_UNDER_WAY: Final = 64
"""Requests of one peer at once."""
MAX_FAB: Final = 1 << 20
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


class Relay:
    """ASGI application that passes requests on to the server of ``pool`` and answers back."""

    def __init__(
        self,
        pool: urllib3.HTTPConnectionPool,
        *,
        check: Check,
        check_answer: CheckAnswer = lambda _path, _body: None,
    ) -> None:
        self._upstream = Upstream(pool)
        self._check = check
        self._check_answer = check_answer
        self._under_way: Counter[bytes | None] = Counter()
        """By whose certificate."""
        self.bytes = 0
        """Of all bodies passed on, both ways."""

    def use(self, pool: urllib3.HTTPConnectionPool) -> None:
        """Pass on by ``pool`` from now on."""
        self._upstream.use(pool)

    def close(self) -> None:
        """Nothing is passed on any more."""
        self._upstream.close()

    async def __call__(self, scope: asgi.Scope, receive: asgi.Receive, send: asgi.Send) -> None:
        if scope["type"] == "lifespan":
            await self._live(receive, send)
            return
        if scope["type"] != "http":
            return
        peer = scope.get("extensions", {}).get(PEER)
        self._under_way[peer] += 1
        try:
            await self._pass_on(scope, receive, send, first=self._under_way[peer] <= MAX_UNDER_WAY)
        finally:
            self._under_way[peer] -= 1
            if not self._under_way[peer]:
                del self._under_way[peer]

    async def _pass_on(
        self, scope: asgi.Scope, receive: asgi.Receive, send: asgi.Send, *, first: bool
    ) -> None:
        """``first``: whether few requests of the same peer are under way."""
        path = scope["path"]
        try:
            if scope["method"] != "POST" or path not in PATHS or scope["query_string"]:
                raise FederationError("this is none of the paths by which parties exchange messages")
            self._check(scope)
            if not first:
                raise TimeoutError("too many at once")
            body = await asgi.read_body(receive, limit=MAX_BODY, seconds=SECONDS)
            fields = [(name, value) for name, value in scope["headers"] if name not in _HOP]
            answer = await self._upstream.ask(path, fields, body)
            self._check_answer(path, answer.body)
        except asgi.ClientGone:
            return
        except CloisterError as error:
            _log.warning("refused: %s", error)
            await _answer(send, 403, [], error.what.encode())
        except (OSError, TimeoutError) as error:
            _log.debug("not passed on (%s)", error)
            await _answer(send, 503, [], b"the other side does not answer")
        else:
            self.bytes += len(body) + len(answer.body)
            back = [(name, value) for name, value in answer.fields if name not in _HOP]
            await _answer(send, answer.status, back, answer.body)

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
