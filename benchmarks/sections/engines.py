"""Engines side by side at 1.1 B: the same weights, called directly in processes of their own, without HTTP or channel.

Each has as many threads as there are cores, or what it chose itself. Memory is the most that the process ever held, weights
that it mapped included. ``auto`` is what `cloister optimize` chose for latency and for throughput; the last table says how
near it is to the best engine in the column that its mode is about.
"""

from __future__ import annotations

from functools import partial

from benchmarks.columns import COLUMNS, DECODE, PREFILL, TOGETHER, Board, Open, measure
from benchmarks.configurations import ALL, AUTO, CANDIDATES, weights
from benchmarks.quality import qualities
from benchmarks.report import Aim, Chart, Result, Table, shown
from benchmarks.sections import Options, about
from benchmarks.sides import Child, SideFailedError

MODES = {"auto, latency": (DECODE,), "auto, throughput": (TOGETHER,)}
"""Mode → the columns it is about."""


def run(options: Options) -> Result:
    sides: dict[str, Open] = {}
    missing: dict[str, str] = {}
    for one in ALL:
        try:
            options.require(one.name)
            model = weights(options.models, one, quick=options.quick)
        except SideFailedError as error:
            missing[one.name] = str(error)
        else:
            sides[one.name] = partial(Child, one.engine, model, **one.settings)
    board = measure(sides, options.rounds(3))
    board = Board(board.samples, {**missing, **board.missing})
    quality = qualities(options.models, [one for one in ALL if one.name in board.samples])
    best = {column: board.best(tuple(one.name for one in CANDIDATES), column) for column in COLUMNS}
    rows: list[tuple[str, ...]] = []
    for one in ALL:
        if one.name not in board.samples:
            rows.append((one.name, *("–",) * 5, board.missing.get(one.name, "")))
            continue
        memory = board.memory(one.name)
        rows.append(
            (
                one.name,
                *(shown(board.estimate(one.name, column)) for column in COLUMNS),
                shown(board.first(one.name), "s"),
                shown(memory and memory / 1e9, "GB"),
                quality[one.name].words if one.name in quality else "",
            )
        )
    head = ("", *(f"{column}, tok/s" for column in COLUMNS), "first token of 512", "memory", "quality")
    names = tuple(one.name for one in ALL if one.name in board.samples)[:8]
    bars = tuple(tuple(board.bar(name, column) for name in names) for column in COLUMNS)
    groups = ("Reading a prompt of 512 tokens", "Writing one answer", "Writing eight answers at once")
    return Result(
        title="Engines side by side",
        text=about(__doc__),
        tables=(Table("Engines", head, tuple(rows), "Median (95 % interval)."), _autos(board, best)),
        charts=(Chart("engines", "Engines at 1.1 B: tokens per second", "tok/s", groups, names, bars),),
        aims=tuple(_aims(board, best)),
        figures={"samples": {name: {c: board.rates(name, c) for c in COLUMNS} for name in board.samples}},
    )


def _autos(board: Board, best: dict[str, str | None]) -> Table:
    rows = []
    for one in AUTO:
        for column in COLUMNS:
            top = best[column]
            found = top and board.ratio(one.name, top, column)
            rows.append((one.name, column, top or "–", shown(found or None)))
    return Table(
        "What auto chose, over the best of each column", ("", "column", "best", "auto ÷ best"), tuple(rows)
    )


def _aims(board: Board, best: dict[str, str | None]) -> list[Aim]:
    aims = []
    for mode, columns in MODES.items():
        for column in columns:
            top = best[column]
            found = board.ratio(mode, top, column) if top else None
            aims.append(
                Aim(
                    f"{mode}, {column}, over the best engine",
                    0.97,
                    "at least",
                    None if found is None else found.median,
                )
            )
    top = best[PREFILL]
    if top is not None and "auto, latency" in board.samples:
        first, other = board.first("auto, latency"), board.first(top)
        assert first is not None
        assert other is not None
        note = "times that of the best engine; 1 + noise"
        aims.append(Aim("first token after auto", 1.03, "at most", first.median / other.median, note=note))
    return aims
