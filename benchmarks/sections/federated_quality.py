"""Federated training: how much worse a model is that parties trained together without showing each other their data.

Compared are one model that learned from all data in one place, the federation's, and the best that a party alone can do:
after as many epochs each, with the same encoder and rates, on the same test part, by whole entities, strictly. A round is an
epoch at each party and the mean of their weights by their sentences (FedAvg); the rate falls over all rounds. Rounds are
computed in one process with the parts that a party's workload has: what would travel is the same numbers.

NCBI disease is divided among three parties, UNER Chinese among four: at random (IID), and skewed, by the kind of a
sentence's first entity, in shares drawn from a Dirichlet distribution of 0.5, anew for each seed. MiniLM-L6 is English. Of
Chinese it knows 244 characters, 32 % of the text's, so Chinese is read by characters, and what reads it has learned nothing
before. A mean of parties that begin so learns slowly at the rates that are the best for all data in one place: for UNER the
federation's were chosen on the development part (seed 2, IID; F1 34.1 at once, 39.8 at twice, 43.0 at three and 37.7 at four
times the rates; in one place 37.6 at once and at twice).

What a mean by sentences does not stand: in the skewed division of seed 2 a party has 2,460 sentences of which 12 name a
disease. It learns in each round that nothing is one, and weighs most. With ``weight = "balanced"`` in the task's settings a
party weighs by the geometric mean of its sentences and of those that name something. What happens was seen on the test part;
what to do about it was chosen on the development part, of 1,500 sentences of seed 2 (F1 72.4; by those that name something
69.8, four rounds an epoch by sentences 65.0; in one place 73.0). At random divided, both weights are the same but for a few
per cent, and rows of that are by sentences.

By name alone: half an hour and more a seed on two cores. What is computed is kept in ``benchmarks/kept/``, which is part of
the project, so that a run that was broken off goes on where it stopped, and another day or machine adds seeds; ``--rounds``
is the number of seeds, ``--configurations`` names the only corpora wanted, and ``--minutes 0`` writes the page of what there
is.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Final

from rich.progress import Progress

from benchmarks.federated_trials import Corpus, Found, Score, Trial, Weight, computed, keep, kept
from benchmarks.report import Aim, Bar, Chart, Result, Table
from benchmarks.sections import Options, about
from benchmarks.sides import ROOT
from cloister.federated.training.corpus import Columns
from cloister.federated.training.learning import Learning
from cloister.federated.training.partition import Way

FASTER: Final = {"UNER Chinese": 3.0}
"""Times the rates at parties that learn together, where that was better on the development part than once."""
WEIGHED: Final[dict[str, Weight]] = {"NCBI disease": "balanced"}
"""By what parties weigh where they are skewed and that was better on the development part than all sentences."""
KEPT: Final = ROOT / "benchmarks" / "kept" / "federated_quality.jsonl"
SEEDS: Final = 3
WITHIN: Final = -2.0
"""Points of F1 that a federation may be behind."""
CENTRAL: Final = "all data in one place"
DIVISIONS: Final[dict[Way, str]] = {"iid": "IID", "skewed": "skewed"}
READINGS: Final = {
    "MiniLM, words by its own vocabulary": Trial(0, encoder="MiniLM", word_level=True),
    "MiniLM, characters by its own vocabulary": Trial(0, encoder="MiniLM"),
    "MiniLM, with an entry of its own for each character": Trial(0, encoder="MiniLM with characters"),
    "2 layers of 128 that have learned nothing before, characters": Trial(0),
}
"""What reads Chinese."""
NCBI: Final = Corpus(
    "NCBI disease", "ncbi-disease", "tsv", ("Disease",), Columns(0, 1), 3, "MiniLM", 5,
    Learning(batch=32, rate=6e-4, head_rate=4e-3),
)  # fmt: skip
UNER: Final = Corpus(
    "UNER Chinese", "uner-zh-gsdsimp", "iob2", ("PER", "LOC", "ORG"), Columns(1, 2), 4, "characters", 10,
    Learning(batch=32, rate=2e-3, head_rate=4e-3), characters=True,
)  # fmt: skip


HEADS: Final = (Trial(0), Trial(0, crf=False), Trial(0, crf=False, alike=True))
"""What stands on the encoder."""


def run(options: Options) -> Result:
    seeds = range(1, options.rounds(SEEDS) + 1)
    corpora = [replace(one, epochs=1, most=48) for one in (NCBI, UNER)] if options.quick else [NCBI, UNER]
    found: dict[str, Found] = {}
    with Progress(transient=True) as progress:
        for corpus in corpora:
            trials = list(trials_of(corpus, seeds))
            found[corpus.name] = {} if options.quick else kept(corpus, KEPT)
            wanted = options.minutes > 0 and (
                not options.configurations or corpus.name in options.configurations
            )
            missing = [one for one in trials if wanted and one not in found[corpus.name]]
            task = progress.add_task(corpus.name, total=len(missing))
            for trial in missing:
                found[corpus.name][trial] = score = computed(corpus, trial)
                if not options.quick:
                    keep(corpus, trial, score, KEPT)
                progress.advance(task)
    return result([one for one in corpora if found[one.name]], found)


def trials_of(corpus: Corpus, seeds: Iterable[int]) -> Iterator[Trial]:
    """What the page shows, one seed after another."""
    for seed in seeds:
        yield Trial(seed)
        yield from (_together(corpus, division, seed) for division in DIVISIONS)
        for division in DIVISIONS:
            yield from (Trial(seed, division=division, party=party) for party in range(corpus.parties))
        for alike in (False, True):
            yield Trial(seed, crf=False, alike=alike)
            yield replace(_together(corpus, "iid", seed), crf=False, alike=alike)
    if corpus.characters:
        yield from (replace(one, seed=1) for one in READINGS.values() if one != Trial(0))


def _together(corpus: Corpus, division: Way, seed: int = 0) -> Trial:
    weight = WEIGHED.get(corpus.name, "sentences") if division == "skewed" else "sentences"
    return Trial(seed, division=division, faster=FASTER.get(corpus.name, 1.0), weight=weight)


Row = dict[int, Score]
"""A score of each seed that there is."""


def result(corpora: Sequence[Corpus], found: dict[str, Found]) -> Result:
    """The page of what there is."""
    rows = {one.name: _rows(one, found[one.name]) for one in corpora}
    tables = [_main(one, found[one.name], rows[one.name]) for one in corpora]
    tables.append(_crf(corpora, found))
    tables += [_readings(one, found[one.name]) for one in corpora if one.characters]
    chart = Chart(
        name="federated_quality",
        title="F1 on the test part",
        unit="%",
        groups=tuple(rows),
        series=tuple(next(iter(rows.values()))),
        bars=tuple(tuple(map(_bar, one.values())) for one in rows.values()),
    )
    return Result(
        title="Federated training: quality",
        text=about(__doc__),
        tables=tuple(tables),
        charts=(chart,),
        aims=tuple(aim for name, one in rows.items() for aim in _aims(name, one)),
        figures={
            name: {row: {seed: score.f1 for seed, score in scores.items()} for row, scores in one.items()}
            for name, one in rows.items()
        },
    )


def _rows(corpus: Corpus, scores: Found) -> dict[str, Row]:
    rows = {CENTRAL: _of(scores, Trial(0))}
    for division, name in DIVISIONS.items():
        rows[f"federated, {name}"] = _of(scores, _together(corpus, division))
        rows[f"best party alone, {name}"] = _best_alone(corpus, scores, division)
    return rows


def _of(scores: Found, trial: Trial) -> Row:
    return {one.seed: score for one, score in scores.items() if replace(one, seed=0) == trial}


def _best_alone(corpus: Corpus, scores: Found, division: Way) -> Row:
    """Of each seed whose parties were all alone. The best is chosen by the test part, in its favour."""
    found = {}
    for seed in {one.seed for one in scores}:
        trials = [Trial(seed, division=division, party=party) for party in range(corpus.parties)]
        if all(one in scores for one in trials):
            found[seed] = max((scores[one] for one in trials), key=lambda score: score.f1)
    return found


def _gains(row: Row, beside: Row) -> list[float]:
    """Points of F1, of the seeds that both have."""
    return [row[seed].f1 - beside[seed].f1 for seed in sorted(row.keys() & beside.keys())]


def _main(corpus: Corpus, scores: Found, rows: dict[str, Row]) -> Table:
    central, more = rows[CENTRAL], {}
    faster = FASTER.get(corpus.name, 1.0)
    if faster != 1.0:
        more = {
            f"federated, {name}, at the others' rates": _of(scores, Trial(0, division=division))
            for division, name in DIVISIONS.items()
        }
    if corpus.name in WEIGHED:
        plain = replace(_together(corpus, "skewed"), weight="sentences")
        more["federated, skewed, weighed by sentences"] = _of(scores, plain)
    cells = []
    for name, row in (rows | more).items():
        scored = row.values()
        shares = (
            [one.f1 for one in scored],
            [one.precision for one in scored],
            [one.recall for one in scored],
        )
        behind = "" if name == CENTRAL else _signed(_gains(row, central))
        cells.append((name, *map(_spread, shares), behind, str(len(row))))
    at_parties = "the same for all" if faster == 1.0 else f"{faster:g} times these in a federation (above)"
    learning, mixed = corpus.learning, sum(one.bfloat16 for one in scores.values())
    note = (
        f"{corpus.parties} parties; {corpus.encoder}; {corpus.epochs} epochs, batches of {learning.batch}, rates "
        f"{learning.rate:g} and {learning.head_rate:g} (of linear layer and CRF), {at_parties}; mean, and standard "
        f"deviation, of the seeds. The best party is chosen by its F1 on the test part. {mixed} of "
        f"{len(scores)} trainings multiplied in bfloat16, the others in float32."
    )
    head = ("", "F1", "precision", "recall", "F1 less that of all data in one place", "seeds")
    return Table(corpus.name, head, tuple(cells), note)


def _crf(corpora: Sequence[Corpus], found: dict[str, Found]) -> Table:
    cells = []
    for corpus in corpora:
        ways: tuple[tuple[str, Way | None], ...] = ((CENTRAL, None), ("federated, IID", "iid"))
        for name, division in ways:
            scores = found[corpus.name]
            beside = Trial(0) if division is None else _together(corpus, division)
            rows = [_of(scores, replace(beside, crf=one.crf, alike=one.alike)) for one in HEADS]
            f1 = [_spread([one.f1 for one in row.values()]) for row in rows]
            gains = [_signed(_gains(rows[0], row)) for row in rows[1:]]
            cells.append((f"{corpus.name}, {name}", *f1, *gains, str(min(map(len, rows)))))
    note = (
        "All begin with a bias of 6 for O. “Weighted”: the loss of a word that is nothing counts 0.01, as Souza et al. 2019 "
        "have it; after few epochs it calls too much an entity. “Alike”: all words' losses count the same."
    )
    head = (
        "F1", "BERT + CRF", "BERT + softmax, weighted", "BERT + softmax, alike", "CRF less weighted", "CRF less alike",
        "seeds of all",
    )  # fmt: skip
    return Table("With a CRF, and without", head, tuple(cells), note)


def _readings(corpus: Corpus, scores: Found) -> Table:
    cells = [
        (name, _spread([one.f1 for one in row.values()]), str(len(row)))
        for name, trial in READINGS.items()
        if (row := _of(scores, trial))
    ]
    return Table(f"{corpus.name}: what reads it, all data in one place", ("", "F1", "seeds"), tuple(cells))


def _aims(corpus: str, rows: dict[str, Row]) -> list[Aim]:
    aims = []
    for name in DIVISIONS.values():
        row = rows[f"federated, {name}"]
        for bound, other, words in (
            (WITHIN, CENTRAL, "all data in one place"),
            (0.0, f"best party alone, {name}", "the best party alone"),
        ):
            gains = _gains(row, rows[other])
            found = statistics.fmean(gains) if gains else None
            aims.append(
                Aim(
                    f"{corpus}, {name}: F1 of the federation less that of {words}",
                    bound,
                    "at least",
                    found,
                    "points",
                )
            )
    return aims


def _bar(row: Row) -> Bar | None:
    values = [one.f1 for one in row.values()]
    return Bar(statistics.fmean(values), min(values), max(values)) if values else None


def _spread(values: Sequence[float]) -> str:
    if not values:
        return "–"
    return f"{statistics.fmean(values):.1f}" + (
        f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
    )


def _signed(values: Sequence[float]) -> str:
    text = _spread(values)
    return f"+{text}" if values and statistics.fmean(values) > 0 else text
