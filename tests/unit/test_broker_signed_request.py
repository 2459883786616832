"""Signed requests: one person, one broker, one request, once."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

import manifest_parts
from broker_parts import NOW, Bench, OwnersBench, call, owners_manifest
from cloister.broker.app import create_broker
from cloister.broker.signed_request import (
    EVERYBODY,
    MAX_HEADER,
    NONCE_SECONDS,
    Nonces,
    NotAllowed,
    Person,
    Role,
    TooManyNonces,
    credential,
    require_person,
)
from cloister.encoding import b64url_decode, b64url_encode
from cloister.manifest.manifest import Manifest
from cloister.manifest.signed import signed_message
from cloister.manifest.signers import Ed25519Signer

BROKER = "ab" * 16


@dataclass
class Request:
    """A request that alice signed; each field is what the broker sees."""

    signer: Ed25519Signer = field(default_factory=lambda: manifest_parts.owner("alice"))
    nonces: Nonces = field(default_factory=Nonces)
    manifest: Manifest = field(default_factory=owners_manifest)
    roles: frozenset[Role] = EVERYBODY
    broker: str = BROKER
    method: str = "GET"
    path: str = "/cloister/v1/log/entries?from=0"
    body: bytes = b""
    now: int = NOW

    def __post_init__(self) -> None:
        self.nonce = self.nonces.draw(NOW)
        self.sign()

    def sign(self) -> None:
        self.header = credential(
            self.signer,
            broker=self.broker,
            method=self.method,
            path=self.path,
            body=self.body,
            nonce=self.nonce,
        )

    def who(self) -> Person:
        return require_person(
            self.header,
            broker=self.broker,
            method=self.method,
            path=self.path,
            body=self.body,
            manifest=self.manifest,
            roles=self.roles,
            nonces=self.nonces,
            now=self.now,
        )

    def given(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(b64url_decode(self.header.partition(" ")[2], what="credential"))
        return found

    def give(self, **changes: Any) -> None:
        self.header = "Cloister " + b64url_encode(
            json.dumps({**self.given(), **changes}, sort_keys=True, separators=(",", ":")).encode()
        )


PEOPLE: list[tuple[str, Role]] = [
    ("alice", "owner"),
    ("carol", "owner"),
    ("oscar", "operator"),
    ("audrey", "auditor"),
]


@pytest.mark.parametrize(("name", "role"), PEOPLE)
def test_everybody_of_the_manifest_is_known_by_their_key(name: str, role: Role) -> None:
    assert Request(signer=manifest_parts.owner(name)).who() == Person(name, role)


@pytest.mark.parametrize(("name", "role"), PEOPLE)
def test_a_role_that_may_not_ask_is_refused(name: str, role: Role) -> None:
    with pytest.raises(NotAllowed, match="nobody who may ask this"):
        Request(signer=manifest_parts.owner(name), roles=EVERYBODY - {role}).who()


def _replayed(request: Request) -> None:
    request.who()


def _to(**changes: Any) -> Callable[[Request], None]:
    def attack(request: Request) -> None:
        for name, value in changes.items():
            setattr(request, name, value)

    return attack


def _flipped(request: Request) -> None:
    signature = bytearray(base64.b64decode(request.given()["signature"]))
    signature[5] ^= 1
    request.give(signature=base64.b64encode(signature).decode())


def _another_nonce(request: Request) -> None:
    request.give(nonce=request.nonces.draw(NOW))


def _made_up_nonce(request: Request) -> None:
    request.nonce = "ab" * 32
    request.sign()


def _another_s_key(request: Request) -> None:
    request.give(key=manifest_parts.owner("bob").key)


def _of_a_stranger(request: Request) -> None:
    request.signer = manifest_parts.owner("mallory")
    request.sign()


def _of_somebody_the_manifest_dropped(request: Request) -> None:
    request.manifest = owners_manifest(owners=manifest_parts.keys("bob", "carol"))


def _signed_as_something_else(request: Request) -> None:
    """An order's signature is none of a request, whatever it is over."""
    signature = request.signer.sign(signed_message("order", b"{}"))
    request.give(signature=base64.b64encode(signature).decode())


def _nonce_of_another_broker(request: Request) -> None:
    request.nonces = Nonces()


ATTACKS: dict[str, Callable[[Request], None]] = {
    "replayed": _replayed,
    "on another path": _to(path="/cloister/v1/share"),
    "with another query": _to(path="/cloister/v1/log/entries?from=1"),
    "without its query": _to(path="/cloister/v1/log/entries"),
    "by another method": _to(method="POST"),
    "with a body": _to(body=b"{}"),
    "at another broker": _to(broker="cd" * 16),
    "too late": _to(now=NOW + NONCE_SECONDS),
    "much too late": _to(now=NOW + 10_000),
    "its signature flipped": _flipped,
    "under another nonce": _another_nonce,
    "under a nonce of its own making": _made_up_nonce,
    "with a nonce of another process": _nonce_of_another_broker,
    "under another owner's key": _another_s_key,
    "of a stranger": _of_a_stranger,
    "of somebody whom the manifest dropped": _of_somebody_the_manifest_dropped,
    "a signature of another kind": _signed_as_something_else,
}


@pytest.mark.parametrize("attack", ATTACKS.values(), ids=ATTACKS.keys())
def test_a_request_that_is_not_exactly_what_was_signed_is_refused(attack: Callable[[Request], None]) -> None:
    request = Request()
    attack(request)
    with pytest.raises(NotAllowed):
        request.who()


def test_a_nonce_is_spent_by_whoever_shows_it_first_even_in_vain() -> None:
    request = Request()
    header = request.header
    _flipped(request)
    with pytest.raises(NotAllowed):
        request.who()
    request.header = header
    with pytest.raises(NotAllowed, match="nonce"):
        request.who()


HEADERS = {
    "none": "",
    "the scheme alone": "Cloister",
    "nothing behind the scheme": "Cloister ",
    "another scheme": "Bearer {value}",
    "a small letter": "cloister {value}",
    "two spaces": "Cloister  {value}",
    "a space behind": "Cloister {value} ",
    "padding": "Cloister {value}=",
    "cut": "Cloister {cut}",
    "not base64": "Cloister $$$$",
    "not JSON": "Cloister AAAA",
    "a list": "Cloister W10",
    "empty": "Cloister e30",
    "doubled": "Cloister {value}{value}",
    "far too long": "Cloister " + "A" * (MAX_HEADER + 1),
}


@pytest.mark.parametrize("header", HEADERS.values(), ids=HEADERS.keys())
def test_a_malformed_header_is_refused(header: str) -> None:
    request = Request()
    value = request.header.partition(" ")[2]
    request.header = header.format(value=value, cut=value[:-3])
    with pytest.raises(NotAllowed):
        request.who()


GIVEN: dict[str, dict[str, Any]] = {
    "one field more": {"role": "owner"},
    "a short nonce": {"nonce": "ab" * 31},
    "a nonce of capitals": {"nonce": "AB" * 32},
    "a key that is none": {"key": "ed25519:zz"},
    "no key": {"key": ""},
    "a number": {"key": 7},
    "no signature": {"signature": ""},
    "null": {"signature": None},
}


@pytest.mark.parametrize("changes", GIVEN.values(), ids=GIVEN.keys())
def test_a_malformed_credential_is_refused(changes: dict[str, Any]) -> None:
    request = Request()
    request.give(**changes)
    with pytest.raises(NotAllowed):
        request.who()


def test_nonces_are_bounded_and_ended_ones_make_room() -> None:
    nonces = Nonces(limit=3)
    drawn = [nonces.draw(NOW) for _ in range(3)]
    assert len(set(drawn)) == 3
    with pytest.raises(TooManyNonces):
        nonces.draw(NOW)
    nonces.spend(drawn[0], NOW)
    nonces.draw(NOW)
    with pytest.raises(TooManyNonces):
        nonces.draw(NOW + NONCE_SECONDS - 1)
    nonces.draw(NOW + NONCE_SECONDS)
    with pytest.raises(NotAllowed):
        nonces.spend(drawn[1], NOW)


# -- over HTTP ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def bench(tmp_path: Path) -> OwnersBench:
    return OwnersBench(tmp_path / "state")


def test_whoever_does_not_sign_sees_nothing(bench: OwnersBench) -> None:
    for method, path in (
        ("GET", b"resources"),
        ("GET", b"log/entries"),
        ("POST", b"share"),
        ("GET", b"keys"),
    ):
        reply = call(bench.app, method, b"/cloister/v1/" + path)
        assert (reply.status, reply.problem) == (401, "not-allowed")


def test_two_authorizations_with_one_request_are_refused(bench: OwnersBench) -> None:
    nonce = json.loads(call(bench.app, "POST", b"/cloister/v1/nonce").body)
    header = credential(
        manifest_parts.owner("alice"),
        broker=nonce["broker"],
        method="GET",
        path="/cloister/v1/keys",
        body=b"",
        nonce=nonce["nonce"],
    )
    more = (("authorization", header),)
    reply = call(bench.app, "GET", b"/cloister/v1/keys", headers={"authorization": header}, more=more)
    assert (reply.status, reply.problem) == (401, "session-refused")
    reply = call(bench.app, "GET", b"/cloister/v1/keys", headers={"authorization": header})
    assert reply.status == 200
    reply = call(bench.app, "GET", b"/cloister/v1/keys", headers={"authorization": header})
    assert (reply.status, reply.problem) == (401, "not-allowed")


ROLES = [
    ("GET", "resources", True),
    ("GET", "keys", True),
    ("GET", "log/entries", True),
    ("GET", "log/inclusion?number=0&size=1", True),
    ("POST", "share", False),
]


@pytest.mark.parametrize(
    ("method", "path", "everybody"), ROLES, ids=lambda value: str(value).replace("/", ".")
)
def test_operators_and_auditors_look_and_only_owners_get_shares(
    bench: OwnersBench, method: str, path: str, everybody: bool
) -> None:
    for name in ("oscar", "audrey"):
        reply = bench.ask(name, method, f"/cloister/v1/{path}")
        assert reply.status == (200 if everybody else 401)
    assert bench.ask("alice", method, f"/cloister/v1/{path}").status == 200
    assert bench.ask("mallory", method, f"/cloister/v1/{path}").problem == "not-allowed"


def test_a_request_to_one_broker_is_none_to_another(bench: OwnersBench, tmp_path: Path) -> None:
    other = OwnersBench(tmp_path / "other")
    nonce = json.loads(call(bench.app, "POST", b"/cloister/v1/nonce").body)["nonce"]
    other.desk._nonces = bench.desk._nonces
    header = credential(
        manifest_parts.owner("alice"),
        broker=bench.state.id,
        method="POST",
        path="/cloister/v1/share",
        body=b"",
        nonce=nonce,
    )
    reply = call(other.app, "POST", b"/cloister/v1/share", headers={"authorization": header})
    assert (reply.status, reply.problem) == (401, "not-allowed")


def test_a_broker_flooded_with_requests_to_prepare_says_that_it_is_busy(bench: OwnersBench) -> None:
    bench.desk._nonces = Nonces(limit=1)
    assert call(bench.app, "POST", b"/cloister/v1/nonce").status == 200
    reply = call(bench.app, "POST", b"/cloister/v1/nonce")
    assert (reply.status, reply.problem) == (503, "busy")


def test_in_laptop_mode_nobody_signs_requests(tmp_path: Path) -> None:
    bench = Bench(tmp_path / "state")
    app = create_broker(bench.desk)
    nonce = json.loads(call(app, "POST", b"/cloister/v1/nonce").body)
    header = credential(
        manifest_parts.owner("alice"),
        broker=nonce["broker"],
        method="GET",
        path="/cloister/v1/keys",
        body=b"",
        nonce=nonce["nonce"],
    )
    assert call(app, "GET", b"/cloister/v1/keys", headers={"authorization": header}).problem == "not-allowed"
