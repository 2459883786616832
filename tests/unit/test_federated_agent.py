"""An agent with its workload, from one verification to the next: what it hands over when, and when it is told to hold.

The aggregator, the other parties' agents and the workload are played; their evidence is real, of the simulated TEE.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
from msgspec import structs

from cloister.broker.mesh_request import make_request
from cloister.errors import CloisterError, FederationError, NetworkError
from cloister.evidence.key_material import KeyMaterial
from cloister.federated import messages
from cloister.federated.admission import WORKLOAD, vouched_parts
from cloister.federated.agent import Agent
from cloister.federated.identity import Identity, check_signature
from cloister.federated.messages import (
    Admission,
    Admitted,
    Attendance,
    Attended,
    Done,
    JoinOrder,
    Presented,
    Renewal,
    Requested,
    Session,
    TaskOrder,
    WorkAsked,
    WorkState,
)
from cloister.federated.own_workload import OwnWorkload
from cloister.manifest.signed import encode_signed
from federation_parts import NAMES, NOW, aggregation, agreed, attested, delegated, evidence, signed
from federation_parts import identity as known
from secure_parts import KEY, RUN, URI

OTHER = Identity.generate().spki
AGREED = agreed(attested(aggregation=aggregation(secure=True), receivers=("south",), minimum=3))
Forge = Callable[[Presented], Presented]


def workload_of(party: str, key: Identity | None = None) -> dict[str, bytes]:
    """The key of a party's workload, as its agent vouches for it."""
    spki = (key or known(f"{party} workload")).spki
    parts = vouched_parts(AGREED.digest, party, spki)
    return {"workload_key": spki, "vouched": known(f"{party} agent").sign(WORKLOAD, *parts)}


def forged(presented: Presented) -> Presented:
    """The aggregator puts a key of its own in the place of a party's."""
    return structs.replace(presented, workload_key=OTHER)


class Around:
    """What is around the agent of ``north``: other parties' agents with real evidence, and an aggregator that may lie."""

    def __init__(self) -> None:
        self.presented: dict[str, dict[str, bytes]] = {name: workload_of(name) for name in ("south", "west")}
        self.lie: dict[str, Forge] = {}
        self.csr = make_request(known("north workload").key, workload="north", application="hospitals")
        self.own = known("north workload").digest
        """The key that the evidence of the workload binds."""
        self.nonce = b""
        self.over = False
        self.said: list[Any] = []
        self.asked: dict[str, bytes] = {}
        self.takes: Callable[[], None] = lambda: None
        """What the workload does before it has its task."""
        self.admits: Callable[[], None] = lambda: None
        """What happens when the agent is admitted."""
        self.fails: list[CloisterError] = []
        """What an agent hears instead of how its workload is, once each."""
        self.deaf = False
        """Whether what the agent says of others' evidence is lost on the way."""
        self.changes: list[Callable[[], None]] = []
        """One after another, each before an answer to attendance once the workload has begun."""

    @contextmanager
    def connect(self, url: str, *, policy: Any) -> Iterator[Any]:
        keys = KeyMaterial(
            ohttp_keys=b"keys", not_after=NOW + 3000, replica="one", tls_spki_sha256=self.own,
            mesh_root_sha256="33" * 32 if url == "aggregator:" else None,
            manifest_sha256=AGREED.digest if url == "aggregator:" else None,
        )  # fmt: skip
        yield SimpleNamespace(attestation=SimpleNamespace(keys=keys))

    def call(self, _: Any, path: str, request: Any, answer: Any, *, seconds: float = 0.0) -> Any:
        self.said.append(request)
        match path:
            case messages.SESSIONS:
                return Session(session="5e" * 32, nonce=bytes(32))
            case messages.IDENTITY:
                return Requested(csr=self.csr)
            case messages.ADMISSIONS:
                self.nonce = request.nonce
                self.admits()
                return Admitted(
                    token="token", run=RUN, chain=(), bundle=b"", tunnel="host:1", checkpoint_key=bytes(32), until=NOW + 3000
                )  # fmt: skip
            case messages.ATTENDANCE:
                if self.deaf and request.refused:
                    raise NetworkError("the aggregator does not answer")
                if request.ready and self.changes:
                    self.changes.pop(0)()
                return Attended(
                    asked=self.asked, presented={name: self.show(name) for name in self.presented},
                    states=dict.fromkeys(NAMES, "admitted"), started=True, rounds=0, over=self.over, failed="",
                )  # fmt: skip
            case messages.TASK:
                self.takes()
            case messages.STATE:
                if self.fails and not request.hold:
                    raise self.fails.pop()
                return WorkState(running=True, rounds=0)
        return Done()

    def show(self, name: str) -> Presented:
        honest = Presented(
            evidence=evidence("agent", name, self.nonce), agent_key=known(f"{name} agent").spki,
            delegation=delegated(AGREED, name), **self.presented[name],
        )  # fmt: skip
        return self.lie.get(name, lambda one: one)(honest)

    def held(self) -> int:
        """How often the workload was told to hold."""
        return sum(isinstance(one, WorkAsked) and one.hold for one in list(self.said))

    def orders(self) -> list[dict[str, bytes]]:
        """Whose keys the workload was handed, each time."""
        return [one.peers for one in self.said if isinstance(one, TaskOrder | Renewal)]

    def end(self) -> None:
        self.over = True

    def hears(self, what: Callable[[Attendance], object] = lambda _: True) -> None:
        """Wait until the agent says that to the aggregator."""
        ends, heard = time.monotonic() + 20, len(self.said)
        while not any(isinstance(one, Attendance) and what(one) for one in self.said[heard:]):
            assert time.monotonic() < ends
            time.sleep(0.01)


@pytest.fixture
def around(monkeypatch: pytest.MonkeyPatch) -> Around:
    found = Around()
    for module in ("agent", "own_workload"):
        monkeypatch.setattr(f"cloister.federated.{module}.connect", found.connect)
        monkeypatch.setattr(f"cloister.federated.{module}.call", found.call)
    monkeypatch.setattr(OwnWorkload, "evidence", lambda *_: b"")
    monkeypatch.setattr("cloister.federated.agent.PAUSE", 0.01)
    monkeypatch.setattr("cloister.federated.agent.RETRY", 0.05)
    monkeypatch.setattr(Agent, "_show", lambda *_: b"")
    return found


@contextmanager
def acting(until: Callable[[Agent], bool]) -> Iterator[Agent]:
    """The agent of ``north``, which its people told to act, until something holds of it."""
    agent = Agent(
        known("north agent"), aggregator="aggregator:", workload="workload:", out=None, now=lambda: NOW
    )
    found = signed(AGREED.federation)
    agent.join(
        JoinOrder(
            federation=(encode_signed(found),), digest=found.digest, party="north", delegation=delegated(AGREED, "north"),
            keys={URI: KEY}, signers=(), output=URI,
        )
    )  # fmt: skip
    try:
        ends = time.monotonic() + 20
        while not until(agent) and time.monotonic() < ends:
            time.sleep(0.01)
        assert until(agent), agent.standing
        yield agent
    finally:
        agent.close()


def is_over(agent: Agent) -> bool:
    return agent.standing.over


def has_failed(agent: Agent) -> bool:
    return bool(agent.standing.error)


HONEST = {name: workload_of(name)["workload_key"] for name in ("south", "west")}


def test_a_workload_is_handed_the_keys_of_all_whom_its_agent_verified(around: Around) -> None:
    around.changes = [around.end]
    with acting(is_over):
        assert around.orders() == [HONEST]
    [admission] = [one for one in around.said if isinstance(one, Admission)]
    check_signature(
        known("north agent").key.public_key(), admission.vouched, WORKLOAD,
        *vouched_parts(AGREED.digest, "north", known("north workload").spki),
    )  # fmt: skip


def test_a_key_that_the_aggregator_forged_begins_nothing(around: Around) -> None:
    around.lie["south"] = forged
    with acting(has_failed) as agent:
        assert "south: a signature is not of the key" in agent.standing.error
        assert "south" not in agent.standing.verified
    assert around.orders() == []


def test_a_party_that_comes_back_with_another_workload_is_verified_again_and_told(around: Around) -> None:
    fresh = Identity.generate()

    def back() -> None:
        around.presented["south"] = workload_of("south", fresh)

    around.changes = [lambda: None, back, lambda: None, around.end]
    with acting(is_over):
        assert around.orders() == [HONEST, HONEST | {"south": fresh.spki}]


def lies(around: Around) -> Callable[[], None]:
    def begin() -> None:
        around.lie["south"] = forged

    return begin


def test_a_key_that_the_aggregator_forges_later_holds_the_workload_and_reaches_it_never(
    around: Around,
) -> None:
    around.changes = [lambda: None, lies(around)]
    with acting(lambda agent: has_failed(agent) and around.held() > 0) as agent:
        assert "south: a signature is not of the key" in agent.standing.error
    assert around.orders() == [HONEST]


def test_a_workload_is_held_also_where_the_aggregator_does_not_hear_why(around: Around) -> None:
    around.deaf, around.changes = True, [lies(around)]
    with acting(lambda agent: has_failed(agent) and around.held() > 0):
        assert around.orders() == [HONEST]


def test_a_workload_that_was_held_is_given_nothing_before_all_are_verified_anew(around: Around) -> None:
    around.changes = [lies(around)]
    with acting(lambda _: around.held() > 0):
        # South is in, and its evidence does not come: it is neither verified nor refused.
        south = around.presented.pop("south")
        around.lie.clear()
        around.hears(lambda said: not said.refused)
        around.hears()
        assert around.orders() == [HONEST]
        assert not [one for one in around.said[-1:] if isinstance(one, Attendance) and one.ready]
        around.presented["south"] = south
        around.hears(lambda said: said.ready)
        assert around.orders() == [HONEST, HONEST]


def test_a_party_that_says_nothing_keeps_nobody_s_workload_from_its_next_lease(around: Around) -> None:
    """It is in until its evidence ends: then the aggregator excludes it."""

    def stumbles() -> None:
        del around.presented["south"]
        around.fails = [FederationError("a proxy answered")]

    around.changes = [stumbles]
    with acting(lambda _: len(around.orders()) > 1):
        around.hears(lambda said: said.ready)
    assert around.held() == 1
    assert around.orders()[1] == HONEST
    assert all(one.ready for one in around.said[-3:] if isinstance(one, Attendance))


def test_a_workload_that_was_started_anew_is_verified_and_given_everything_anew(around: Around) -> None:
    def killed() -> None:
        fresh = Identity.generate()
        around.own = fresh.digest
        around.csr = make_request(fresh.key, workload="north", application="hospitals")
        around.fails = [NetworkError("the workload does not answer")]
        around.changes.append(around.end)

    around.changes = [killed]
    with acting(is_over):
        first, second = (one for one in around.said if isinstance(one, TaskOrder))
    assert first.word != second.word
    assert not [one for one in around.said if isinstance(one, Renewal)]


def test_whatever_fails_in_an_agent_holds_its_workload(
    around: Around, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails() -> None:
        monkeypatch.setattr(Agent, "_show", lambda *_: {}["nothing"])
        around.asked = {"west": bytes(32)}

    around.changes = [fails]
    with acting(lambda agent: has_failed(agent) and around.held() > 0) as agent:
        assert agent.standing.error == "the agent failed with KeyError"


def test_an_agent_vouches_for_no_key_that_its_workload_s_evidence_does_not_bind(around: Around) -> None:
    around.csr = make_request(Identity.generate().key, workload="north", application="hospitals")
    with acting(has_failed) as agent:
        assert "the key is not the one that the evidence binds" in agent.standing.error
    assert not [one for one in around.said if isinstance(one, Admission)]


def test_an_agent_answers_others_while_its_workload_opens_its_task(around: Around) -> None:
    def opens() -> None:
        around.asked = {"west": bytes(32)}
        around.hears(lambda said: said.answers.keys() == {bytes(32).hex()} and not said.ready)

    around.takes, around.changes = opens, [around.end]
    with acting(is_over):
        assert around.orders() == [HONEST]


def test_who_comes_back_while_a_workload_opens_its_task_is_told_to_it_when_it_has_it(around: Around) -> None:
    fresh = Identity.generate()

    def opens() -> None:
        around.presented["south"] = workload_of("south", fresh)
        for _ in range(2):
            around.hears()

    around.takes, around.changes = opens, [lambda: None, around.end]
    with acting(is_over):
        assert around.orders() == [HONEST, HONEST | {"south": fresh.spki}]


def test_a_workload_that_opens_its_task_while_others_turn_false_is_told_to_hold(around: Around) -> None:
    refused = threading.Event()

    def opens() -> None:
        around.lie["south"] = forged
        around.hears(lambda said: said.refused)
        refused.set()

    around.takes = opens
    # What it is told before it has its task is lost on it.
    with acting(lambda _: refused.is_set() and around.held() > 0):
        around.lie.clear()
        around.hears(lambda said: said.ready)
        assert around.orders() == [HONEST, HONEST]


def test_an_answer_that_was_lost_is_asked_for_again(around: Around) -> None:
    def lost() -> None:
        around.takes = lambda: None
        raise NetworkError("the workload does not answer")

    around.takes, around.changes = lost, [around.end]
    with acting(is_over):
        assert around.orders() == [HONEST, HONEST]
    first, second = (one for one in around.said if isinstance(one, TaskOrder))
    assert first.word == second.word


def test_the_keys_go_to_the_workload_that_was_admitted_and_to_no_other(around: Around) -> None:
    def another() -> None:
        around.own = known("south workload").digest

    around.admits = another
    with acting(has_failed) as agent:
        assert agent.standing.error
    assert around.orders() == []


def test_why_a_workload_does_not_take_its_task_its_agent_says(around: Around) -> None:
    def refuses() -> None:
        raise FederationError("this is not the model that the parties agreed on")

    around.takes = refuses
    with acting(has_failed) as agent:
        assert "not the model that the parties agreed on" in agent.standing.error
    assert not [one for one in around.said if isinstance(one, Attendance) and one.ready]
