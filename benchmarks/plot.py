"""Bar charts as SVG, written by hand: no library, readable on light and dark pages, and as text without colours.

Each group of a chart has a scale of its own, since a prompt is read at hundreds of tokens a second and an answer written at
ten. Bars carry their figures, and the interval as a thin line. Pure: a chart in, text out.
"""

from __future__ import annotations

from typing import Final
from xml.sax.saxutils import escape

from benchmarks.report import Bar, Chart, shown

COLOURS: Final = (
    ("#8a8f98", "#9aa0aa"),
    ("#b8bdc6", "#5f6672"),
    ("#c77d2e", "#e0964a"),
    ("#e3b778", "#96683a"),
    ("#2f7d5b", "#4fb389"),
    ("#3a66b0", "#6c98e0"),
    ("#8b4a9c", "#b97fca"),
    ("#a03c46", "#d9707a"),
)
"""Of each series, on light and on dark ground."""
_WIDTH: Final = 860
_LABELS: Final = 250
_BAR: Final = 20
_GAP: Final = 6
_BETWEEN: Final = 34
_TOP: Final = 64
_FIGURES: Final = 150


def svg(chart: Chart) -> str:
    """The chart as one SVG document. Raises ValueError where groups and bars do not fit together."""
    if len(chart.bars) != len(chart.groups) or any(len(one) != len(chart.series) for one in chart.bars):
        raise ValueError(f"the bars of {chart.name} are not {len(chart.groups)} × {len(chart.series)}")
    if len(chart.series) > len(COLOURS):
        raise ValueError(f"{chart.name} has {len(chart.series)} series, and there are {len(COLOURS)} colours")
    parts: list[str] = []
    y = _TOP
    for group, bars in zip(chart.groups, chart.bars, strict=True):
        parts.append(f'<text class="group" x="16" y="{y}">{escape(group)}</text>')
        y += 12
        top = max((bar.high or bar.value for bar in bars if bar is not None), default=1.0) or 1.0
        for number, bar in enumerate(bars):
            parts += _bar(chart, number, bar, y, top)
            y += _BAR + _GAP
        y += _BETWEEN
    height = y - _BETWEEN + 16
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" width="{_WIDTH}" '
            f'height="{height}" role="img" aria-labelledby="title">',
            f'<title id="title">{escape(chart.title)}</title>',
            f"<style>{_style(len(chart.series))}</style>",
            f'<rect class="ground" width="{_WIDTH}" height="{height}" rx="8"/>',
            f'<text class="title" x="16" y="30">{escape(chart.title)}</text>',
            *parts,
            "</svg>",
            "",
        ]
    )


def _bar(chart: Chart, number: int, bar: Bar | None, y: int, top: float) -> list[str]:
    middle = y + _BAR - 5
    name = f'<text class="name" x="{_LABELS - 8}" y="{middle}">{escape(chart.series[number])}</text>'
    if bar is None:
        return [name, f'<text class="value" x="{_LABELS + 4}" y="{middle}">not measured</text>']
    room = _WIDTH - _LABELS - _FIGURES
    width = max(1.0, room * bar.value / top)
    parts = [
        name,
        f'<rect class="s{number}" x="{_LABELS}" y="{y}" width="{width:.1f}" height="{_BAR}" rx="2"/>',
    ]
    end = width
    if bar.low is not None and bar.high is not None:
        left, right = room * max(bar.low, 0) / top, room * bar.high / top
        end = max(end, right)
        at = y + _BAR / 2
        parts.append(
            f'<path class="spread" d="M{_LABELS + left:.1f} {at}H{_LABELS + right:.1f}'
            f'M{_LABELS + left:.1f} {at - 4}v8M{_LABELS + right:.1f} {at - 4}v8"/>'
        )
    value = escape(shown(bar.value, chart.unit))
    return [*parts, f'<text class="value" x="{_LABELS + end + 8:.1f}" y="{middle}">{value}</text>']


def _style(series: int) -> str:
    def colours(side: int) -> str:
        return "".join(f".s{number}{{fill:{COLOURS[number][side]}}}" for number in range(series))

    return (
        "text{font-family:system-ui,-apple-system,'Segoe UI',sans-serif;font-size:13px;fill:#24292f}"
        ".title{font-size:17px;font-weight:600}.group{font-weight:600}.name{text-anchor:end}"
        ".value{font-variant-numeric:tabular-nums}.ground{fill:#fff}"
        f".spread{{stroke:#24292f;stroke-width:1.2;fill:none}}{colours(0)}"
        "@media (prefers-color-scheme:dark){text{fill:#e6edf3}.ground{fill:#0d1117}.spread{stroke:#e6edf3}"
        f"{colours(1)}}}"
    )
