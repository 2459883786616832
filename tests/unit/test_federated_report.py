"""The report of a run: what happened is in it, what strangers wrote is text, and nothing in it runs or loads anything."""

from __future__ import annotations

import base64
import hashlib
import itertools
import json
import math
import re
from html.parser import HTMLParser
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import structs

from cloister.federated.progress import Fact
from cloister.federated.report.chart import MAX_POINTS, Chart, Line, chart_svg
from cloister.federated.report.document import live_run, report_html, report_style
from cloister.federated.report.elements import ATTRIBUTES, TAGS, Element, el, html, inert, plain
from cloister.federated.report.run import LARGEST, metric, run_of, run_words
from cloister.federated.report.words import duration, fact_words, figure, size
from federated_run_facts import (
    EXCLUDED,
    HOSTILE,
    START,
    begun,
    digest,
    done,
    ended,
    run,
    share,
    state,
)

NOW = START + 100


class Page(HTMLParser):
    """What a browser would find: tags, attributes, texts by tag, and whether everything that is opened is closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.ids: list[str] = []
        self.texts: dict[str, list[str]] = {}
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]
        self.ids += [value or "" for name, value in attrs if name == "id"]
        if tag != "meta":
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self._open:
            self.texts.setdefault(self._open[-1], []).append(data)

    @property
    def words(self) -> str:
        return "\n".join(text for tag, texts in self.texts.items() if tag != "style" for text in texts)


def test_a_finished_run_is_told_whole() -> None:
    facts = run()
    page = Page(report_html(facts))
    assert page.texts["h1"] == ["hospitals"]
    assert page.texts["title"][0] == "hospitals: finished: all 10 rounds done"
    assert page.texts["h2"] == [
        "The run",
        "Curves",
        "Rounds",
        "Parties",
        "Refused and excluded",
        "Audit trail",
    ]
    digests = {digest(text) for text in ("federation", "aggregator", "measurements")}
    digests |= {digest(f"model {number}") for number in range(1, 11)}
    digests |= {
        digest(f"{name}'s {what}") for name in ("north", "south", "west") for what in ("agent", "workload")
    }
    assert digests <= set(page.texts["code"])
    assert "2026-11-18 11:36:40 UTC" in page.words, "until when evidence holds"
    assert "an update of 'south' came 12 s late" in page.words
    assert EXCLUDED in page.words
    assert "fedavg; the aggregator sees each update" in page.words
    assert "budget 8" in page.words
    captions = ["F1 of the averaged model on held-out data", "Loss of the averaged model on held-out data"]
    captions += ["Loss of training", "ε spent of the privacy budget", "Bytes in each round, of all parties"]
    assert page.texts["figcaption"][:5] == captions


def test_the_audit_trail_has_every_fact_in_the_order_of_the_log() -> None:
    facts = (*run(), begun(done=10, at=START + 400), ended(10, at=START + 401))
    text = report_html(facts)
    trail = text[text.index('<ol class="trail">') :]
    told = re.findall(r'<p class="what">(.*?)</p>', trail)
    assert told == [html(fact_words(fact)) for fact in facts]


def test_a_table_has_a_caption_and_headers_and_a_drawing_a_title_and_words() -> None:
    text = report_html(run())
    for table in re.findall(r"<table.*?</table>", text):
        assert table.count("<caption>") == 1
        assert '<th scope="col">' in table
        assert '<th scope="row">' in table
    drawings = re.findall(r"<svg.*?</svg>", text)
    assert len(drawings) == 5 + 3
    for drawing in drawings:
        title, words = re.findall(r'aria-labelledby="(\S+) (\S+)"', drawing)[0]
        assert f'<title id="{title}">' in drawing
        assert f'<desc id="{words}">Curves over rounds: ' in drawing
    ids = Page(text).ids
    assert len(ids) == len(set(ids))


def test_lines_are_told_apart_without_colours() -> None:
    lines = tuple(Line(f"party {at}", ((1, at), (2, at + 0.5)), at) for at in range(8))
    text = html(chart_svg(Chart("f1", "F1", lines, figure, 2)))
    assert len(set(re.findall(r'class="curve" d="[^"]*"( stroke-dasharray="[^"]*")?', text))) == 8
    shapes = {mark.partition("m")[2] for mark in re.findall(r'class="mark" d="([^"]*)"', text)}
    assert len(shapes) == 8
    assert [f"party {at}</text>" in text for at in range(8)] == [True] * 8


def test_names_at_the_ends_of_lines_do_not_lie_on_each_other() -> None:
    lines = tuple(Line(f"party {at}", ((1, 0.5), (2, 0.5 + at / 1e6)), at) for at in range(8))
    text = html(chart_svg(Chart("f1", "F1", lines, figure, 2)))
    heights = sorted(float(y) for y in re.findall(r'class="name" x="\d+" y="([\d.]+)"', text))
    assert len(heights) == 8
    assert all(after - before >= 15.9 for before, after in itertools.pairwise(heights))
    assert all(0 < y < 280 for y in heights)


def test_a_round_that_a_party_missed_is_a_gap_in_its_curve() -> None:
    text = html(chart_svg(Chart("f1", "F1", (Line("west", ((1, 0.1), (2, 0.2), (4, 0.4)), 0),), figure, 4)))
    (curve,) = re.findall(r'class="curve" d="([^"]*)"', text)
    assert re.sub(r"[\d. ]+", "", curve) == "MLM"


def test_a_federation_of_one_round_has_its_curves_as_marks() -> None:
    text = report_html(run(2, rounds=1))
    assert len(re.findall(r"<svg.*?</svg>", text)) == 5 + 2
    assert "After round 1: all parties 0.2" in text


def test_a_long_run_is_drawn_with_fewer_points_and_the_newest_among_them() -> None:
    points = tuple((number, 1 / number) for number in range(1, 10_001))
    text = html(chart_svg(Chart("loss", "Loss", (Line("all parties", points, None),), figure, 10_000)))
    (curve,) = re.findall(r'class="curve" d="([^"]*)"', text)
    assert curve.count("L") <= MAX_POINTS
    assert curve.count("M") == 1
    assert "in round 10000" in text


@given(
    st.lists(st.floats(-LARGEST, LARGEST), min_size=1, max_size=20),
    st.none() | st.floats(-LARGEST, LARGEST) | st.sampled_from([math.nan, math.inf]),
)
@settings(max_examples=200)
def test_every_place_in_a_drawing_is_a_number_inside_it(values: list[float], bound: float | None) -> None:
    lines = (Line("one", tuple(enumerate(values, 1)), 0), Line("all", tuple(enumerate(values, 1)), None))
    chart = Chart("x", "X", lines, figure, 30, bound=("budget", bound) if bound is not None else None)
    text = html(chart_svg(chart))
    assert "nan" not in text.lower().replace("no number", "")
    assert "inf" not in text.lower()
    for y in re.findall(r'\b(?:y|y1|y2)="([^"]*)"', text):
        assert -1 <= float(y) <= 300
    for curve in re.findall(r'class="curve" d="([^"]*)"', text):
        assert all(-1 <= float(number) <= 600 for number in re.findall(r"-?[\d.]+", curve))


def hostile() -> tuple[Fact, ...]:
    there = state(HOSTILE, reason=HOSTILE, tee=HOSTILE, agent=HOSTILE, workload=HOSTILE, measurements=HOSTILE)
    odd = share(
        0,
        1,
        metrics={HOSTILE: math.nan, "loss": math.inf},
        scores={HOSTILE: 1.0, "f1": -math.inf},
        norm=math.nan,
    )
    return (
        there,
        begun(federation=HOSTILE, run=HOSTILE, digest=HOSTILE, method=HOSTILE, aggregator=HOSTILE, parties=(HOSTILE, "n")),
        done(1, {HOSTILE: odd, "n": share(1, 1)}, refused={HOSTILE: HOSTILE}, scores={"f1": math.nan}, model=HOSTILE),
        structs.replace(there, state="excluded", until=-(2**53), at=2**53 - 1),
        ended(1, finished=False, reason=HOSTILE, model=HOSTILE),
    )  # fmt: skip


def test_what_strangers_wrote_is_text_on_one_line_in_the_direction_of_the_page() -> None:
    text = report_html(hostile())
    page = Page(text)
    assert "img" not in page.tags
    assert "script" not in page.tags
    assert page.words.count("<img src=x onerror=") >= 10
    assert {name for name, _ in page.attributes} <= {
        *(name.lower() for name in ATTRIBUTES),
        *("lang", "charset", "http-equiv", "content", "name"),
    }
    for mark in ("\u202e", "\x1b", "pwned'</script>\n"):
        assert mark not in text
    assert "\\u202e" in text


def test_the_live_page_gets_the_same_as_elements_that_exist() -> None:
    found = json.loads(live_run(hostile(), now=NOW))
    seen: set[str] = set()

    def walk(node: Any) -> None:
        if isinstance(node, str):
            assert node.isprintable()
            return
        tag, attributes, children = node
        seen.add(tag)
        assert tag in TAGS
        assert attributes.keys() <= ATTRIBUTES
        for child in children:
            walk(child)

    for part in found["parts"]:
        walk(part)
    assert {"svg", "table", "ol", "h1"} <= seen
    assert found["over"] is True
    assert json.loads(live_run(run(so_far=2), now=NOW))["over"] is False


def test_nothing_is_loaded_and_the_policy_allows_only_this_style() -> None:
    text = report_html(run(simulated=True))
    page = Page(text)
    (style,) = page.texts["style"]
    assert style == report_style()
    known = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    (policy,) = [value for name, value in page.attributes if name == "content" and "src" in value]
    assert policy == f"default-src 'none'; style-src 'sha256-{known}'; base-uri 'none'; form-action 'none'"
    assert re.findall(r"https?://|url\(|@import|\bsrc=|\bhref=|\bstyle=", text) == []
    assert text.isascii() or "charset" in text


@pytest.mark.parametrize(
    "facts",
    [run(simulated=True), (state("north", tee="simulated tdx"),)],
    ids=["the run says so", "one party's TEE says so"],
)
def test_that_a_tee_is_simulated_is_said_first_and_last(facts: tuple[Fact, ...]) -> None:
    text = report_html(facts)
    assert text.count('<div class="banner"') == 2
    assert text.index('<div class="banner"') < text.index("<h1>")
    assert b"SIMULATED TEE" in live_run(facts, now=NOW)
    assert "SIMULATED" not in report_html(run())


@pytest.mark.parametrize(
    ("facts", "words"),
    [
        pytest.param((), "The run has not begun", id="nothing yet"),
        pytest.param((state("north"),), "The run has not begun", id="parties alone"),
        pytest.param(run(so_far=0), "Running: 0 of 10 rounds done", id="begun"),
        pytest.param(run(so_far=4), "Running: 4 of 10 rounds done", id="in the middle"),
        pytest.param(run(), "Finished: all 10 rounds done", id="finished"),
        pytest.param(
            (*run(so_far=4), ended(4, finished=False, reason="too few parties")),
            "Stopped after 4 of 10 rounds", id="stopped",
        ),
        pytest.param(
            (*run(so_far=4), ended(4, reason="the privacy budget is spent")),
            "Finished: 4 of 10 rounds, as many as the privacy budget allows", id="out of budget",
        ),
        pytest.param(
            (*run(so_far=4), ended(4, finished=False), begun(done=4)),
            "Running: 4 of 10 rounds done", id="goes on",
        ),
    ],
)  # fmt: skip
def test_how_it_stands_with_the_run_is_said_in_one_line(facts: tuple[Fact, ...], words: str) -> None:
    assert run_words(run_of(facts))[0] == words
    assert Page(report_html(facts)).words.count(words) >= 1


def test_a_run_that_went_on_counts_its_rounds_once() -> None:
    lost = done(5, {"north": share(0, 5)}, model=digest("lost"))
    again = done(5, {"north": share(0, 5), "west": share(2, 5)}, model=digest("kept"))
    found = run_of((*run(so_far=4), lost, begun(done=4, at=START + 500), again))
    assert [one.number for one in found.rounds] == [1, 2, 3, 4, 5]
    assert found.last is not None
    assert found.last.model == digest("kept")
    assert found.first == START


def test_two_runs_in_one_log_do_not_mix() -> None:
    second = (state("north", at=START + 900), begun(run="another", at=START + 901, parties=("north", "lake")))
    found = run_of((*run(), *second))
    assert found.rounds == ()
    assert found.refusals == ()
    assert found.parties == ("north", "lake")
    assert found.first == START + 901


def test_a_number_that_is_none_is_in_no_curve_and_in_no_average() -> None:
    shares = {"north": share(0, 1, metrics={"loss": math.nan}), "south": share(1, 1, metrics={"loss": 2.0})}
    one = done(1, shares, scores={"f1": math.inf, "loss": 1.0})
    assert metric(one, None, "f1") is None
    assert metric(one, None, "loss") == 1.0
    assert metric(one, "north", "loss", of="metrics") is None
    assert metric(one, None, "loss", of="metrics") is None
    assert run_of((begun(), one)).points(None, "f1") == ()


@pytest.mark.parametrize("value", [1.7e308, -1.7e308, 1e31, math.inf, math.nan], ids=str)
def test_a_party_that_sends_a_giant_number_bends_no_scale_and_breaks_no_report(value: float) -> None:
    shares = {"north": share(0, 1, norm=value, scores={"f1": value, "loss": -value}), "south": share(1, 1)}
    page = Page(report_html((begun(), done(1, shares, scores={"f1": value}, epsilon=value, seconds=value))))
    assert "F1 of the averaged model on held-out data" in page.texts["figcaption"]
    assert any(text.startswith("After round 1: south ") for text in page.texts["p"])


def test_where_no_metric_may_leave_a_party_the_report_says_so() -> None:
    quiet = {"north": share(0, 1, metrics={}, scores={}), "south": share(1, 1, metrics={}, scores={})}
    page = Page(report_html((begun(epsilon=None), done(1, quiet, epsilon=None))))
    assert "The federation lets no loss and no F1 leave a party, so there are no such curves." in page.words
    assert page.texts["figcaption"] == ["Bytes in each round, of all parties"]
    assert "no differential privacy" in page.words


def test_with_secure_aggregation_it_is_said_that_nobody_sees_an_update() -> None:
    page = Page(report_html(run(secure=True)))
    assert "fedavg; nobody sees one party's update" in page.words
    assert page.texts["dd"].count("nobody is shown it") == 3


def test_evidence_that_has_ended_is_said_of_a_party_that_takes_part() -> None:
    facts = run(so_far=4)
    assert b"ended at 2026-11-18 11:36:40 UTC" not in live_run(facts, now=START + 1800)
    assert live_run(facts, now=START + 1801).count(b"ended at 2026-11-18 11:36:40 UTC") == 3


def test_who_is_no_party_of_the_federation_is_shown_as_that() -> None:
    page = Page(
        report_html((*run(so_far=1), state("mallory", state="excluded", reason="not in the federation")))
    )
    assert "no party of this federation" in page.words


def test_the_live_page_is_bounded_and_says_what_it_leaves_out() -> None:
    many = run(20, rounds=300)
    text = live_run(many, now=NOW).decode()
    assert "250 rounds not shown here; the report has all." in text
    assert f"{len(many) - 100} earlier facts not shown here; the report has all." in text
    assert len(text) < 600_000
    whole = Page(report_html(many)).words
    assert "not shown here" not in whole
    assert "of 20 parties the lowest and the highest are named" in whole


@pytest.mark.parametrize(
    ("tag", "attributes"),
    [
        ("script", {}), ("iframe", {}), ("img", {}), ("style", {}), ("a", {}), ("object", {}), ("use", {}),
        ("foreignObject", {}), ("p", {"onclick": "x"}), ("p", {"style": "x"}), ("p", {"href": "x"}), ("p", {"src": "x"}),
        ("p", {"xlink:href": "x"}), ("p><script", {}), ('p" onclick="x', {}),
    ],
)  # fmt: skip
def test_an_element_that_could_run_or_load_anything_cannot_be_made(
    tag: str, attributes: dict[str, str]
) -> None:
    with pytest.raises(ValueError, match="pages have no"):
        el(tag, attributes)


NODES: st.SearchStrategy[Element | str] = st.recursive(
    st.text(min_size=1, max_size=20),
    lambda inside: st.builds(
        el,
        st.sampled_from(["p", "g", "td", "svg"]),
        st.dictionaries(st.sampled_from(sorted(ATTRIBUTES)), st.text(max_size=20), max_size=3),
        st.lists(inside, max_size=3),
    ),
    max_leaves=8,
)


@given(NODES)
def test_what_is_written_is_read_back_as_the_same_tree_whatever_the_texts(node: Element | str) -> None:
    tree = el("main", None, node)
    page = Page(html(tree))

    def tags(one: Element | str) -> list[str]:
        return (
            [] if isinstance(one, str) else [one.tag, *(tag for child in one.children for tag in tags(child))]
        )

    def texts(one: Element | str) -> str:
        return one if isinstance(one, str) else "".join(texts(child) for child in one.children)

    assert page.tags == tags(tree)
    assert sorted("".join(itertools.chain(*page.texts.values()))) == sorted(texts(tree))
    assert json.loads(json.dumps(plain(tree)))[0] == "main"


@given(st.text(max_size=100), st.integers(1, 50))
def test_an_inert_text_is_one_bounded_line_that_prints(text: str, limit: int) -> None:
    found = inert(text, limit=limit)
    assert found.isprintable()
    assert len(found) <= 10 * limit + 1
    if text.isprintable() and len(text) <= limit:
        assert found == text


@pytest.mark.parametrize(
    ("found", "words"),
    [
        (figure(None), "–"), (figure(0.8124), "0.812"), (figure(0.0), "0.000"), (figure(1.2e-9), "1.20e-09"),
        (figure(123456.0), "1.23e+05"), (figure(math.nan), "no number"), (figure(-math.inf), "no number"),
        (size(0), "0 B"), (size(999), "999 B"), (size(1500), "1.5 kB"), (size(91_234_567), "91.2 MB"),
        (size(999_960), "1.0 MB"), (size(2**53), "9007 TB"), (duration(12.34), "12.3 s"), (duration(59.97), "1 min 00 s"),
        (duration(3599.4), "59 min 59 s"), (duration(3599.9), "1 h 00 min"),
        (duration(7260), "2 h 01 min"), (duration(math.nan), "–"), (duration(-1), "–"),
    ],
)  # fmt: skip
def test_figures_are_short_and_round_as_people_do(found: str, words: str) -> None:
    assert found == words
