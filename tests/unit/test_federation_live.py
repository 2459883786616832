"""A run on a terminal: it fits 80 columns and the height, and nothing that strangers wrote steers it."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.console import Console

from cloister.cli.federation_live import fact_line, live_view, show_live
from cloister.federated.progress import Fact
from cloister.federated.report.run import run_of
from federated_run_facts import EXCLUDED, HOSTILE, START, begun, done, ended, run, share, state


def shown(facts: tuple[Fact, ...], *, width: int = 80, height: int = 24, now: int = START + 100) -> list[str]:
    """The view as lines, without what only fills them."""
    file = io.StringIO()
    console = Console(file=file, width=width, height=height, force_terminal=False, color_system=None)
    console.print(live_view(run_of(facts), now=now, width=width, height=height))
    return [line.rstrip() for line in file.getvalue().split("\n")[:-1]]


def test_the_view_tells_rounds_parties_metrics_bytes_epsilon_and_evidence() -> None:
    lines = shown(run(so_far=6), now=START + 130)
    text = "\n".join(lines)
    assert lines[0] == "hospitals  Running: 6 of 10 rounds done"
    assert re.search(r"^Rounds +━+.*  6 of 10, 2 min 10 s$", text, re.MULTILINE)
    assert re.search(r"^ε spent +━+.*  4\.654 of 8$", text, re.MULTILINE)
    assert re.search(
        r"^Round 6  F1 0\.\d{3}  loss 1\.\d{3}  2,170 examples  20\.3 s  model [0-9a-f]{12}$",
        text,
        re.MULTILINE,
    )
    assert re.search(
        r"^north +takes part +1,200 +1\.\d{3} +0\.\d{3} +547 MB +for 27 min$", text, re.MULTILINE
    )
    assert re.search(r"^west +excluded +740 +2\.\d{3} +0\.\d{3} +365 MB +–$", text, re.MULTILINE)
    assert f"11:08:21 west: excluded ({EXCLUDED})" in text
    assert "SIMULATED" not in text


def test_a_simulated_tee_is_the_first_thing_that_is_said_and_it_is_red() -> None:
    assert "SIMULATED TEE" in shown(run(so_far=1, simulated=True))[0]
    file = io.StringIO()
    console = Console(file=file, width=80, force_terminal=True, color_system="standard")
    console.print(live_view(run_of(run(so_far=1, simulated=True)), now=START, width=80, height=24))
    assert re.search(r"\x1b\[[\d;]*41m *SIMULATED", file.getvalue())


@pytest.mark.parametrize("parties", [2, 3, 8, 24, 64])
@pytest.mark.parametrize("height", [18, 24, 50])
def test_it_fits_80_columns_and_the_height_and_counts_whom_it_leaves_out(parties: int, height: int) -> None:
    lines = shown(run(parties, so_far=9, simulated=True), height=height)
    assert len(lines) < max(height, 21)
    assert max(cell_len(line) for line in lines) <= 80
    rows = sum(bool(re.match(r"\S+ +(takes part|excluded)", line)) for line in lines)
    left = re.findall(r"^and (\d+) part(?:y|ies) more$", "\n".join(lines), re.MULTILINE)
    assert rows + sum(map(int, left)) == parties


def test_who_needs_looking_at_is_shown_where_there_is_no_room_for_all() -> None:
    names = tuple(f"clinic-{number}" for number in range(40))
    facts = (
        *(state(name) for name in names[:-1]),
        state(names[-1], state="excluded", reason=EXCLUDED),
        begun(parties=names),
    )
    first = next(line for line in shown(facts) if line.startswith("clinic-"))
    assert first.split()[:2] == ["clinic-39", "excluded"]


def test_long_names_give_way_and_figures_never_do() -> None:
    names = ("n" * 64, "s" * 64)
    one = done(1, {name: share(place, 1, examples=12_345_678) for place, name in enumerate(names)})
    lines = shown((*(state(name) for name in names), begun(parties=names), one))
    rows = [line for line in lines if line.startswith(("nn", "ss"))]
    assert len(rows) == 2
    for row in rows:
        assert re.search(r"…  takes part +12,345,678 +\d\.\d{3} +0\.\d{3} +91\.2 MB +for 28 min$", row)


@pytest.mark.parametrize(
    ("until", "words"),
    [
        (START + 7300, "for 2 h"), (START + 159, "for 59 s"), (START + 160, "for 1 min"), (START + 100, "ended"),
        (0, "ended"),
    ],
)  # fmt: skip
def test_how_long_evidence_still_holds_is_said(until: int, words: str) -> None:
    (row,) = [line for line in shown((state("north", until=until),)) if line.startswith("north")]
    assert row.endswith(f"0 B  {words}")


def test_what_strangers_wrote_neither_steers_the_terminal_nor_is_markup() -> None:
    bad = f"[bold red]{HOSTILE}[/] \u009b31m"
    facts = (
        state(bad, reason=bad),
        begun(federation=bad, run=bad, method=bad, parties=(bad, "north")),
        done(1, {bad: share(0, 1)}, refused={bad: bad}, model=bad),
        state(bad, state="excluded", reason=bad),
        ended(1, finished=False, reason=bad),
    )
    for text in ("\n".join(shown(facts, width=400)), *(fact_line(fact) for fact in facts)):
        assert not {"\x1b", "\u009b", "\u202e", "\r", "\x07"} & set(text)
        assert "[bold red]<img" in text
    assert all("\n" not in fact_line(fact) for fact in facts)


def test_without_a_terminal_each_fact_is_a_line_at_once() -> None:
    file = io.StringIO()
    console = Console(file=file, width=80, force_terminal=False, color_system=None)
    facts = run()
    seen: list[int] = []

    def coming() -> Iterator[Fact]:
        for fact in facts:
            yield fact
            seen.append(file.getvalue().count("\n"))

    assert show_live(coming(), console) == ended()
    assert seen == list(range(1, len(facts) + 1))
    assert file.getvalue() == "".join(f"{fact_line(fact)}\n" for fact in facts)


def test_on_a_terminal_the_end_stays_there() -> None:
    file = io.StringIO()
    console = Console(file=file, width=80, height=24, force_terminal=True, color_system=None)
    assert show_live(iter(run()), console, now=lambda: START + 10_000) == ended()
    text = file.getvalue().rpartition("Running")[2]
    assert "Finished: all 10 rounds done" in text
    assert "10 of 10, 3 min 32 s" in text, "time that went by after the end is not the run's"
    assert "ended" not in text, "evidence is judged by the end of the run"


def test_a_run_that_breaks_off_leaves_the_terminal_as_it_was() -> None:
    file = io.StringIO()
    console = Console(file=file, width=80, height=24, force_terminal=True)

    def broken() -> Iterator[Fact]:
        yield begun()
        raise ConnectionError

    with pytest.raises(ConnectionError):
        show_live(broken(), console)
    assert file.getvalue().count("\x1b[?25l") == file.getvalue().count("\x1b[?25h") == 1


def test_no_fact_at_all_is_no_end() -> None:
    assert show_live(iter(()), Console(file=io.StringIO(), force_terminal=False)) is None
    assert show_live(iter(()), Console(file=io.StringIO(), force_terminal=True, width=80)) is None


LINES = [
    (begun(), "The run acba25512100f80b of hospitals begins: 10 rounds, 3 parties, fedavg."),
    (begun(simulated=True, done=4), "The run goes on after round 4 of 10. SIMULATED TEE."),
    (state("north"), "north: takes part; its evidence holds until 2026-11-18 11:36:40 UTC"),
    (state("west", state="excluded", reason=EXCLUDED), f"west: excluded: {EXCLUDED}"),
    (state("west", state="left"), "west: left"),
    (
        done(2, {"north": share(0, 2, scores={"f1": 0.5}, examples=3)}, refused={"west": "late"}),
        "Round 2 is done in 22.3 s: 1 party, F1 0.500, ε 2.687 spent; refused: west (late)",
    ),
    (ended(), "The run is finished after 10 rounds"),
    (ended(1, finished=False, reason="too few parties"), "The run stopped after 1 round: too few parties"),
]


@pytest.mark.parametrize(("fact", "words"), LINES, ids=[words[:24] for _, words in LINES])
def test_a_fact_is_one_line_with_its_time(fact: Fact, words: str) -> None:
    when, _, said = fact_line(fact).partition("  ")
    assert re.fullmatch(r"2026-11-18 11:\d\d:\d\d UTC", when)
    assert said == words


@given(
    st.integers(40, 200), st.integers(5, 60), st.integers(2, 70), st.integers(0, 12), st.integers(0, 2**53)
)
@settings(max_examples=60, deadline=None)
def test_no_size_of_a_terminal_breaks_the_view(
    width: int, height: int, parties: int, so_far: int, now: int
) -> None:
    lines = shown(run(parties, rounds=12, so_far=so_far), width=width, height=height, now=now)
    assert max(cell_len(line) for line in lines) <= width
