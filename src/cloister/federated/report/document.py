"""What a run was, as one HTML file; and as the elements of its live page. Pure: facts in, text out.

The file has no scripts, loads nothing, escapes every value and is made to be printed; a content security policy in its head
holds that even where an escape were forgotten. It is a record for people and proves nothing: `cloister federation
verify-model` does.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable
from functools import cache
from html import escape
from importlib import resources
from typing import Final

from cloister.encoding import encode_json
from cloister.federated.progress import Fact
from cloister.federated.report import parts
from cloister.federated.report.blocks import Bounds
from cloister.federated.report.curves import curves
from cloister.federated.report.elements import Element, el, html, plain
from cloister.federated.report.parties import parties
from cloister.federated.report.run import Run, run_of, run_words
from cloister.federated.report.words import name

LIVE: Final = Bounds(rounds=50, trail=100, parties=64)
"""What the live page shows: it is asked again and again."""
ALL: Final = Bounds()
_FOOTER: Final = (
    "Made by Cloister from the log of the aggregator. This page is a record for people: it proves nothing by itself. The "
    "final model comes with its provenance; whoever needs to know runs: "
)


def report_html(facts: Iterable[Fact], *, now: int | None = None) -> str:
    """The whole file. ``now`` judges whether evidence still holds; without it, the time of the newest fact does."""
    run = run_of(facts)
    warning = parts.banner(run)
    footer = el("footer", None, _FOOTER, el("code", None, "cloister federation verify-model"))
    body = el("main", None, *_parts(run, ALL, now=run.at if now is None else now), footer, warning)
    return "\n".join(
        [
            "<!doctype html>",
            '<html lang="en">',
            "<head>",
            '<meta charset="utf-8">',
            f'<meta http-equiv="Content-Security-Policy" content="{_policy()}">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            '<meta name="referrer" content="no-referrer">',
            '<meta name="color-scheme" content="light dark">',
            f"<title>{escape(_title(run))}</title>",
            f"<style>{report_style()}</style>",
            "</head>",
            "<body>",
            html(body),
            "</body>",
            "</html>",
            "",
        ]
    )


def live_run(facts: Iterable[Fact], *, now: int) -> bytes:
    """The live page as JSON: ``title``, ``said`` (one line for who listens), ``over`` and ``parts``, elements as
    :func:`~cloister.federated.report.elements.plain` writes them."""
    run = run_of(facts)
    return encode_json(
        {
            "title": _title(run),
            "said": run_words(run)[0],
            "over": run.ended is not None,
            "parts": [plain(part) for part in _parts(run, LIVE, now=now)],
        }
    )


@cache
def report_style() -> str:
    """The style sheet of both."""
    text = resources.files("cloister.federated.report").joinpath("report.css").read_text(encoding="utf-8")
    return f"\n{text}"


def _parts(run: Run, bounds: Bounds, *, now: int) -> list[Element]:
    found = [
        parts.banner(run),
        parts.heading(run),
        parts.tiles(run),
        parts.identity(run),
        curves(run),
        parts.rounds_table(run, bounds),
        parties(run, bounds, now=now),
        parts.refusals(run, bounds),
        parts.trail(run, bounds),
    ]
    return [part for part in found if part is not None]


def _title(run: Run) -> str:
    whose = name(run.begun.federation) if run.begun else "a federation"
    return f"{whose}: {run_words(run)[0][:1].lower()}{run_words(run)[0][1:]}"


def _policy() -> str:
    """Nothing but this very style sheet."""
    digest = base64.b64encode(hashlib.sha256(report_style().encode()).digest()).decode()
    return f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
