"""Federated training: what protection costs a round, in time and in bytes, and how long parties take to attest each other.

Compared are Flower alone, as its users write it (benchmarks/plain_flower_apps.py), with TLS and without, and Cloister:
attested agents, workloads and aggregator, data sealed, mutual TLS around Flower. Three parties train MiniLM-L6 with a CRF on
the NCBI disease corpus, divided by document; each has one thread, and all of them share this machine's cores with the
aggregator. The configurations take turns, the order changes, and ratios are formed within a turn. The first round does not
count.

Flower starts a process for each message, which loads torch, model and data anew. In Cloister they stay in the workload, and
the process that Flower starts only hands the message on; also it looks for work and for replies more often than Flower does,
and a party that has a round's model already is not sent it again. So Cloister is not compared with Flower as it comes alone:
“nothing loaded twice” is Flower alone with the first two of these changes, and what Cloister takes longer than that is the
price of protection.

Bytes are those of connections between a party and the aggregator's machine, both ways, with TLS and all, counted by a proxy
in runs of their own. TEEs are simulated: quotes are real ones under a false root, and memory is not encrypted. With three
parties the privacy of clients drowns the model in noise; what is measured of it is what it costs.

By name alone: the better part of an hour on two cores. What was measured of this very code is kept in ``build/bench/``, so a
run that was broken off goes on where it stopped: ``--minutes`` is the time after which nothing more is begun (0 writes the
page of what there is), ``--rounds`` the number of turns, ``--configurations`` names the only ones wanted.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Final

from rich.console import Console

from benchmarks.federated_runs import BATCH, HEAD_RATE_PPM, RATE_PPM, Load, Run, Site, Way
from benchmarks.measurement import Estimate, estimate, order, ratio
from benchmarks.report import Aim, Bar, Chart, Result, Table, shown
from benchmarks.sections import Options, about
from benchmarks.sides import ROOT, SideFailedError
from cloister.attester.launch import this_program

KEPT: Final = ROOT / "build" / "bench"
TURNS: Final = 3
OVER_PLAIN: Final = 1.05
ATTESTED: Final = 5.0
"""Seconds."""
PLAIN, LOADED, CLOISTER = "Flower alone", "Flower alone, nothing loaded twice", "Cloister"
SECURE: Final = "Cloister, secure aggregation"
WAYS: Final = (
    Way(PLAIN),
    Way(LOADED, staying=True),
    Way("Flower with TLS", tls=True),
    Way(CLOISTER, aggregation={}),
    Way(SECURE, aggregation={"secure": True}),
    Way(
        "Cloister, privacy of clients", aggregation={},
        privacy={"of": "clients", "noise": 1.0, "clip": 0.1, "epsilon": 20, "delta": 0.00001},
    ),
)  # fmt: skip
LOAD: Final = Load(parties=3, learned=240, held_out=60, rounds=3)
QUICK: Final = Load(parties=3, learned=12, held_out=12, rounds=2, tiny=True)
GROWN: Final = (2, 4, 8, 16)
GROWTH: Final = "growth"
"""Of :data:`CLOISTER` with the number of parties, by a tiny model."""
console = Console(stderr=True)


@dataclass(frozen=True, slots=True)
class Piece:
    """Something to be measured: a configuration once, in one way."""

    what: str
    """``time``, ``bytes`` or :data:`GROWTH`."""
    name: str
    """Of the configuration; with :data:`GROWTH` the number of parties."""
    turn: int


Found = dict[Piece, Run]
Missing = dict[str, str]
"""Configurations that failed, and why."""


def run(options: Options) -> Result:
    load = QUICK if options.quick else LOAD
    grown = GROWN[:1] if options.quick else GROWN
    file = None if options.quick else KEPT / "federated_cost.jsonl"
    found, missing = kept(file), Missing()
    until = time.monotonic() + 60 * options.minutes
    with tempfile.TemporaryDirectory(prefix="cost-") as folder:
        sites = Sites(Path(folder), load, grown)
        for piece in pieces(options, grown):
            if piece in found or piece.name in missing or time.monotonic() > until:
                continue
            began = time.monotonic()
            try:
                found[piece] = sites.run(piece)
            except SideFailedError as error:
                missing[piece.name] = str(error)
            keep(file, piece, found.get(piece))
            said = missing.get(piece.name) or " ".join(f"{one:.1f}" for one in found[piece].rounds)
            console.print(
                f"{piece.what} {piece.name}, turn {piece.turn + 1}: {said} ({time.monotonic() - began:.0f} s)",
                style="dim", markup=False,
            )  # fmt: skip
    return page(load, found, missing)


def pieces(options: Options, grown: Sequence[int]) -> Iterator[Piece]:
    """In the order in which they are measured: a turn, bytes, another turn, growth, the other turns."""
    ways = [way.name for way in WAYS if not options.configurations or way.name in options.configurations]
    turns = options.rounds(TURNS)
    for turn in range(turns):
        yield from (Piece("time", name, turn) for name in (order(ways, turn) if ways else ()))
        if turn == 0:
            yield from (Piece("bytes", name, 0) for name in ways)
        if turn == min(1, turns - 1) and (not options.configurations or GROWTH in options.configurations):
            yield from (Piece(GROWTH, str(count), 0) for count in grown)


class Sites:
    """What is measured, and on what: made when it is needed first."""

    def __init__(self, root: Path, load: Load, grown: Sequence[int]) -> None:
        self._root = root
        self._loads = {
            "time": load,
            "bytes": replace(
                load, learned=12, held_out=12, rounds=2
            ),  # they are the weights', and no sentence's
            GROWTH: Load(parties=max(grown), learned=8, held_out=4, rounds=3, tiny=True),
        }
        self._sites: dict[str, Site] = {}

    def run(self, piece: Piece) -> Run:
        """Raises SideFailedError."""
        if piece.what == GROWTH:
            return self._site(GROWTH).run(Way(CLOISTER, aggregation={}), parties=int(piece.name))
        way = next(one for one in WAYS if one.name == piece.name)
        return self._site(piece.what).run(way, count=piece.what == "bytes")

    def _site(self, name: str) -> Site:
        if name not in self._sites:
            folder = self._root / name
            folder.mkdir()
            self._sites[name] = Site(folder, self._loads[name])
        return self._sites[name]


def kept(file: Path | None) -> Found:
    """What was measured of this very code."""
    lines = file.read_text("utf-8").splitlines() if file is not None and file.exists() else []
    own = fingerprint()
    return {
        Piece(**one["piece"]): Run(**(one["run"] | {"rounds": tuple(one["run"]["rounds"])}))
        for one in map(json.loads, lines)
        if one["of"] == own
    }


def keep(file: Path | None, piece: Piece, found: Run | None) -> None:
    if file is None or found is None:
        return
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("a", encoding="utf-8") as lines:
        lines.write(json.dumps({"of": fingerprint(), "piece": asdict(piece), "run": asdict(found)}) + "\n")


def fingerprint() -> str:
    """Of the package, of what it is compared with, and of how."""
    own = sorted((ROOT / "benchmarks").glob("*fl*er*.py")) + sorted(
        (ROOT / "benchmarks").glob("federated_runs.py")
    )
    code = [this_program().hex(), *(hashlib.sha256(one.read_bytes()).hexdigest() for one in own)]
    packages = [version(name) for name in ("flwr", "torch", "transformers")]
    how = (code, packages, LOAD, WAYS, RATE_PPM, HEAD_RATE_PPM, BATCH)
    return hashlib.sha256(repr(how).encode()).hexdigest()[:16]


def page(load: Load, found: Found, missing: Missing) -> Result:
    """Of what there is."""
    times = {way.name: _turns(found, way.name) for way in WAYS}
    attested = [one.ready for one in times[CLOISTER].values()]
    ready = estimate(attested) if attested else None
    tables = (
        _time_table(load, times, missing),
        _bytes_table(found),
        _attestation_table(load, times),
        _growth(found),
    )
    return Result(
        title="Federated training: cost",
        text=about(__doc__),
        tables=tuple(one for one in tables if one.rows),
        charts=(_chart(times),) if any(times.values()) else (),
        aims=(
            *(_over(times, below) for below in (PLAIN, LOADED)),
            Aim(
                f"from the last join until all {load.parties} parties are ready", ATTESTED, "at most",
                ready and ready.median, unit="s", note=_interval(ready),
            ),
        ),
        figures={
            f"{piece.what} {piece.name} {piece.turn + 1}": asdict(one) for piece, one in found.items()
        },
    )  # fmt: skip


Turns = Mapping[int, Run]


def _turns(found: Found, name: str) -> dict[int, Run]:
    return {
        piece.turn: one for piece, one in sorted(found.items(), key=lambda item: item[0].turn)
        if (piece.what, piece.name) == ("time", name)
    }  # fmt: skip


def _mean(one: Run) -> float:
    """Seconds of a round after the first."""
    return sum(one.rounds) / len(one.rounds)


def _ratio(times: Mapping[str, Turns], above: str, below: str) -> Estimate | None:
    """Of the turns that both had."""
    both = times[above].keys() & times[below].keys()
    if not both:
        return None
    turns = sorted(both)
    return ratio([_mean(times[above][turn]) for turn in turns], [_mean(times[below][turn]) for turn in turns])


def _over(times: Mapping[str, Turns], below: str) -> Aim:
    found = _ratio(times, CLOISTER, below)
    what = f"a round of Cloister over one of {below}"
    return Aim(what, OVER_PLAIN, "at most", found and found.median, note=_interval(found))


def _interval(value: Estimate | None) -> str:
    if value is None or value.low is None or value.high is None:
        return ""
    return f"{value.low:.2f} … {value.high:.2f}"


def _time_table(load: Load, times: Mapping[str, Turns], missing: Missing) -> Table:
    rows = []
    for name, turns in times.items():
        if not turns:
            if name in missing:
                rows.append((name, "–", "–", "–", "–", missing[name][:120]))
            continue
        runs = list(turns.values())
        rows.append(
            (
                name,
                shown(estimate([_mean(one) for one in runs]), "s"),
                shown(estimate([one.training for one in runs]), "s"),
                "" if name == PLAIN else shown(_ratio(times, name, PLAIN), "×"),
                "" if name == LOADED else shown(_ratio(times, name, LOADED), "×"),
                f"{runs[-1].loss:.2f}",
            )
        )
    note = (
        f"{load.parties} parties, about {load.learned} sentences each, {load.rounds} rounds, of which the first is left "
        f"out; {max((len(turns) for turns in times.values()), default=0)} turns. Training is what a party's own takes, "
        "beside the others'. The loss is of the last round's model on what was held out: that all of them learn the same."
    )
    head = ("", "a round", "training", f"over {PLAIN}", "over the same, nothing loaded twice", "loss")
    return Table("A round after the first", head, tuple(rows), note)


def _bytes_table(found: Found) -> Table:
    counted = {piece.name: one.megabytes for piece, one in found.items() if piece.what == "bytes"}
    plain = counted.get(PLAIN)
    rows = [
        (way.name, shown(counted[way.name], "MB"), shown(counted[way.name] / plain, "×") if plain else "–")
        for way in WAYS
        if way.name in counted
    ]
    note = "Both ways, in a round after the first: updates, models, and what Flower and the agents ask meanwhile."
    return Table("Bytes of one party in a round", ("", "sent", f"over {PLAIN}"), tuple(rows), note)


def _attestation_table(load: Load, times: Mapping[str, Turns]) -> Table:
    runs = list(times[CLOISTER].values())
    rows = [
        ("the aggregator has verified all of them", shown(estimate([one.admitted for one in runs]), "s")),
        (
            "all have verified all, keys are handed out, workloads have opened model and data",
            shown(estimate([one.ready for one in runs]), "s"),
        ),
    ] if runs else []  # fmt: skip
    note = "From the moment when the last party's people begin `cloister federation join`, programs being loaded."
    return Table(f"{load.parties} parties attest each other", ("until", "seconds"), tuple(rows), note)


def _growth(found: Found) -> Table:
    grown = sorted((int(piece.name), one) for piece, one in found.items() if piece.what == GROWTH)
    rows = [
        (str(count), shown(one.admitted, "s"), shown(one.ready, "s"), shown(_mean(one), "s"))
        for count, one in grown
    ]
    note = (
        "A model of two layers, a few sentences each: what is left is what Cloister and Flower do for a party. All parties "
        "share this machine's cores, where each would have its own."
    )
    return Table("With more parties", ("parties", "admitted", "ready", "a round"), tuple(rows), note)


def _chart(times: Mapping[str, Turns]) -> Chart:
    measured = {
        name: estimate([_mean(one) for one in turns.values()]) for name, turns in times.items() if turns
    }
    return Chart(
        name="federated_cost", title="A round after the first", unit="s", groups=("3 parties",), series=tuple(measured),
        bars=(tuple(Bar(one.median, one.low, one.high) for one in measured.values()),),
    )  # fmt: skip
