"""Long prompts: what is left of eight running streams while a prompt of 4,000 tokens is read in.

Eight streams decode; once they run, a ninth request with the long prompt comes. Counted are the tokens of the eight a second
from that request to its first token, against their tokens a second right before it, in the same run.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

from rich.progress import Progress

from benchmarks.configurations import CANDIDATES, Configuration, weights
from benchmarks.measurement import estimate
from benchmarks.report import Aim, Result, Table, shown
from benchmarks.samples import Stream, Task
from benchmarks.sections import Options, about
from benchmarks.sides import Server, SideFailedError

BOUND = 0.6
CHOSEN = ("llamacpp Q4_0", "openvino Q8_0", "torch int8")
LONG = 4000
STREAMS = 8
BEFORE = 6.0
"""Seconds for which the eight are watched before the long prompt comes."""


def run(options: Options) -> Result:
    rows: list[tuple[str, ...]] = []
    aims: list[Aim] = []
    long = 1000 if options.quick else LONG
    for one in (one for one in CANDIDATES if one.name in CHOSEN):
        try:
            kept, before, waited = measure(weights(options.models, one), one, options.rounds(2), long)
        except SideFailedError as error:
            rows.append((one.name, "–", str(error), "–"))
            aims.append(
                Aim(f"8 streams while a prompt of {long} is read, {one.name}", BOUND, "at least", None)
            )
            continue
        found = estimate(kept)
        rows.append((one.name, shown(estimate(before)), shown(found), shown(estimate(waited), "s")))
        aims.append(
            Aim(f"8 streams while a prompt of {long} is read, {one.name}", BOUND, "at least", found.median)
        )
    head = ("engine", "8 streams before, tok/s", "kept while it is read", "its first token")
    return Result(
        title="Long prompts", text=about(__doc__), tables=(Table(f"A prompt of {long} tokens", head, tuple(rows)),),
        aims=tuple(aims),
    )  # fmt: skip


def measure(
    model: Path, one: Configuration, rounds: int, long: int
) -> tuple[list[float], list[float], list[float]]:
    """Of each round: the share of speed kept, tokens/s before, seconds to the long prompt's first token."""
    kept, before, waited = [], [], []
    seeds = count()
    settings: dict[str, Any] = {"context_length": long + 200, "slots": STREAMS + 1, **one.settings}
    with (
        Server(one.engine, model, sealed=False, **settings) as running,
        Server.another(running) as other,
        Progress(transient=True) as progress,
    ):
        task = progress.add_task(one.name, total=rounds)
        running.ask(Task(16, 2, STREAMS, next(seeds)))
        speed = running.ask(Task(16, 12, STREAMS, next(seeds))).decode
        reading = other.ask(Task(long // 8, 1, 1, next(seeds))).first(50) * 8
        for _ in range(rounds):
            # Long enough for the reading to happen while all of them still run, shared processors and all.
            tokens = int(min(speed / STREAMS * (BEFORE + 2.5 * reading), long - 100))
            streams: list[Stream] = []
            thread = threading.Thread(
                target=partial(_ask, running, Task(16, tokens, STREAMS, next(seeds)), streams)
            )
            thread.start()
            time.sleep(BEFORE)
            late = other.ask(Task(long, 1, 1, next(seeds))).streams[0]
            thread.join()
            if not streams:
                raise SideFailedError("the eight streams failed")
            rate = _rate(streams, late.began - BEFORE / 2, late.began)
            until = min(late.first, *(stream.last for stream in streams))
            before.append(rate)
            kept.append(_rate(streams, late.began, until) / rate)
            waited.append(late.first - late.began)
            progress.advance(task)
    return kept, before, waited


def _ask(server: Server, task: Task, streams: list[Stream]) -> None:
    streams.extend(server.ask(task).streams)


def _rate(streams: Sequence[Stream], begin: float, end: float) -> float:
    """Arrivals per second; where a chunk holds more tokens than one, the same before and after."""
    return sum(begin <= at < end for stream in streams for at in stream.arrivals) / (end - begin)
