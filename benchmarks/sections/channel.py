"""Sealed against plain through the same engine: tokens per second, first token, and what a token costs the server.

Two servers run at once, in processes of their own, with the same model, application and HTTP server; one stands behind the
sealed channel. They are asked in turn by the same client code, on the same cores. The demonstration model (6 M, a thousand
tokens a second) shows what the channel costs when the model costs little; the 1.1 B shape what is left of that beside a real
one. What a token costs the server besides the model is measured with an engine that computes nothing.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

from rich.progress import Progress

from benchmarks import server_path
from benchmarks.measurement import Estimate, difference, estimate, interleaved, ratio
from benchmarks.random_models import q4_0
from benchmarks.report import Aim, Result, Table, shown
from benchmarks.samples import Sample, Task
from benchmarks.sections import Options, about
from benchmarks.sides import Server
from cloister.inference.demo_model import demo_model

STREAMS = (1, 8, 32)
PLAIN, SEALED = "plain", "sealed"


def run(options: Options) -> Result:
    small = compare("demonstration model", demo_model(), 128, STREAMS, options.rounds(9, 2))
    large = compare("1.1 B, Q4_0", q4_0(options.models, "llama-1b"), 24, (1, 8), options.rounds(5, 1))
    rows = tuple((name, *one.cells()) for name, found in (small, large) for one in found)
    head = (
        "model", "streams", "plain tok/s", "sealed tok/s", "sealed ÷ plain", "first token plain, p50", "p95", "sealed, p50",
        "p95", "cost of p50",
    )  # fmt: skip
    path = server_path.measure(
        argparse.Namespace(
            streams="1,32" if options.quick else "1,32,200", rate=30.0, seconds=2.0 if options.quick else 4.0,
            pairs=30 if options.quick else 150, server="auto", only=None,
        )
    )  # fmt: skip
    tables = (Table("The same engine, plain and sealed", head, rows), *_path_tables(path))
    eight = {name: one for name, found in (small, large) for one in found if one.streams == 8}
    aims = [
        Aim(
            f"8 streams, sealed ÷ plain tokens/s, {name}",
            0.99,
            "at least",
            one.ratio.median,
            note=_interval(one.ratio),
        )
        for name, one in eight.items()
    ]
    aims.append(Aim("sealed first token, beyond plain", 3.0, "at most", path["first"]["cost"], "ms"))
    at_32 = next(row for row in path["cpu"] if row["streams"] == 32)
    aims.append(
        Aim("server CPU per token without the model, 32 streams", 60.0, "at most", at_32["sealed"], "µs")
    )
    bounds = {"X25519": 0.3, "X_WING": 0.6}
    for name, (_, server) in path["hpke"].items():
        aims.append(Aim(f"HPKE set-up of a request, {name}", bounds.get(name, 0.6), "at most", server, "ms"))
    return Result(
        title="The channel: sealed against plain", text=about(__doc__), tables=tables, aims=tuple(aims),
        figures={"server_path": path},
    )  # fmt: skip


def _interval(value: Estimate) -> str:
    return f"{value.low:.3f} … {value.high:.3f}" if value.low is not None else ""


class Pair:
    """One number of streams, both sides."""

    def __init__(self, streams: int, plain: list[Sample], sealed: list[Sample]) -> None:
        self.streams = streams
        self._plain, self._sealed = plain, sealed
        self.ratio = ratio([_rate(one) for one in sealed], [_rate(one) for one in plain])

    def cells(self) -> tuple[str, ...]:
        cost = difference(
            [1000 * one.first(50) for one in self._sealed], [1000 * one.first(50) for one in self._plain]
        )
        return (
            str(self.streams),
            shown(estimate([_rate(one) for one in self._plain])),
            shown(estimate([_rate(one) for one in self._sealed])),
            shown(self.ratio),
            *(
                shown(1000 * estimate([one.first(percent) for one in side]).median, "ms")
                for side in (self._plain, self._sealed)
                for percent in (50, 95)
            ),
            shown(cost, "ms"),
        )


def _rate(sample: Sample) -> float:
    """Tokens per second from the first question to the last answer's end."""
    began, end = min(one.began for one in sample.streams), max(one.last for one in sample.streams)
    return sample.tokens / (end - began)


def compare(
    name: str, model: Path, tokens: int, numbers: tuple[int, ...], rounds: int
) -> tuple[str, list[Pair]]:
    seeds = count()
    found: list[Pair] = []
    settings: dict[str, Any] = {"context_length": 256, "slots": max(numbers)}
    with (
        Server("llamacpp", model, sealed=False, **settings) as plain,
        Server("llamacpp", model, sealed=True, **settings) as sealed,
        Progress(transient=True) as progress,
    ):
        sides = {PLAIN: plain, SEALED: sealed}
        task = progress.add_task(name, total=len(numbers) * 2 * (rounds + 1))

        def ask(side: str, streams: int) -> Sample:
            return sides[side].ask(Task(12, tokens, streams, next(seeds)))

        for streams in numbers:
            asks: dict[str, Callable[[], Sample]] = {side: partial(ask, side, streams) for side in sides}
            samples = interleaved(asks, rounds, done=lambda: progress.advance(task))
            found.append(Pair(streams, samples[PLAIN], samples[SEALED]))
    return name, found


def _path_tables(path: dict[str, Any]) -> tuple[Table, ...]:
    rows = tuple(
        (
            f"{row['streams']:.0f}", shown(row["plain"], "µs"), shown(row["sealed"], "µs"),
            shown(row["plain_bytes"]), shown(row["sealed_bytes"]),
        )
        for row in path["cpu"]
    )  # fmt: skip
    head = (
        "streams",
        "plain, CPU a token",
        "sealed, CPU a token",
        "plain, bytes a token",
        "sealed, bytes a token",
    )
    first, hpke = path["first"], path["hpke"]
    costs = (
        ("first token, plain", shown(first["plain"], "ms")),
        ("first token, sealed", shown(first["sealed"], "ms")),
        (
            "cost of it, median and 95th percentile",
            f"{shown(first['cost'], 'ms')}, {shown(first['cost_p95'], 'ms')}",
        ),
        *(
            (f"HPKE set-up, {name}: client, server", f"{shown(client, 'ms')}, {shown(server, 'ms')}")
            for name, (client, server) in hpke.items()
        ),
    )
    return (
        Table("What a token costs the server, without the model", head, rows),
        Table("What a request costs, without the model", ("", "median"), costs),
    )
