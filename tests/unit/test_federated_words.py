"""A federation in words: every field is spoken of, and what is not protected is said in capital letters."""

from __future__ import annotations

import re
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

from cloister.evidence.eventlog import PROGRAM_EVENT
from cloister.federated.federation import MILLION, Federation, Privacy, Task
from cloister.federated.words import changes_in_words, federation_in_words, number
from federation_parts import aggregation, federation, party, privacy
from manifest_parts import NOW, owner, policy_text

FIVE = ("a", "b", "c", "d", "e")


def text(document: Federation) -> str:
    return "\n".join(federation_in_words(document))


def task(**changes: Any) -> Task:
    return structs.replace(federation().task, **changes)


def with_events(events: str, rtmr3: str = '"any"') -> str:
    return policy_text("b2").replace('rtmr3 = "any"', f"rtmr3 = {rtmr3}") + events


def of_hardware(mark: str) -> str:
    """A policy of the same launch on a real TEE."""
    return re.sub(r"\[roots\]\nsimulated = .*\n", "", policy_text(mark))


CHANGES: dict[str, dict[str, Any]] = {
    "name": {"name": "banks"},
    "version and predecessor": {"version": 2, "previous": "ab" * 32},
    "time": {"issued": NOW + 1},
    "a party": {"parties": {name: party(name) for name in ("north", "south", "east")}},
    "a party's key": {"parties": {**federation().parties, "west": party("west", key=owner("x").key)}},
    "an agent": {"parties": {**federation().parties, "west": party("west", agent=(policy_text("d4"),))}},
    "a workload": {"parties": {**federation().parties, "west": party("west", workload=(policy_text("d4"),))}},
    "aggregator": {"aggregator": (policy_text("d4"),)},
    "one more aggregator": {"aggregator": (policy_text("c3"), policy_text("d4"))},
    "everyone": {"everyone": False},
    "attest_minutes": {"attest_minutes": 31},
    "plugin": {"task": task(plugin="lora")},
    "code": {"task": task(code="12" * 32)},
    "model": {"task": task(model="12" * 32)},
    "a setting": {"task": task(settings={"kinds": ("Disease",), "epochs": 2})},
    "a setting's kind": {"task": task(settings={"kinds": "Disease", "epochs": 1})},
    "a setting that says what it is not": {"task": task(settings={"kinds": '["Disease"]', "epochs": "1"})},
    "one setting more": {"task": task(settings={"kinds": ("Disease",), "epochs": 1, "batch": 16})},
    "rounds": {"rounds": 6},
    "deadline": {"deadline": 601},
    "minimum": {"minimum": 3},
    "method": {"aggregation": aggregation(method="median")},
    "adam": {"aggregation": aggregation(method="fedadam")},
    "proximal": {"aggregation": aggregation(method="fedprox", proximal_ppm=1)},
    "secure": {"aggregation": aggregation(secure=True)},
    "largest": {"aggregation": aggregation(largest_ppm=50 * MILLION + 1)},
    "privacy": {"privacy": privacy()},
    "privacy of examples": {"privacy": privacy(of="examples"), "metrics": ("epsilon", "f1", "loss")},
    "metrics": {"metrics": ("f1",)},
    "no metrics": {"metrics": ()},
    "receivers": {"receivers": ("south",)},
}


@pytest.mark.parametrize("changes", CHANGES.values(), ids=CHANGES)
def test_every_field_is_spoken_of(changes: dict[str, Any]) -> None:
    assert text(structs.replace(federation(), **changes)) != text(federation())


def test_no_field_is_missing_from_that_table() -> None:
    assert {field for changes in CHANGES.values() for field in changes} == {
        field.name for field in structs.fields(Federation)
    } - {"format"}


@pytest.mark.parametrize("name", [field.name for field in structs.fields(Privacy)])
def test_every_number_of_privacy_is_spoken_of(name: str) -> None:
    changed = "examples" if name == "of" else getattr(privacy(), name) + 1
    one, two = (
        federation(privacy=found, metrics=("epsilon",)) for found in (privacy(**{name: changed}), privacy())
    )
    assert text(one) != text(two)


def test_another_predecessor_is_another_sentence() -> None:
    one, two = (federation(version=2, previous=mark * 32) for mark in ("ab", "cd"))
    assert federation_in_words(one)[0] != federation_in_words(two)[0]


def test_how_many_may_be_poisoned_is_spoken_of() -> None:
    one, two = (
        federation(
            *FIVE, minimum=5, receivers=("a",), aggregation=aggregation(method="trimmed-mean", tolerated=f)
        )
        for f in (1, 2)
    )
    assert text(one) != text(two)
    assert "stands 2 poisoned parties" in text(two)


@pytest.mark.parametrize(
    ("document", "said"),
    [
        pytest.param(federation(), "SIMULATED TEE, accepted for every machine", id="a simulated TEE"),
        pytest.param(
            federation(aggregator=(of_hardware("c3"),)),
            "SIMULATED TEE, accepted for the agent of north, south, west, and for the workload", id="one that is real",
        ),
        pytest.param(federation(), "ANY PROGRAM can be the workload of north, south, west", id="any program"),
        pytest.param(
            federation(
                parties={
                    name: party(name, workload=(with_events(f'[tdx.events]\n"{PROGRAM_EVENT}" = ["{"55" * 32}"]\n'),))
                    for name in ("north", "south")
                }
            ),
            "ANOTHER PROGRAM than the task's code can be the workload of north, south", id="another program",
        ),
        pytest.param(federation(everyone=False), "NOT EVERYBODY VERIFIES EVERYBODY", id="the aggregator's word"),
        pytest.param(federation(), "NO SECURE AGGREGATION: the aggregator sees each", id="no secure aggregation"),
        pytest.param(federation(), "NO DIFFERENTIAL PRIVACY: the model may memorise", id="no differential privacy"),
        pytest.param(federation(), "NO DEFENCE AGAINST POISON", id="an average"),
        pytest.param(federation(), "EACH OF TWO parties could compute the other's update", id="a round of two"),
        pytest.param(
            federation(minimum=3), "2 parties of a round of 3 could together compute the last one's", id="a coalition"
        ),
        pytest.param(
            federation(aggregation=aggregation(secure=True)), "NOBODY CAN LOOK AT AN UPDATE", id="poison that is hidden"
        ),
        pytest.param(federation(), "NOT given to south, west, whose data", id="who gets nothing"),
        pytest.param(
            federation(privacy=privacy(epsilon_ppm=10 * MILLION + 1)), "PROMISES NEXT TO NOTHING", id="a loose budget"
        ),
        pytest.param(
            federation(privacy=privacy(of="examples"), metrics=("epsilon",)), "WHAT MANY EXAMPLES SHARE IS NOT HIDDEN",
            id="one person's many",
        ),
        pytest.param(
            federation(privacy=privacy(of="examples"), metrics=("epsilon", "f1", "loss")),
            "NO NOISE is on what is told beside the weights, and ε does not cover it: how many examples a party has, how "
            "long it takes, f1, loss.",
            id="numbers without noise",
        ),
        pytest.param(federation(), "NOT PINNED: RTMR0", id="a register that may be anything"),
        pytest.param(federation(), "must measure " + "b2" * 48, id="a measurement"),
        pytest.param(federation(), "updates of the model, and these numbers about its data: f1, loss", id="what leaves"),
        pytest.param(federation(metrics=()), "and no number about its data", id="no metrics"),
    ],
)  # fmt: skip
def test_what_matters_to_who_signs_is_said(document: Federation, said: str) -> None:
    assert said in text(document)


@pytest.mark.parametrize(
    ("document", "words"),
    [
        pytest.param(
            federation(
                *("north", "south"),
                parties={
                    name: structs.replace(party(name), agent=(of_hardware("a1"),), workload=(of_hardware("b2"),))
                    for name in ("north", "south")
                },
                aggregator=(of_hardware("c3"),),
            ),
            "SIMULATED", id="real machines",
        ),
        pytest.param(
            federation(
                parties={
                    name: party(name, workload=(with_events(f'[tdx.events]\n"{PROGRAM_EVENT}" = ["{"11" * 32}"]\n'),))
                    for name in ("north", "south")
                }
            ),
            "PROGRAM", id="the task's code",
        ),
        pytest.param(
            federation(
                parties={
                    name: party(name, workload=(with_events("", f'["{"77" * 48}"]'),)) for name in ("north", "south")
                }
            ),
            "ANY PROGRAM", id="a register that pins the code",
        ),
        pytest.param(federation(aggregation=aggregation(secure=True)), "NO SECURE", id="secure aggregation"),
        pytest.param(federation(privacy=privacy()), "NO DIFFERENTIAL", id="differential privacy"),
        pytest.param(federation(privacy=privacy()), "could compute", id="an average that noise hides"),
        pytest.param(federation(privacy=privacy(), metrics=("epsilon",)), "loss", id="a number that does not leave"),
        pytest.param(federation(privacy=privacy()), "NEXT TO NOTHING", id="a tight budget"),
        pytest.param(federation(aggregation=aggregation(method="median")), "NO DEFENCE", id="a median"),
        pytest.param(federation(receivers=("north", "south", "west")), "NOT given", id="everybody gets it"),
    ],
)  # fmt: skip
def test_what_is_protected_is_not_complained_of(document: Federation, words: str) -> None:
    assert words not in text(document)


@pytest.mark.parametrize(
    ("epsilon", "factor"),
    [(MILLION, "2.72 times"), (MILLION // 10, "1.11 times"), (8 * MILLION, "2,981 times"), (500 * MILLION, "e^500 times")],
)  # fmt: skip
def test_a_budget_is_said_as_what_it_means(epsilon: int, factor: str) -> None:
    said = text(federation(privacy=privacy(epsilon_ppm=epsilon)))
    assert f"more than {factor} as likely, but for a chance of 1 in 100,000" in said


def test_a_setting_steers_no_terminal_and_what_is_left_out_of_it_is_said() -> None:
    evil = "\x1b[2J\u202e\nNothing is NOT protected"
    said = federation_in_words(federation(task=task(settings={"a": evil, "b": ("x" * 1096,)})))
    assert all(line.isprintable() for line in said)
    assert any("… and 100 characters more" in line for line in said)


def test_a_policy_that_many_have_is_told_once() -> None:
    assert text(federation(*FIVE, receivers=("a",))).count("must measure") == 3


def test_what_changes_is_told_and_nothing_else() -> None:
    before = federation()
    after = federation("north", "south", "east", version=2, previous="ab" * 32, rounds=8)
    said = changes_in_words(before, after)
    assert said[:2] == ["west LEAVES.", "east COMES."]
    assert any(line.startswith("No longer: There are 5 rounds") for line in said)
    assert any(line.startswith("New: There are 8 rounds") for line in said)
    assert not any("DIFFERENTIAL" in line for line in said)
    assert changes_in_words(before, structs.replace(before, version=2, previous="ab" * 32)) == [
        "Nothing changes but the version."
    ]


@given(st.integers(0, 2**53))
def test_millionths_are_written_so_that_they_can_be_read_back(count: int) -> None:
    assert Decimal(number(count).replace(",", "")) * MILLION == count
