"""Example-level privacy in a whole run: what parties say that they spent only rises, and a spent budget ends it."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from cloister.attester.launch import this_program
from cloister.errors import CloisterError, FederationError, UsageError
from cloister.federated.exchange import Reply, Request
from cloister.federated.federation import Federation, Task
from cloister.federated.flower.run_folder import RunFolder, go_through
from cloister.federated.identity import Identity
from cloister.federated.ledger import Ledger, ledger_name
from cloister.federated.messages import TaskOrder
from cloister.federated.opening import Places
from cloister.federated.privacy import Charge, claims_of, spent
from cloister.federated.progress import Ended, Fact, RoundDone, Share
from cloister.federated.rounds import Kept, Rounds
from cloister.federated.tasks import ExamplePrivacy
from cloister.federated.training.ner import NerTraining
from cloister.federated.updates import encode_arrays
from cloister.federated.workload import Workload
from cloister.inference.model import find_model
from cloister.manifest.signed import encode_signed
from cloister.sealing.key_file import KeyFile
from federation_parts import (
    MILLION,
    MODEL,
    NAMES,
    Classroom,
    Killed,
    agreed,
    federation,
    privacy,
    run_of,
    run_order,
    signed,
)
from task_parts import WORDS, opening, save_encoder

RUN = "5e" * 16
HIDDEN = privacy(of="examples", epsilon_ppm=5 * MILLION)
Spoils = dict[tuple[str, int], Callable[[Reply], Iterable[Reply]]]


def saying(epsilon: float | None) -> Callable[[Reply], Iterable[Reply]]:
    """The same update with another word of what was spent, or with none."""
    told = {} if epsilon is None else {"epsilon": epsilon}
    return lambda reply: [dataclasses.replace(reply, metrics=told)]


def spoils(**claims: tuple[float | None, ...]) -> Spoils:
    """By party: what it says in each round, from 1 on."""
    return {
        (name, number): saying(one) for name, all_ in claims.items() for number, one in enumerate(all_, 1)
    }


def document(rounds: int, **changes: Any) -> Federation:
    return federation(rounds=rounds, privacy=HIDDEN, metrics=("epsilon",), **changes)


def done(facts: Iterable[Fact]) -> list[RoundDone]:
    return [fact for fact in facts if isinstance(fact, RoundDone)]


def reason(facts: Iterable[Fact]) -> str:
    """Why the run ended early."""
    ends = [fact for fact in facts if isinstance(fact, Ended)]
    assert not ends[-1].finished
    return ends[-1].reason


@pytest.mark.parametrize(
    ("claim", "says"),
    [
        pytest.param(0.5, "says that it spent 0.5, and said 1 before", id="a ledger that was deleted"),
        pytest.param(1.0, "says that it spent 1, and said 1 before", id="a ledger of the round before"),
        pytest.param(None, "does not say what privacy it spent", id="nothing said"),
        pytest.param(math.nan, "does not say what privacy it spent", id="no number"),
        pytest.param(-1.0, "does not say what privacy it spent", id="less than nothing"),
        pytest.param(5.1, "the privacy budget is 5", id="more than there is"),
        pytest.param(math.inf, "the privacy budget is 5", id="without end"),
    ],
)
def test_an_update_that_does_not_say_more_than_before_and_no_more_than_there_is_counts_for_nothing(
    claim: float | None, says: str, tmp_path: Path
) -> None:
    room = Classroom(spoils=spoils(north=(1.0, claim), south=(1.0, 2.0), west=(1.5, 2.5)))
    first, second = done(run_of(document(2), tmp_path, room).facts)
    assert first.shares.keys() == set(NAMES)
    assert second.shares.keys() == {"south", "west"}
    assert says in second.refused["north"]
    assert (first.epsilon, second.epsilon) == (1.5, 2.5)


def test_what_is_said_counts_to_its_last_bit() -> None:
    more = math.nextafter(1.0, 2)
    told: list[Fact] = []
    room = Classroom(spoils=spoils(north=(1.0, more), south=(1.0, 1.0), west=(0.0, 0.0)))
    Rounds(document(2), RUN, room, keep=lambda _, fact: told.append(fact)).go_on(Kept(0, MODEL, {}))
    second = done(told)[1]
    # To have spent nothing again is no contradiction.
    assert second.shares.keys() == {"north", "west"}
    assert second.shares["north"].metrics == {"epsilon": more}
    assert second.refused.keys() == {"south"}


def test_what_was_refused_does_not_lower_what_a_party_has_said(tmp_path: Path) -> None:
    room = Classroom(spoils=spoils(north=(2.0, 1.0, 1.5), south=(1.0, 2.0, 3.0), west=(1.0, 2.0, 3.0)))
    run = run_of(document(3), tmp_path, room)
    assert ["north" in one.shares for one in done(run.facts)] == [True, False, False]


def test_an_aggregator_that_was_killed_still_knows_what_parties_said(tmp_path: Path) -> None:
    claims = spoils(north=(1.0, 0.5), south=(1.0, 2.0), west=(1.0, 2.0))
    # Round 1 trains and scores; the question of round 2 is the third.
    with pytest.raises(Killed):
        run_of(document(2), tmp_path, Classroom(spoils=claims, killed=2))
    run = run_of(document(2), tmp_path, Classroom(spoils=claims), attempt=1)
    assert run.kept.number == 2
    assert "said 1 before" in done(run.facts)[1].refused["north"]


def test_claims_are_the_last_of_each_party_and_of_those_alone_who_made_one() -> None:
    def fact(number: int, **claims: float | None) -> RoundDone:
        shares = {
            party: Share(
                examples=1, bytes=1, norm=1.0, metrics={} if one is None else {"epsilon": one, "loss": 9.0}, scores={}
            )
            for party, one in claims.items()
        }  # fmt: skip
        return RoundDone(
            at=1,
            number=number,
            seconds=1.0,
            shares=shares,
            refused={},
            scores={},
            epsilon=None,
            model="",
            down=1,
        )

    facts = (fact(1, north=1.0, south=0.25), fact(2, north=2.0, west=None))
    assert claims_of(facts) == {"north": 2.0, "south": 0.25}
    assert claims_of(()) == {}


# A run with real training.

SETTINGS: dict[str, int | str | tuple[str, ...]] = {
    "kinds": ("PLACE",), "train": "train.conll", "test": "train.conll", "length": 48, "stride": 8, "epochs": 1, "batch": 10,
    "rate-ppm": 2000, "head-rate-ppm": 5000, "precision": "fp32",
}  # fmt: skip
ROUND = Charge(noise=1.0, rate=0.5, steps=2)
BUDGET = math.ceil(MILLION * spent([ROUND, ROUND], delta=1e-3))
TWO = ("north", "south")
URI = "kbs:///{}/key/data"


def sentences(party: str) -> bytes:
    lines = []
    for number in range(20):
        for word in (WORDS[number % 15], "rome" if party == "north" else "york", "."):
            lines.append(f"{word}\t{'B-PLACE' if word in ('rome', 'york') else 'O'}")
        lines.append("")
    return "\n".join(lines).encode()


def private_document(folder: Path, **changes: Any) -> Federation:
    """Two parties, of which each may learn twice."""
    return federation(
        *TWO, rounds=5, metrics=("epsilon",),
        privacy=privacy(of="examples", epsilon_ppm=BUDGET, delta_inverse=1000),
        task=Task(
            plugin="ner", code=this_program().hex(), settings=SETTINGS,
            model=find_model(folder, signers=frozenset()).digest.hex(),
        ),
        **changes,
    )  # fmt: skip


def order_of(found: Federation, party: str) -> TaskOrder:
    """With everything that a workload needs before it talks to anybody."""
    document = signed(found)
    uri = URI.format(party)
    return TaskOrder(
        federation=(encode_signed(document),), digest=document.digest, word="w", lease=600, party=party, run=RUN, chain=(),
        bundle=b"", root="", tunnel="", keys={uri: bytes(32)}, signers=(), output=uri, peers={},
    )  # fmt: skip


class Hospitals:
    """Two parties in this process: their workloads, trainings and ledgers are the real ones, and answer an exchange."""

    def __init__(self, folder: Path, root: Path, stack: ExitStack) -> None:
        self.document = private_document(folder)
        self._folder = folder
        self._root = root
        self._stack = stack
        self._ledgers: dict[str, Ledger] = {}
        self._workloads: dict[str, Workload] = {}
        self.trained: list[tuple[str, int]] = []
        self.rolled_back: dict[str, bytes] = {}
        """Party → the ledger that its host lays in place before round 2, and starts the workload again."""
        for party in TWO:
            self.start(party)

    def state(self, party: str) -> Path:
        return self._root / party

    def ledger(self, party: str) -> Path:
        return self.state(party) / ledger_name(signed(self.document).digest, party)

    def start(self, party: str) -> None:
        """A workload begins, with nothing in memory of the one before."""
        if party in self._ledgers:
            self._ledgers[party].close()
        found = agreed(self.document)
        rules = self.document.privacy
        assert rules != "none"
        hidden = ExamplePrivacy(noise=1.0, clip=1.0, delta=1e-3, epsilon=rules.epsilon_ppm / MILLION)
        uri = URI.format(party)
        ledger = Ledger(
            self.state(party), first=found.digest, version=found.digest, party=party, privacy=hidden,
            keys=KeyFile(bytes(32), uri), key_uri=uri,
        )  # fmt: skip
        self._stack.callback(ledger.close)
        workload = Workload(
            Identity.generate(),
            Places(memory=self._root, data=self._root, model=self._folder, state=self.state(party)),
        )
        files = {"train.conll": sentences(party)}
        workload.training = NerTraining(
            self._stack.enter_context(
                opening(self._folder, SETTINGS, files, privacy=hidden, spend=ledger.spend)
            )
        )
        workload.agreed, workload.order = found, order_of(self.document, party)
        workload.leased = math.inf
        self._ledgers[party], self._workloads[party] = ledger, workload

    def ready(self) -> frozenset[str]:
        return frozenset(TWO)

    def ask(self, requests: Mapping[str, Request], *, seconds: float) -> Iterator[Reply]:
        for party, asked in requests.items():
            request = asked
            if request.kind == "train" and request.number == 2 and party in self.rolled_back:
                content = encode_arrays(self._workloads[party].final_model(request.model))
                self.ledger(party).write_bytes(self.rolled_back.pop(party))
                self.start(party)
                request = dataclasses.replace(asked, content=content)
            try:
                answer = self._workloads[party].work(request)
            except FederationError as error:
                yield Reply(party, request.run, request.number, b"", 0, {}, error=error.what)
                continue
            if request.kind == "train":
                self.trained.append((party, request.number))
            yield Reply(
                party,
                request.run,
                request.number,
                answer.content,
                answer.examples,
                answer.metrics,
                answer.error,
            )

    def run(self, attempt: int = 0) -> tuple[Fact, ...]:
        """By an aggregator that begins, or goes on from its checkpoint."""
        state, path = self._root / "aggregator", self._root / f"run-{attempt}"
        state.mkdir(exist_ok=True)
        path.mkdir()
        folder = RunFolder(path)
        training = self._workloads["north"].training
        assert training is not None
        folder.write_order(run_order(self.document, state), encode_arrays(training.arrays()))
        go_through(RunFolder.open(path), self)
        return folder.facts()


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_encoder(tmp_path_factory.mktemp("model") / "encoder")


@pytest.fixture
def hospitals(encoder: Path, tmp_path: Path) -> Iterator[Hospitals]:
    with ExitStack() as stack:
        yield Hospitals(encoder, tmp_path, stack)


def test_two_private_parties_learn_until_their_budget_is_spent_and_the_run_says_so(
    hospitals: Hospitals,
) -> None:
    facts = hospitals.run()
    first, second = done(facts)
    each = [spent([ROUND] * count, delta=1e-3) for count in (1, 2)]
    for fact, epsilon in zip((first, second), each, strict=True):
        assert {name: dict(share.metrics) for name, share in fact.shares.items()} == {
            name: {"epsilon": epsilon} for name in TWO
        }
        assert fact.epsilon == round(epsilon, 6)
    said = reason(facts)
    assert "round 3 has 0 updates" in said
    for party in TWO:
        assert f"{party}: the privacy budget is spent: this round would come to" in said
    # Who starts everything again gets no round more.
    for party in TWO:
        hospitals.start(party)
    again = hospitals.run(attempt=1)
    assert len(done(again)) == 2
    assert "the privacy budget is spent" in reason(again)
    assert hospitals.trained == [(party, number) for number in (1, 2) for party in TWO]


def test_a_party_whose_ledger_was_rolled_back_does_not_count_any_more(hospitals: Hospitals) -> None:
    hospitals.rolled_back["north"] = hospitals.ledger("north").read_bytes()
    facts = hospitals.run()
    assert len(done(facts)) == 1
    assert hospitals.trained == [(party, number) for number in (1, 2) for party in TWO]
    assert "round 2 has 1 updates" in reason(facts)
    assert "north says that it spent" in reason(facts)


def test_a_workload_that_was_not_told_where_it_keeps_its_ledger_does_not_begin(
    encoder: Path, tmp_path: Path
) -> None:
    order = order_of(private_document(encoder), "north")
    workload = Workload(Identity.generate(), Places(memory=tmp_path, data=tmp_path, model=encoder))
    with pytest.raises(UsageError, match="where to keep what privacy it spends") as refused:
        workload.begin(order)
    assert "--state" in str(refused.value)
    assert workload.order is None
    assert workload.training is None


def test_a_workload_whose_ledger_was_spoiled_does_not_begin_and_a_second_one_waits(
    encoder: Path, tmp_path: Path
) -> None:
    order = order_of(private_document(encoder), "north")
    places = Places(memory=tmp_path, data=tmp_path, model=encoder, state=tmp_path / "state")
    path = tmp_path / "state" / ledger_name(order.digest, "north")
    held = Ledger(
        tmp_path / "state", first=order.digest, version=order.digest, party="north",
        privacy=ExamplePrivacy(noise=1.0, clip=1.0, delta=1e-3, epsilon=5.0), keys=KeyFile(bytes(32)),
        key_uri=order.output,
    )  # fmt: skip
    with pytest.raises(UsageError, match="another workload uses"):
        Workload(Identity.generate(), places).begin(order)
    held.close()
    path.write_bytes(path.read_bytes()[:-1])
    spoiled = path.read_bytes()
    for _ in range(2):
        with pytest.raises(CloisterError, match=ledger_name(order.digest, "north")):
            Workload(Identity.generate(), places).begin(order)
    assert path.read_bytes() == spoiled
