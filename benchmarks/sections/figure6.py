"""Figure 6: plaintext and unoptimised, protected and unoptimised, protected and optimised, side by side at 1.1 B.

The plaintext baseline is `transformers` as its documentation shows it, called directly in a process of its own: no HTTP, no
channel, eight streams as one batch. It is taken in fp32 and bf16, and the stronger of the two in each column is what
others are compared with. Protected sides are `cloister serve` of a sealed model, verified and asked through the sealed
channel by a client on the same cores; the same torch computes the unoptimised ones. "Optimised" is one configuration, the
one that `cloister optimize` chose, at the quality that is stated beside it. A second table takes the best of each column
from different configurations.
"""

from __future__ import annotations

from functools import partial

from benchmarks.columns import COLUMNS, DECODE, PREFILL, TOGETHER, Board, Open, measure
from benchmarks.configurations import AUTO, CANDIDATES, PLAIN, TORCH_UNOPTIMISED, weights
from benchmarks.quality import Quality, qualities
from benchmarks.report import Aim, Chart, Result, Table, shown
from benchmarks.sections import Options, about
from benchmarks.sides import Child, Service, SideFailedError

AIMS = {DECODE: (4.0, 7.0), TOGETHER: (4.0, 6.0), PREFILL: (1.8, None)}
"""Column → (over the stronger baseline, over fp32)."""


def run(options: Options) -> Result:
    protected = (*TORCH_UNOPTIMISED, *AUTO, *CANDIDATES)
    sides: dict[str, Open] = {}
    missing: dict[str, str] = {}
    for one in (*PLAIN, *protected):
        try:
            options.require(one.name)
            model = weights(options.models, one, quick=options.quick)
        except SideFailedError as error:
            missing[one.name] = str(error)
            continue
        if one in PLAIN:
            sides[one.name] = partial(Child, one.engine, model, **one.settings)
        else:
            kept = options.models / "sealed" / model.name.removesuffix(".gguf")
            sides[one.name] = partial(Service, one.engine, model, kept, **one.settings)
    board = measure(sides, options.rounds(4))
    board = Board(board.samples, {**missing, **board.missing})
    quality = qualities(options.models, [one for one in protected if one.name in board.samples])
    optimised = chosen(board)
    return Result(
        title="Figure 6: protected and optimised, beside plaintext and not",
        text=about(__doc__),
        tables=(_one(board, optimised, quality), _best(board, quality), _all(board, quality)),
        charts=(_chart(board, optimised),),
        aims=_aims(board, optimised, quality),
        figures={
            "samples": {
                name: {column: board.rates(name, column) for column in COLUMNS} for name in board.samples
            },
            "missing": dict(board.missing),
        },
    )


def chosen(board: Board) -> str:
    """The one configuration: auto for throughput where it was measured, else the candidate that is furthest ahead in all."""
    for one in reversed(AUTO):
        if one.name in board.samples:
            return one.name
    found = [one.name for one in CANDIDATES if one.name in board.samples]
    if not found:
        raise RuntimeError("no configuration could be measured: " + "; ".join(board.missing.values()))

    def worst(name: str) -> float:
        ratios = (board.ratio(name, _baseline(board, column), column) for column in COLUMNS)
        return min(one.median / AIMS[column][0] for column, one in zip(COLUMNS, ratios, strict=True) if one)

    return max(found, key=worst)


def _baseline(board: Board, column: str) -> str:
    found = board.best(tuple(one.name for one in PLAIN), column)
    if found is None:
        raise RuntimeError("the baseline could not be measured: " + "; ".join(board.missing.values()))
    return found


def _rows(board: Board, optimised: str) -> list[tuple[str, str]]:
    """(what the row is, the side)"""
    return [
        ("plaintext, unoptimised, fp32", PLAIN[0].name),
        ("plaintext, unoptimised, bf16", PLAIN[1].name),
        ("protected, unoptimised, fp32", TORCH_UNOPTIMISED[0].name),
        ("protected, unoptimised, bf16", TORCH_UNOPTIMISED[1].name),
        ("protected and optimised", optimised),
    ]


def _cells(board: Board, name: str) -> tuple[str, ...]:
    if name not in board.samples:
        return ("–",) * (2 * len(COLUMNS))
    cells: list[str] = []
    for column in COLUMNS:
        over = board.ratio(name, _baseline(board, column), column)
        cells += [shown(board.estimate(name, column)), shown(over, "×")]
    return tuple(cells)


_HEAD = tuple(part for column in COLUMNS for part in (f"{column}, tok/s", "× the stronger baseline"))


def _one(board: Board, optimised: str, quality: dict[str, Quality]) -> Table:
    rows = [
        (
            f"{what} ({name})" if what.endswith("optimised") else what,
            *_cells(board, name),
            _said(quality, name),
        )
        for what, name in _rows(board, optimised)
    ]
    note = "; ".join(
        f"baseline of {column}: {_baseline(board, column).removeprefix('transformers ')}"
        for column in COLUMNS
    )
    return Table(
        "One configuration", ("", *_HEAD, "quality"), tuple(rows), note + ". Median (95 % interval)."
    )


def _best(board: Board, quality: dict[str, Quality]) -> Table:
    rows = []
    names = tuple(one.name for one in (*AUTO, *CANDIDATES))
    for column in COLUMNS:
        best = board.best(names, column)
        if best is None:
            continue
        rows.append(
            (
                column, best, shown(board.estimate(best, column), "tok/s"),
                shown(board.ratio(best, _baseline(board, column), column), "×"),
                shown(board.ratio(best, PLAIN[0].name, column), "×"), _said(quality, best),
            )
        )  # fmt: skip
    head = ("column", "configuration", "protected", "over the stronger baseline", "over fp32", "quality")
    return Table("The best of each column, from different configurations", head, tuple(rows))


def _all(board: Board, quality: dict[str, Quality]) -> Table:
    rows: list[tuple[str, ...]] = []
    for one in (*AUTO, *CANDIDATES):
        if one.name in board.samples:
            rows.append((one.name, *_cells(board, one.name), _said(quality, one.name)))
        else:
            rows.append((one.name, *("–",) * (2 * len(COLUMNS)), board.missing.get(one.name, "")))
    return Table("Every configuration, protected", ("", *_HEAD, "quality"), tuple(rows))


def _said(quality: dict[str, Quality], name: str) -> str:
    return quality[name].words if name in quality else ""


def _chart(board: Board, optimised: str) -> Chart:
    rows = _rows(board, optimised)
    groups = ("Reading a prompt of 512 tokens", "Writing one answer", "Writing eight answers at once")
    return Chart(
        name="figure6",
        title="LLaMA shape of 1.1 B: tokens per second",
        unit="tok/s",
        groups=groups,
        series=tuple(what for what, _ in rows),
        bars=tuple(tuple(board.bar(name, column) for _, name in rows) for column in COLUMNS),
    )


def _aims(board: Board, optimised: str, quality: dict[str, Quality]) -> tuple[Aim, ...]:
    aims: list[Aim] = []
    names = tuple(one.name for one in (*AUTO, *CANDIDATES))
    for column, (over, over_fp32) in AIMS.items():
        for name, note in ((optimised, optimised), (board.best(names, column), "the best of the column")):
            if name is None:
                continue
            strong = board.ratio(name, _baseline(board, column), column)
            fp32 = board.ratio(name, PLAIN[0].name, column)
            said = f"{note}; {_said(quality, name)}".strip("; ")
            aims.append(
                Aim(
                    f"{column}, over the stronger baseline",
                    over,
                    "at least",
                    None if strong is None else strong.median,
                    note=said,
                )
            )
            if over_fp32 is not None:
                aims.append(
                    Aim(
                        f"{column}, over fp32",
                        over_fp32,
                        "at least",
                        None if fp32 is None else fp32.median,
                        note=said,
                    )
                )
    return tuple(aims)
