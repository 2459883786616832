"""The scoreboard's tables, aims and charts: what a run writes."""

from __future__ import annotations

import json
from xml.etree import ElementTree

import pytest
from benchmarks.measurement import Estimate
from benchmarks.plot import svg
from benchmarks.report import Aim, Bar, Chart, Result, Table, as_json, markdown, of_json, shown

CHART = Chart(
    name="speed",
    title="Tokens & more",
    unit="tok/s",
    groups=("one <stream>", "eight"),
    series=("plain", "sealed"),
    bars=((Bar(3.0), Bar(12.5, 11.0, 14.0)), (None, Bar(40.0, 39.0, 55.0))),
)
RESULT = Result(
    title="Speeds",
    text="Measured.",
    tables=(Table("Rates", ("engine", "tok/s"), (("a|b", "3"), ("c", "4")), "In one run."),),
    charts=(CHART,),
    aims=(
        Aim("decode", 4.0, "at least", 4.2),
        Aim("cost", 3.0, "at most", 5.0, "ms"),
        Aim("rest", 1, "at least", None),
    ),
    figures={"raw": [1.0, 2.0]},
)


def test_a_result_survives_json() -> None:
    assert of_json(json.loads(json.dumps(as_json(RESULT)))) == RESULT


def test_a_row_that_does_not_fit_its_table_is_refused() -> None:
    with pytest.raises(ValueError, match="has not 2 cells"):
        Table("t", ("a", "b"), (("1",),))


def test_the_page_shows_tables_notes_charts_and_verdicts() -> None:
    page = markdown(RESULT)
    assert "| a\\|b | 3 |" in page
    assert "In one run." in page
    assert "![Tokens & more](speed.svg)" in page
    assert "| decode | ≥ 4 × | 4.2 × | reached |" in page
    assert "| cost | ≤ 3 ms | 5 ms | missed |" in page
    assert "| rest | ≥ 1 × | – | not measured |" in page


@pytest.mark.parametrize(
    ("value", "text"),
    [
        pytest.param(None, "–", id="nothing"),
        pytest.param(0.0, "0", id="zero"),
        pytest.param(1234.5, "1,234", id="thousands"),
        pytest.param(0.98765, "0.988", id="a share"),
        pytest.param(0.00004, "0", id="too small to show"),
        pytest.param(Estimate(12.34, None, None, 1), "12.3", id="one round"),
        pytest.param(Estimate(12.34, 11.0, 13.0, 4), "12.3 (11 … 13)", id="an interval"),
    ],
)
def test_figures_have_three_digits(value: Estimate | float | None, text: str) -> None:
    assert shown(value) == text


def test_a_unit_stands_behind_the_figure() -> None:
    assert shown(12.0, "ms") == "12 ms"


def test_a_chart_is_well_formed_and_shows_every_figure_as_text() -> None:
    root = ElementTree.fromstring(svg(CHART))  # noqa: S314 -- our own text
    said = ["".join(one.itertext()) for one in root.iter("{http://www.w3.org/2000/svg}text")]
    assert {"3 tok/s", "12.5 tok/s", "40 tok/s", "not measured", "one <stream>"} <= set(said)
    assert sum(one.tag.endswith("rect") for one in root.iter()) == 1 + 3  # the ground, and a bar each


def test_a_chart_has_colours_for_dark_pages_and_a_title_for_readers_of_the_text() -> None:
    text = svg(CHART)
    assert "prefers-color-scheme:dark" in text
    assert '<title id="title">Tokens &amp; more</title>' in text


def test_nothing_is_drawn_outside_the_picture() -> None:
    root = ElementTree.fromstring(svg(CHART))  # noqa: S314 -- our own text
    width, height = (float(root.attrib[name]) for name in ("width", "height"))
    for one in root.iter("{http://www.w3.org/2000/svg}text"):
        x, y = float(one.attrib["x"]), float(one.attrib["y"])
        assert 0 <= x <= width
        assert 0 <= y <= height
        if one.attrib["class"] == "value":
            assert x + 8 * len(one.text or "") <= width


def test_bars_that_do_not_fit_their_groups_are_refused() -> None:
    with pytest.raises(ValueError, match="are not 1 × 1"):
        svg(Chart("c", "t", "", ("g",), ("s",), ((None, None),)))
