"""The rounds of a run: which replies count, what ends a run, and that one that was killed comes to the same model."""

from __future__ import annotations

import dataclasses
import math
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cloister.federated.exchange import Reply
from cloister.federated.federation import Federation, Method
from cloister.federated.progress import Ended, Fact, RoundDone
from cloister.federated.rounds import MAX_EXAMPLES, Kept, Rounds, digest_of
from cloister.federated.updates import Arrays, decode_arrays, encode_arrays
from federation_parts import (
    MILLION,
    MODEL,
    NAMES,
    Classroom,
    Killed,
    aggregation,
    federation,
    privacy,
    run_of,
)

RUN = "5e" * 16


class Clock:
    """A monotonic clock that moves when somebody sleeps, or is told to."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        assert seconds > 0
        self.now += seconds


def go(
    document: Federation, classroom: Classroom, *, clock: Clock | None = None, kept: Kept | None = None
) -> tuple[Kept, list[Fact]]:
    """A run in this process: what it came to, and what it told."""
    told: list[Fact] = []
    time = clock or Clock()
    rounds = Rounds(
        document, RUN, classroom, keep=lambda _kept, fact: told.append(fact), now=lambda: 1, clock=time, sleep=time.sleep
    )  # fmt: skip
    return rounds.go_on(kept or Kept(0, MODEL, {})), told


def one_round(change: Callable[[Reply], Iterable[Reply]], **more: Any) -> RoundDone:
    """What is told of a round in which north's reply is replaced."""
    document = federation(rounds=1, aggregation=aggregation(largest_ppm=5 * MILLION))
    _, told = go(document, Classroom(spoils={("north", 1): change}), **more)
    found, ended = told
    assert isinstance(found, RoundDone)
    assert isinstance(ended, Ended)
    assert ended.finished
    return found


def without(party: str) -> str:
    """The model of a first round in which ``party`` had no update."""
    document = federation(rounds=1, aggregation=aggregation(largest_ppm=5 * MILLION))
    _, told = go(document, Classroom(spoils={(party, 1): lambda _reply: []}))
    assert isinstance(told[0], RoundDone)
    return told[0].model


def of_weights(change: Callable[[dict[str, Any]], dict[str, Any]]) -> Callable[[Reply], list[Reply]]:
    def changed(reply: Reply) -> list[Reply]:
        arrays = change(decode_arrays(reply.content, what="the update", limit=1 << 20))
        return [dataclasses.replace(reply, content=encode_arrays(arrays))]

    return changed


def replaced(**changes: Any) -> Callable[[Reply], list[Reply]]:
    return lambda reply: [dataclasses.replace(reply, **changes)]


def weight(value: float) -> Callable[[Reply], list[Reply]]:
    return of_weights(lambda found: found | {"crf.start": np.full(3, value, dtype=np.float32)})


ATTACKS = [
    pytest.param(replaced(number=2), "is of round 2", id="of a later round"),
    pytest.param(replaced(number=0), "is of round 0", id="of an earlier round"),
    pytest.param(replaced(run="00" * 16), "of another run", id="of another run"),
    pytest.param(replaced(run=""), "of another run", id="of no run"),
    pytest.param(weight(math.nan), "numbers that are none", id="NaN"),
    pytest.param(weight(math.inf), "numbers that are none", id="infinite"),
    pytest.param(weight(1e6), "goes 1.73e+06 from the model", id="giant"),
    pytest.param(weight(3e38), "from the model", id="giant, whose square is none in 32 bits"),
    pytest.param(
        of_weights(lambda found: found | {"more": np.ones(2, np.float32)}), "has 1 that it lacks", id="a tensor more"
    ),
    pytest.param(
        of_weights(lambda found: {"crf.start": found["crf.start"]}), "lacks 2 of the model's tensors", id="tensors less"
    ),
    pytest.param(
        of_weights(lambda found: found | {"crf.start": np.zeros((3, 1), np.float32)}), "the shape", id="another shape"
    ),
    pytest.param(replaced(examples=0), "of 0 examples", id="of no examples"),
    pytest.param(replaced(examples=-10), "of -10 examples", id="of fewer than no examples"),
    pytest.param(replaced(examples=MAX_EXAMPLES + 1), "are believed", id="of more examples than anybody has"),
    pytest.param(replaced(content=b""), "not safetensors", id="empty"),
    pytest.param(replaced(content=b"\x80\x04K\x01."), "not safetensors", id="a pickle"),
    pytest.param(replaced(content=bytes(200_000)), "at most are taken", id="longer than any update"),
    pytest.param(replaced(error="the task failed with ValueError"), "failed with ValueError", id="a workload that failed"),
    pytest.param(lambda _reply: [], "nothing came within 600 s", id="silent"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "words"), ATTACKS)
def test_an_update_that_may_not_be_used_counts_for_nobody(
    change: Callable[[Reply], Iterable[Reply]], words: str
) -> None:
    found = one_round(change)
    assert found.refused.keys() == {"north"}
    assert words in found.refused["north"]
    assert found.shares.keys() == {"south", "west"}
    assert found.model == without("north")  # not even a part of it is in the model


def test_an_update_that_comes_late_counts_for_nobody() -> None:
    clock = Clock()

    def late(reply: Reply) -> Iterable[Reply]:
        clock.now += 601
        yield reply

    # Whose turn comes after north's is late as well, so it is asked last.
    document = federation(rounds=1)
    room = Classroom(order=("south", "west", "north"), spoils={("north", 1): late})
    _, told = go(document, room, clock=clock)
    assert isinstance(told[0], RoundDone)
    assert told[0].refused == {"north": "an update of 'north' came 1 s late"}


def test_an_update_that_comes_twice_counts_once() -> None:
    """And its party is not said to be refused for it."""
    plain = one_round(lambda reply: [reply])
    twice = one_round(lambda reply: [reply, dataclasses.replace(reply, examples=500), reply])
    assert (twice.model, twice.shares, twice.refused) == (plain.model, plain.shares, {})


def test_a_good_update_counts_whatever_else_came_in_its_partys_name() -> None:
    plain = one_round(lambda reply: [reply])
    mixed = one_round(lambda reply: [dataclasses.replace(reply, run="00" * 16), reply])
    assert (mixed.model, mixed.refused) == (plain.model, {})


def test_an_update_of_who_takes_no_part_counts_for_nobody() -> None:
    plain = one_round(lambda reply: [reply])
    stranger = one_round(lambda reply: [reply, dataclasses.replace(reply, party="mallory")])
    assert stranger.model == plain.model
    assert stranger.shares.keys() == set(NAMES)
    assert "takes no part" in stranger.refused["mallory"]


def test_a_party_that_is_excluded_while_the_round_runs_counts_for_nobody() -> None:
    room = Classroom()

    def out(reply: Reply) -> Iterable[Reply]:
        yield reply
        room.present.discard("north")

    room.spoils = {("north", 1): out}
    _, told = go(federation(rounds=2, aggregation=aggregation(largest_ppm=5 * MILLION)), room)
    first, second, ended = told
    assert isinstance(first, RoundDone)
    assert isinstance(second, RoundDone)
    assert isinstance(ended, Ended)
    assert first.refused == {"north": "it is not ready any more: its evidence ended, or its workload is gone"}
    assert first.model == without("north")
    assert second.shares.keys() == {"south", "west"}
    assert ended.finished
    assert all("north" not in asked for asked in room.asked[1:])  # nor is it shown the model


def test_a_round_with_too_few_updates_ends_the_run_with_a_fact_and_keeps_the_round_before() -> None:
    room = Classroom(spoils={("north", 2): weight(math.nan), ("south", 2): replaced(run="")})
    kept, told = go(federation(rounds=3), room)
    first, ended = told
    assert isinstance(first, RoundDone)
    assert isinstance(ended, Ended)
    assert not ended.finished
    assert "round 2 has 1 updates that may be used, and needs 2" in ended.reason
    assert "north: the update of north: crf.start has numbers that are none" in ended.reason
    assert (kept.number, ended.rounds, ended.model) == (1, 1, first.model)
    assert digest_of(encode_arrays(kept.model)) == first.model


def test_a_run_for_which_too_few_are_ready_waits_a_rounds_time_and_no_longer() -> None:
    room, clock = Classroom(), Clock()
    room.present = {"north"}
    kept, told = go(federation(rounds=3, deadline=600), room, clock=clock)
    (ended,) = told
    assert isinstance(ended, Ended)
    assert "1 parties are ready, and a round needs 2" in ended.reason
    assert 600 <= clock.now < 602
    assert (kept.number, room.asked) == (0, [])


def test_a_run_waits_for_parties_that_come_in_time() -> None:
    room, clock = Classroom(), Clock()
    room.present = {"north"}

    def sleep(seconds: float) -> None:
        clock.now += seconds
        if clock.now > 30:
            room.present |= set(NAMES)

    told: list[Fact] = []
    Rounds(
        federation(rounds=1), RUN, room, keep=lambda _kept, fact: told.append(fact), clock=clock, sleep=sleep
    ).go_on(Kept(0, MODEL, {}))
    assert isinstance(told[0], RoundDone)
    assert told[0].shares.keys() == set(NAMES)


def test_a_budget_of_privacy_that_is_spent_ends_the_run_with_the_model_that_there_is() -> None:
    """Clients' privacy: noise of 4 clips costs an epsilon of about 1.2 for one round, 1.7 for two."""
    hidden = privacy(noise_ppm=4 * MILLION, epsilon_ppm=1_800_000)
    kept, told = go(federation(rounds=5, privacy=hidden), Classroom())
    *done, ended = told
    assert [(fact.number, fact.epsilon is not None) for fact in done if isinstance(fact, RoundDone)] == [
        (1, True), (2, True),
    ]  # fmt: skip
    spent = [fact.epsilon for fact in done if isinstance(fact, RoundDone) and fact.epsilon is not None]
    assert 0 < spent[0] < spent[1] <= 1.8
    assert isinstance(ended, Ended)
    assert ended.finished
    assert "the privacy budget is spent: round 3 would come to" in ended.reason
    assert (kept.number, ended.rounds) == (2, 2)


def test_a_budget_that_allows_no_round_at_all_gives_nobody_a_model() -> None:
    hidden = privacy(noise_ppm=4 * MILLION, epsilon_ppm=100_000)
    kept, (ended,) = go(federation(rounds=5, privacy=hidden), Classroom())
    assert isinstance(ended, Ended)
    assert not ended.finished
    assert "round 1 would come to" in ended.reason
    assert kept.number == 0


def test_a_party_that_says_it_spent_more_than_there_is_does_not_count() -> None:
    """Of examples: whose own DP-SGD is the accountant."""
    document = federation(
        rounds=1, privacy=privacy(of="examples", epsilon_ppm=2 * MILLION), metrics=("epsilon", "f1")
    )
    spoils = {(name, 1): replaced(metrics={"epsilon": 1.5}) for name in ("south", "west")}
    _, told = go(document, Classroom(spoils=spoils | {("north", 1): replaced(metrics={"epsilon": 2.5})}))
    assert isinstance(told[0], RoundDone)
    assert told[0].shares.keys() == {"south", "west"}
    assert "privacy budget" in told[0].refused["north"]
    assert told[0].epsilon == 1.5


def test_what_may_not_leave_and_what_is_no_number_is_not_told() -> None:
    said = {"loss": 0.123456789, "f1": math.nan, "words": 4.0, "seconds": 3.0}
    found = one_round(replaced(metrics=said))
    assert found.shares["north"].metrics == {"loss": 0.123457}
    assert one_round(replaced(metrics={"loss": -1.0, "f1": math.inf})).shares["north"].metrics == {}
    assert found.shares["north"].scores == {"f1": 0.5}
    assert found.scores == {"f1": 0.5}


def test_a_score_of_who_was_not_asked_or_of_another_round_says_nothing() -> None:
    class Told(Classroom):
        def ask(self, requests: Any, *, seconds: float) -> Any:
            for reply in super().ask(requests, seconds=seconds):
                if not reply.content:  # a score
                    yield dataclasses.replace(reply, number=reply.number + 1, metrics={"f1": 1.0})
                    yield dataclasses.replace(reply, party="mallory", metrics={"f1": 1.0})
                    yield dataclasses.replace(reply, error="no", metrics={"f1": 1.0})
                yield reply

    _, told = go(federation(rounds=1), Told())
    assert isinstance(told[0], RoundDone)
    assert told[0].scores == {"f1": 0.5}
    assert told[0].shares.keys() == set(NAMES)


def test_the_model_goes_to_each_party_once_a_round() -> None:
    room = Classroom()
    _, told = go(federation(rounds=2), room)
    train, score, again, _ = room.asked
    assert {one.kind for one in train.values()} == {"train"}
    assert {one.kind for one in score.values()} == {"score"}
    assert all(one.content for one in (*train.values(), *score.values()))
    assert all(one.content == b"" and one.number == 2 for one in again.values())  # who scored it has it
    assert isinstance(told[0], RoundDone)
    assert {one.model for one in again.values()} == {told[0].model}


def test_the_model_is_the_mean_by_examples() -> None:
    room = Classroom()
    kept, _ = go(federation(rounds=1), room)
    replies = [room.answer(name, room.asked[0][name]) for name in NAMES]
    updates = [decode_arrays(one.content, what="the update", limit=1 << 20) for one in replies]
    weights = [one.examples for one in replies]
    for name in MODEL:
        mean = np.average([one[name].astype(np.float64) for one in updates], axis=0, weights=weights)
        assert np.allclose(kept.model[name], mean, rtol=1e-3 if name == "half" else 1e-6)


@pytest.mark.parametrize(
    ("changes", "examples", "normed"),
    [
        pytest.param({"metrics": ("examples", "loss")}, 70, True, id="listed"),
        pytest.param({"metrics": ("loss",)}, 0, True, id="not listed"),
        pytest.param({"metrics": ("loss",), "privacy": privacy()}, 0, False, id="where clients are hidden"),
    ],
)
def test_of_examples_and_norms_others_hear_what_the_federation_lists_and_no_noise_is_to_hide(
    changes: dict[str, Any], examples: int, normed: bool
) -> None:
    def told(reply: Reply) -> list[Reply]:
        return [dataclasses.replace(reply, examples=7, metrics={"loss": 0.5, "examples": 70.0})]

    _, facts = go(federation(rounds=1, **changes), Classroom(spoils={(name, 1): told for name in NAMES}))
    (done,) = [fact for fact in facts if isinstance(fact, RoundDone)]
    assert {share.examples for share in done.shares.values()} == {examples}
    assert {share.norm is not None for share in done.shares.values()} == {normed}


METHODS: tuple[Method, ...] = ("fedavg", "fedprox", "fedadam", "median")


def document_of(method: Method, rounds: int) -> Federation:
    proximal = 10_000 if method == "fedprox" else 0
    return federation(rounds=rounds, aggregation=aggregation(method=method, proximal_ppm=proximal))


def same(one: Arrays, other: Arrays) -> bool:
    return one.keys() == other.keys() and all(one[name].tobytes() == other[name].tobytes() for name in one)


@settings(max_examples=20)
@given(
    method=st.sampled_from(METHODS),
    rounds=st.integers(1, 4),
    kills=st.lists(st.integers(0, 7), min_size=1, max_size=3),
    silent=st.booleans(),
)
def test_a_run_that_was_killed_comes_to_the_same_bit_for_bit(
    method: Method, rounds: int, kills: list[int], silent: bool
) -> None:
    """Killed at any question, any number of times, and gone on with from its sealed checkpoint."""
    document = document_of(method, rounds)
    spoils = {("south", 2): lambda _reply: []} if silent else {}
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        whole = run_of(document, root / "whole", Classroom(spoils=spoils))
        for number, kill in enumerate(kills):
            try:
                run_of(document, root / "killed", Classroom(spoils=spoils, killed=kill), attempt=number)
            except Killed:
                continue
        again = run_of(document, root / "killed", Classroom(spoils=spoils), attempt=len(kills))
    assert again.kept.number == whole.kept.number == rounds
    assert same(again.kept.model, whole.kept.model)
    assert same(again.kept.state, whole.kept.state)
    assert bool(whole.kept.state) == (method == "fedadam")
    models = [
        [(fact.number, fact.model, fact.shares) for fact in run.facts if isinstance(fact, RoundDone)]
        for run in (whole, again)
    ]
    assert models[0] == models[1]  # each round is told once


def test_moments_of_fedadam_matter_for_what_follows() -> None:
    """So that the test above could fail: a run that forgets them comes to another model."""
    document = document_of("fedadam", 3)
    stages: list[Kept] = []
    Rounds(document, RUN, Classroom(), keep=lambda kept, _fact: stages.append(kept)).go_on(Kept(0, MODEL, {}))
    resumed, _ = go(document, Classroom(), kept=stages[1])
    forgetful, _ = go(document, Classroom(), kept=dataclasses.replace(stages[1], state={}))
    assert same(resumed.model, stages[-1].model)
    assert not same(forgetful.model, stages[-1].model)
