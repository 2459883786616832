"""Every operation of the broker's own OpenAPI document under generated requests (schemathesis), in process.

Four brokers: in laptop mode; of owners, asked by strangers; of owners, where each request that needs one carries a valid
signature or an attested session; of owners, locked. Nothing generated may ever be a fault of the broker's own.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from pathlib import Path
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis.core.result import Ok
from schemathesis.schemas import APIOperation

import manifest_parts
from broker_parts import PATH, SECRET, Bench, OwnersBench, attested, call, workload
from cloister.broker import protocol
from cloister.broker.app import create_broker
from cloister.broker.openapi import openapi
from cloister.broker.signed_request import credential
from cloister.encoding import encode_json

DOCUMENT = "/cloister/v1/openapi.json"
EXAMPLES = 20
"""Requests of one operation and one broker."""
Asgi = Callable[[Any, Any, Any], Awaitable[None]]

OPERATIONS = sorted(
    operation["operationId"] for path in openapi()["paths"].values() for operation in path.values()
)
SIGNED, SESSION = ({"signed"}, {"session", "token"})


def _schemes() -> dict[tuple[str, str], set[str]]:
    """Which security schemes an operation names, by method and path."""
    return {
        (method.upper(), path): {name for scheme in operation["security"] for name in scheme}
        for path, operations in openapi()["paths"].items()
        for method, operation in operations.items()
    }


class Credentialed:
    """In front of a broker: gives each request the credential that its operation asks for, as its owner would."""

    def __init__(self, bench: OwnersBench, *, by: str) -> None:
        self._bench, self._by = bench, by
        self._cookie = f"{protocol.COOKIE}={attested(bench, workload()).session}"
        self.signed = self.in_session = 0

    async def __call__(self, scope: MutableMapping[str, Any], receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self._bench.app(scope, receive, send)
            return
        body = await _whole(receive)
        schemes = _named(scope)
        kept = [one for one in scope["headers"] if one[0] not in (b"authorization", b"cookie")]
        if schemes == SIGNED:
            nonce = self._bench.desk.nonce(None)  # type: ignore[arg-type]  # which is not looked at
            path = scope["raw_path"].decode("ascii", "replace")
            query = scope["query_string"].decode("ascii", "replace")
            header = credential(
                manifest_parts.owner(self._by),
                broker=nonce.broker,
                method=scope["method"],
                path=f"{path}?{query}" if query else path,
                body=body,
                nonce=nonce.nonce,
            )
            kept.append((b"authorization", header.encode()))
            self.signed += 1
        elif schemes & SESSION:
            kept.append((b"cookie", self._cookie.encode()))
            self.in_session += 1
        scope["headers"] = kept

        async def again() -> Any:
            return {"type": "http.request", "body": body, "more_body": False}

        await self._bench.app(scope, again, send)


async def _whole(receive: Any) -> bytes:
    body, more = b"", True
    while more:
        message = await receive()
        body += message.get("body", b"")
        more = message.get("more_body", False)
    return body


def _named(scope: MutableMapping[str, Any]) -> set[str]:
    parts = scope["raw_path"].decode("ascii", "replace").split("/")
    for (method, path), schemes in _schemes().items():
        pattern = path.split("/")
        if (
            method == scope["method"]
            and len(pattern) == len(parts)
            and all(one == two or one.startswith("{") for one, two in zip(pattern, parts, strict=True))
        ):
            return schemes
    return set()


@pytest.fixture(scope="module")
def laptop(tmp_path_factory: pytest.TempPathFactory) -> Asgi:
    bench = Bench(tmp_path_factory.mktemp("laptop") / "state")
    bench.put()
    bench.allow(workload())
    return create_broker(bench.desk)


def _owners(folder: Path) -> OwnersBench:
    bench = OwnersBench(folder / "state")
    bench.share_out("alice", "bob")
    bench.have_done("put", PATH, SECRET)
    bench.allow()
    return bench


@pytest.fixture(scope="module")
def strangers(tmp_path_factory: pytest.TempPathFactory) -> Asgi:
    app: Asgi = _owners(tmp_path_factory.mktemp("strangers")).app
    return app


@pytest.fixture(scope="module")
def credentialed(tmp_path_factory: pytest.TempPathFactory) -> Asgi:
    return Credentialed(_owners(tmp_path_factory.mktemp("owners")), by="carol")


@pytest.fixture(scope="module")
def locked(tmp_path_factory: pytest.TempPathFactory) -> Asgi:
    bench = _owners(tmp_path_factory.mktemp("locked"))
    return create_broker(bench.desk_over(bench.again()))


def _operation(app: Asgi, name: str) -> APIOperation[Any, Any, Any, Any]:
    schema = schemathesis.openapi.from_asgi(DOCUMENT, app)
    for result in schema.get_all_operations():
        assert isinstance(result, Ok)
        operation = result.ok()
        if operation.definition.raw["operationId"] == name:
            return operation
    raise AssertionError(f"the document has no operation {name}")


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("broker", ["laptop", "strangers", "credentialed", "locked"])
def test_no_generated_request_is_a_fault_of_the_broker(
    request: pytest.FixtureRequest, broker: str, operation: str
) -> None:
    app: Asgi = request.getfixturevalue(broker)
    answers = []

    @settings(
        max_examples=EXAMPLES,
        derandomize=True,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(case=_operation(app, operation).as_strategy())
    def ask(case: schemathesis.Case[Any]) -> None:
        response = case.call()
        answers.append(response.status_code)
        kind = response.headers["content-type"][0]
        if response.status_code == 200:
            assert kind == "application/json"
            return
        assert kind == "application/problem+json"
        problem = response.json()
        assert problem["status"] == response.status_code
        name = problem["type"].removeprefix(protocol.PROBLEM_PREFIX)
        # The one fault that a request may meet: a broker that waits for its owners.
        assert response.status_code < 500 or (name, broker) == ("locked", "locked"), problem

    ask()
    assert answers


def test_the_document_is_the_one_of_the_routes(strangers: Asgi) -> None:
    reply = call(strangers, "GET", DOCUMENT.encode())
    assert reply.body == encode_json(openapi())
