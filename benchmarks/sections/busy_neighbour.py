"""A busy neighbour: what is left of an engine's speed while another process computes on the same cores.

The neighbour is one thread of arithmetic without a pause, on whatever core the kernel gives it. Two cores shared by two
computing threads and it leave two thirds of the processor to the engine; engines whose threads spin at barriers keep much
less. Measured through each engine's own defaults as `cloister serve` opens it, and with llama.cpp's own defaults beside it.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path

from rich.progress import Progress

from benchmarks.configurations import CANDIDATES, Configuration, weights
from benchmarks.measurement import Estimate, estimate, interleaved, ratio
from benchmarks.report import Aim, Result, Table, shown
from benchmarks.samples import Task
from benchmarks.sections import Options, about
from benchmarks.sides import Child, SideFailedError

BOUND = 0.4
UNBOUND = Configuration("llama.cpp's own defaults, Q4_0", "xllamacpp", "Q4_0")
CHOSEN = ("llamacpp Q4_0", "llamacpp Q8_0", "openvino Q8_0", "torch int8")


@contextmanager
def neighbour() -> Iterator[None]:
    process = subprocess.Popen(
        [sys.executable, "-c", "print(flush=True)\nwhile True: sum(range(100000))"], stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    process.stdout.readline()
    try:
        yield
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def run(options: Options) -> Result:
    rows: list[tuple[str, ...]] = []
    aims: list[Aim] = []
    for one in (*(one for one in CANDIDATES if one.name in CHOSEN), UNBOUND):
        try:
            alone, beside = measure(weights(options.models, one), one, options.rounds(4))
        except SideFailedError as error:
            rows.append((one.name, "–", "–", str(error)))
            aims += [Aim(f"decode beside a busy process, {one.name}", BOUND, "at least", None)] * (
                one is not UNBOUND
            )
            continue
        kept = ratio(beside, alone)
        rows.append((one.name, shown(estimate(alone)), shown(estimate(beside)), shown(kept)))
        if one is not UNBOUND:
            aims.append(
                Aim(
                    f"decode beside a busy process, {one.name}",
                    BOUND,
                    "at least",
                    kept.median,
                    note=_said(kept),
                )
            )
    head = ("engine", "alone, tok/s", "beside one busy process, tok/s", "kept")
    return Result(
        title="A busy neighbour", text=about(__doc__), tables=(Table("Decode, one stream", head, tuple(rows)),),
        aims=tuple(aims),
    )  # fmt: skip


def _said(value: Estimate) -> str:
    return f"{value.low:.2f} … {value.high:.2f}" if value.low is not None and value.high is not None else ""


def measure(model: Path, one: Configuration, rounds: int) -> tuple[list[float], list[float]]:
    seeds = count()
    with Child(one.engine, model, **one.settings) as side, Progress(transient=True) as progress:
        task = progress.add_task(one.name, total=2 * (rounds + 1))

        def alone() -> float:
            return side.ask(Task(16, 33, 1, next(seeds))).decode

        def beside() -> float:
            with neighbour():
                return alone()

        found = interleaved({"alone": alone, "beside": beside}, rounds, done=lambda: progress.advance(task))
    return found["alone"], found["beside"]
