"""The task ``ner``: named entities, by an encoder of the BERT family with a linear layer and a CRF over a sentence's words.

Settings: ``kinds`` of entities and ``train``, the file that is learned from, have to be there. ``test`` is the file that
is scored on, if there is one; ``format`` is that of both (``word-column`` and ``tag-column`` for CoNLL); ``crf`` 0 leaves
each word to itself; ``length`` and ``stride`` are of the windows on long sentences. How it trains: learning_settings.py.
"""

from __future__ import annotations

import functools
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from numpy.typing import NDArray

from cloister.errors import UsageError
from cloister.federated.corpus import FORMATS, Columns, Format, Sentence, TagSet, read_corpus
from cloister.federated.learning import Part, learn_parts, predict
from cloister.federated.learning_settings import Plan, read_plan
from cloister.federated.tagger_files import TaggerForm, new_tagger, save_tagger
from cloister.federated.task_settings import SettingsReader
from cloister.federated.tasks import Opening, Scored, Settings, Step, Trained
from cloister.federated.updates import Arrays
from cloister.federated.weights import put_weights, weights_of

NAME: Final = "ner"


@dataclass(frozen=True, slots=True)
class NerSettings:
    """What the federation says, read."""

    form: TaggerForm
    train: str
    test: str
    """``""`` without."""
    format: Format
    columns: Columns
    plan: Plan


def read_settings(settings: Settings) -> NerSettings:
    """Raises UsageError."""
    reader = SettingsReader(settings, task=NAME)
    found = NerSettings(
        form=TaggerForm(
            kinds=TagSet(reader.texts("kinds")).kinds,
            crf=reader.switch("crf", 1),
            length=reader.number("length", 256, low=34, high=8192),
            stride=reader.number("stride", 128, low=1, high=8192),
        ),
        train=reader.text("train"),
        test=reader.text("test", ""),
        format=reader.choice("format", "conll", FORMATS),
        columns=Columns(
            reader.number("word-column", 0, low=0, high=1000),
            reader.number("tag-column", -1, low=-1000, high=1000),
        ),
        plan=read_plan(reader, rate=100, head_rate=2000),
    )
    reader.end()
    return found


class NerTraining:
    """An open task: :class:`~cloister.federated.tasks.Training`. Data are read when they are first learned from."""

    def __init__(self, opening: Opening) -> None:
        self._settings = read_settings(opening.settings)
        self._opening = opening
        self._tagger = new_tagger(opening.model, self._settings.form, seed=opening.seed)

    def arrays(self) -> dict[str, NDArray[Any]]:
        return weights_of(self._tagger.model)

    def train(self, arrays: Arrays, *, number: int, seed: int, step: Step) -> Trained:
        began = time.monotonic()
        put_weights(self._tagger.model, arrays)
        loss = self._learn(number, seed, step)
        metrics = {
            "loss": loss,
            "examples": float(len(self._learned)),
            "seconds": time.monotonic() - began,
        }
        return Trained(self.arrays(), len(self._learned), metrics)

    def score(self, arrays: Arrays) -> Scored:
        if not self._settings.test:
            return Scored(0, {})
        put_weights(self._tagger.model, arrays)
        outcome = predict(
            self._tagger.model, self._held_out, self._tagger.reading, bfloat16=self._settings.plan.bfloat16
        )
        scores = outcome.scores
        return Scored(
            len(self._held_out),
            {"f1": scores.f1, "precision": scores.precision, "recall": scores.recall, "loss": outcome.loss},
        )

    def save(self, arrays: Arrays, folder: Path) -> None:
        put_weights(self._tagger.model, arrays)
        save_tagger(self._tagger.model, self._settings.form, self._opening.model, folder)

    def _learn(self, number: int, seed: int, step: Step) -> float:
        plan = self._settings.plan
        if self._opening.privacy is not None:
            raise UsageError(
                "the task ner does not hide single examples", todo='choose the privacy of "clients"'
            )
        return learn_parts(
            self._tagger.model,
            self._parts,
            plan.learning,
            seed=seed,
            course=plan.course(number),
            proximal=self._opening.proximal,
            bfloat16=plan.bfloat16,
            step=step,
        )

    @functools.cached_property
    def _learned(self) -> tuple[Sentence, ...]:
        return self._read(self._settings.train)

    @functools.cached_property
    def _parts(self) -> list[Part]:
        return [part for sentence in self._learned for part in self._tagger.reading.of(sentence)]

    @functools.cached_property
    def _held_out(self) -> tuple[Sentence, ...]:
        return self._read(self._settings.test)

    def _read(self, name: str) -> tuple[Sentence, ...]:
        settings = self._settings
        with self._opening.read(name) as file:
            return read_corpus(
                file, settings.format, TagSet(settings.form.kinds), what=name, columns=settings.columns
            )
