"""What each process of a federation serves: the endpoints of messages.py, in front of the part that answers them.

All of it behind the sealed gateway: evidence first, then requests sealed to the key in it. What a process knows of others it
learns from there; its options say where things are, and nothing about who is believed.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import secrets
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from cloister.attester import Attester
from cloister.channel.evidence_service import EvidenceService
from cloister.channel.keyring import KeyRing
from cloister.channel.middleware import SealedGateway
from cloister.errors import FederationError
from cloister.evidence.bundle import encode_bundle
from cloister.evidence.key_material import BrokerIdentity
from cloister.federated.agent import Agent
from cloister.federated.aggregator import Aggregator
from cloister.federated.agreement import AgreedFederation
from cloister.federated.final_model import write_model
from cloister.federated.identity import Identity
from cloister.federated.messages import (
    ADMISSIONS,
    ATTENDANCE,
    DEPARTURES,
    FACTS,
    IDENTITY,
    INQUIRIES,
    JOIN,
    MAX_ADMISSION,
    MAX_ATTENDANCE,
    MAX_SMALL,
    MAX_TASK,
    MODEL,
    RENEWAL,
    SESSIONS,
    STATE,
    TASK,
    Admission,
    Ask,
    Attendance,
    Departure,
    Done,
    Facts,
    FactsFrom,
    Inquiry,
    JoinOrder,
    ModelAsked,
    ModelOrder,
    Named,
    Renewal,
    SignedWord,
    TaskOrder,
    Token,
    Vouched,
    WorkAsked,
    Written,
)
from cloister.federated.own_workload import EVIDENCE_SECONDS
from cloister.federated.party_words import accept_word
from cloister.federated.progress import encode_fact
from cloister.federated.provenance import STATEMENT, nonce_of
from cloister.federated.sealed_call import Endpoint, sealed_service
from cloister.federated.workload import Workload
from cloister.manifest.signed import parse_signed

MAX_VIEWERS: Final = 256
MAX_LINES: Final = 2000
"""Facts in one answer."""


class OwnEvidence:
    """This process's evidence, once it serves, and the key in it."""

    def __init__(self, identity: Identity) -> None:
        self.identity = identity
        self._found: tuple[EvidenceService, asyncio.AbstractEventLoop] | None = None
        self._there = threading.Event()

    def take(self, evidence: EvidenceService, loop: asyncio.AbstractEventLoop) -> None:
        """From the server, when it has started."""
        self._found = (evidence, loop)
        self._there.set()

    def vouch(self, statement: bytes) -> Vouched:
        """A statement, signed, with evidence. For threads beside the server's loop. Raises FederationError."""
        if not self._there.wait(30) or self._found is None:
            raise FederationError("this process does not serve yet")
        return _vouched(self.identity, *self._found, statement)


def aggregator_service(
    aggregator: Aggregator,
    agreed: AgreedFederation,
    own: OwnEvidence,
    *,
    attester: Attester,
    shown: BrokerIdentity,
) -> tuple[SealedGateway, KeyRing]:
    """The aggregator, with what its evidence shows of it."""
    keyring = KeyRing(
        replica=f"aggregator-{secrets.token_hex(4)}", tls_spki_sha256=own.identity.digest, shown=lambda: shown
    )
    viewers = _Viewers(agreed)

    def statement(asked: ModelAsked) -> Vouched:
        return own.vouch(aggregator.statement(asked))

    def leave(word: SignedWord) -> Done:
        departure = accept_word(Departure, parse_signed(word.signed), agreed=agreed, now=int(time.time()))
        aggregator.leave(departure.party)
        return Done()

    def facts(asked: FactsFrom) -> Facts:
        viewers.check(asked.token)
        told = aggregator.facts()[max(0, asked.start) :][:MAX_LINES]
        return Facts(
            lines=b"".join(map(encode_fact, told)),
            next=max(0, asked.start) + len(told),
            states=aggregator.states(),
        )

    endpoints = {
        SESSIONS: Endpoint(Ask, aggregator.open_session, MAX_SMALL),
        ADMISSIONS: Endpoint(Admission, aggregator.admit, MAX_ADMISSION),
        ATTENDANCE: Endpoint(Attendance, aggregator.attend, MAX_ATTENDANCE),
        DEPARTURES: Endpoint(SignedWord, leave, MAX_SMALL),
        INQUIRIES: Endpoint(SignedWord, viewers.admit, MAX_SMALL),
        FACTS: Endpoint(FactsFrom, facts, MAX_SMALL),
        MODEL: Endpoint(ModelAsked, statement, MAX_SMALL),
    }
    gateway = sealed_service(
        endpoints, attester=attester, keyring=keyring, max_request=MAX_ATTENDANCE, started=own.take
    )
    return gateway, keyring


def agent_service(agent: Agent, *, attester: Attester) -> tuple[SealedGateway, KeyRing]:
    """A party's agent."""
    keyring = KeyRing(replica=f"agent-{secrets.token_hex(4)}", tls_spki_sha256=agent.identity.digest)
    endpoints = {JOIN: Endpoint(JoinOrder, agent.join, MAX_TASK)}
    gateway = sealed_service(
        endpoints, attester=attester, keyring=keyring, max_request=MAX_TASK, started=agent.serve_evidence
    )
    return gateway, keyring


def workload_service(
    workload: Workload, own: OwnEvidence, *, attester: Attester, memory: Path, out: Path | None
) -> tuple[SealedGateway, KeyRing]:
    """A party's workload."""
    keyring = KeyRing(replica=f"workload-{secrets.token_hex(4)}", tls_spki_sha256=workload.identity.digest)

    def write(asked: ModelOrder) -> Written:
        return write_model(workload, asked, memory=memory, out=out, vouch=own.vouch)

    endpoints = {
        IDENTITY: Endpoint(Named, workload.request, MAX_SMALL),
        TASK: Endpoint(TaskOrder, workload.begin, MAX_TASK),
        RENEWAL: Endpoint(Renewal, workload.renew, MAX_TASK),
        STATE: Endpoint(WorkAsked, workload.state, MAX_SMALL),
        MODEL: Endpoint(ModelOrder, write, MAX_TASK),
    }
    gateway = sealed_service(
        endpoints, attester=attester, keyring=keyring, max_request=MAX_TASK, started=own.take
    )
    return gateway, keyring


def evidence_digest(own: OwnEvidence) -> Callable[[], str]:
    """SHA-256 of evidence that this process shows now."""
    return lambda: hashlib.sha256(own.vouch(b"the run begins").evidence).hexdigest()


class _Viewers:
    """Who may see the run: parties, by a token for their signed word. Threads may share it."""

    def __init__(self, agreed: AgreedFederation) -> None:
        self._agreed = agreed
        self._tokens: list[str] = []
        self._lock = threading.Lock()

    def admit(self, word: SignedWord) -> Token:
        accept_word(Inquiry, parse_signed(word.signed), agreed=self._agreed, now=int(time.time()))
        token = secrets.token_hex(32)
        with self._lock:
            self._tokens = [*self._tokens, token][-MAX_VIEWERS:]
        return Token(token=token)

    def check(self, token: str) -> None:
        with self._lock:
            known = any(hmac.compare_digest(one.encode(), token.encode()) for one in self._tokens)
        if not known:
            raise FederationError("this token is nobody's", todo="ask again with the party's key")


def _vouched(
    identity: Identity, evidence: EvidenceService, loop: asyncio.AbstractEventLoop, statement: bytes
) -> Vouched:
    """``statement``, signed, with this process's evidence over its digest. For a thread beside the loop."""
    future = asyncio.run_coroutine_threadsafe(evidence.evidence(nonce_of(statement)), loop)
    return Vouched(
        statement=statement, evidence=encode_bundle(future.result(EVIDENCE_SECONDS)), key=identity.spki,
        signature=identity.sign(STATEMENT, statement),
    )  # fmt: skip
