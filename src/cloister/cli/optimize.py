"""``cloister optimize MODEL``: try engines, weights and settings on this machine, and write what is best as a new folder."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from cloister.cli.interruption import ended_like_ctrl_c
from cloister.errors import UsageError

if TYPE_CHECKING:
    from cloister.inference.optimized import MeasuredRow
    from cloister.inference.optimizer import Outcome

_UNITS = {"s": 1, "m": 60, "h": 3600}


def command(
    model: Annotated[
        Path,
        typer.Argument(
            help="A Hugging Face folder, a .gguf file or an OpenVINO folder, in the clear.", metavar="MODEL"
        ),
    ],
    goal: Annotated[
        Literal["latency", "throughput", "memory"],
        typer.Option("--for", help="One whole answer, eight streams together, or the least memory."),
    ] = "latency",
    budget: Annotated[str, typer.Option(help="Time for all of it: 90s, 10m, 2h.", metavar="TIME")] = "10m",
    out: Annotated[
        Path | None, typer.Option("--out", help="New folder; the model's name with .optimized by default.")
    ] = None,
    text: Annotated[
        Path | None, typer.Option("--text", help="Text to measure quality by: what the model will be asked.")
    ] = None,
    max_quality_loss: Annotated[
        str, typer.Option(help="By how much the perplexity on the text may rise.", metavar="PERCENT")
    ] = "3%",
    as_json: Annotated[bool, typer.Option("--json", help="Print the outcome as JSON.")] = False,
) -> None:
    """Choose the engine, the form of the weights and the settings that are best for MODEL on this machine.

    Writes a folder with the chosen files and optimized.json, which `serve` and `seal` take. MODEL stays as it is.
    """
    from cloister.inference.optimizer import optimize_directory

    seconds, loss = _seconds(budget), _share(max_quality_loss)
    with ended_like_ctrl_c(), _shown(seconds, quiet=as_json) as progress:
        outcome = optimize_directory(
            model, goal=goal, budget=seconds, out=out, text=text, max_loss=loss, progress=progress
        )
    if as_json:
        typer.echo(json.dumps(_document(outcome)))
        return
    _table(outcome)


def _seconds(text: str) -> float:
    match = re.fullmatch(r"(\d{1,7})([smh]?)", text.strip())
    if match is None:
        raise UsageError(f"{text[:40]!r} is no time", todo="say --budget 90s, 10m or 2h")
    return float(int(match[1]) * _UNITS[match[2] or "s"])


def _share(text: str) -> float:
    match = re.fullmatch(r"(\d{1,4}(?:\.\d{1,4})?)\s*%", text.strip())
    if match is None:
        raise UsageError(f"{text[:40]!r} is no percentage", todo="say --max-quality-loss 3%")
    return float(match[1]) / 100


@contextlib.contextmanager
def _shown(budget: float, *, quiet: bool) -> Iterator[Any]:
    """A line on a terminal: what is done, for which candidate, how much of the budget remains."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn

    console = Console(stderr=True)
    if quiet or not console.is_terminal:
        yield None
        return
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), TextColumn("{task.fields[left]}"))
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("looking at the model", total=budget, left="")

        def show(what: str, candidate: str, left: float) -> None:
            minutes, seconds = divmod(int(left), 60)
            bar.update(
                task,
                description=f"{what}: {candidate}",
                completed=budget - left,
                left=f"{minutes}:{seconds:02} left",
            )

        yield show


def _document(outcome: Outcome) -> dict[str, Any]:
    from cloister.inference.optimized import write_choice

    return {
        "out": str(outcome.out),
        "seconds": round(outcome.seconds, 1),
        "choice": json.loads(write_choice(outcome.choice)),
    }


def _table(outcome: Outcome) -> None:
    from rich.table import Table
    from rich.text import Text

    from cloister.cli.report_text import console as terminal

    console = terminal()
    choice = outcome.choice
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0))
    # The figures beside it are never cut, however narrow the terminal.
    table.add_column("candidate", overflow="fold")
    measured = [row for row in choice.rows if row.speed is not None]
    streams = max((row.speed.streams for row in measured if row.speed), default=1)
    for title in (
        "first\ntoken",
        "reading\ntok/s",
        "writing\ntok/s",
        f"{streams} streams\ntok/s",
        "memory",
        "size",
        "perplexity",
        "",
    ):
        table.add_column(title, justify="right", no_wrap=True)
    for row in measured:
        table.add_row(*(Text(cell) for cell in _cells(row)), style="bold green" if row.chosen else "")
    console.print(table)
    for row in choice.rows:
        if row.reason:
            console.print(f"{row.name}: {row.reason}", markup=False, soft_wrap=True, style="dim")
    console.print(
        f"chosen for {choice.goal}: {choice.chosen.name}; {outcome.seconds:.0f} s on {choice.machine.words}",
        markup=False,
        soft_wrap=True,
    )
    console.print(f"written to {outcome.out}", markup=False, soft_wrap=True)
    console.print(
        f"next: cloister serve {outcome.out} …, or cloister seal {outcome.out} …",
        markup=False,
        soft_wrap=True,
    )


def _cells(row: MeasuredRow) -> tuple[str, ...]:
    speed = row.speed
    assert speed is not None  # noqa: S101 -- measured
    change = "–"
    if row.quality is not None:
        own = row.quality.reference == row.name
        change = (
            f"{row.quality.perplexity_millionths / 1e6:.2f}"
            if own
            else f"{row.quality.change_ppm / 1e4:+.1f} %"
        )
    return (
        row.name,
        f"{speed.first_token_us / 1000:,.0f} ms",
        f"{speed.prefill_per_1000_s / 1000:,.1f}",
        f"{speed.decode_per_1000_s / 1000:,.1f}",
        f"{speed.streams_per_1000_s / 1000:,.1f}",
        f"{speed.memory_bytes / 1e6:,.0f} MB",
        f"{row.disk_bytes / 1e6:,.0f} MB",
        change,
        "✓" if row.chosen else "",
    )
