"""The broker over HTTP: problems of fixed text, bounded bodies, undecoded paths, one session at a time."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from broker_parts import PATH, SECRET, Attempt, Bench, Reply, call, workload
from cloister.broker import protocol
from cloister.broker.app import create_broker
from cloister.broker.protocol import TokenAnswer
from cloister.encoding import decode_json


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    bench = Bench(tmp_path / "state")
    bench.put()
    bench.allow(workload())
    return bench


@pytest.fixture
def app(bench: Bench) -> Any:
    return create_broker(bench.desk)


def tried(app: Any, attempt: Attempt) -> Reply:
    """Its attestation over HTTP."""
    reply = call(app, "POST", b"/kbs/v0/auth", protocol.auth_request("tdx"))
    attempt.text, attempt.nonce = protocol.parse_challenge(reply.body)
    cookie = reply.headers["set-cookie"].split(";")[0]
    return call(app, "POST", b"/kbs/v0/attest", attempt.body(), {"cookie": cookie})


def test_the_whole_protocol_over_http(bench: Bench, app: Any) -> None:
    attempt = Attempt(bench, workload())
    reply = call(app, "POST", b"/kbs/v0/auth", protocol.auth_request("tdx"))
    assert reply.status == 200
    assert reply.headers["cache-control"] == "no-store"
    first, *attributes = reply.headers["set-cookie"].split("; ")
    assert attributes == ["Path=/kbs/v0", "HttpOnly", "SameSite=Strict"]
    attempt.text, attempt.nonce = protocol.parse_challenge(reply.body)
    reply = call(app, "POST", b"/kbs/v0/attest", attempt.body(), {"cookie": first})
    assert reply.status == 200
    second = reply.headers["set-cookie"].split(";")[0]
    assert second != first
    token = decode_json(reply.body, TokenAnswer, what="answer").token
    path = f"/kbs/v0/resource/{PATH}".encode()
    for headers in ({"cookie": f"a=b; {second}"}, {"authorization": f"Bearer {token}"}):
        reply = call(app, "GET", path, headers=headers)
        assert reply.status == 200
        assert attempt.pair.decrypt(reply.body, f"kbs:///{PATH}") == SECRET
    reply = call(app, "GET", path, headers={"cookie": first})
    assert (reply.status, reply.problem) == (401, "session-refused")
    reply = call(app, "GET", path, headers={"cookie": f"{second}; {second}"})
    assert (reply.status, reply.problem) == (401, "session-refused")


REFUSALS: dict[str, tuple[str, bytes, bytes, int, str]] = {
    "no body": ("POST", b"/kbs/v0/auth", b"", 400, "malformed"),
    "over-long auth": ("POST", b"/kbs/v0/auth", b" " * (protocol.MAX_AUTH + 1), 413, "too-large"),
    "over-long attest": ("POST", b"/kbs/v0/attest", b" " * (protocol.MAX_ATTEST + 1), 413, "too-large"),
    "deep nesting": ("POST", b"/kbs/v0/auth", b"[" * 10_000, 400, "malformed"),
    "doubled names": ("POST", b"/kbs/v0/auth", b'{"tee":"tdx","tee":"sgx"}', 400, "malformed"),
    "a guest of a TEE that is none": (
        "POST",
        b"/kbs/v0/auth",
        b'{"version":"0.4.0","tee":"tpm9","extra-params":""}',
        400,
        "unsupported-tee",
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
    app: Any, method: str, path: bytes, body: bytes, status: int, name: str
) -> None:
    reply = call(app, method, path, body)
    assert (reply.status, reply.problem) == (status, name)


@pytest.mark.parametrize(
    "value", ["Basic eDp5", "Bearer", "Bearer ", "Bearer x", "Bearer a.b.c", "Bearer " + "a" * 100_000]
)
def test_a_foreign_authorization_is_refused(app: Any, value: str) -> None:
    reply = call(app, "GET", b"/kbs/v0/resource/models/key/demo", headers={"authorization": value})
    assert (reply.status, reply.problem) == (401, "session-refused")


def test_two_authorizations_with_one_request_are_refused(app: Any) -> None:
    reply = call(
        app,
        "GET",
        b"/kbs/v0/resource/models/key/demo",
        headers={"authorization": "Bearer a.b.c"},
        more=(("authorization", "Bearer d.e.f"),),
    )
    assert (reply.status, reply.problem) == (401, "session-refused")


def test_a_refusal_says_its_class_and_nothing_of_the_request(bench: Bench, app: Any) -> None:
    reply = tried(app, Attempt(bench, workload(b"another")))
    assert (reply.status, reply.problem) == (401, "attestation-refused")
    assert json.loads(reply.body)["detail"] == "no rule accepts this evidence"


DAMAGED = {
    "a rule edited": ("UPDATE records SET body = x'00' WHERE kind = 'rule'", "state-damaged"),
    "the log cut": ("DELETE FROM head", "rollback-found"),
    "a table dropped": ("DROP TABLE records", "unavailable"),
    "a resource exchanged": (
        "UPDATE records SET body = (SELECT body FROM records WHERE kind = 'rule') WHERE kind = 'resource'",
        "state-damaged",
    ),
}


@pytest.mark.parametrize(("script", "name"), DAMAGED.values(), ids=DAMAGED.keys())
def test_a_damaged_state_is_a_503_without_details(bench: Bench, app: Any, script: str, name: str) -> None:
    attempt = Attempt(bench, workload())
    reply = tried(app, attempt)
    cookie = reply.headers["set-cookie"].split(";")[0]
    bench.execute(script)
    reply = call(app, "GET", f"/kbs/v0/resource/{PATH}".encode(), headers={"cookie": cookie})
    assert (reply.status, reply.problem) == (503, name)
    assert reply.headers["retry-after"] == "5"
    assert str(bench.directory) not in reply.body.decode()
    assert "records" not in reply.body.decode()
