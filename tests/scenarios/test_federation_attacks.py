"""Named attacks on a federation that runs: whoever is not what all have signed gets neither keys nor a way to Flower.

North and south are processes. West is played from here: an insider with genuine evidence of its own machine, which holds
rounds up and answers with what no update is. Meanwhile west's real agent meets an aggregator and a workload of other code.
"""

from __future__ import annotations

import asyncio
import base64
import dataclasses
import json
import math
import os
import shutil
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import httpx2
import pytest
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from msgspec import structs

import cloister
import mesh_parts
from cloister.attester.simulated import SimulatedPlatform
from cloister.broker.mesh import parse_bundle
from cloister.broker.mesh_request import make_request
from cloister.channel.evidence_service import EvidenceService
from cloister.channel.keyring import KeyRing
from cloister.channel.transport import SealedClient, connect
from cloister.errors import ChannelError
from cloister.evidence.bundle import encode_bundle
from cloister.federated.admission import WORKLOAD, check_aggregator, signed_parts, vouched_parts
from cloister.federated.configuration import Role, federated_events
from cloister.federated.delegation import delegate
from cloister.federated.exchange import Request
from cloister.federated.flower.workshop import Answer
from cloister.federated.identity import Identity
from cloister.federated.mesh import FederationMesh, party_context
from cloister.federated.messages import (
    ADMISSIONS,
    ATTENDANCE,
    SESSIONS,
    Admission,
    Admitted,
    Ask,
    Attendance,
    Attended,
    Renewal,
    Session,
    TaskOrder,
)
from cloister.federated.opening import Places
from cloister.federated.privacy import Charge, spent
from cloister.federated.progress import Ended, PartyState, RoundDone
from cloister.federated.relay import KEY_HEADER
from cloister.federated.sealed_call import Refused, call
from cloister.federated.updates import decode_arrays, encode_arrays
from cloister.federated.workload import Workload
from cloister.manifest.signed import encode_signed
from cloister.sealing.key_file import read_key
from cloister.workload.memory_folder import memory_folder
from deployment import CommandFailedError, Service, start_service
from deployment import cloister as command
from federation import AGGREGATOR, NAME, Federation
from federation_site import (
    Watch,
    agreed,
    commands_here,
    edited,
    in_memory_of,
    refusal,
    signer,
    site,
    wait_for,
)

PAID_ROUNDS: Final = 6
NOISE: Final = 2.0
BUDGET: Final = round(spent([Charge(noise=NOISE, rate=1.0, steps=PAID_ROUNDS)], delta=1e-5) + 0.005, 2)
"""For so many rounds, and not for one more."""
PULL: Final = "/v1/fleet/pull-messages"
FLOWERS: Final = 415
"""The status of Flower's own answer to what is none of its messages."""
FRESH_SECONDS: Final = 25.0
pytestmark = [
    pytest.mark.timeout(900),
    # Flower's own, where it builds the bundle of an app.
    pytest.mark.filterwarnings("ignore:GitWildMatchPattern:DeprecationWarning"),
]


class Insider:
    """A party's agent and workload in this process, on the party's own machine, with keys of their own."""

    def __init__(self, federation: Federation, party: str) -> None:
        self.federation, self.party = federation, party
        self.agreed = agreed(federation)
        self.agent, self.workload = Identity.generate(), Identity.generate()
        policies = self.agreed.aggregator_policies()
        self.client: SealedClient = connect(federation.services[AGGREGATOR].url, policy=policies)
        assert self.client.attestation is not None
        self.root = check_aggregator(self.client.attestation.keys, self.agreed)
        self.admitted: Admitted | None = None

    def evidence(
        self,
        role: Role,
        nonce: bytes,
        *,
        name: str = NAME,
        tee: Path | None = None,
        of: Identity | None = None,
    ) -> bytes:
        """Genuine, of what this machine launched."""
        own = self.agent if role == "agent" else self.workload
        machine = SimulatedPlatform.load(tee or self.federation.parties[self.party].tee)
        attester = machine.tee("tdx", launch=federated_events(role, name))
        keyring = KeyRing(replica="insider", tls_spki_sha256=(of or own).digest)
        try:
            return encode_bundle(asyncio.run(EvidenceService(attester, keyring).evidence(nonce)))
        finally:
            keyring.close()

    def admission(
        self, change: Callable[[Insider, bytes], dict[str, Any]] = lambda _own, _nonce: {}
    ) -> Admission:
        """For a session of its own, with ``change``, signed by the agent as it then is."""
        session = call(self.client, SESSIONS, Ask(party=self.party, federation=self.agreed.digest), Session)
        delegation = delegate(
            self.agreed, party=self.party, agent_key=self.agent.digest, not_after=int(time.time()) + 3600,
            signer=signer(self.federation, self.party),
        )  # fmt: skip
        key = self.workload.spki
        plain = Admission(
            session=session.session, delegation=encode_signed(delegation), agent=self.evidence("agent", session.nonce),
            agent_key=self.agent.spki, workload=self.evidence("workload", session.nonce),
            csr=make_request(self.workload.key, workload=self.party, application=NAME),
            vouched=self.agent.sign(WORKLOAD, *vouched_parts(self.agreed.digest, self.party, key)),
            nonce=os.urandom(32), checkpoint_key=None, seen=0, signature=b"",
        )  # fmt: skip
        changed = structs.replace(plain, **change(self, session.nonce))
        return structs.replace(changed, signature=self.agent.sign("admission", *signed_parts(changed)))

    def admit(self, change: Callable[[Insider, bytes], dict[str, Any]] = lambda _own, _nonce: {}) -> Admitted:
        self.admitted = call(self.client, ADMISSIONS, self.admission(change), Admitted)
        return self.admitted

    def attend(self) -> Attended:
        """Says that its workload has begun. It has none."""
        assert self.admitted is not None
        attendance = Attendance(token=self.admitted.token, answers={}, ready=True, refused={})
        return call(self.client, ATTENDANCE, attendance, Attended)

    def context(self) -> tuple[ssl.SSLContext, str]:
        """The end of the tunnel that its admission gave it, and the aggregator's name there."""
        assert self.admitted is not None
        return party_context(
            self.admitted.bundle, self.admitted.chain, self.workload.key, root=self.root, digest=self.agreed.digest,
            now=int(time.time()),
        )  # fmt: skip

    @property
    def tunnel(self) -> int:
        assert self.admitted is not None
        return int(self.admitted.tunnel.rpartition(":")[2])

    def ask(
        self,
        path: str = PULL,
        *,
        key: Identity | None = None,
        method: str = "POST",
        headers: dict[str, str] | None = None,
    ) -> httpx2.Response:
        """One request through the tunnel."""
        context, name = self.context()
        shown = {KEY_HEADER.decode(): node_key(key or self.workload)} if headers is None else headers
        with httpx2.Client(verify=context, timeout=30) as client:
            return client.request(
                method,
                f"https://127.0.0.1:{self.tunnel}{path}",
                headers=shown,
                content=b"",
                extensions={"sni_hostname": name},
            )


def node_key(identity: Identity) -> str:
    """As Flower's SuperNode names itself."""
    pem = identity.key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    return base64.b64encode(pem).decode()


class Evil(Workload):
    """West's training workload, whose answers are none. It does for each round what comes next in ``deeds``."""

    def __init__(self, insider: Insider, memory: Path) -> None:
        party = insider.federation.parties[insider.party]
        super().__init__(
            insider.workload, Places(memory=memory, data=party.data, model=insider.federation.model)
        )
        self._insider = insider
        self._deeds = iter((self._no_number, self._giant, self._hold, self._hold))
        self.holds = 0
        """How often it was asked, and does not answer."""
        self.released = threading.Event()
        self._fresh = 0.0

    def take_part(self) -> None:
        """As its agent would have it: with the task at first, and with a new certificate later."""
        insider, party = self._insider, self._insider.federation.parties[self._insider.party]
        admitted = insider.admit()
        fields: dict[str, Any] = {
            "word": "word", "lease": 600, "run": admitted.run, "chain": admitted.chain, "bundle": admitted.bundle,
            "root": insider.root, "tunnel": f"127.0.0.1:{insider.tunnel}", "peers": {},
        }  # fmt: skip
        if self.order is None:
            self.begin(
                TaskOrder(
                    federation=(encode_signed(insider.agreed.signed),), digest=insider.agreed.digest, party=insider.party,
                    keys={party.uri: read_key(party.data_key)}, signers=(party.index_signer(),), output=party.uri, **fields,
                )
            )  # fmt: skip
        else:
            self.renew(Renewal(**fields))
        insider.attend()
        self._fresh = time.monotonic() + FRESH_SECONDS

    def asked(self, times: int) -> bool:
        """Whether it holds a round up as often; until then its evidence stays fresh."""
        if self.holds < times and time.monotonic() > self._fresh:
            self.take_part()
        return self.holds >= times

    def work(self, request: Request) -> Answer:
        answer = super().work(request)
        return next(self._deeds)(answer) if request.kind == "train" else answer

    def _hold(self, answer: Answer) -> Answer:
        self.holds += 1
        self.released.wait(300)
        self.released.clear()
        return answer

    def _no_number(self, answer: Answer) -> Answer:
        return _altered(answer, math.nan)

    def _giant(self, answer: Answer) -> Answer:
        return _altered(answer, 1e30)


def _altered(answer: Answer, number: float) -> Answer:
    """With one number of its update in place of another."""
    arrays = decode_arrays(answer.content, what="an update", limit=len(answer.content))
    first = next(iter(arrays.values()))
    first.flat[0] = number
    return dataclasses.replace(answer, content=encode_arrays(arrays))


@dataclass
class Story:
    """What was seen while north and south trained."""

    federation: Federation
    watch: Watch
    digest: str
    keys: dict[str, bool] = field(default_factory=dict)
    """Whether west's data key, or north's own, was in the memory of a process."""
    logs: dict[str, str] = field(default_factory=dict)
    """Of west's agents, by what they met."""
    excluded: PartyState | None = None
    reached: dict[str, int] = field(default_factory=dict)
    """The status of the insider's requests through the tunnel, by when."""
    refused: str = ""
    """What the aggregator said to the insider after its people had left."""
    rounds: list[RoundDone] = field(default_factory=list)
    ended: Ended | None = None


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Story]:
    root = tmp_path_factory.mktemp("attacks")
    federation = site(
        root, rounds=PAID_ROUNDS + 1, everyone=False, attest_minutes=1, deadline=300,
        privacy={"of": "clients", "noise": NOISE, "clip": 1.0, "epsilon": BUDGET, "delta": 0.00001},
    )  # fmt: skip
    watch = Watch(federation)
    with ExitStack() as undo:
        undo.enter_context(commands_here())
        told = Story(federation, watch, federation.prepare())
        undo.callback(federation.stop)
        undo.callback(watch.close)
        federation.start_aggregator()
        for name in ("north", "south"):
            federation.start_workload(name)
            federation.start_agent(name)
        insider = Insider(federation, "west")
        undo.callback(insider.client.close)
        evil = Evil(insider, undo.enter_context(memory_folder("insider")))
        undo.callback(evil.close)
        undo.callback(evil.released.set)
        # Before anything is trained: these take their time, and rounds do not wait for them.
        _meet_others(told, root, undo)
        federation.join("north")
        federation.join("south")
        wait_for(
            lambda: {watch.states()[name] for name in ("north", "south")} == {"ready"},
            seconds=120,
            what="two are ready",
        )
        evil.take_part()
        told.reached["while it was in"] = insider.ask().status_code
        wait_for(lambda: evil.asked(1), seconds=240, what="a round holds")
        north = federation.services["north workload"].process.pid
        told.keys["the workload of north"] = in_memory_of(
            north, read_key(federation.parties["north"].data_key)
        )
        told.excluded = wait_for(
            lambda: next((one for one in watch.told("west") if one.state == "excluded"), None), seconds=120,
            what="its evidence ends",
        )  # fmt: skip
        told.reached["when its evidence had ended"] = insider.ask().status_code
        evil.released.set()
        evil.take_part()
        wait_for(lambda: evil.asked(2), seconds=400, what="a later round holds")
        command(
            "federation", "leave", federation.document, "--aggregator", federation.services[AGGREGATOR].url, "--as", "west",
            "--key", federation.parties["west"].key,
        )  # fmt: skip
        with pytest.raises(Refused) as refused:
            insider.admit()
        told.refused = refused.value.what
        told.reached["when it had left"] = insider.ask().status_code
        told.ended = wait_for(watch.ended, seconds=300, what="the end")
        told.rounds = watch.rounds()
        wait_for((federation.parties["north"].out / "provenance.json").exists, seconds=240, what="the model")
        federation.services.pop("south agent").stop()  # it is played from here in what follows
        yield told


def _meet_others(told: Story, root: Path, undo: ExitStack) -> None:
    """West's agent, started for real: towards an aggregator of other code, and with a workload launched for another name."""
    federation, west = told.federation, told.federation.parties["west"]
    genuine = federation.start_workload("west")
    tee: list[str | Path] = ["--simulated-tee", west.tee, "--port", "0"]
    other = _started(undo, root / "other aggregator.log", [
        "federation", "aggregate", federation.document, "--model", federation.model, "--state", root / "other state",
        "--simulated-tee", federation.aggregator.tee, "--port", "0", "--tunnel-port", "0",
    ], package=_other_code(root))  # fmt: skip
    stranger = _started(undo, root / "other workload.log", [
        "federation", "work", "--federation", "hospices", "--model", federation.model, "--data", west.data, *tee,
    ])  # fmt: skip
    key = read_key(west.data_key)
    aggregator = federation.services[AGGREGATOR]
    for what, there, works in (("aggregator", other, genuine), ("workload", aggregator, stranger)):
        agent = _started(undo, root / f"agent with another {what}.log", [
            "federation", "agent", "--federation", NAME, "--aggregator", there.url, "--workload", works.url, *tee,
        ])  # fmt: skip
        federation.services["west agent"] = agent
        federation.join("west")
        wait_for(lambda log=agent.log: "appraisal:" in log.read_text(), what=f"the other {what} is refused")  # type: ignore[misc]
        told.logs[what] = agent.log.read_text()
        told.keys[f"an agent that met another {what}"] = in_memory_of(agent.process.pid, key)
        told.keys[f"a workload where the {what} is another"] = in_memory_of(works.process.pid, key)
        federation.services.pop("west agent")
        agent.stop()


def _started(undo: ExitStack, log: Path, words: list[str | Path], *, package: Path | None = None) -> Service:
    """A service, of the package there or of the installed one."""
    with pytest.MonkeyPatch.context() as patch:
        if package is not None:
            patch.setenv("PYTHONPATH", str(package))
        service = start_service(words, log, timeout=120)
    undo.callback(service.stop)
    return service


def _other_code(root: Path) -> Path:
    """A copy of the package that does not look whether it is the code that the parties signed."""
    package = root / "other code"
    shutil.copytree(
        Path(cloister.__file__).parent, package / "cloister", ignore=shutil.ignore_patterns("__pycache__")
    )
    path = package / "cloister" / "federated" / "first_model.py"
    check = "if federation.task.code != this_program().hex():"
    text = path.read_text()
    assert check in text
    path.write_text(text.replace(check, "if not federation.task.code:"))
    return package


def test_a_party_whose_evidence_ends_is_excluded_and_the_round_goes_on(story: Story) -> None:
    assert story.excluded is not None
    assert story.excluded.reason == "its evidence ended, and no fresh one came"
    held = next(one for one in story.rounds if one.at >= story.excluded.at)
    assert sorted(held.shares) == ["north", "south"]
    assert held.refused == {"west": "it is not ready any more: its evidence ended, or its workload is gone"}
    assert held.seconds < 300
    assert story.reached == {
        "while it was in": FLOWERS,
        "when its evidence had ended": 403,
        "when it had left": 403,
    }


def test_an_agent_gives_no_key_to_anything_that_runs_other_code(story: Story) -> None:
    assert "the agent" not in story.logs
    assert all("appraisal: " in log for log in story.logs.values())
    assert story.keys == {
        "an agent that met another aggregator": True,
        "a workload where the aggregator is another": False,
        "an agent that met another workload": True,
        "a workload where the workload is another": False,
        "the workload of north": True,
    }


def test_an_update_that_is_none_is_refused_and_the_round_goes_on(story: Story) -> None:
    reasons = [one.refused["west"] for one in story.rounds if "west" in one.refused]
    assert any("has numbers that are none" in one for one in reasons), reasons
    assert any("goes 1e+30 from the model, and 100 at most is taken" in one for one in reasons), reasons
    assert all(sorted(one.shares) == ["north", "south"] for one in story.rounds)


def test_a_party_that_leaves_in_the_middle_is_not_waited_for_and_does_not_come_back(story: Story) -> None:
    left = [one for one in story.watch.told("west") if one.state == "left"]
    assert len(left) == 1
    held = next(one for one in story.rounds if one.at >= left[0].at)
    assert held.refused == {"west": "it is not ready any more: its evidence ended, or its workload is gone"}
    assert held.seconds < 300
    assert "west has left this federation" in story.refused
    assert story.watch.states()["west"] == "left"


def test_training_stops_before_the_privacy_budget_is_exceeded(story: Story) -> None:
    assert [one.number for one in story.rounds] == list(range(1, PAID_ROUNDS + 1))
    spent_so_far = [one.epsilon for one in story.rounds]
    assert spent_so_far == sorted(spent_so_far)
    assert spent_so_far[-1] <= BUDGET
    assert story.ended is not None
    assert story.ended.finished
    assert "the privacy budget is spent: round" in story.ended.reason


def test_a_run_that_its_budget_ended_gives_its_receivers_the_model_of_its_last_round(story: Story) -> None:
    north = story.federation.parties["north"]
    words: list[str | Path] = ["--digest", story.digest, "--key-file", north.data_key, "--json"]
    told = json.loads(command("federation", "verify-model", north.out, *words))
    assert told["model"] == story.rounds[-1].model


ADMISSIONS_REFUSED: Final[dict[str, tuple[Callable[[Insider, bytes], dict[str, Any]], str]]] = {
    "an agent that was launched for another federation": (
        lambda own, nonce: {"agent": own.evidence("agent", nonce, name="hospices")}, "rtmr3",
    ),
    "a workload that was launched for another federation": (
        lambda own, nonce: {"workload": own.evidence("workload", nonce, name="hospices")}, "rtmr3",
    ),
    "a workload that is an agent": (
        lambda own, nonce: {"workload": own.evidence("agent", nonce, of=own.workload)}, "rtmr3",
    ),
    "a workload on another party's machine": (
        lambda own, nonce: {
            "workload": own.evidence("workload", nonce, tee=own.federation.parties["north"].tee)
        },
        "root",
    ),
    "evidence over an older nonce": (lambda own, _nonce: {"workload": own.evidence("workload", bytes(32))}, "nonce"),
    "a certificate for another key than the attested one": (
        lambda own, _nonce: {"csr": make_request(Identity.generate().key, workload=own.party, application=NAME)},
        "not the one that the evidence binds",
    ),
    "a certificate in another party's name": (
        lambda own, _nonce: {"csr": make_request(own.workload.key, workload="north", application=NAME)}, "name",
    ),
    "an agent that the party did not name": (
        lambda own, _nonce: {
            "delegation": encode_signed(
                delegate(
                    own.agreed, party=own.party, agent_key=Identity.generate().digest, not_after=int(time.time()) + 60,
                    signer=signer(own.federation, own.party),
                )
            )
        },
        "another agent may act",
    ),
}  # fmt: skip


@pytest.fixture
def south(story: Story) -> Iterator[Insider]:
    """South, played from here now that its run is over."""
    insider = Insider(story.federation, "south")
    yield insider
    insider.client.close()


@pytest.mark.parametrize(("change", "words"), ADMISSIONS_REFUSED.values(), ids=ADMISSIONS_REFUSED)
def test_who_is_not_what_all_signed_is_not_admitted(
    south: Insider, change: Callable[[Insider, bytes], dict[str, Any]], words: str
) -> None:
    with pytest.raises(Refused, match=words):
        south.admit(change)


def test_an_admission_counts_once(south: Insider) -> None:
    admission = south.admission()
    call(south.client, ADMISSIONS, admission, Admitted)
    with pytest.raises(Refused, match="no such session"):
        call(south.client, ADMISSIONS, admission, Admitted)


def test_nobody_is_put_out_by_what_others_say_in_its_name(south: Insider, story: Story) -> None:
    south.admit()
    south.attend()
    stranger = Insider(story.federation, "south")
    with pytest.raises(Refused):
        stranger.admit(ADMISSIONS_REFUSED["evidence over an older nonce"][0])
    stranger.client.close()
    assert story.watch.states()["south"] == "ready"
    assert south.ask().status_code == FLOWERS


def test_no_party_comes_in_by_being_left_out_of_a_list(story: Story) -> None:
    client = connect(
        story.federation.services[AGGREGATOR].url, policy=agreed(story.federation).aggregator_policies()
    )
    with client, pytest.raises(Refused, match="is no party of this federation"):
        call(client, SESSIONS, Ask(party="east", federation=story.digest), Session)


REQUESTS_REFUSED: Final[dict[str, tuple[dict[str, Any], str]]] = {
    "with another node's key": ({"key": Identity.generate()}, "another node key"),
    "without a node's key": ({"headers": {}}, "names no node key"),
    "to start a run": ({"path": "/v1/control/start-run"}, "none of the paths"),
    "to register a node": ({"path": "/v1/fleet/register-node"}, "none of the paths"),
    "to what the ServerApp alone is told": ({"path": "/v1/runtime/pull-task-input"}, "none of the paths"),
    "that only reads": ({"method": "GET"}, "none of the paths"),
    "with a question": ({"path": f"{PULL}?all=1"}, "none of the paths"),
    "along a detour": ({"path": "/v1/fleet/../control/start-run"}, "none of the paths"),
}


@pytest.mark.parametrize(("request_", "words"), REQUESTS_REFUSED.values(), ids=REQUESTS_REFUSED)
def test_an_admitted_party_reaches_nothing_of_flower_but_its_own_messages(
    south: Insider, request_: dict[str, Any], words: str
) -> None:
    south.admit()
    assert south.ask().status_code == FLOWERS
    refused = south.ask(**request_)
    assert refused.status_code == 403
    assert words in refused.text


def test_a_party_that_exchanges_its_key_after_attestation_is_refused(south: Insider) -> None:
    south.admit()
    context, name = south.context()
    attested, south.workload = south.workload, Identity.generate()
    # The certificate that was issued is of the attested key.
    with pytest.raises(ChannelError, match="KEY_VALUES_MISMATCH"):
        south.context()
    south.admit()
    assert south.ask().status_code == FLOWERS
    with httpx2.Client(verify=context) as client:
        refused = client.post(
            f"https://127.0.0.1:{south.tunnel}{PULL}", headers={KEY_HEADER.decode(): node_key(attested)},
            extensions={"sni_hostname": name},
        )  # fmt: skip
    assert refused.status_code == 403
    assert "not admitted, or with another key" in refused.text


def _of_another_mesh(south: Insider) -> ssl.SSLContext:
    """A certificate in the party's name by a root that somebody made."""
    now = int(time.time())
    mesh = FederationMesh(south.agreed, now=now)
    csr = make_request(south.workload.key, workload=south.party, application=NAME)
    chain = mesh.issue(csr, name=south.party, evidence=b"", now=now)
    return mesh_parts.Member(
        south.party, south.workload.key, chain, parse_bundle(_admitted(south).bundle)
    ).client()


def _without_certificate(south: Insider) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    root = parse_bundle(_admitted(south).bundle).root
    context.load_verify_locations(cadata=ssl.DER_cert_to_PEM_cert(root))
    return context


def _of_tls_1_2(south: Insider) -> ssl.SSLContext:
    context, _ = south.context()
    context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_2
    return context


def _admitted(south: Insider) -> Admitted:
    assert south.admitted is not None
    return south.admitted


OUTSIDERS: Final[dict[str, Callable[[Insider], ssl.SSLContext]]] = {
    "without a certificate": _without_certificate,
    "with a certificate of another mesh": _of_another_mesh,
    "by TLS 1.2": _of_tls_1_2,
}


@pytest.mark.parametrize("context", OUTSIDERS.values(), ids=OUTSIDERS)
def test_who_has_no_certificate_of_the_mesh_does_not_get_through_the_handshake(
    south: Insider, context: Callable[[Insider], ssl.SSLContext]
) -> None:
    south.admit()
    assert _through_handshake(south, south.context()[0]).startswith(b"HTTP/1.1 403")
    with pytest.raises((ssl.SSLError, ConnectionError)):
        _through_handshake(south, context(south))


def _through_handshake(south: Insider, context: ssl.SSLContext) -> bytes:
    """The first bytes of an answer."""
    _, name = south.context()
    with (
        socket.create_connection(("127.0.0.1", south.tunnel), 30) as plain,
        context.wrap_socket(plain, server_hostname=name) as secured,
    ):
        secured.sendall(b"GET / HTTP/1.1\r\nhost: tunnel\r\n\r\n")
        answer = secured.recv(64)
        if not answer:
            raise ConnectionResetError
        return answer


def test_a_federation_that_was_edited_after_signing_is_refused_by_every_part(
    story: Story, tmp_path: Path
) -> None:
    federation, north = story.federation, story.federation.parties["north"]
    document = tmp_path / "federation.json"
    document.write_bytes(edited(federation.document.read_bytes(), b'"minimum":2', b'"minimum":3'))
    model, state = ["--model", federation.model], ["--state", tmp_path / "state"]
    at, key = ["--aggregator", federation.services[AGGREGATOR].url, "--as", "north"], ["--key", north.key]
    data = ["--data-key", f"{north.uri}={north.data_key}", "--index-signer", north.index_signer()]
    for name, words in (
        ("aggregate", [*model, *state, "--simulated-tee", north.tee]),
        ("join", ["--as", "north", "--agent", federation.services["north agent"].url, *key, *data]),
        ("status", [*at, *key]),
        ("leave", [*at, *key]),
    ):
        error = refusal("federation", name, document, *words)
        assert (error.layer, error.exit_code) == ("manifest", 3)
    assert not (tmp_path / "state").exists()
    with pytest.raises(CommandFailedError) as caught:
        command("federation", "status", document, *at, *key)
    assert caught.value.code == 3
    assert caught.value.line.startswith("manifest: ")


def test_another_federation_than_the_one_that_was_pinned_is_refused(story: Story) -> None:
    north = story.federation.parties["north"]
    words = [
        "--as",
        "north",
        "--agent",
        story.federation.services["north agent"].url,
        "--key",
        north.key,
        "--data-key",
    ]
    words += [f"{north.uri}={north.data_key}", "--index-signer", north.index_signer(), "--digest", "ab" * 32]
    error = refusal("federation", "join", story.federation.document, *words)
    assert (error.layer, error.exit_code) == ("manifest", 3)
