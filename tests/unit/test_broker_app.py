"""The broker over HTTP: problems of fixed text, bounded bodies, undecoded paths, one session at a time."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from broker_parts import PATH, SECRET, Attempt, Bench, workload
from cloister.broker import protocol
from cloister.broker.app import create_broker
from cloister.broker.protocol import TokenAnswer
from cloister.encoding import decode_json


@dataclass
class Reply:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def problem(self) -> str:
        document = json.loads(self.body)
        assert self.headers["content-type"] == "application/problem+json"
        assert set(document) == {"type", "title", "status", "detail"}
        assert document["status"] == self.status
        return str(document["type"]).removeprefix("urn:cloister:problem:")


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    bench = Bench(tmp_path / "state")
    bench.put()
    bench.allow(workload())
    return bench


def call(
    bench: Bench,
    method: str,
    path: bytes,
    body: bytes = b"",
    headers: dict[str, str] | None = None,
    *,
    app: Any = None,
) -> Reply:
    """One request through the ASGI seam, in small pieces."""
    sent: list[Any] = []
    pieces = [body[start : start + 4096] for start in range(0, len(body), 4096)] or [b""]
    raw, _, query = path.partition(b"?")

    async def receive() -> Any:
        return {"type": "http.request", "body": pieces.pop(0), "more_body": bool(pieces)}

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": method,
        "scheme": "http",
        "path": raw.decode("latin-1"),
        "raw_path": raw,
        "query_string": query,
        "root_path": "",
        "headers": [(name.encode(), value.encode()) for name, value in (headers or {}).items()],
        "client": None,
        "server": None,
    }
    asyncio.run((app or create_broker(bench.store, bench.audit, now=bench.clock))(scope, receive, send))
    answered = {name.decode(): value.decode() for name, value in sent[0]["headers"]}
    return Reply(sent[0]["status"], answered, b"".join(message.get("body", b"") for message in sent[1:]))


def test_the_whole_protocol_over_http(bench: Bench) -> None:
    app = create_broker(bench.store, bench.audit, now=bench.clock)
    attempt = Attempt(bench, workload())
    reply = call(bench, "POST", b"/kbs/v0/auth", protocol.auth_request("tdx"), app=app)
    assert reply.status == 200
    assert reply.headers["cache-control"] == "no-store"
    first, *attributes = reply.headers["set-cookie"].split("; ")
    assert attributes == ["Path=/kbs/v0", "HttpOnly", "SameSite=Strict"]
    attempt.text, attempt.nonce = protocol.parse_challenge(reply.body)
    reply = call(bench, "POST", b"/kbs/v0/attest", attempt.body(), {"cookie": first}, app=app)
    assert reply.status == 200
    second = reply.headers["set-cookie"].split(";")[0]
    assert second != first
    token = decode_json(reply.body, TokenAnswer, what="answer").token
    path = f"/kbs/v0/resource/{PATH}".encode()
    for headers in ({"cookie": f"a=b; {second}"}, {"authorization": f"Bearer {token}"}):
        reply = call(bench, "GET", path, headers=headers, app=app)
        assert reply.status == 200
        assert attempt.pair.decrypt(reply.body, f"kbs:///{PATH}") == SECRET
    reply = call(bench, "GET", path, headers={"cookie": first}, app=app)
    assert (reply.status, reply.problem) == (401, "session-refused")
    reply = call(bench, "GET", path, headers={"cookie": f"{second}; {second}"}, app=app)
    assert (reply.status, reply.problem) == (401, "session-refused")


REFUSALS: dict[str, tuple[str, bytes, bytes, int, str]] = {
    "no body": ("POST", b"/kbs/v0/auth", b"", 400, "malformed"),
    "over-long auth": ("POST", b"/kbs/v0/auth", b" " * (protocol.MAX_AUTH + 1), 413, "too-large"),
    "over-long attest": ("POST", b"/kbs/v0/attest", b" " * (protocol.MAX_ATTEST + 1), 413, "too-large"),
    "deep nesting": ("POST", b"/kbs/v0/auth", b"[" * 10_000, 400, "malformed"),
    "doubled names": ("POST", b"/kbs/v0/auth", b'{"tee":"tdx","tee":"sgx"}', 400, "malformed"),
    "Trustee guest": (
        "POST",
        b"/kbs/v0/auth",
        b'{"version":"0.4.0","tee":"tdx","extra-params":""}',
        400,
        "unsupported-profile",
    ),
    "old guest": ("POST", b"/kbs/v0/auth", b'{"version":"0.1.0","tee":"tdx"}', 400, "unsupported-version"),
    "no session to attest": ("POST", b"/kbs/v0/attest", b"{}", 401, "session-refused"),
    "no session to read": ("GET", b"/kbs/v0/resource/models/key/demo", b"", 401, "session-refused"),
    "traversal": ("GET", b"/kbs/v0/resource/models/key/../../auth", b"", 400, "bad-resource"),
    "encoded traversal": ("GET", b"/kbs/v0/resource/models/key/%2e%2e", b"", 400, "bad-resource"),
    "encoded slash": ("GET", b"/kbs/v0/resource/models%2Fkey/demo/x", b"", 400, "bad-resource"),
    "unicode": ("GET", b"/kbs/v0/resource/models/key/d\xc3\xa9mo", b"", 400, "bad-resource"),
    "a query": ("GET", b"/kbs/v0/resource/models/key/demo?x=1", b"", 400, "bad-resource"),
    "another endpoint": ("GET", b"/kbs/v0/attestation-policy", b"", 404, "not-found"),
    "put over HTTP": ("POST", b"/kbs/v0/resource/models/key/demo", b"x", 405, "method-not-allowed"),
    "HEAD is no release": ("HEAD", b"/kbs/v0/resource/models/key/demo", b"", 405, "method-not-allowed"),
    "auth by GET": ("GET", b"/kbs/v0/auth", b"", 405, "method-not-allowed"),
}


@pytest.mark.parametrize(("method", "path", "body", "status", "name"), REFUSALS.values(), ids=REFUSALS.keys())
def test_what_is_not_the_protocol_gets_its_own_problem(
    bench: Bench, method: str, path: bytes, body: bytes, status: int, name: str
) -> None:
    reply = call(bench, method, path, body)
    assert (reply.status, reply.problem) == (status, name)


@pytest.mark.parametrize(
    "value", ["Basic eDp5", "Bearer", "Bearer ", "Bearer x", "Bearer a.b.c", "Bearer " + "a" * 100_000]
)
def test_a_foreign_authorization_is_refused(bench: Bench, value: str) -> None:
    reply = call(bench, "GET", b"/kbs/v0/resource/models/key/demo", headers={"authorization": value})
    assert (reply.status, reply.problem) == (401, "session-refused")


def test_a_refusal_says_its_class_and_nothing_of_the_request(bench: Bench) -> None:
    app = create_broker(bench.store, bench.audit, now=bench.clock)
    reply = call(bench, "POST", b"/kbs/v0/auth", protocol.auth_request("tdx"), app=app)
    attempt = Attempt(bench, workload(b"another"))
    attempt.text, attempt.nonce = protocol.parse_challenge(reply.body)
    cookie = reply.headers["set-cookie"].split(";")[0]
    reply = call(bench, "POST", b"/kbs/v0/attest", attempt.body(), {"cookie": cookie}, app=app)
    assert (reply.status, reply.problem) == (401, "attestation-refused")
    assert json.loads(reply.body)["detail"] == "no rule accepts this evidence"


def test_a_damaged_state_is_a_503_without_details(bench: Bench) -> None:
    (bench.directory / "broker.sqlite").write_bytes(b"gone" * 5000)
    (bench.directory / "broker.sqlite-wal").unlink(missing_ok=True)
    app = create_broker(bench.store, bench.audit, now=bench.clock)
    attempt = Attempt(bench, workload())
    reply = call(bench, "POST", b"/kbs/v0/auth", protocol.auth_request("tdx"), app=app)
    attempt.text, attempt.nonce = protocol.parse_challenge(reply.body)
    cookie = reply.headers["set-cookie"].split(";")[0]
    reply = call(bench, "POST", b"/kbs/v0/attest", attempt.body(), {"cookie": cookie}, app=app)
    assert (reply.status, reply.problem) == (503, "state-damaged")
    assert str(bench.directory) not in reply.body.decode()
