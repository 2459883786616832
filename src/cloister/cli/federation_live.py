"""A federated run on a terminal as it goes: rounds, parties, F1, loss, bytes, ε, evidence, refusals; plain lines if piped.

Names and reasons come from strangers: they are made inert, bounded, and given to rich as plain texts, never as markup. The
view fits 80 columns and the terminal's height: what there is no room for is counted.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable
from typing import Final

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from cloister.federated.progress import Ended, Fact, PartyState
from cloister.federated.report.elements import inert
from cloister.federated.report.run import Refusal, Run, metric, run_of, run_words
from cloister.federated.report.words import (
    MAX_REASON,
    SIMULATED,
    Tone,
    count,
    duration,
    fact_words,
    figure,
    name,
    number_of_examples,
    short,
    size,
    state_words,
)
from cloister.manifest.words import moment

REFUSALS: Final = 4
"""The newest that are shown."""
_BESIDE: Final = 12
"""Lines of the view beside parties and refusals."""
_STYLES: Final[dict[Tone, str]] = {"": "", "good": "green", "warn": "yellow", "bad": "bold red"}
_ORDER: Final = {"excluded": 0, "left": 1, "": 2, "admitted": 3, "ready": 4}
"""Who needs looking at comes first where there is no room for all."""


def show_live(
    facts: Iterable[Fact], console: Console, *, now: Callable[[], float] = time.time
) -> Ended | None:
    """Show ``facts`` as they come, until there are no more; the run's end, if it was among them.

    On a terminal it is one view that changes in place and stays at the end; else a line a fact, at once.
    """
    kept: list[Fact] = []
    if not console.is_terminal:
        for fact in facts:
            kept.append(fact)
            console.print(Text(fact_line(fact)), soft_wrap=True)
        return run_of(kept).ended

    def view() -> RenderableType:
        run = run_of(tuple(kept))
        when = int(now()) if run.ended is None else run.at
        return live_view(run, now=when, width=console.width, height=console.height)

    with Live(console=console, get_renderable=view, refresh_per_second=4, vertical_overflow="crop"):
        for fact in facts:
            kept.append(fact)
    return run_of(kept).ended


def fact_line(fact: Fact) -> str:
    """One line, with its time: for logs, and for who listens rather than looks."""
    return f"{moment(fact.at)}  {fact_words(fact)}"


def live_view(run: Run, *, now: int, width: int, height: int) -> Group:
    """All of it, for a terminal of this size."""
    begun = run.begun
    words, tone = run_words(run)
    title = Text(no_wrap=True, overflow="ellipsis")
    title.append(name(begun.federation) if begun else "Federated training", "bold")
    title.append(f"  {words}", _STYLES[tone])
    parts: list[RenderableType] = []
    if run.simulated:
        parts.append(Text(SIMULATED, "bold white on red", justify="center"))
    parts.append(title)
    if run.ended is not None and run.ended.reason:
        parts.append(_line(f"  {inert(run.ended.reason, limit=MAX_REASON)}", _STYLES[tone]))
    room = max(3, height - _BESIDE - REFUSALS)
    parts += [_bars(run, now), _newest(run), Text(), _parties(run, now, width=width, room=room)]
    if run.refusals:
        parts += [Text(), *(_refusal(one) for one in run.refusals[-REFUSALS:])]
        if len(run.refusals) > REFUSALS:
            parts.append(Text(f"and {len(run.refusals) - REFUSALS} before", "dim"))
    return Group(*parts)


def _bars(run: Run, now: int) -> Table:
    """Rounds of all, and ε of its budget."""
    begun, last = run.begun, run.last
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(width=9)
    table.add_column(width=34)
    table.add_column(no_wrap=True)
    if begun is None:
        table.add_row("Rounds", _bar(1, 0), "waiting for the parties")
        return table
    until = run.at if run.ended is not None else max(run.at, now)
    done = f"{len(run.rounds)} of {begun.rounds}, {duration(max(0, until - run.first))}"
    table.add_row("Rounds", _bar(begun.rounds, len(run.rounds)), done)
    if begun.epsilon is not None:
        spent = (last.epsilon if last is not None else 0.0) or 0.0
        table.add_row("ε spent", _bar(begun.epsilon, spent), f"{figure(spent)} of {short(begun.epsilon)}")
    return table


def _bar(total: float, done: float) -> ProgressBar:
    share = done / total if total > 0 and math.isfinite(total) and math.isfinite(done) else 0.0
    return ProgressBar(total=1.0, completed=min(1.0, max(0.0, share)), width=34)


def _newest(run: Run) -> Text:
    last = run.last
    if last is None:
        return Text("No round is done yet.", "dim")
    parts = [f"Round {last.number}"]
    f1, loss = metric(last, None, "f1"), metric(last, None, "loss")
    trained = metric(last, None, "loss", of="metrics")
    if f1 is not None:
        parts.append(f"F1 {figure(f1)}")
    if loss is not None or trained is not None:
        parts.append(f"loss {figure(loss if loss is not None else trained)}")
    if examples := sum(share.examples for share in last.shares.values()):
        parts.append(count(examples, "example"))
    parts += [duration(last.seconds), f"model {last.model[:12]}"]
    return _line("  ".join(parts))


def _parties(run: Run, now: int, *, width: int, room: int) -> Group:
    shown = run.parties
    if len(shown) > room:
        shown = tuple(sorted(shown, key=lambda one: _ORDER[_state(run, one)]))[:room]
    rows = [_row(run, party, now) for party in shown]
    titles = ("State", "Examples", "Loss", "F1", "Sent", "Evidence")
    # Names give way, figures never do.
    beside = (
        sum(2 + max(len(title), *(len(row[at]) for row in rows)) for at, title in enumerate(titles))
        if rows
        else 0
    )
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="dim")
    table.add_column("Party", no_wrap=True, overflow="ellipsis", max_width=max(9, width - beside))
    for title in titles:
        figures = title not in ("State", "Evidence")
        table.add_column(title, justify="right" if figures else "left", no_wrap=True)
    for party, row in zip(shown, rows, strict=True):
        table.add_row(Text(name(party)), *row)
    left = len(run.parties) - len(shown)
    more = [Text(f"and {count(left, 'party', 'parties')} more", "dim")] if left else []
    return Group(table, *more)


def _row(run: Run, party: str, now: int) -> tuple[Text, ...]:
    state = run.states.get(party)
    words, tone = state_words(state)
    brought = next((one for one in reversed(run.rounds) if party in one.shares), None)
    examples, loss, f1 = "–", None, None
    if brought is not None:
        examples = number_of_examples(brought.shares[party].examples)
        f1 = metric(brought, party, "f1")
        loss = metric(brought, party, "loss")
        if loss is None:
            loss = metric(brought, party, "loss", of="metrics")
    plain = (examples, figure(loss), figure(f1), size(run.sent(party)))
    return (Text(words, _STYLES[tone]), *(Text(cell) for cell in plain), _evidence(state, now))


def _evidence(state: PartyState | None, now: int) -> Text:
    """How long it holds."""
    if state is None or state.state not in ("admitted", "ready"):
        return Text("–", "dim")
    left = state.until - now
    if left <= 0:
        return Text("ended", "bold red")
    if left >= 3600:
        return Text(f"for {min(left // 3600, 9999)} h")
    return Text(f"for {left // 60} min" if left >= 60 else f"for {left} s", "yellow" if left < 120 else "")


def _refusal(one: Refusal) -> Text:
    when = moment(one.at)[11:19]
    found = _line(f"{when} {name(one.party)}: {one.what}", "yellow")
    if one.reason:
        found.append(f" ({inert(one.reason, limit=MAX_REASON)})", "not bold default")
    return found


def _state(run: Run, party: str) -> str:
    state = run.states.get(party)
    return "" if state is None else state.state


def _line(text: str, style: str = "") -> Text:
    return Text(text, style, no_wrap=True, overflow="ellipsis")
