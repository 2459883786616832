"""The relays around Flower: what passes, from whom, and which code comes back. Over real mutual TLS, and one by one."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import gzip
import hashlib
import random
import ssl
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from flwr.proto.fab_pb2 import Fab, GetFabResponse

from cloister.broker.mesh_request import make_request
from cloister.channel.tls_context import server_side
from cloister.errors import CloisterError, FederationError
from cloister.federated.flower.processes import Loopback
from cloister.federated.mesh import FederationMesh, encoded, party_context
from cloister.federated.relay import (
    FLEET,
    GET_FAB,
    MAX_FAB,
    PATHS,
    Relay,
    admitted_party,
    own_bundle,
    own_node,
)
from cloister.federated.roster import Member, Roster
from cloister.federated.serving import ThreadedServer, listen, peer_certificate
from cloister.federated.upstream import MAX_BODY, connections
from federation_parts import NAMES, agreed, federation, identity

NOW = int(time.time())
AGREED = agreed(federation())
MESH, STRANGE = FederationMesh(AGREED, now=NOW), FederationMesh(AGREED, now=NOW)
PULL = FLEET + "pull-messages"
LOOPBACK = Loopback.make(Path(tempfile.mkdtemp()))
Headers = list[tuple[bytes, bytes]]


def pem(key: Any) -> bytes:
    return key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


def node(process: str) -> tuple[bytes, bytes]:
    """The header by which Flower's SuperNode names its key."""
    return b"flwr-public-key", base64.b64encode(pem(identity(process).key.public_key()))


def scope(
    path: str = PULL, *, method: str = "POST", query: bytes = b"", headers: Headers | None = None
) -> dict[str, Any]:
    return {
        "type": "http", "method": method, "path": path, "query_string": query,
        "headers": [node("north workload")] if headers is None else headers,
    }  # fmt: skip


@dataclass
class Upstream:
    """What stands behind a relay: answers what it is told to, and remembers what it was asked."""

    status: int = 200
    body: bytes = b"an answer"
    headers: Headers = field(default_factory=list)
    asked: list[tuple[str, Headers, bytes]] = field(default_factory=list)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        content, more = b"", True
        while more:
            message = await receive()
            content += message.get("body", b"")
            more = message.get("more_body", False)
        self.asked.append((scope["path"], list(scope["headers"]), content))
        fields = [*self.headers, (b"content-length", str(len(self.body)).encode())]
        await send({"type": "http.response.start", "status": self.status, "headers": fields})
        await send({"type": "http.response.body", "body": self.body})


def ask(
    upstream: Any, asked: dict[str, Any], body: bytes = b"a message", **settings: Any
) -> tuple[int, Headers, bytes]:
    """Through a relay: status, headers and body of the answer."""
    with behind(upstream, **settings) as relay:
        return asyncio.run(through(relay, asked, body))


@contextlib.contextmanager
def behind(upstream: Any, **settings: Any) -> Iterator[Relay]:
    """A relay that leads to ``upstream``, which is served over TLS."""
    inner = server_side()
    inner.load_cert_chain(LOOPBACK.certificate, LOOPBACK.key)
    server = ThreadedServer(upstream, listen("127.0.0.1", 0), inner, name="what is behind a relay")
    address = f"127.0.0.1:{server.port}"
    relay = Relay(connections(address, trusting(LOOPBACK)), **({"check": lambda _scope: None} | settings))
    try:
        yield relay
    finally:
        relay.close()
        server.close()


def trusting(loopback: Loopback) -> ssl.SSLContext:
    trust = ssl.create_default_context(cafile=str(loopback.certificate))
    trust.verify_flags &= ~ssl.VERIFY_X509_STRICT
    return trust


async def through(relay: Any, asked: dict[str, Any], body: bytes) -> tuple[int, Headers, bytes]:
    sent: list[Any] = []
    parts = [body[start : start + (16 << 20)] for start in range(0, len(body), 16 << 20)] or [b""]

    async def receive() -> Any:
        part = parts.pop(0)
        return {"type": "http.request", "body": part, "more_body": bool(parts)}

    async def send(message: Any) -> None:
        sent.append(message)

    await relay(asked, receive, send)
    start, end = sent
    return start["status"], list(start["headers"]), end["body"]


@pytest.mark.parametrize("path", sorted(PATHS))
def test_a_message_between_parties_passes_both_ways(path: str) -> None:
    upstream = Upstream(headers=[(b"content-type", b"application/protobuf"), (b"connection", b"keep-alive")])
    headers = [node("north workload"), (b"host", b"loopback"), (b"content-type", b"application/protobuf")]
    status, fields, body = ask(upstream, scope(path, headers=headers))
    assert (status, body) == (200, b"an answer")
    assert (b"content-type", b"application/protobuf") in fields
    assert (b"connection", b"keep-alive") not in fields
    ((asked, sent, content),) = upstream.asked
    assert (asked, content) == (path, b"a message")
    assert node("north workload") in sent
    assert (b"host", b"loopback") not in sent


def test_what_flower_answers_is_passed_on_whatever_its_status() -> None:
    status, _, body = ask(Upstream(status=401, body=b"unknown node"), scope())
    assert (status, body) == (401, b"unknown node")


@pytest.mark.parametrize(
    "asked",
    [
        pytest.param(scope("/v1/control/start-run"), id="the Control API, which starts runs"),
        pytest.param(scope("/flwr.proto.Control/StartRun"), id="the Control API by its name"),
        pytest.param(scope("/v1/runtime/push-app-outputs"), id="the Runtime API"),
        pytest.param(scope("/v1/serverappio/pull-app-inputs"), id="the ServerApp's API"),
        pytest.param(scope(FLEET + "register-node"), id="registration"),
        pytest.param(scope(FLEET + "unregister-node"), id="the end of a registration"),
        pytest.param(scope(FLEET + "create-node"), id="a new node"),
        pytest.param(scope(query=b"a=b"), id="a query string"),
        pytest.param(scope(PULL + "/"), id="a slash behind"),
        pytest.param(scope("/" + PULL), id="a slash before"),
        pytest.param(scope(FLEET + "../control/start-run"), id="a way up"),
        pytest.param(scope(FLEET + "%2e%2e/control"), id="a way up in another spelling"),
        pytest.param(scope(PULL.upper()), id="capitals"),
        pytest.param(scope(FLEET), id="the API itself"),
        pytest.param(scope("/"), id="the root"),
        pytest.param(scope(""), id="no path"),
        pytest.param(scope(method="GET"), id="another method"),
        pytest.param(scope(method="post"), id="the method in another spelling"),
        pytest.param(scope(method="CONNECT"), id="a tunnel"),
    ],
)
def test_nothing_else_of_flower_is_reached(asked: dict[str, Any]) -> None:
    upstream = Upstream()
    status, _, body = ask(upstream, asked)
    assert (status, body) == (403, b"this is none of the paths by which parties exchange messages")
    assert upstream.asked == []


def test_registration_is_none_of_the_paths() -> None:
    assert not [path for path in PATHS if "register" in path or not path.startswith(FLEET)]


def test_a_request_that_the_check_refuses_is_not_passed_on() -> None:
    def check(_scope: Any) -> None:
        raise FederationError("south is not admitted", todo="attest")

    upstream = Upstream()
    status, _, body = ask(upstream, scope(), check=check)
    assert (status, body, upstream.asked) == (403, b"south is not admitted", [])


def test_requests_and_answers_over_their_bound_are_refused() -> None:
    upstream = Upstream()
    status, _, body = ask(upstream, scope(), bytes(MAX_BODY + 1))
    assert (status, upstream.asked) == (403, [])
    assert b"over its bound" in body
    status, _, body = ask(Upstream(body=bytes(MAX_BODY + 1)), scope())
    assert status == 403
    assert b"over its bound" in body


def test_where_nobody_answers_the_node_may_ask_again() -> None:
    closed = listen("127.0.0.1", 0)
    address = f"127.0.0.1:{closed.getsockname()[1]}"
    closed.close()
    relay = Relay(connections(address, trusting(LOOPBACK)), check=lambda _scope: None)
    assert asyncio.run(through(relay, scope(), b""))[0] == 503
    relay.close()


def test_what_was_passed_on_is_counted() -> None:
    with behind(Upstream(body=b"12345")) as relay:
        asyncio.run(through(relay, scope(), b"123"))
        asyncio.run(through(relay, scope("/"), b"refused"))
        assert relay.bytes == 8


def test_an_answer_that_is_squeezed_is_refused() -> None:
    upstream = Upstream(body=gzip.compress(fab(OWN)), headers=[(b"content-encoding", b"gzip")])
    headers = [node("north workload"), (b"accept-encoding", b"gzip")]
    status, _, body = ask(upstream, scope(GET_FAB, headers=headers), check_answer=own_bundle(DIGEST))
    assert (status, body) == (403, b"an answer is compressed, which nobody asked for")
    ((_, sent, _),) = upstream.asked
    assert [value for name, value in sent if name == b"accept-encoding"] == [b"identity"]


def test_answers_come_side_by_side_and_over_a_new_certificate_from_its_renewal_on() -> None:
    """Requests that are under way when the certificate is renewed come to their end, and later ones take the new way."""
    begun, go = threading.Barrier(5), threading.Event()

    async def slow(asked: Any, receive: Any, send: Any) -> None:
        if asked["type"] == "http":
            await asyncio.to_thread(begun.wait, 20)
            await asyncio.to_thread(go.wait, 20)
        await Upstream()(asked, receive, send)

    async def run() -> list[int]:
        under_way = [asyncio.create_task(through(relay, scope(), b"")) for _ in range(4)]
        await asyncio.to_thread(begun.wait, 20)
        relay.use(other._upstream._pool)
        go.set()
        last = await through(relay, scope(), b"")
        return [status for status, _, _ in await asyncio.gather(*under_way)] + [last[0]]

    with behind(slow) as relay, behind(Upstream(status=202)) as other:
        assert asyncio.run(run()) == [200] * 4 + [202]


@pytest.mark.parametrize(
    "address",
    ["", "host", "host:", ":9", "[]:9", "a\r\nb:9", "host:0", "host:65536", "host:٣", "host:-1", "host:1e3"],
)
def test_what_no_address_is_leads_nowhere(address: str) -> None:
    with pytest.raises(FederationError, match="is no HOST:PORT"):
        connections(address, trusting(LOOPBACK))


def other_curve() -> bytes:
    """A key of a curve that no library here knows, as PEM."""
    inner = bytes.fromhex("300e06072a8648ce3d020106032b0599") + bytes([3, 3, 0, 4, 4])
    body = base64.b64encode(bytes([0x30, len(inner)]) + inner)
    return b"-----BEGIN PUBLIC KEY-----\n" + body + b"\n-----END PUBLIC KEY-----\n"


@pytest.mark.parametrize(
    ("headers", "words"),
    [
        pytest.param([], "no node key", id="none"),
        pytest.param([node("south workload")], "another node key", id="another party's"),
        pytest.param([node("north workload"), node("south workload")], "no node key", id="two"),
        pytest.param([node("north workload"), node("north workload")], "no node key", id="the right one twice"),
        pytest.param([(b"flwr-public-key", b"")], "no node key", id="empty"),
        pytest.param([(b"flwr-public-key", b"!" + node("north workload")[1])], "no node key", id="no base64"),
        pytest.param([(b"flwr-public-key", base64.b64encode(b"key"))], "no node key", id="no key"),
        pytest.param([(b"flwr-public-key", base64.b64encode(other_curve()))], "no node key", id="of an unknown curve"),
        pytest.param(
            [(b"flwr-public-key", base64.b64encode(pem(ec.generate_private_key(ec.SECP256R1()).public_key())))],
            "another node key", id="of another curve",
        ),
        pytest.param([(b"x-flwr-public-key", node("north workload")[1])], "no node key", id="by another name"),
    ],
)  # fmt: skip
def test_a_request_with_another_node_key_than_its_own_is_refused(headers: Headers, words: str) -> None:
    own_node(scope(), identity("north workload").spki)
    with pytest.raises(FederationError, match=words):
        own_node(scope(headers=headers), identity("north workload").spki)


def fab(content: bytes) -> bytes:
    return GetFabResponse(fab=Fab(hash_str="ab", content=content)).SerializeToString()


OWN = b"the bundle that this program makes"
DIGEST = hashlib.sha256(OWN).hexdigest()


def test_the_bundle_of_code_that_this_program_makes_itself_passes() -> None:
    status, _, body = ask(Upstream(body=fab(OWN)), scope(GET_FAB), check_answer=own_bundle(DIGEST))
    assert (status, body) == (200, fab(OWN))


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param(fab(b"another bundle"), id="another one"),
        pytest.param(fab(OWN + b"\0"), id="a byte more"),
        pytest.param(fab(b""), id="an empty one"),
        pytest.param(b"", id="none"),
        pytest.param(fab(OWN)[:-1], id="cut"),
        pytest.param(b"\xff" * 40, id="no message at all"),
        pytest.param(fab(OWN) + fab(b"another bundle"), id="two, the right one first"),
        pytest.param(bytes(MAX_FAB + 1), id="over its bound"),
    ],
)
def test_any_other_bundle_of_code_is_refused(answer: bytes) -> None:
    """Whoever chooses it chooses what runs beside a party's data."""
    status, _, body = ask(Upstream(body=answer), scope(GET_FAB), check_answer=own_bundle(DIGEST))
    assert status == 403
    assert b"code" in body
    assert answer not in body or not answer


def test_other_answers_are_not_taken_for_bundles() -> None:
    status, _, body = ask(Upstream(body=b"\xff"), scope(PULL), check_answer=own_bundle(DIGEST))
    assert (status, body) == (200, b"\xff")


# By whom: the aggregator's relay.


def chain(party: str, mesh: FederationMesh = MESH, *, key: str = "", now: int = NOW) -> tuple[bytes, ...]:
    csr = make_request(identity(f"{key or party} workload").key, workload=party, application="hospitals")
    return mesh.issue(csr, name=party, evidence=b"", now=now)


def roster(*parties: str) -> Roster:
    found = Roster(NAMES, everyone=True, entropy=random.Random(3).randbytes)
    for party in parties or NAMES:
        found.admit(
            Member(
                party=party, agent_key=identity(f"{party} agent").spki, delegation=b"",
                workload_key=identity(f"{party} workload").spki, vouched=b"", nonce=bytes(32), until=1e9,
            )
        )  # fmt: skip
    return found


def check(found: Roster, certificate: bytes | None, **asked: Any) -> None:
    admitted_party(scope(**asked), certificate, mesh=MESH, roster=found, now=NOW)


def test_an_admitted_party_passes_with_its_own_certificate_and_node() -> None:
    check(roster(), chain("north")[0])


def excluded() -> Roster:
    found = roster()
    found.exclude("north")
    return found


def left() -> Roster:
    found = roster()
    found.leave("north")
    return found


@pytest.mark.parametrize(
    ("found", "certificate", "asked", "words"),
    [
        pytest.param(roster(), None, {}, "no certificate", id="who shows no certificate"),
        pytest.param(excluded(), chain("north")[0], {}, "north is not admitted", id="a party that is excluded"),
        pytest.param(left(), chain("north")[0], {}, "north is not admitted", id="a party that left"),
        pytest.param(roster("south"), chain("north")[0], {}, "north is not admitted", id="a party that has not come yet"),
        pytest.param(
            roster(), chain("north", key="old")[0], {"headers": [node("old workload")]}, "or with another key",
            id="a workload that its party has replaced",
        ),
        pytest.param(
            roster(), chain("north", key="south")[0], {"headers": [node("south workload")]}, "or with another key",
            id="another party's key under this party's name",
        ),
        pytest.param(
            roster(), chain("north")[0], {"headers": [node("south workload")]}, "another node key",
            id="another party's node key",
        ),
        pytest.param(roster(), chain("north")[0], {"headers": []}, "no node key", id="no node key"),
        pytest.param(roster(), chain("north", STRANGE)[0], {}, "certificate", id="a certificate of another mesh"),
        pytest.param(
            roster(), chain("north", now=NOW - 2 * 3600)[0], {}, "certificate", id="a certificate that is over"
        ),
    ],
)  # fmt: skip
def test_nobody_else_passes(
    found: Roster, certificate: bytes | None, asked: dict[str, Any], words: str
) -> None:
    with pytest.raises(CloisterError, match=words):
        check(found, certificate, **asked)


# Both relays, on sockets.


@contextlib.contextmanager
def tunnel(
    found: Roster, upstream: Upstream, folder: Path, *, party: str = "north"
) -> Iterator[httpx2.Client]:
    """SuperNode → the party's relay → mutual TLS → the aggregator's relay → what stands for the SuperLink."""
    loopback = Loopback.make(folder)
    inner, outer = server_side(), server_side()
    for one in (inner, outer):
        one.load_cert_chain(loopback.certificate, loopback.key)
    trust = trusting(loopback)

    def admitted(asked: Any) -> None:
        admitted_party(asked, peer_certificate(asked), mesh=MESH, roster=found, now=NOW)

    context, name = party_context(
        encoded(MESH), chain(party), identity(f"{party} workload").key,
        root=MESH.shown.mesh_root_sha256 or "", digest=AGREED.digest, now=NOW,
    )  # fmt: skip
    with contextlib.ExitStack() as undo:

        def serving(app: Any, tls: ssl.SSLContext) -> str:
            server = ThreadedServer(app, listen("127.0.0.1", 0), tls, name="a relay")
            undo.callback(server.close)
            return f"127.0.0.1:{server.port}"

        superlink = connections(serving(upstream, inner), trust)
        aggregator = connections(
            serving(Relay(superlink, check=admitted), MESH.server(now=NOW)), context, name=name
        )
        ours = Relay(
            aggregator, check=lambda asked: own_node(asked, identity(f"{party} workload").spki),
            check_answer=own_bundle(DIGEST),
        )  # fmt: skip
        base = f"https://{serving(ours, outer)}"
        yield undo.enter_context(httpx2.Client(base_url=base, verify=trust, timeout=20))


def post(client: httpx2.Client, path: str = PULL, process: str = "north workload") -> httpx2.Response:
    name, value = node(process)
    return client.post(path, content=b"a message", headers=[(name.decode(), value.decode())])


def test_a_partys_node_reaches_flower_through_both_relays_until_it_is_excluded(tmp_path: Path) -> None:
    found, upstream = roster(), Upstream()
    with tunnel(found, upstream, tmp_path) as client:
        assert (post(client).status_code, post(client).content) == (200, b"an answer")
        assert [path for path, _, _ in upstream.asked] == [PULL, PULL]
        upstream.body = fab(OWN)
        assert post(client, GET_FAB).status_code == 200
        upstream.body = fab(b"another bundle")
        assert post(client, GET_FAB).status_code == 403
        count = len(upstream.asked)
        assert post(client, process="south workload").status_code == 403  # by its own relay
        assert post(client, FLEET + "register-node").status_code == 403
        found.exclude("north")
        refused = post(client)
        assert (refused.status_code, refused.content) == (403, b"north is not admitted, or with another key")
        assert len(upstream.asked) == count


def test_the_certificate_of_a_connection_is_whose_it_is_and_no_headers(tmp_path: Path) -> None:
    """South's connection, with whatever north could be named by."""
    found, upstream = roster("north"), Upstream()
    with tunnel(found, upstream, tmp_path, party="south") as client:
        answer = post(client, process="south workload")
    assert (answer.status_code, upstream.asked) == (403, [])
