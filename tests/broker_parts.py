"""A key broker and workloads of a simulated platform, for tests: real parts, cheap passphrase, a clock in hand."""

from __future__ import annotations

import contextlib
import hashlib
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import uvicorn

from cloister.appraisal.draft import draft_policy
from cloister.appraisal.policy import load_policy
from cloister.attester.launch import launch_events
from cloister.attester.simulated import SimulatedPlatform, SimulatedTee
from cloister.broker import administration, protocol
from cloister.broker.audit import FILE, AuditLog, Line
from cloister.broker.client import collect
from cloister.broker.jwe import TeeKeyPair
from cloister.broker.keystores.local import Cost
from cloister.broker.protocol import Attestation, RuntimeData, TeeEvidence, TokenAnswer
from cloister.broker.service import Answer, Broker
from cloister.broker.session import Sessions
from cloister.broker.store import Store
from cloister.broker.token import TokenSigner
from cloister.encoding import decode_json, encode_json
from cloister.evidence.bundle import EvidenceBundle

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
    """One broker over a fresh state directory."""

    directory: Path
    clock: Clock = field(default_factory=Clock)

    def __post_init__(self) -> None:
        self.store = Store.create(self.directory, PASSPHRASE, cost=CHEAP)
        self.audit = AuditLog(self.directory)
        self.sessions = Sessions()
        self.broker = self.start()

    def start(self) -> Broker:
        """A broker process (a fresh token key) over the same state."""
        return Broker(
            self.store,
            self.audit,
            now=self.clock,
            sessions=self.sessions,
            tokens=TokenSigner(build="test"),
        )

    def put(self, path: str = PATH, content: bytes = SECRET) -> None:
        administration.put_resource(self.store, self.directory, path, content, now=self.clock)

    def allow(self, tee: SimulatedTee, path: str = PATH, *, now: int = NOW) -> None:
        """Set the rule of ``path``: exactly ``tee``, of the platform made at ``now``."""
        text = policy_for(tee, now=now)
        administration.put_rule(
            self.store, self.directory, path, text.encode(), load_policy(text, name="test"), now=self.clock
        )

    def lines(self) -> list[Line]:
        text = (self.directory / FILE).read_bytes()
        return [decode_json(line, Line, what="audit line") for line in text.splitlines()]


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

    bench: Bench
    tee: SimulatedTee
    pair: TeeKeyPair = field(default_factory=TeeKeyPair.generate)

    def challenge(self) -> None:
        answer = self.bench.broker.challenge(protocol.auth_request("tdx"))
        assert answer.identifier is not None
        self.identifier: str = answer.identifier
        self.text, self.nonce = protocol.parse_challenge(answer.body)

    def runtime(self) -> RuntimeData:
        return RuntimeData(nonce=self.text, tee_pubkey=self.pair.public)

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


def attested(bench: Bench, tee: SimulatedTee) -> Attempt:
    """Through challenge and attestation."""
    attempt = Attempt(bench, tee)
    attempt.challenge()
    attempt.attest()
    return attempt
