"""Blocks that a run's page is built of: sections, tables, rows, and what was left out. Elements only."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

from cloister.federated.report.elements import Child, Element, el
from cloister.manifest.words import moment


@dataclass(frozen=True, slots=True)
class Bounds:
    """How much of the newest is shown; None is all."""

    rounds: int | None = None
    trail: int | None = None
    parties: int | None = None


def section(key: str, title: str, *children: Child) -> Element:
    return el(
        "section",
        {"id": key, "aria-labelledby": f"{key}-heading", "tabindex": "-1"},
        el("h2", {"id": f"{key}-heading"}, title),
        *children,
    )


def table(caption: str, titles: Sequence[str], body: Sequence[Element], *, kind: str) -> Element:
    return el(
        "div",
        {"class": "scroll", "role": "region", "aria-label": caption, "tabindex": "0"},
        el(
            "table",
            {"class": kind},
            el("caption", None, caption),
            el("thead", None, el("tr", None, [el("th", {"scope": "col"}, title) for title in titles])),
            el("tbody", None, body),
        ),
    )


def row(title: str, value: Child, *, tone: str = "") -> Element:
    return el("div", None, el("dt", None, title), el("dd", {"class": tone}, value))


def code(text: str) -> Element:
    return el("code", None, text) if text else el("span", {"class": "soft"}, "none")


def moment_of(seconds: int) -> Element:
    text = moment(seconds)
    try:
        stamp = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))
    except (OverflowError, ValueError, OSError):
        stamp = ""
    return el("time", {"datetime": stamp}, text)


def left_out(number: int, one: str, many: str) -> Element | None:
    if number <= 0:
        return None
    return el(
        "p",
        {"class": "soft"},
        f"{number:,} {one if number == 1 else many} not shown here; the report has all.",
    )
