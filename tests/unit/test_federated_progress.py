"""The facts of a run as lines of JSON: they come back as they were, and what is none is refused."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloister.errors import FormatError
from cloister.federated.progress import (
    MAX_FACTS,
    MAX_LINE,
    Begun,
    Ended,
    Fact,
    PartyState,
    RoundDone,
    Share,
    decode_facts,
    encode_fact,
    newest_states,
)
from federated_run_facts import begun, done, run, share, state

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
WHOLE = st.integers(0, 2**53 - 1)
FLOATS = st.floats(allow_nan=False, allow_infinity=False)
METRICS = st.dictionaries(TEXTS, FLOATS, max_size=3)
SHARES = st.builds(
    Share, examples=WHOLE, bytes=WHOLE, norm=st.none() | FLOATS, metrics=METRICS, scores=METRICS
)
FACTS: st.SearchStrategy[Fact] = st.one_of(
    st.builds(
        Begun, at=WHOLE, run=TEXTS, federation=TEXTS, version=WHOLE, digest=TEXTS, parties=st.tuples(TEXTS, TEXTS),
        rounds=WHOLE, done=WHOLE, method=TEXTS, secure=st.booleans(), epsilon=st.none() | FLOATS, aggregator=TEXTS,
        simulated=st.booleans(),
    ),
    st.builds(
        PartyState, at=WHOLE, party=TEXTS, state=st.sampled_from(["admitted", "ready", "excluded", "left"]), reason=TEXTS,
        agent=TEXTS, workload=TEXTS, measurements=TEXTS, tee=TEXTS, until=WHOLE,
    ),
    st.builds(
        RoundDone, at=WHOLE, number=WHOLE, seconds=FLOATS, shares=st.dictionaries(TEXTS, SHARES, max_size=2),
        refused=st.dictionaries(TEXTS, TEXTS, max_size=2), scores=METRICS, epsilon=st.none() | FLOATS,
        model=TEXTS, down=WHOLE,
    ),
    st.builds(Ended, at=WHOLE, finished=st.booleans(), reason=TEXTS, rounds=WHOLE, model=TEXTS),
)  # fmt: skip


@given(st.lists(FACTS, max_size=4))
def test_facts_come_back_as_they_were_one_line_each(facts: list[Fact]) -> None:
    data = b"".join(encode_fact(fact) for fact in facts)
    assert data.count(b"\n") == len(facts), "a text broke its line"
    assert decode_facts(data) == tuple(facts)


@given(st.data())
def test_a_line_that_is_being_written_is_not_read_and_hides_none_before_it(data: st.DataObject) -> None:
    whole = b"".join(encode_fact(fact) for fact in run(so_far=2))
    cut = data.draw(st.integers(0, len(whole)))
    found = decode_facts(whole[:cut])
    assert found == run(so_far=2)[: whole[:cut].count(b"\n")]


def fields(fact: Fact, **changes: Any) -> bytes:
    """The fact's line with other fields; None removes one."""
    found = json.loads(encode_fact(fact)) | changes
    return json.dumps({name: value for name, value in found.items() if value is not None}).encode() + b"\n"


@pytest.mark.parametrize(
    "line",
    [
        pytest.param(b"\n", id="an empty line"),
        pytest.param(b"round 7\n", id="no JSON"),
        pytest.param(b"[]\n", id="a list"),
        pytest.param(fields(begun(), event="weights"), id="an event that is none"),
        pytest.param(fields(begun(), event=None), id="no event"),
        pytest.param(fields(begun(), gradient=[1.0]), id="a field more"),
        pytest.param(fields(begun(), aggregator=None), id="a field less"),
        pytest.param(fields(begun(), rounds="10"), id="a number as a text"),
        pytest.param(fields(begun(), at=1.5), id="a part of a second"),
        pytest.param(fields(state("north"), state="trusted"), id="a state that is none"),
        pytest.param(encode_fact(state("north"))[:-2] + b',"state":"ready"}\n', id="a field twice"),
        pytest.param(encode_fact(done(1, {"north": share(0, 1)})).replace(b'"norm":4.2', b'"norm":NaN'), id="NaN"),
        pytest.param(encode_fact(done(1, {"north": share(0, 1)})).replace(b'"norm":4.2', b'"norm":1e999'), id="infinity"),
        pytest.param(encode_fact(state("north", reason="x")).replace(b'"x"', b'"%s"' % (b"x" * MAX_LINE)), id="endless"),
        pytest.param(b'{"event":"ended","at":\xff}\n', id="no UTF-8"),
    ],
)  # fmt: skip
def test_a_line_that_is_no_fact_refuses_the_whole(line: bytes) -> None:
    good = encode_fact(begun())
    with pytest.raises(FormatError, match="the run's log, line 2"):
        decode_facts(good + line + good)


def test_a_log_of_more_facts_than_a_run_can_have_is_refused() -> None:
    with pytest.raises(FormatError, match=f"more than {MAX_FACTS} lines"):
        decode_facts(b"\n" * (MAX_FACTS + 1))


def test_the_newest_that_was_said_of_a_party_counts() -> None:
    facts = (
        state("north"),
        state("south"),
        begun(),
        state("north", state="excluded"),
        state("north", state="left"),
    )
    assert {name: one.state for name, one in newest_states(facts).items()} == {
        "north": "left",
        "south": "ready",
    }
