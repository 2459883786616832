"""The folder between the aggregator and its ServerApp: one writer for each file, and a run that goes on where it was."""

from __future__ import annotations

import stat
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloister.errors import CloisterError, FederationError, FormatError, WrongKey
from cloister.federated.checkpoint import NAME
from cloister.federated.flower.run_folder import MAX_REASON, RunFolder, go_through
from cloister.federated.progress import Begun, Ended, Fact, PartyState, RoundDone, encode_fact
from cloister.federated.updates import encode_arrays
from federation_parts import MODEL, NAMES, Classroom, Killed, federation, run_of, run_order

DOCUMENT = federation(rounds=3)


def state_of(party: str = "north", state: Any = "ready", at: int = 1) -> PartyState:
    return PartyState(
        at=at, party=party, state=state, reason="", agent="", workload="", measurements="", tee="tdx", until=9
    )  # fmt: skip


def begun(**changes: Any) -> Begun:
    plain: dict[str, Any] = {
        "at": 2, "run": "5e" * 16, "federation": "hospitals", "version": 1, "digest": "ab" * 32, "parties": NAMES,
        "rounds": 3, "done": 0, "method": "fedavg", "secure": False, "epsilon": None, "aggregator": "ee" * 32,
        "simulated": True,
    }  # fmt: skip
    return Begun(**(plain | changes))


def ended(**changes: Any) -> Ended:
    plain: dict[str, Any] = {"at": 3, "finished": True, "reason": "", "rounds": 3, "model": "ee" * 32}
    return Ended(**(plain | changes))


def kinds(facts: tuple[Fact, ...]) -> list[str]:
    return [type(fact).__name__ for fact in facts]


def test_the_order_and_the_first_model_come_out_as_they_went_in(tmp_path: Path) -> None:
    folder, order = RunFolder(tmp_path), run_order(DOCUMENT, tmp_path)
    folder.write_order(order, b"model")
    assert RunFolder.open(str(tmp_path)).order() == order
    assert folder.initial() == b"model"
    for path in tmp_path.iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


@given(
    nodes=st.dictionaries(st.text("abc-", min_size=1), st.integers(0, 2**64 - 1), max_size=8),
    key=st.binary(max_size=120),
)
def test_who_is_ready_comes_out_as_it_went_in(
    tmp_path_factory: pytest.TempPathFactory, nodes: dict[str, int], key: bytes
) -> None:
    """Also numbers that JSON has none of: those of nodes have 64 bits."""
    folder = RunFolder(tmp_path_factory.mktemp("run"))
    assert (folder.nodes(), folder.keys()) == ({}, {})
    keys = dict.fromkeys(nodes, key)
    folder.write_roster(nodes, keys)
    assert (folder.nodes(), folder.keys()) == (nodes, keys)


def test_what_becomes_of_parties_is_among_the_facts_once_and_in_its_place(tmp_path: Path) -> None:
    aggregator, app = RunFolder(tmp_path), RunFolder.open(tmp_path)
    aggregator.tell_of_party(state_of("north"))
    assert aggregator.facts() == (state_of("north"),)  # before the ServerApp has started
    app.begin((), begun())
    aggregator.tell_of_party(state_of("south"))
    assert kinds(aggregator.facts()) == ["PartyState", "Begun", "PartyState"]
    app.tell(ended())
    expected = (state_of("north"), begun(), state_of("south"), ended())
    assert aggregator.facts() == app.all_told() == expected
    app.take_up()
    assert aggregator.facts() == expected


def test_a_fact_that_is_being_written_is_not_read_yet(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.begin((), begun())
    with (tmp_path / "facts.jsonl").open("ab") as file:
        file.write(encode_fact(ended())[:-5])
    assert kinds(folder.facts()) == ["Begun"]
    assert folder.ended() is None


def test_a_run_has_an_end_once_it_is_told(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    assert folder.ended() is None
    folder.begin((), begun())
    assert folder.ended() is None
    folder.tell(ended(finished=False, reason="too few"))
    assert folder.ended() == ended(finished=False, reason="too few")


def test_the_end_of_an_earlier_run_is_none_of_one_that_goes_on(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.begin((begun(), ended(finished=False, reason="too few")), begun(done=1))
    assert folder.ended() is None
    folder.tell(ended())
    assert folder.ended() == ended()


def test_why_it_cannot_go_on_is_told_in_bounds(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    assert folder.failed() == ""
    folder.fail("the checkpoint is of another run")
    assert folder.failed() == "the checkpoint is of another run"
    folder.fail("ü" * 10_000)
    assert len(folder.failed().encode("utf-8", "replace")) <= MAX_REASON + 2
    folder.fail("half a \ud800 character")
    assert folder.failed() == "half a ? character"


@pytest.mark.parametrize(
    ("name", "data"),
    [
        pytest.param("order.json", b"{}", id="an order without anything"),
        pytest.param("order.json", bytes(5 << 20), id="an order over its bound"),
        pytest.param("roster.json", b'{"nodes":{"north":7},"keys":{}}', id="a node that is a number"),
        pytest.param("roster.json", bytes(70_000), id="a roster over its bound"),
        pytest.param("facts.jsonl", b'{"event":"over"}\n', id="a fact of no kind"),
    ],
)
def test_what_nobody_of_ours_writes_is_refused(tmp_path: Path, name: str, data: bytes) -> None:
    (tmp_path / name).write_bytes(data)
    folder = RunFolder(tmp_path)
    read = {"order.json": folder.order, "roster.json": folder.nodes, "facts.jsonl": folder.facts}[name]
    with pytest.raises(FormatError):
        read()


def test_a_run_goes_through_its_rounds_and_tells_and_keeps_each(tmp_path: Path) -> None:
    run = run_of(DOCUMENT, tmp_path, Classroom())
    assert kinds(run.facts) == ["Begun", "RoundDone", "RoundDone", "RoundDone", "Ended"]
    first, *rounds, last = run.facts
    assert isinstance(first, Begun)
    assert (first.done, first.parties, first.digest) == (0, NAMES, run_order(DOCUMENT, tmp_path).digest)
    assert [fact.number for fact in rounds if isinstance(fact, RoundDone)] == [1, 2, 3]
    assert isinstance(last, Ended)
    assert last == run.folder.ended()
    assert last.finished
    assert run.kept.number == 3


def test_a_run_that_was_killed_goes_on_and_its_facts_are_those_of_both(tmp_path: Path) -> None:
    with pytest.raises(Killed):
        run_of(DOCUMENT, tmp_path, Classroom(killed=3))  # while the second round's model is scored
    run = run_of(DOCUMENT, tmp_path, Classroom(), attempt=1)
    assert kinds(run.facts) == ["Begun", "RoundDone", "Begun", "RoundDone", "RoundDone", "Ended"]
    again = run.facts[2]
    assert isinstance(again, Begun)
    assert again.done == 1


def test_a_run_that_is_killed_before_its_first_round_begins_anew(tmp_path: Path) -> None:
    with pytest.raises(Killed):
        run_of(DOCUMENT, tmp_path, Classroom(killed=0))
    assert not (tmp_path / "state" / NAME).exists()
    assert run_of(DOCUMENT, tmp_path, Classroom(), attempt=1).kept.number == 3


def test_a_run_that_ended_early_goes_on_when_its_parties_are_well_again(tmp_path: Path) -> None:
    ill = {(name, 2): lambda _reply: [] for name in ("north", "south")}
    early = run_of(DOCUMENT, tmp_path, Classroom(spoils=ill))
    found = early.folder.ended()
    assert found is not None
    assert not found.finished
    assert early.kept.number == 1
    run = run_of(DOCUMENT, tmp_path, Classroom(), attempt=1)
    assert kinds(run.facts) == ["Begun", "RoundDone", "Ended", "Begun", "RoundDone", "RoundDone", "Ended"]
    last = run.folder.ended()
    assert last is not None
    assert last.finished


def test_a_run_that_is_over_asks_nobody_again(tmp_path: Path) -> None:
    whole = run_of(DOCUMENT, tmp_path, Classroom())
    room = Classroom()
    again = run_of(DOCUMENT, tmp_path, room, attempt=1)
    assert room.asked == []
    ends = whole.folder.ended(), again.folder.ended()
    assert ends[0] is not None
    assert ends[1] is not None
    assert ends[0].model == ends[1].model


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        pytest.param({"run": "00" * 16}, FederationError, id="the checkpoint of another run"),
        pytest.param({"digest": "cd" * 32}, CloisterError, id="of another federation"),
        pytest.param({"key": bytes(32)}, WrongKey, id="under another key"),
    ],
)
def test_a_run_does_not_go_on_from_a_checkpoint_that_is_not_its_own(
    tmp_path: Path, changes: dict[str, Any], error: type[CloisterError]
) -> None:
    run_of(DOCUMENT, tmp_path, Classroom())
    path = tmp_path / "other"
    path.mkdir()
    folder = RunFolder(path)
    folder.write_order(run_order(DOCUMENT, tmp_path / "state", **changes), encode_arrays(MODEL))
    room = Classroom()
    with pytest.raises(error):
        go_through(folder, room)
    assert room.asked == []
    assert folder.facts() == ()
