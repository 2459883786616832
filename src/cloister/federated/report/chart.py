"""Curves over rounds, as inline SVG without a library: told apart by dash and mark as well as colour, and told in words.

A chart of up to eight parties names each line at its end; of more it draws all of them thin, and names the ends of the
field. Colours are classes of report.css, for light, dark and paper. Pure: numbers in, elements out.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from cloister.federated.report.axes import Frame, rounds_named, ticks_around
from cloister.federated.report.elements import Element, el, inert
from cloister.federated.report.run import Point

STYLES: Final = 8
"""Lines that can be told apart."""
MAX_POINTS: Final = 240
"""Of a line: more than are seen."""
_MARKED: Final = 30
"""Points up to which each has its mark."""
_DASHES: Final = ("", "7 3", "2 3", "9 3 2 3", "5 2", "1 4", "12 4", "6 2 1 2 1 2")
_LABEL: Final = 13
"""Characters at a line's end."""
_BETWEEN: Final = 16.0
"""Units between two labels."""


@dataclass(frozen=True, slots=True)
class Line:
    """One curve. ``style`` is 0 to 7, or None for all parties together."""

    name: str
    points: tuple[Point, ...]
    style: int | None


@dataclass(frozen=True, slots=True)
class Chart:
    """Lines over rounds."""

    key: str
    """Of letters and digits: no two of one page have the same."""
    title: str
    lines: tuple[Line, ...]
    shown: Callable[[float], str]
    until: int
    """The last round of the axis."""
    tick: Callable[[float], str] | None = None
    """How the axis shows values, if otherwise."""
    bound: tuple[str, float] | None = None
    """What must not be exceeded, and its name."""
    floor: float | None = None
    """Where the axis begins, if it has to."""
    ceiling: float | None = None
    """What no value can exceed."""
    small: bool = False


def chart_figure(chart: Chart) -> Element:
    """The chart with its caption, and its ends in words."""
    return el(
        "figure",
        {"class": "chart"},
        el("figcaption", None, chart.title),
        chart_svg(chart),
        el("p", {"class": "note"}, _ends(chart)),
    )


def chart_svg(chart: Chart) -> Element:
    """The drawing alone. Raises ValueError for a chart without a point."""
    values = [value for line in chart.lines for _, value in line.points]
    if not values:
        raise ValueError(f"the chart {chart.key} has no point")
    if chart.bound is not None and math.isfinite(chart.bound[1]):
        values.append(chart.bound[1])
    if chart.floor is not None:
        values.append(chart.floor)
    ticks = ticks_around(values, chart.ceiling, most=3 if chart.small else 5)
    frame = _frame(chart, ticks)
    many = sum(line.style is not None for line in chart.lines) > STYLES
    # All parties together lie above the others, but in a party's own chart below it.
    lines = sorted(chart.lines, key=lambda line: (line.style is None) is not chart.small)
    return el(
        "svg",
        {
            "class": "small" if chart.small else None,
            "viewBox": f"0 0 {frame.width:.0f} {frame.height:.0f}",
            "role": "img",
            "aria-labelledby": f"chart-{chart.key}-title chart-{chart.key}-words",
        },
        el("title", {"id": f"chart-{chart.key}-title"}, chart.title),
        el("desc", {"id": f"chart-{chart.key}-words"}, _words(chart)),
        _grid(chart, frame, ticks),
        _bound(chart, frame),
        [_line(line, chart, frame, many=many) for line in lines],
        None if chart.small else _labels(chart, frame, many=many),
    )


def _frame(chart: Chart, ticks: Sequence[float]) -> Frame:
    first = min(1, *(number for line in chart.lines for number, _ in line.points))
    last = max(chart.until, *(number for line in chart.lines for number, _ in line.points))
    if chart.small:
        return Frame(520, 124, 58, 14, 12, 26, ticks[0], ticks[-1], first, last)
    return Frame(570, 280, 78, 120, 14, 46, ticks[0], ticks[-1], first, last)


def _grid(chart: Chart, frame: Frame, ticks: Sequence[float]) -> Element:
    right, bottom = frame.width - frame.right, frame.height - frame.bottom
    parts: list[Element] = []
    for tick in ticks:
        y = f"{frame.y(tick):.1f}"
        parts.append(
            el("line", {"class": "grid", "x1": f"{frame.left:.0f}", "x2": f"{right:.0f}", "y1": y, "y2": y})
        )
        parts.append(
            el(
                "text",
                {"x": f"{frame.left - 8:.0f}", "y": f"{frame.y(tick) + 4:.1f}", "text-anchor": "end"},
                (chart.tick or chart.shown)(tick),
            )
        )
    for number in rounds_named(frame, most=5 if chart.small else 9):
        place = {"x": f"{frame.x(number):.1f}", "y": f"{bottom + 18:.0f}", "text-anchor": "middle"}
        parts.append(el("text", place, str(number)))
    if not chart.small:
        middle = f"{(frame.left + right) / 2:.0f}"
        parts.append(el("text", {"x": middle, "y": f"{bottom + 38:.0f}", "text-anchor": "middle"}, "round"))
    return el("g", {"class": "axes"}, parts)


def _bound(chart: Chart, frame: Frame) -> list[Element]:
    if chart.bound is None or not math.isfinite(chart.bound[1]):
        return []
    y, right = frame.y(chart.bound[1]), frame.width - frame.right
    return [
        el(
            "line",
            {
                "class": "bound",
                "x1": f"{frame.left:.0f}",
                "x2": f"{right:.0f}",
                "y1": f"{y:.1f}",
                "y2": f"{y:.1f}",
            },
        ),
        el(
            "text",
            {"class": "bound-name", "x": f"{frame.left + 6:.0f}", "y": f"{y + 16:.1f}"},
            chart.bound[0],
        ),
    ]


def _line(line: Line, chart: Chart, frame: Frame, *, many: bool) -> Element | None:
    if not line.points:
        return None
    thin = many and line.style is not None
    kept = _thinned(line.points)
    # A gap is a gap: between rounds that a party missed nothing is drawn.
    steps = [
        f"{'L' if at and kept[at - 1][0] >= number - _gap(line.points) else 'M'}{frame.x(number):.1f} {frame.y(value):.1f}"
        for at, (number, value) in enumerate(kept)
    ]
    style = "all" if line.style is None else "thin" if thin else f"s{line.style % STYLES}"
    dash = _DASHES[line.style % STYLES] if line.style is not None and not thin else ""
    marks = []
    if not thin and line.style is not None:
        marked = kept if len(kept) <= _MARKED and not chart.small else kept[-1:]
        marks = [
            el("path", {"class": "mark", "d": _mark(line.style % STYLES, frame.x(number), frame.y(value))})
            for number, value in marked
        ]
    elif len(line.points) == 1:
        marks = [el("path", {"class": "mark", "d": _mark(0, frame.x(kept[0][0]), frame.y(kept[0][1]))})]
    return el(
        "g",
        {"class": style},
        el("title", None, f"{_short(line.name, 64)}: {_span(line, chart)}"),
        el("path", {"class": "curve", "d": "".join(steps), "stroke-dasharray": dash}),
        marks,
    )


def _gap(points: Sequence[Point]) -> int:
    """Rounds between two points that are drawn: more than one where a long line is thinned."""
    return max(1, math.ceil(len(points) / MAX_POINTS)) if len(points) > MAX_POINTS else 1


def _thinned(points: tuple[Point, ...]) -> tuple[Point, ...]:
    step = _gap(points)
    # Counted from the end, so that the newest is always there.
    return points[::-1][::step][::-1]


def _mark(style: int, x: float, y: float) -> str:
    """A shape around a place: circle, square, triangle, diamond, triangle downwards, cross, plus, bar."""
    at = f"M{x:.1f} {y:.1f}"
    return (
        at
        + (
            "m-3.5 0a3.5 3.5 0 1 0 7 0a3.5 3.5 0 1 0 -7 0z",
            "m-3.2 -3.2h6.4v6.4h-6.4z",
            "m0 -4.2l4.2 7.4h-8.4z",
            "m0 -4.6l4.6 4.6l-4.6 4.6l-4.6 -4.6z",
            "m0 4.2l4.2 -7.4h-8.4z",
            "m-3.4 -3.4l6.8 6.8m0 -6.8l-6.8 6.8",
            "m-4.4 0h8.8m-4.4 -4.4v8.8",
            "m-1.6 -4.4h3.2v8.8h-3.2z",
        )[style]
    )


def _labels(chart: Chart, frame: Frame, *, many: bool) -> list[Element]:
    """Names at the ends of lines, moved apart where they would lie on each other."""
    ends = [line for line in chart.lines if line.points and (line.style is None or not many)]
    if len(ends) < 2:  # the title names a single line
        return []
    placed = sorted(((frame.y(line.points[-1][1]), line) for line in ends), key=lambda pair: pair[0])
    heights: list[float] = []
    for y, _ in placed:
        heights.append(max(y, heights[-1] + _BETWEEN) if heights else y)
    text = max(frame.x(line.points[-1][0]) for _, line in placed) + 13
    # What was pushed below the frame pushes the others up again.
    under = frame.height - frame.bottom
    for at in range(len(heights) - 1, -1, -1):
        heights[at] = min(heights[at], under)
        under = heights[at] - _BETWEEN
    parts = []
    for (y, line), height in zip(placed, heights, strict=True):
        style = "all" if line.style is None else f"s{line.style % STYLES}"
        begin = frame.x(line.points[-1][0])
        parts.append(
            el(
                "g",
                {"class": style},
                el("path", {"class": "leader", "d": f"M{begin + 6:.1f} {y:.1f}L{text - 3:.1f} {height:.1f}"}),
                el(
                    "text",
                    {"class": "name", "x": f"{text:.0f}", "y": f"{height + 4:.1f}"},
                    _short(line.name, _LABEL),
                ),
            )
        )
    return parts


def _ends(chart: Chart) -> str:
    """The newest values, for eyes and ears: of each, or of the lowest and the highest."""
    known = [line for line in chart.lines if line.points]
    parties = [line for line in known if line.style is not None]
    shown = known
    if len(parties) > STYLES:
        by_value = sorted(parties, key=lambda line: line.points[-1][1])
        shown = [line for line in known if line.style is None] + [by_value[0], by_value[-1]]
    last = max(line.points[-1][0] for line in known)
    words = [
        f"{_short(line.name, 32)} {chart.shown(line.points[-1][1])}"
        + (f" (round {line.points[-1][0]})" if line.points[-1][0] != last else "")
        for line in shown
    ]
    field = (
        f"; of {len(parties)} parties the lowest and the highest are named" if len(parties) > STYLES else ""
    )
    bound = f"; {chart.bound[0]}" if chart.bound else ""
    return f"After round {last}: {', '.join(words)}{field}{bound}."


def _words(chart: Chart) -> str:
    spans = [f"{_short(line.name, 32)} {_span(line, chart)}" for line in chart.lines[:16] if line.points]
    more = f"; and {len(chart.lines) - 16} more" if len(chart.lines) > 16 else ""
    return f"Curves over rounds: {'; '.join(spans)}{more}. The tables below have the figures."


def _span(line: Line, chart: Chart) -> str:
    (first, begin), (last, end) = line.points[0], line.points[-1]
    if first == last:
        return f"{chart.shown(end)} in round {last}"
    return f"from {chart.shown(begin)} in round {first} to {chart.shown(end)} in round {last}"


def _short(text: str, limit: int) -> str:
    return inert(text, limit=limit)
