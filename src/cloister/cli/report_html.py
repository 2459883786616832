"""The report as one HTML file: no scripts, nothing loaded from anywhere, every value escaped, made to be printed.

A strict content security policy stands in its head, so that even an escape that were forgotten could run and load
nothing. It is written beside its target and renamed, so that nobody reads half a report, and a link at the target is
replaced rather than followed.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import os
import tempfile
from functools import cache
from html import escape
from importlib import resources
from pathlib import Path
from typing import Final

from cloister.appraisal.examination import Row
from cloister.cli.report_words import Line, Report, Section
from cloister.errors import UsageError

_MARKS: Final = {"passed": "✓", "failed": "✗", "not asked": "–"}
_LONG: Final = 40
"""Characters from which a value is shown in a block of its own."""


def html_of(report: Report, *, title: str) -> str:
    """The whole page; ``title`` names what was verified."""
    parts = [
        "<!doctype html>",
        '<html lang="en">',
        "<head>",
        '<meta charset="utf-8">',
        f'<meta http-equiv="Content-Security-Policy" content="{_policy()}">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        '<meta name="referrer" content="no-referrer">',
        '<meta name="color-scheme" content="light dark">',
        f"<title>{escape(report.headline)}: {escape(title)}</title>",
        f"<style>{_style()}</style>",
        "</head>",
        "<body>",
        "<main>",
        _banner(report),
        "<header>",
        '<p class="kind">Attestation report</p>',
        f'<h1 class="{report.tone or "plain"}">{_mark(report)} {escape(report.headline)}</h1>',
        f'<p class="subject">{escape(title)}</p>',
        f'<p class="problem">{escape(report.problem)}</p>' if report.problem else "",
        f'<p class="todo">{escape(report.todo)}</p>' if report.todo else "",
        "</header>",
        _summary(report.sections[:1]),
        _checks(report.rows),
        *(_section(section) for section in report.sections[1:]),
        "<footer>Made by <code>cloister verify</code>. This page is a record for people: it proves nothing by "
        "itself. Whoever needs to know verifies the evidence again.</footer>",
        _banner(report),
        "</main>",
        "</body>",
        "</html>",
    ]
    return "\n".join(part for part in parts if part) + "\n"


def write_html(path: Path, page: str) -> None:
    """Write ``page`` to ``path`` at once: beside it, synced, renamed over whatever was there but a directory.

    Raises :class:`~cloister.errors.UsageError`.
    """
    try:
        if path.is_dir() and not path.is_symlink():
            raise UsageError(f"{path} is a directory", todo="name a file for the report")
        descriptor, name = tempfile.mkstemp(prefix=".cloister-", suffix=".html", dir=path.parent)
    except (OSError, ValueError) as error:
        raise _unwritable(path, error) from None
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(page.encode("utf-8", "replace"))
            file.flush()
            os.fchmod(file.fileno(), 0o644)
            os.fsync(file.fileno())
        Path(name).replace(path)
        directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)
    except OSError as error:
        with contextlib.suppress(OSError):
            Path(name).unlink()
        raise _unwritable(path, error) from None


def _unwritable(path: Path, error: Exception) -> UsageError:
    reason = getattr(error, "strerror", None) or "not a file's name"
    return UsageError(f"cannot write {path} ({reason})", todo="check --html")


@cache
def _style() -> str:
    text = resources.files("cloister.cli").joinpath("report.css").read_text(encoding="utf-8")
    return f"\n{text}"


def _policy() -> str:
    """Nothing but this very style sheet."""
    digest = base64.b64encode(hashlib.sha256(_style().encode()).digest()).decode()
    return f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"


def _banner(report: Report) -> str:
    return f'<div class="banner" role="alert">{escape(report.banner)}</div>' if report.banner else ""


def _mark(report: Report) -> str:
    return '<span aria-hidden="true">' + ("✗" if report.verdict == "refused" else "✓") + "</span>"


def _summary(sections: tuple[Section, ...]) -> str:
    return "".join(_section(section) for section in sections)


def _checks(rows: tuple[Row, ...]) -> str:
    body = "\n".join(_row(row) for row in rows)
    return (
        "<section><h2>Checks</h2>\n"
        '<table class="checks"><thead><tr><th scope="col">№</th><th scope="col">Check</th>'
        f'<th scope="col">Outcome</th></tr></thead>\n<tbody>\n{body}\n</tbody></table></section>'
    )


def _row(row: Row) -> str:
    state = row.state.replace(" ", "-")
    found = "<br>".join(escape(text) for text in row.outcomes)
    return (
        f'<tr class="{state}"><td class="number">{row.number}</td>'
        f'<th scope="row">{escape(row.name)}</th>'
        f'<td><span class="state"><span aria-hidden="true">{_MARKS[row.state]}</span> {row.state}</span>'
        f'<span class="found">{found}</span></td></tr>'
    )


def _section(section: Section) -> str:
    lines = "\n".join(_line(line) for line in section.lines)
    return f"<section><h2>{escape(section.title)}</h2>\n<dl>\n{lines}\n</dl></section>"


def _line(line: Line) -> str:
    value = escape(line.value)
    if " " not in line.value.strip() and len(line.value) >= _LONG:
        value = f"<code>{value}</code>"
    meaning = f'<span class="meaning">{escape(line.meaning)}</span>' if line.meaning else ""
    tone = f' class="{line.tone}"' if line.tone else ""
    return f"<div{tone}><dt>{escape(line.name)}</dt><dd>{value}{meaning}</dd></div>"
