"""`make bench`: every section of the scoreboard, and what it found into ``docs/benchmarks/``.

Each section runs in a process of its own and leaves nothing behind; one that fails is told, and the others go on. Written
are one JSON file and one Markdown page a section, its charts as SVG, and a page over all. A section that is run alone
replaces its own files only, and the page over all is written anew from what lies there.

    python -m benchmarks.scoreboard [SECTION …] [--quick] [--models DIR] [--out DIR]
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from importlib import import_module
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table as RichTable

from benchmarks.machine import describe, other_load, sentence
from benchmarks.plot import svg
from benchmarks.report import Result, aim_row, as_json, markdown, markdown_rows, of_json
from benchmarks.sections import ON_REQUEST, SECTIONS, Options

ROOT = Path(__file__).resolve().parent.parent
OUT = ROOT / "docs" / "benchmarks"
BUSY = 0.15
"""Cores that others keep busy before the reader is warned."""
console = Console(highlight=False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("sections", nargs="*", metavar="SECTION", help=", ".join((*SECTIONS, *ON_REQUEST)))
    parser.add_argument(
        "--quick", action="store_true", help="fewer rounds and smaller sizes; written elsewhere"
    )
    parser.add_argument("--models", type=Path, default=default_models(), help="where models are kept")
    parser.add_argument(
        "--out", type=Path, help="default: docs/benchmarks, or build/bench/quick with --quick"
    )
    parser.add_argument("--minutes", type=float, default=30.0, help="of the soak")
    parser.add_argument(
        "--configurations", default="", help="of figure6 and engines: these alone, by name, with ; between"
    )
    parser.add_argument("--rounds", type=int, help="of figure6 and engines")
    parser.add_argument("--one", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    options = Options(
        quick=given.quick,
        models=given.models.resolve(),
        minutes=given.minutes,
        configurations=tuple(filter(None, given.configurations.split(";"))),
        asked_rounds=given.rounds,
    )
    names = given.sections or list(SECTIONS)
    unknown = [name for name in names if name not in (*SECTIONS, *ON_REQUEST)]
    if unknown:
        parser.error(f"no section {unknown[0]}; there are {', '.join((*SECTIONS, *ON_REQUEST))}")
    if given.one is not None:
        result = import_module(f"benchmarks.sections.{names[0]}").run(options)
        given.one.write_text(json.dumps(as_json(result)), "utf-8")
        return
    out = given.out or (ROOT / "build" / "bench" / "quick" if given.quick else OUT)
    out.mkdir(parents=True, exist_ok=True)
    options.models.mkdir(parents=True, exist_ok=True)
    machine = describe()
    console.print(sentence(machine), style="dim")
    failed = [name for name in names if not section(name, options, machine, out)]
    write_overview(out)
    if failed:
        console.print(f"failed: {', '.join(failed)}", style="bold red")
        sys.exit(1)


def default_models() -> Path:
    """Outside the repository: they are gigabytes, and stay."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("CLOISTER_BENCH_MODELS") or Path(cache) / "cloister-bench")


def section(name: str, options: Options, machine: dict[str, Any], out: Path) -> bool:
    """Run one section, show and write what it found; False where it failed."""
    console.rule(name)
    others = other_load()
    if others > BUSY:
        console.print(
            f"other processes keep {others:.1f} cores busy: these figures mean little", style="yellow"
        )
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        found = Path(folder) / "result.json"
        words = [name, "--one", found, "--models", options.models, "--minutes", options.minutes]
        words += ["--configurations", ";".join(options.configurations)] if options.configurations else []
        words += ["--rounds", options.asked_rounds] if options.asked_rounds else []
        command = [sys.executable, "-m", "benchmarks.scoreboard", *map(str, words)]
        done = subprocess.run([*command, "--quick"] if options.quick else command, cwd=ROOT, check=False)
        if done.returncode != 0 or not found.exists():
            console.print(f"{name} failed with exit code {done.returncode}", style="bold red")
            return False
        result = of_json(json.loads(found.read_text("utf-8")))
    seconds = round(time.monotonic() - began)
    show(result)
    about = machine | {"other_load_cores": round(others, 2), "quick": options.quick, "seconds": seconds}
    write(name, result, about, out)
    return True


def show(result: Result) -> None:
    for table in result.tables:
        shown = RichTable(title=table.title)
        for number, column in enumerate(table.columns):
            shown.add_column(column, justify="right" if number else "left")
        for row in table.rows:
            shown.add_row(*row)
        console.print(shown)
        if table.note:
            console.print(table.note, style="dim")
    for aim in result.aims:
        what, bound, found, verdict = aim_row(aim)
        colour = {"reached": "green", "missed": "red"}.get(verdict, "yellow")
        console.print(f"[{colour}]{verdict:>12}[/]  {what}: {found} ({bound})")


def write(name: str, result: Result, machine: dict[str, Any], out: Path) -> None:
    document = {"machine": machine, "result": as_json(result)}
    (out / f"{name}.json").write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n", "utf-8")
    note = " A short pass: few rounds." if machine["quick"] else ""
    page = f"{markdown(result)}\n---\n\nWritten by `make bench SECTION={name}`. {sentence(machine)}{note}\n"
    (out / f"{name}.md").write_text(page, "utf-8")
    for chart in result.charts:
        (out / f"{chart.name}.svg").write_text(svg(chart), "utf-8")


def write_overview(out: Path) -> None:
    """``README.md``: every section that lies in ``out``, its aims, and when it ran."""
    lines = ["# The scoreboard", "", "Written by `make bench`. Timings are never asserted by tests.", ""]
    rows, aims = [], []
    for name in (*SECTIONS, *ON_REQUEST):
        path = out / f"{name}.json"
        if not path.exists():
            continue
        document = json.loads(path.read_text("utf-8"))
        result, machine = of_json(document["result"]), document["machine"]
        rows.append((f"[{result.title}]({name}.md)", machine["date"], f"{machine['seconds']} s"))
        aims += [(f"[{name}]({name}.md)", *aim_row(aim)) for aim in result.aims]
        if name == "figure6":
            lines += [f"![{chart.title}]({chart.name}.svg)\n" for chart in result.charts]
    lines += ["## Aims", "", *markdown_rows(("section", "what", "aim", "found", ""), aims), ""]
    lines += ["## Sections", "", *markdown_rows(("section", "measured", "took"), rows), ""]
    (out / "README.md").write_text("\n".join(lines), "utf-8")


if __name__ == "__main__":
    main()
