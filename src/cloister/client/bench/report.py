"""A measurement as JSON, Markdown, SVG or one HTML page. Pure: text in, text out; everything of a service's is escaped."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from html import escape
from typing import Any, Final

from cloister.client.bench.figures import Bin, Figures, Spread, histogram

COLUMNS: Final = (
    "streams", "requests", "errors", "tokens/s",
    "first p50", "first p95", "first p99", "between p50", "between p95", "between p99",
)  # fmt: skip
_WIDTH, _HEIGHT, _LEFT, _TOP, _BOTTOM = 640, 220, 50, 34, 36


@dataclass(frozen=True, slots=True)
class Report:
    """All rounds of one run."""

    url: str
    way: str
    """How it was asked: ``sealed`` or ``plain``."""
    model: str
    tokens: int
    """Asked for of each answer, at the most."""
    rows: tuple[Figures, ...]
    firsts: tuple[tuple[int, tuple[float, ...]], ...]
    """(streams, seconds to the first token of each whole answer)."""

    def json(self) -> dict[str, Any]:
        """Numbers only; times in seconds."""
        rows = [asdict(row) for row in self.rows]
        for row, (_, firsts) in zip(rows, self.firsts, strict=True):
            row["first_histogram"] = [asdict(one) for one in histogram(firsts)]
        return {"url": self.url, "way": self.way, "model": self.model, "tokens": self.tokens, "rows": rows}


def cells(row: Figures) -> tuple[str, ...]:
    """The cells under :data:`COLUMNS`."""
    errors = sum(row.errors.values())
    return (
        str(row.streams), str(row.requests), str(errors), f"{row.tokens_per_second:.1f}",
        *_spread(row.first), *_spread(row.between),
    )  # fmt: skip


def errors_of(rows: Sequence[Figures]) -> Mapping[str, int]:
    """What went wrong, over all rounds."""
    found: dict[str, int] = {}
    for row in rows:
        for name, count in row.errors.items():
            found[name] = found.get(name, 0) + count
    return found


def duration(seconds: float) -> str:
    """Three digits and a unit."""
    if seconds < 0.0995:
        return f"{1000 * seconds:.1f} ms"
    return f"{1000 * seconds:.0f} ms" if seconds < 0.9995 else f"{seconds:.2f} s"


def markdown(report: Report) -> str:
    """A heading line and one table."""
    lines = [
        f"{_title(report)}\n",
        "| " + " | ".join(COLUMNS) + " |",
        "|" + "---|" * len(COLUMNS),
        *("| " + " | ".join(cells(row)) + " |" for row in report.rows),
    ]
    errors = errors_of(report.rows)
    if errors:
        lines += ["", "Errors: " + ", ".join(f"{count} × {name}" for name, count in errors.items())]
    return "\n".join(lines) + "\n"


def svg(report: Report) -> str:
    """One histogram of first tokens for each round, below each other."""
    plots = [
        f'<g transform="translate(0,{_HEIGHT * number})">{_plot(streams, histogram(firsts))}</g>'
        for number, (streams, firsts) in enumerate(report.firsts)
    ]
    height = _HEIGHT * max(1, len(plots))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" width="{_WIDTH}" height="{height}" '
        f'font-family="sans-serif" font-size="11"><title>{escape(_title(report))}</title>'
        f'<rect width="{_WIDTH}" height="{height}" fill="white"/>{"".join(plots)}</svg>\n'
    )


def html(report: Report) -> str:
    """One page without scripts: the table and the histograms."""
    head = "".join(f"<th>{escape(name)}</th>" for name in COLUMNS)
    rows = "".join(
        "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in cells(row)) + "</tr>" for row in report.rows
    )
    errors = "".join(f"<li>{count} × {escape(name)}</li>" for name, count in errors_of(report.rows).items())
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{escape(_title(report))}</title>'
        "<style>body{font-family:sans-serif;margin:2em}td,th{padding:.3em .8em;text-align:right}"
        "tr:nth-child(even){background:#f2f2f2}</style>"
        f"<h1>{escape(_title(report))}</h1><table><tr>{head}</tr>{rows}</table>"
        + (f"<p>Errors</p><ul>{errors}</ul>" if errors else "")
        + svg(report)
        + "</html>\n"
    )


def _title(report: Report) -> str:
    return f"{report.url}, {report.model}, {report.way}: answers of up to {report.tokens} tokens"


def _spread(spread: Spread | None) -> tuple[str, str, str]:
    if spread is None:
        return ("–", "–", "–")
    return (duration(spread.p50), duration(spread.p95), duration(spread.p99))


def _plot(streams: int, bins: Sequence[Bin]) -> str:
    parts = [f'<text x="{_LEFT}" y="20" font-size="13">{streams} streams: time to the first token</text>']
    most = max((one.count for one in bins), default=1)
    room, floor = _HEIGHT - _TOP - _BOTTOM, _HEIGHT - _BOTTOM
    width = (_WIDTH - _LEFT - 20) / max(1, len(bins))
    for number, one in enumerate(bins):
        tall = room * one.count / most
        x = _LEFT + number * width
        parts.append(
            f'<rect x="{x + 1:.1f}" y="{floor - tall:.1f}" width="{width - 2:.1f}" height="{tall:.1f}" fill="#4878a8"/>'
        )
        if number % 2 == 0:
            parts.append(f'<text x="{x:.1f}" y="{floor + 14}">{duration(one.low)}</text>')
    parts.append(f'<line x1="{_LEFT}" y1="{floor}" x2="{_WIDTH - 20}" y2="{floor}" stroke="black"/>')
    parts.append(f'<text x="{_LEFT - 6}" y="{_TOP + 4}" text-anchor="end">{most}</text>')
    return "".join(parts)
