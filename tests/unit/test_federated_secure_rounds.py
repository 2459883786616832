"""Rounds in which nobody sees an update: the mean comes out, whoever drops out, and nothing else reaches the aggregator."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from msgspec import structs

from cloister.encoding import decode_json, encode_json
from cloister.errors import FederationError
from cloister.federated.aggregation import Aggregator
from cloister.federated.exchange import Reply, Request
from cloister.federated.federation import Federation
from cloister.federated.rounds import digest_of
from cloister.federated.secure.rounds import LEAST, SecureRound
from cloister.federated.secure.terms import Relayed, Terms
from cloister.federated.secure.vectors import FRACTION, weighted
from cloister.federated.secure.wire import STEPS, pack, threshold, unpack
from cloister.federated.updates import encode_arrays
from federation_parts import aggregation, privacy
from secure_parts import LARGEST, MILLION, MODEL, Room, Run, go, plain_mean, same_model, secure

FOUR = ("east", "north", "south", "west")
HALF_A_STEP = LARGEST / FRACTION / 2


def room(tmp_path: Path, *names: str, **changes: Any) -> Room:
    return Room(secure(*names, **changes), tmp_path)


def require_mean(room: Room, run: Run, parties: set[str], number: int = 1) -> None:
    """After ``number`` rounds of which only the last is looked at, with the model that it began from known."""
    updates = {name: room.parties[name].trained[number] for name in parties}
    wanted = plain_mean(MODEL, updates)
    for name, array in run.kept.model.items():
        assert array.dtype == MODEL[name].dtype
        assert array.shape == MODEL[name].shape
        # By half a step, and by float32's rounding of the difference and of the sum.
        assert np.all(np.abs(array - wanted[name]) <= HALF_A_STEP + 2.0**-22)


@pytest.mark.parametrize("names", [("north", "south"), ("north", "south", "west"), FOUR])
def test_the_weighted_mean_of_all_comes_out(tmp_path: Path, names: tuple[str, ...]) -> None:
    parties = room(tmp_path, *names, rounds=1)
    run = go(parties)
    assert run.ended.finished
    require_mean(parties, run, set(names))
    assert not same_model(run.kept.model, MODEL)


def test_rounds_follow_one_another_each_from_the_model_of_the_one_before(tmp_path: Path) -> None:
    parties = room(tmp_path, rounds=3)
    run = go(parties)
    assert [one.number for one in run.rounds] == [1, 2, 3]
    assert len({one.model for one in run.rounds}) == 3
    # The model itself goes to a party once: with its score, and not again to train from.
    firsts = [request["north"] for request in parties.asked if request["north"].kind == "keys"]
    assert [bool(unpack(request.content)[1]) for request in firsts] == [True, False, False]


def test_what_is_told_of_a_party_has_neither_its_distance_nor_its_weight(tmp_path: Path) -> None:
    parties = room(tmp_path, rounds=1)
    [done] = go(parties).rounds
    assert not done.refused
    assert done.scores == {"f1": 0.5}
    for name, share in done.shares.items():
        assert (share.norm, share.examples) == (None, 0)
        assert (share.metrics, share.scores) == ({"loss": 0.25}, {"f1": 0.5})
        said = [one for one in parties.replies if one.party == name and one.examples == 0]
        assert share.bytes == sum(len(one.content) for one in said) > 8 * 16


def test_the_aggregator_is_given_no_update_and_no_part_of_one(tmp_path: Path) -> None:
    parties = room(tmp_path, *FOUR, rounds=1, metrics=("loss",))
    go(parties)
    given = b"".join(reply.content for reply in parties.replies)
    terms = Terms(
        run="x", number=1, parties={name: one.identity.key.public_key() for name, one in parties.parties.items()},
        threshold=3, largest_ppm=LARGEST * MILLION, model="00" * 32,
        shapes={name: one.shape for name, one in MODEL.items()},
    )  # fmt: skip
    for party in parties.parties.values():
        update, examples = party.trained[1]
        difference = {name: update[name] - one for name, one in MODEL.items()}
        vector = weighted(difference, examples, terms)
        pieces = [vector[1:].tobytes()[place : place + 8] for place in range(0, 8 * terms.values, 8)]
        pieces += [one.tobytes()[place : place + 8] for one in (*update.values(), *difference.values())
                   for place in range(0, one.nbytes - 7, 4)]  # fmt: skip
        assert len(pieces) > 40
        assert not [piece for piece in pieces if piece in given]
        assert party.memory.before("ab" * 16, 1) is not None
    assert {reply.examples for reply in parties.replies} == {0, 10}  # the second is of scores


def test_fedadam_goes_on_from_the_sum_as_from_the_plain_mean(tmp_path: Path) -> None:
    how = aggregation(secure=True, method="fedadam", largest_ppm=LARGEST * MILLION)
    parties = room(tmp_path, rounds=1, aggregation=how)
    run = go(parties)
    updates = {name: one.trained[1] for name, one in parties.parties.items()}
    wanted = Aggregator(plainly(parties.federation)).combine(MODEL, updates, number=1)
    for name, array in run.kept.model.items():
        np.testing.assert_allclose(array, wanted[name], atol=1e-6)
    assert run.kept.state.keys() == MODEL.keys()


def plainly(federation: Federation) -> Federation:
    return structs.replace(federation, aggregation=structs.replace(federation.aggregation, secure=False))


# --- dropping out


@pytest.mark.parametrize("step", STEPS)
def test_one_of_four_may_drop_out_in_any_step(tmp_path: Path, step: str) -> None:
    parties = room(tmp_path, *FOUR, rounds=1)
    parties.gone["south", 1] = step
    run = go(parties)
    assert run.ended.finished
    # Its update is in the sum once its masked vector is there.
    left = set(FOUR) if step in ("agree", "reveal") else set(FOUR) - {"south"}
    require_mean(parties, run, left)
    [done] = run.rounds
    assert done.shares.keys() == left
    expected = {} if "south" in left else {"south": f"nothing came in time for the step {step!r}"}
    assert done.refused == expected
    # It is asked nothing further in this round but what it makes of the model, if it is in it.
    kinds = [request["south"].kind for request in parties.asked if "south" in request]
    assert kinds[: STEPS.index(step) + 1] == list(STEPS[: STEPS.index(step) + 1])
    assert kinds[STEPS.index(step) + 1 :] == (["score"] if "south" in left else [])


@pytest.mark.parametrize("step", ["keys", "shares"])
def test_three_of_whom_one_drops_out_early_have_no_round_and_say_why(tmp_path: Path, step: str) -> None:
    parties = room(tmp_path)
    parties.gone["south", 1] = step
    run = go(parties)
    assert not run.rounds
    assert not run.ended.finished
    assert "2 parties are left in round 1, and 3 at least" in run.ended.reason
    assert f"south: nothing came in time for the step {step!r}" in run.ended.reason
    assert same_model(run.kept.model, MODEL)
    # Nothing binds anybody yet: all try the same round again, and learn nothing anew.
    parties.gone.clear()
    again = go(parties, run.kept)
    assert again.ended.finished
    assert {one.trainings for one in parties.parties.values()} == {2}


@pytest.mark.parametrize("step", ["masked", "agree", "reveal"])
def test_three_of_whom_one_drops_out_late_lose_the_round_and_go_on_with_the_next(
    tmp_path: Path, step: str
) -> None:
    parties = room(tmp_path)
    parties.gone["south", 1] = step
    run = go(parties)
    lost, done = run.rounds
    assert lost.shares == {}
    assert lost.refused["south"] == f"nothing came in time for the step {step!r}"
    assert "round 1 has no sum (2 parties are left" in lost.refused["north"]
    assert lost.model == parties.asked[0]["north"].model  # as it was
    assert done.shares.keys() == {"north", "south", "west"}
    assert run.ended.finished
    require_mean(parties, run, {"north", "south", "west"}, number=2)


def test_two_lost_rounds_in_a_row_end_the_run(tmp_path: Path) -> None:
    parties = room(tmp_path, rounds=4)
    parties.gone |= {("south", number): "masked" for number in (1, 2, 3)}
    run = go(parties)
    assert [one.number for one in run.rounds] == [1]
    assert not run.ended.finished
    assert "round 2 has no sum" in run.ended.reason


def test_who_comes_back_with_another_key_after_masked_vectors_went_out_loses_that_round_alone(
    tmp_path: Path,
) -> None:
    parties = room(tmp_path, rounds=3)
    parties.killed = 3  # when lists of who is left would be signed
    killed = go(parties)
    assert not killed.facts
    parties.restart("south")
    run = go(parties, killed.kept)
    assert [sorted(one.shares) for one in run.rounds] == [
        [],
        ["north", "south", "west"],
        ["north", "south", "west"],
    ]
    assert "begun under other terms" in run.rounds[0].refused["north"]
    assert run.ended.finished


def test_who_comes_back_with_another_workload_between_two_rounds_gets_the_model_again(tmp_path: Path) -> None:
    parties = room(tmp_path)

    def restarts(reply: Reply, request: Request) -> Reply:
        if (reply.party, request.kind, request.number) == ("west", "score", 1):
            parties.restart("south")
        return reply

    parties.spoils = restarts
    run = go(parties)
    assert run.ended.finished
    assert [sorted(one.shares) for one in run.rounds] == [["north", "south", "west"]] * 2
    [second] = [one for one in parties.asked if one["north"].kind == "keys" and one["north"].number == 2]
    sent = {name: bool(unpack(request.content)[1]) for name, request in second.items()}
    assert sent == {"north": False, "south": True, "west": False}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return go(room(tmp_path_factory.mktemp("undisturbed")))


@pytest.mark.parametrize("question", range(12))
def test_an_aggregator_that_is_killed_at_any_question_goes_on_with_the_same_result(
    tmp_path: Path, question: int, undisturbed: Run
) -> None:
    parties = room(tmp_path)
    parties.killed = question
    killed = go(parties)
    assert len(parties.asked) == question
    assert [one.number for one in killed.rounds] == [1][: question // 6]
    run = go(parties, killed.kept)
    assert run.ended.finished
    assert same_model(run.kept.model, undisturbed.kept.model)


# --- who may not take part


@pytest.mark.parametrize("step", STEPS[:3])
def test_a_party_whose_evidence_ends_within_the_round_drops_out(tmp_path: Path, step: str) -> None:
    parties = room(tmp_path, *FOUR, rounds=1)

    def ends(reply: Reply, request: Request) -> Reply:
        if (reply.party, request.kind) == ("south", step):
            parties.present.discard("south")
        return reply

    parties.spoils = ends
    [done] = go(parties).rounds
    assert done.shares.keys() == set(FOUR) - {"south"}
    assert done.refused == {"south": "it is not ready any more: its evidence ended, or its workload is gone"}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        pytest.param({"run": "cd" * 16}, "another run or round", id="of another run"),
        pytest.param({"number": 2}, "another run or round", id="of another round"),
        pytest.param({"content": b""}, "is not JSON", id="nothing"),
        pytest.param({"content": b"{}"}, "south", id="no message"),
        pytest.param({"error": "the task failed with ValueError"}, "ValueError", id="an error"),
    ],
)
@pytest.mark.parametrize("step", ["keys", "shares", "masked"])
def test_an_answer_that_does_not_count_leaves_the_others(
    tmp_path: Path, step: str, changes: dict[str, Any], words: str
) -> None:
    parties = room(tmp_path, *FOUR, rounds=1)
    parties.spoils = lambda reply, request: (
        replace(reply, **changes) if (reply.party, request.kind) == ("south", step) else reply
    )
    run = go(parties)
    [done] = run.rounds
    assert done.refused.keys() == {"south"}
    assert words in done.refused["south"] or (step == "masked" and "cut short" in done.refused["south"])
    require_mean(parties, run, set(FOUR) - {"south"})


def test_a_party_does_not_answer_in_another_s_name(tmp_path: Path) -> None:
    parties = room(tmp_path, *FOUR, rounds=1)
    said: dict[str, Reply] = {}

    def swapped(reply: Reply, request: Request) -> Reply:
        said[f"{reply.party} {request.kind}"] = reply
        if (reply.party, request.kind) == ("south", "keys"):
            return replace(said["north keys"], party="south")
        return reply

    parties.spoils = swapped
    run = go(parties)
    assert run.rounds[0].refused == {"south": "south sends what another party says"}
    require_mean(parties, run, set(FOUR) - {"south"})


def test_a_vector_with_a_flipped_bit_is_not_added(tmp_path: Path) -> None:
    parties = room(tmp_path, *FOUR, rounds=1)

    def flipped(reply: Reply, request: Request) -> Reply:
        if (reply.party, request.kind) != ("south", "masked"):
            return reply
        head, vector = unpack(reply.content)
        return replace(reply, content=pack(head, bytes([vector[0] ^ 1]) + bytes(vector[1:])))

    parties.spoils = flipped
    run = go(parties)
    assert run.rounds[0].refused == {"south": "the vector of south is not the one that it signed"}
    require_mean(parties, run, set(FOUR) - {"south"})


def test_who_does_not_say_what_privacy_it_spent_is_out_before_anything_is_masked(tmp_path: Path) -> None:
    parties = room(tmp_path, *FOUR, rounds=1, privacy=privacy(of="examples"), metrics=("epsilon",))
    parties.spoils = lambda reply, request: (
        replace(reply, metrics={"epsilon": 0.5})
        if request.kind == "keys" and reply.party != "south"
        else reply
    )
    [done] = go(parties).rounds
    assert done.refused == {"south": "south does not say what privacy it spent"}
    assert done.epsilon == 0.5
    assert done.shares["north"].metrics == {"epsilon": 0.5}


def test_a_party_of_which_the_roster_has_no_key_is_not_asked(tmp_path: Path) -> None:
    parties = room(tmp_path, *FOUR, rounds=1)
    with pytest.raises(FederationError, match="1 parties are ready, and a round needs 2"):
        SecureRound(
            parties.federation, "run", 1, MODEL, "00" * 32, {"north": parties.keys()["north"]},
            exchange=parties, clock=lambda: 0.0,
        )  # fmt: skip


# --- time


def test_training_has_half_of_the_round_s_time_and_what_it_does_not_need_is_the_others_(
    tmp_path: Path,
) -> None:
    parties = room(tmp_path, rounds=1, deadline=80)
    times = iter([0.0, 0.0, 38.0, 50.0, 90.0, 95.0])
    tried = SecureRound(
        parties.federation, "ab" * 16, 1, MODEL, digest_of(encode_arrays(MODEL)), parties.keys(), exchange=parties,
        clock=lambda: next(times),
    )  # fmt: skip
    tried.mean(dict.fromkeys(parties.keys(), encode_arrays(MODEL)), lambda _reply: None)
    # Begun at 0; until 40, 50, 60, 70 and 80, and a moment at least.
    assert parties.seconds == [40.0, 12.0, 10.0, LEAST, LEAST]


@pytest.mark.parametrize(
    ("minimum", "parties", "least"), [(2, 2, 2), (2, 3, 3), (2, 4, 3), (4, 4, 4), (2, 16, 11), (14, 16, 14)]
)
def test_more_than_two_thirds_stay_and_never_less_than_the_federation_says(
    minimum: int, parties: int, least: int
) -> None:
    assert threshold(minimum, parties) == least


def test_the_roster_that_goes_to_the_parties_is_what_they_signed(tmp_path: Path) -> None:
    parties = room(tmp_path, rounds=1)
    go(parties)
    [rosters] = [list(one.values()) for one in parties.asked if next(iter(one.values())).kind == "shares"]
    assert len({one.content for one in rosters}) == 1
    keys = [one.content for one in parties.replies if b'"step":"keys"' in one.content]
    assert decode_json(rosters[0].content, Relayed, what="the roster").said == tuple(keys)
    assert encode_json(Relayed(said=tuple(keys))) == rosters[0].content
