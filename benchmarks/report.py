"""What a section found: tables, charts and aims, as JSON and as Markdown. Pure: it neither measures nor writes.

Cells are text when they reach a table, so that JSON, Markdown and the terminal show the same. Every figure also stands in
``figures`` under a name, as a number, for programs that compare two runs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from benchmarks.measurement import Estimate


@dataclass(frozen=True, slots=True)
class Table:
    """Rows of text. The first column names the row."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""

    def __post_init__(self) -> None:
        if any(len(row) != len(self.columns) for row in self.rows):
            raise ValueError(f"a row of “{self.title}” has not {len(self.columns)} cells")


@dataclass(frozen=True, slots=True)
class Bar:
    """One bar: its height, and the interval that is drawn over it."""

    value: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True, slots=True)
class Chart:
    """Groups of bars. ``bars[group][series]`` is None where there is no figure. Each group has a scale of its own."""

    name: str
    """Of its file, without ending."""
    title: str
    unit: str
    groups: tuple[str, ...]
    series: tuple[str, ...]
    bars: tuple[tuple[Bar | None, ...], ...]


@dataclass(frozen=True, slots=True)
class Aim:
    """What the project wants to hold, and what this run found. ``found`` is None where it could not be measured."""

    what: str
    bound: float
    direction: Literal["at least", "at most"]
    found: float | None
    unit: str = "×"
    note: str = ""

    @property
    def reached(self) -> bool:
        if self.found is None:
            return False
        return self.found >= self.bound if self.direction == "at least" else self.found <= self.bound


@dataclass(frozen=True, slots=True)
class Result:
    """One section's findings."""

    title: str
    text: str
    tables: tuple[Table, ...] = ()
    charts: tuple[Chart, ...] = ()
    aims: tuple[Aim, ...] = ()
    figures: Mapping[str, Any] = field(default_factory=dict)


def as_json(result: Result) -> dict[str, Any]:
    return asdict(result)


def of_json(value: Mapping[str, Any]) -> Result:
    """The inverse of :func:`as_json`."""
    return Result(
        title=value["title"],
        text=value["text"],
        tables=tuple(
            Table(one["title"], tuple(one["columns"]), tuple(map(tuple, one["rows"])), one["note"])
            for one in value["tables"]
        ),
        charts=tuple(
            Chart(
                **{key: one[key] for key in ("name", "title", "unit")},
                groups=tuple(one["groups"]),
                series=tuple(one["series"]),
                bars=tuple(
                    tuple(None if bar is None else Bar(**bar) for bar in group) for group in one["bars"]
                ),
            )
            for one in value["charts"]
        ),
        aims=tuple(Aim(**one) for one in value["aims"]),
        figures=value["figures"],
    )


def shown(value: Estimate | float | None, unit: str = "", *, digits: int = 3) -> str:
    """A figure for people: three significant digits, the interval in brackets."""
    if value is None:
        return "–"
    if isinstance(value, float | int):
        return _number(value, digits) + _behind(unit)
    text = _number(value.median, digits) + _behind(unit)
    if value.low is None or value.high is None:
        return text
    return f"{text} ({_number(value.low, digits)} … {_number(value.high, digits)})"


def _behind(unit: str) -> str:
    return f" {unit}" if unit else ""


def _number(value: float, digits: int) -> str:
    if value == 0:
        return "0"
    if abs(value) >= 10 ** (digits - 1):
        return f"{value:,.0f}"
    text = f"{value:.{digits}g}"
    return f"{value:.{digits}f}".rstrip("0").rstrip(".") if "e" in text else text


def aim_row(aim: Aim) -> tuple[str, str, str, str]:
    """(what, aim, found, whether it is reached) as text."""
    sign = "≥" if aim.direction == "at least" else "≤"
    verdict = "not measured" if aim.found is None else "reached" if aim.reached else "missed"
    return (
        aim.what + (f" ({aim.note})" if aim.note else ""),
        f"{sign} {aim.bound:g}{_behind(aim.unit)}",
        shown(aim.found, aim.unit),
        verdict,
    )


def markdown(result: Result) -> str:
    """A page's worth, without the machine. Charts are linked as ``NAME.svg`` beside it."""
    lines = [f"# {result.title}", "", result.text.strip(), ""]
    for chart in result.charts:
        lines += [f"![{chart.title}]({chart.name}.svg)", ""]
    for table in result.tables:
        lines += [f"## {table.title}", "", *markdown_rows(table.columns, table.rows), ""]
        lines += [table.note, ""] if table.note else []
    if result.aims:
        rows = [aim_row(aim) for aim in result.aims]
        lines += ["## Aims", "", *markdown_rows(("what", "aim", "found", ""), rows), ""]
    return "\n".join(lines)


def markdown_rows(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"

    return [line(columns), "|" + "---|" * len(columns), *(line(row) for row in rows)]
