"""The report for a terminal: a verdict, a table of numbered checks, the claims, and what to do.

Without colours and at a fixed width when it is piped. Nothing that came out of evidence is interpreted: every text is
made inert in report_words.py, and rich gets plain text objects, never markup.
"""

from __future__ import annotations

import sys
from typing import Final

from rich.console import Console
from rich.padding import Padding
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from cloister.cli.report_words import Report, Section, Tone

PIPED_WIDTH: Final = 110
_STYLES: Final[dict[Tone, str]] = {"": "", "good": "green", "warn": "yellow", "bad": "red"}
_MARKS: Final = {
    "passed": ("✓", "ok", "green"),
    "failed": ("✗", "FAILED", "bold red"),
    "not asked": ("–", "-", "dim"),
}


def console() -> Console:
    """Standard output: colours on a terminal only, and never an exception over a character that it cannot write."""
    reconfigure = getattr(sys.stdout, "reconfigure", None)
    if reconfigure is not None:
        reconfigure(errors="replace")
    found = Console(highlight=False, markup=False, emoji=False, soft_wrap=False)
    if not found.is_terminal:
        found = Console(highlight=False, markup=False, emoji=False, width=PIPED_WIDTH, color_system=None)
    return found


def show_report(report: Report, out: Console) -> None:
    """Print all of ``report``."""
    with out.capture() as capture:
        _show(report, out)
    flush(capture.get())


def flush(text: str) -> None:
    """Write what was rendered, without the blanks with which rich fills its lines."""
    sys.stdout.write("\n".join(line.rstrip() for line in text.split("\n")))


def _show(report: Report, out: Console) -> None:
    if report.banner:
        show_banner(report.banner, out)
    mark, plain, _ = _MARKS["failed" if report.verdict == "refused" else "passed"]
    out.print(Text(f"{mark if _unicode(out) else plain} {report.headline}", f"bold {_STYLES[report.tone]}"))
    if report.problem:
        out.print(Padding(Text(report.problem), (0, 0, 0, 2)))
    if report.todo:
        out.print(Padding(Text(f"→ {report.todo}" if _unicode(out) else report.todo), (0, 0, 0, 2)))
    out.print()
    out.print(_checks(report, out))
    for section in report.sections:
        show_section(section, out)


def show_banner(text: str, out: Console) -> None:
    """What nobody may overlook."""
    out.print(Panel(Text(text, "bold red", justify="center"), border_style="red"))


def show_section(section: Section, out: Console) -> None:
    """A heading and its lines; long values stand on lines of their own, whole, to be copied."""
    out.print()
    out.print(Text(section.title, "bold"))
    width = min(24, max((len(line.name) for line in section.lines), default=0))
    for line in section.lines:
        text = Text("  ")
        text.append(line.name.ljust(width), "dim")
        text.append("  ")
        text.append(line.value, _STYLES[line.tone])
        out.print(text, soft_wrap=True)
        if line.meaning:
            out.print(Padding(Text(line.meaning, "italic dim"), (0, 0, 0, width + 4)))


def _checks(report: Report, out: Console) -> Table:
    table = Table(box=None, pad_edge=False, show_header=True, header_style="bold")
    table.add_column("", no_wrap=True)
    table.add_column("№" if _unicode(out) else "no.", justify="right", no_wrap=True)
    table.add_column("check", no_wrap=True)
    table.add_column("found", overflow="fold")
    for row in report.rows:
        mark, plain, style = _MARKS[row.state]
        outcomes = list(row.outcomes)
        if row.state == "not asked":
            outcomes = [f"not asked: {text}" for text in outcomes]
        table.add_row(
            Text(mark if _unicode(out) else plain, style),
            Text(str(row.number), style),
            Text(
                row.name, "bold red" if row.state == "failed" else "dim" if row.state == "not asked" else ""
            ),
            Text(
                "\n".join(outcomes),
                "red" if row.state == "failed" else "dim" if row.state == "not asked" else "",
            ),
        )
    return table


def _unicode(out: Console) -> bool:
    return out.encoding.lower().replace("-", "").startswith("utf")
