"""A key broker and workloads of a simulated platform, for tests: real parts, cheap passphrase, a clock in hand.

:class:`Bench` is laptop mode; :class:`OwnersBench` has owners with keys of their own who hold shares of the state's key.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import socket
import sqlite3
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import uvicorn
from msgspec import structs

import manifest_parts
from cloister.appraisal.draft import draft_policy
from cloister.attester.launch import launch_events
from cloister.attester.simulated import SimulatedPlatform, SimulatedTee
from cloister.broker import protocol, tables
from cloister.broker.administration import Done
from cloister.broker.app import create_broker
from cloister.broker.audit import Entry, parse_entry
from cloister.broker.client import collect
from cloister.broker.clock import RisingClock
from cloister.broker.custody import Custody
from cloister.broker.desk import Desk
from cloister.broker.journal import Journal
from cloister.broker.jwe import TeeKeyPair
from cloister.broker.laptop import Laptop
from cloister.broker.metrics import Metrics
from cloister.broker.protocol import Attestation, RuntimeData, TeeEvidence, TokenAnswer
from cloister.broker.service import Answer, Broker
from cloister.broker.session import Sessions
from cloister.broker.signed_request import credential
from cloister.broker.state import State
from cloister.broker.state_key import Cost, Share, ShareLock
from cloister.broker.tables import open_database, sqlite_url
from cloister.broker.token import TokenSigner
from cloister.broker.wire import Progress
from cloister.encoding import decode_json, encode_json
from cloister.evidence.bundle import EvidenceBundle
from cloister.manifest.manifest import Manifest, Workload, origin
from cloister.manifest.order import Action, Order
from cloister.manifest.rule import AcceptedRule, Rule
from cloister.manifest.signed import Signed, sign

NOW = 1_790_000_000
PASSPHRASE = b"correct horse battery staple"
CHEAP = Cost(iterations=1, lanes=1, memory_kib=8 * 1024)
PATH = "models/key/demo"
URI = f"kbs:///{PATH}"
SECRET = bytes(range(32))
"""Every test's key; nothing may show it."""


@cache
def platform(now: int = NOW) -> SimulatedPlatform:
    return SimulatedPlatform.generate(now=now)


def workload(
    config: bytes = b"the right configuration", *, debug: bool = False, now: int = NOW
) -> SimulatedTee:
    """A launched workload; another ``config`` is another measurement."""
    events = launch_events(config=config, program=hashlib.sha256(b"program").digest(), model_index=None)
    return platform(now).tee("tdx", launch=events, debug=debug, clock=lambda: now)


def policy_for(tee: SimulatedTee, *, max_age_seconds: int = 3600, now: int = NOW) -> str:
    """A policy that accepts exactly ``tee``."""
    return draft_policy(
        tee="tdx",
        measurements=tee.measurements,
        events=tee.launch,
        min_tcb_evaluation_number=1,
        simulated_root=platform(now).root_sha256,
        max_age_seconds=max_age_seconds,
    )


@dataclass
class Clock:
    now: int = NOW

    def __call__(self) -> int:
        return self.now


@dataclass
class Bench:
    """One broker in laptop mode over a fresh state directory."""

    directory: Path
    clock: Clock = field(default_factory=Clock)

    def __post_init__(self) -> None:
        self.laptop = Laptop.create(self.directory, PASSPHRASE, cost=CHEAP, now=self.clock)
        self.sessions = Sessions()
        self.desk = self.start()

    @property
    def broker(self) -> Broker:
        return self.desk.broker

    def start(self, *, sessions: Sessions | None = None) -> Desk:
        """A broker process (a fresh token key) over the same state."""
        custody = Custody(
            open_database(sqlite_url(self.directory)), clock=RisingClock(self.clock), origin=None
        )
        custody.open_by_passphrase(PASSPHRASE)
        return Desk(
            custody,
            sessions=sessions or self.sessions,
            tokens=TokenSigner(build="test"),
            metrics=Metrics(),
        )

    def put(self, path: str = PATH, content: bytes = SECRET) -> None:
        self.laptop.put(path, content)

    def allow(
        self, tee: SimulatedTee, path: str = PATH, *, now: int = NOW, releases: int | None = None
    ) -> None:
        """Set the rule of ``path``: exactly ``tee``, of the platform made at ``now``."""
        self.laptop.allow(path, (policy_for(tee, now=now),), releases=releases)

    def entries(self) -> list[Entry]:
        return all_entries(self.laptop.state.journal)

    def told(self, *events: str) -> list[Entry]:
        """The entries of these events."""
        return [entry for entry in self.entries() if entry.event in events]

    def execute(self, script: str) -> None:
        """What the owner of the disk does to the database."""
        execute(self.directory, script)


def all_entries(journal: Journal) -> list[Entry]:
    """The whole log, each entry checked against the log tree."""
    journal.catch_up()
    return [parse_entry(body, number) for number, body in enumerate(journal.entries(0, journal.size))]


def execute(directory: Path, script: str) -> None:
    """SQL on the database of a state directory, behind the broker's back."""
    database = sqlite3.connect(directory / tables.DATABASE, isolation_level=None)
    try:
        database.executescript(script)
    finally:
        database.close()


def owners_manifest(**changes: Any) -> Manifest:
    """alice, bob and carol: any two decide about the manifest, alice and bob together about ``models``, bob alone about
    ``models/key/bobs``. ``inference`` is the workload of :func:`workload`."""
    plain: dict[str, Any] = {
        "workloads": {"inference": Workload(policies=(policy_for(workload()),))},
        "resources": {
            "models": manifest_parts.quorum("alice", "bob"),
            "models/key/bobs": manifest_parts.quorum("bob"),
        },
        "auditors": manifest_parts.keys("audrey"),
    }
    return manifest_parts.manifest(**{**plain, **changes})


@dataclass
class OwnersBench:
    """One broker in owners' mode over a fresh state directory, as it is right after it was made."""

    directory: Path
    genesis: Manifest = field(default_factory=owners_manifest)
    clock: Clock = field(default_factory=Clock)
    witnesses: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        tables.make_directory(self.directory)
        self.custody = self.again()
        self.custody.create(manifest_parts.signed(self.genesis, *self.genesis.owners))
        self.desk = self.desk_over(self.custody)
        self.app = create_broker(self.desk)

    @property
    def broker(self) -> Broker:
        return self.desk.broker

    @property
    def state(self) -> State:
        return self.custody.state

    def again(self, *, pinned: str | None = None) -> Custody:
        """What a broker that starts (again) has: locked."""
        return Custody(
            open_database(sqlite_url(self.directory)),
            clock=RisingClock(self.clock),
            origin=pinned or origin(self.genesis),
            witnesses=self.witnesses,
        )

    @staticmethod
    def desk_over(custody: Custody) -> Desk:
        return Desk(custody, sessions=Sessions(), tokens=TokenSigner(build="test"), metrics=Metrics())

    def share_out(self, *owners: str) -> dict[str, Share]:
        """Hand each of these owners (all of them if none is named) its share, which it then says it keeps."""
        shares = {}
        for owner in owners or tuple(self.genesis.update.owners):
            shares[owner] = self.custody.hand_out(owner)
            self.keep(owner)
        return shares

    def keep(self, owner: str, *, by: str = "", **changes: Any) -> Progress:
        """``owner`` signs that its share is kept; ``changes`` in what it signs."""
        document = self.custody.document()
        lock = document.next or document.lock
        assert isinstance(lock, ShareLock)
        kept = structs.replace(self.state.kept(lock, owner), **changes)
        return self.custody.acknowledge(
            owner, sign("share", encode_json(kept), [manifest_parts.owner(by or owner)])
        )

    def order(
        self,
        action: Action,
        subject: str,
        content: bytes = b"",
        *,
        by: tuple[str, ...] = ("alice", "bob"),
        **changes: Any,
    ) -> Signed:
        """An order that says what it has to, but for ``changes``, signed ``by`` these."""
        said: dict[str, Any] = {
            "application": self.genesis.application,
            "broker": self.state.id,
            "action": action,
            "subject": subject,
            "version": 1,
            "content_sha256": hashlib.sha256(content).hexdigest() if action == "put" else "",
            **changes,
        }
        if "version" not in changes:
            said["version"] = self.desk._administration.next_version(action, subject)
        return manifest_parts.signed(Order(**said), *by)

    def have_done(self, action: Action, subject: str, content: bytes = b"", **changes: Any) -> Done:
        """Order it and have it done."""
        return self.desk._administration.execute(self.order(action, subject, content, **changes), content)

    def allow(
        self, path: str = PATH, *, by: tuple[str, ...] = ("alice", "bob"), **changes: Any
    ) -> AcceptedRule:
        """Put the next rule of ``path`` in force."""
        before = self.state.authority.rule(path)
        said: dict[str, Any] = {
            "application": self.genesis.application,
            "resource": path,
            "version": 1 if before is None else before.rule.rule.version + 1,
            "previous": "" if before is None else before.rule.digest,
            "workloads": {"inference": "manifest"},
            "policies": (),
            "purposes": "any",
            "window": "always",
            "releases": "unlimited",
            **changes,
        }
        return self.state.authority.submit_rule(manifest_parts.signed(Rule(**said), *by))

    def succeed(self, *by: str, **changes: Any) -> Signed:
        """The next manifest, signed ``by`` these and not yet submitted."""
        return manifest_parts.signed(manifest_parts.successor(self.state.authority.manifest, **changes), *by)

    def ask(self, name: str, method: str, path: str, body: bytes = b"") -> Reply:
        """A request that ``name`` signs with the key of that name."""
        nonce = json.loads(call(self.app, "POST", b"/cloister/v1/nonce").body)
        header = credential(
            manifest_parts.owner(name),
            broker=nonce["broker"],
            method=method,
            path=path,
            body=body,
            nonce=nonce["nonce"],
        )
        return call(self.app, method, path.encode(), body, {"authorization": header})

    def entries(self) -> list[Entry]:
        return all_entries(self.state.journal)

    def told(self, *events: str) -> list[Entry]:
        """The entries of these events."""
        return [entry for entry in self.entries() if entry.event in events]

    def execute(self, script: str) -> None:
        """What the owner of the disk does to the database."""
        execute(self.directory, script)


@dataclass
class Reply:
    """An HTTP answer."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def problem(self) -> str:
        """The name of an RFC 9457 problem, whose form is checked."""
        document = json.loads(self.body)
        assert self.headers["content-type"] == "application/problem+json"
        assert set(document) == {"type", "title", "status", "detail"}
        assert document["status"] == self.status
        return str(document["type"]).removeprefix("urn:cloister:problem:")


def call(
    app: Any,
    method: str,
    path: bytes,
    body: bytes = b"",
    headers: dict[str, str] | None = None,
    *,
    more: tuple[tuple[str, str], ...] = (),
    client: tuple[str, int] | None = None,
) -> Reply:
    """One request through the ASGI seam, in small pieces. ``more`` are further headers, of names that came before."""
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
        "headers": [(name.encode(), value.encode()) for name, value in [*(headers or {}).items(), *more]],
        "client": client,
        "server": None,
    }
    asyncio.run(app(scope, receive, send))
    answered = {name.decode(): value.decode() for name, value in sent[0]["headers"]}
    return Reply(sent[0]["status"], answered, b"".join(message.get("body", b"") for message in sent[1:]))


@contextlib.contextmanager
def served(application: Callable[..., Any]) -> Iterator[str]:
    """``application`` on a loopback port of its own, by uvicorn in a thread; its URL."""
    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(
        uvicorn.Config(application, access_log=False, log_level="warning", ws="none", lifespan="off")
    )
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(10)
        listener.close()


@dataclass
class Attempt:
    """One workload's way through the protocol, step by step, so that a test can bend any of them."""

    bench: Bench | OwnersBench
    tee: SimulatedTee
    pair: TeeKeyPair = field(default_factory=TeeKeyPair.generate)
    purpose: str | None = None

    def challenge(self) -> None:
        answer = self.bench.broker.challenge(protocol.auth_request("tdx"))
        assert answer.identifier is not None
        self.identifier: str = answer.identifier
        self.text, self.nonce = protocol.parse_challenge(answer.body)

    def runtime(self) -> RuntimeData:
        return RuntimeData(nonce=self.text, tee_pubkey=self.pair.public, purpose=self.purpose)

    def bundle(self) -> EvidenceBundle:
        return collect(self.tee, self.nonce, encode_json(self.runtime()))

    def body(self) -> bytes:
        return encode_json(
            Attestation(runtime_data=self.runtime(), tee_evidence=TeeEvidence(primary_evidence=self.bundle()))
        )

    def attest(self, body: bytes | None = None) -> Answer:
        answer = self.bench.broker.attest(self.identifier, self.body() if body is None else body)
        assert answer.identifier is not None
        self.session: str | None = answer.identifier
        self.token: str | None = decode_json(answer.body, TokenAnswer, what="answer").token
        return answer

    def get(self, path: str = PATH) -> bytes:
        answer = self.bench.broker.resource(
            f"{protocol.RESOURCE_PATH}{path}".encode(), b"", self.session, self.token
        )
        return self.pair.decrypt(answer.body, f"kbs:///{path}")


def attested(bench: Bench | OwnersBench, tee: SimulatedTee, *, purpose: str | None = None) -> Attempt:
    """Through challenge and attestation."""
    attempt = Attempt(bench, tee, purpose=purpose)
    attempt.challenge()
    attempt.attest()
    return attempt
