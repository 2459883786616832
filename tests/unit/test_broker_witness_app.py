"""A witness's HTTP: bounded bodies, problems that name what is wrong, refusals that carry the log's own signature."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest

from app_server import served
from cloister.broker import witness_app
from cloister.broker.tree_head import Cosignature, verify_cosignature, verify_head
from cloister.broker.witness import (
    MAX_REQUEST,
    PREFIX,
    Conflict,
    NewestAnswer,
    NewestRequest,
    check_newest,
)
from cloister.broker.witness_app import create_witness
from cloister.broker.witness_memory import Witness
from cloister.encoding import Record, decode_json, encode_json
from witness_parts import Log, signer, witness_keys

KEY = witness_keys("wanda")["wanda"]


class Asked:
    """A served witness of :attr:`log`."""

    def __init__(self, client: httpx2.Client, log: Log, directory: Path) -> None:
        self.client, self.log, self.directory = client, log, directory

    def post(self, what: str, body: Record | bytes) -> httpx2.Response:
        content = body if isinstance(body, bytes) else encode_json(body)
        return self.client.post(f"{PREFIX}/{what}", content=content)

    def refused(self, what: str, body: Record | bytes) -> tuple[int, str]:
        response = self.post(what, body)
        assert response.headers["content-type"] == "application/problem+json"
        problem = response.json()
        assert problem["status"] == response.status_code
        return response.status_code, problem["type"].removeprefix("urn:cloister:problem:")


@pytest.fixture
def asked(tmp_path: Path) -> Iterator[Asked]:
    log = Log(8)
    witness = Witness(tmp_path, signer("wanda"), {log.id: log.public})
    with served(create_witness(witness)) as url, httpx2.Client(base_url=url) as client:
        yield Asked(client, log, tmp_path)


def test_a_head_is_cosigned_and_then_named_as_the_newest(asked: Asked) -> None:
    log = asked.log
    answer = asked.post("cosign", log.request(0))
    assert answer.status_code == 200
    verify_cosignature(log.head().head, decode_json(answer.content, Cosignature, what="answer"), KEY)
    told = asked.post("newest", NewestRequest(log=log.id, nonce=b"n" * 32))
    answer2 = decode_json(told.content, NewestAnswer, what="answer")
    assert check_newest(answer2, log=log.id, nonce=b"n" * 32, key=KEY).size == 8


@pytest.mark.parametrize(
    ("name", "attempt"),
    [
        ("witness-rollback", Log(8).request(0, 5)),
        ("witness-fork", Log(9, mark="fork ").request(8)),
        ("witness-fork", Log(8, mark="fork ").request(0)),
        ("witness-elsewhere", Log(9).request(3)),
    ],
)
def test_a_refusal_shows_the_newest_head_as_the_log_signed_it(
    asked: Asked, name: str, attempt: Record
) -> None:
    asked.post("cosign", asked.log.request(0))
    response = asked.post("cosign", attempt)
    conflict = decode_json(response.content, Conflict, what="refusal")
    assert (response.status_code, conflict.status, conflict.type) == (
        409,
        409,
        f"urn:cloister:problem:{name}",
    )
    assert (conflict.size, conflict.root) == (8, asked.log.tree.root().hex())
    assert conflict.newest is not None
    assert verify_head(conflict.newest, log_key=bytes.fromhex(conflict.log_key)).size == 8


def test_what_is_no_request_is_refused_by_name(asked: Asked) -> None:
    stranger, log = Log(3, name="stranger"), asked.log
    assert asked.refused("cosign", b"") == (400, "malformed")
    assert asked.refused("cosign", b'{"head":1}') == (400, "malformed")
    assert asked.refused("newest", b"[]") == (400, "malformed")
    assert asked.refused("newest", NewestRequest(log=log.id, nonce=b"short")) == (400, "malformed")
    assert asked.refused("newest", NewestRequest(log=stranger.id, nonce=bytes(32))) == (404, "unknown-log")
    assert asked.refused("newest", NewestRequest(log="../lock", nonce=bytes(32))) == (404, "unknown-log")
    assert asked.refused("cosign", stranger.request(0)) == (404, "unknown-log")
    assert asked.refused("cosign", log.request(0, 0)) == (422, "head-refused")
    assert asked.refused("cosign", b" " * (MAX_REQUEST + 1)) == (413, "too-large")
    assert asked.refused("elsewhere", b"") == (404, "not-found")
    response = asked.client.get(f"{PREFIX}/cosign")
    assert (response.status_code, response.json()["title"]) == (405, "method not allowed")
    assert list(asked.directory.iterdir()) == []


def test_a_body_that_does_not_arrive_is_not_waited_for(asked: Asked, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(witness_app, "BODY_SECONDS", 0.05)
    host, port = asked.client.base_url.host, asked.client.base_url.port
    with socket.create_connection((host, port or 0), timeout=30) as connection:
        connection.sendall(
            f"POST {PREFIX}/cosign HTTP/1.1\r\nhost: w\r\ncontent-length: 9\r\n\r\n{{".encode()
        )
        assert connection.recv(4096).startswith(b"HTTP/1.1 408 ")


def test_a_disk_that_fails_gives_no_signature_and_no_path(asked: Asked) -> None:
    (asked.directory / f"{asked.log.id}.json").mkdir()
    response = asked.post("cosign", asked.log.request(0))
    assert response.status_code == 500
    assert str(asked.directory) not in response.text
    assert "signature" not in response.text


def test_health_names_the_key_and_nothing_else(asked: Asked) -> None:
    response = asked.client.get("/healthz")
    assert response.json() == {"key": KEY.text, "status": "ok"}
