"""The task ``ner``: named entities, by an encoder of the BERT family with a linear layer and a CRF over a sentence's words.

Settings: ``kinds`` of entities and ``train``, the file that is learned from, have to be there. ``test`` is the file that
is scored on, if there is one; ``format`` is that of both (``word-column`` and ``tag-column`` for CoNLL); ``crf`` 0 leaves
each word to itself; ``length`` and ``stride`` are of the windows on long sentences. ``weight`` is what an update weighs by:
``sentences``, or ``balanced``: the geometric mean of these and of those that name something. How it trains: settings.py.

With the privacy of examples, an example is a whole sentence: all windows on it together. Then ``clip-ppm`` is not used (the
federation has the norm), a batch is what takes part in a step on average, and an epoch as many steps as without.
"""

from __future__ import annotations

import functools
import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import torch
from numpy.typing import NDArray
from torch import Tensor

from cloister.encoding import encode_json
from cloister.errors import UsageError
from cloister.federated.tasks import ExamplePrivacy, Opening, Scored, Settings, Step, Trained
from cloister.federated.training.corpus import (
    FORMATS,
    Columns,
    Format,
    Sentence,
    TagSet,
    balanced,
    read_corpus,
)
from cloister.federated.training.learning import Part, learn_parts, optimiser_of, predict, products
from cloister.federated.training.settings import Plan, read_plan
from cloister.federated.training.tagger import batch_of
from cloister.federated.training.tagger_files import TaggerForm, new_tagger, save_tagger
from cloister.federated.training.task_settings import SettingsReader
from cloister.federated.training.weights import put_weights, weights_of
from cloister.federated.updates import Arrays

if TYPE_CHECKING:
    from cloister.federated.training.private import Privately

NAME: Final = "ner"
WEIGHTS: Final = ("sentences", "balanced")
"""A party that has next to nothing to find teaches the others that there is nothing: by its sentences it may weigh most."""


@dataclass(frozen=True, slots=True)
class NerSettings:
    """What the federation says, read."""

    form: TaggerForm
    train: str
    test: str
    """``""`` without."""
    format: Format
    columns: Columns
    weight: str
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
        weight=reader.choice("weight", "sentences", WEIGHTS),
        plan=read_plan(reader, rate=100, head_rate=2000),
    )
    reader.end()
    return found


class NerTraining:
    """An open task: :class:`~cloister.federated.tasks.Training`. Data are read when they are first learned from."""

    def __init__(self, opening: Opening) -> None:
        self._settings = read_settings(opening.settings)
        if opening.privacy is not None and self._settings.weight == "balanced":
            raise UsageError(
                "a balanced weight tells how many sentences name something, which the privacy of examples would hide",
                todo='leave out weight = "balanced", or the privacy of examples',
            )
        self._opening = opening
        self._tagger = new_tagger(opening.model, self._settings.form, seed=opening.seed)

    def arrays(self) -> dict[str, NDArray[Any]]:
        return weights_of(self._tagger.model)

    def train(self, arrays: Arrays, *, number: int, seed: int, step: Step) -> Trained:
        began = time.monotonic()
        put_weights(self._tagger.model, arrays)
        privacy = self._opening.privacy
        metrics = {"examples": float(len(self._learned))}
        if privacy is None:
            metrics["loss"] = self._learn(number, seed, step)
        else:
            private = self._learn_privately(privacy, arrays, number, seed, step)
            metrics |= {"loss": private.loss, "epsilon": private.epsilon}
        metrics["seconds"] = time.monotonic() - began
        return Trained(self.arrays(), self._weight, metrics)

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

    def _learn_privately(
        self, privacy: ExamplePrivacy, arrays: Arrays, number: int, seed: int, step: Step
    ) -> Privately:
        from cloister.federated.training.private import (  # noqa: PLC0415 -- Opacus takes seconds to load
            charge_of,
            digest_of_outcome,
            learn_privately,
        )

        plan, model, spend = self._settings.plan, self._tagger.model, self._opening.spend
        if spend is None:
            raise UsageError("private training needs a ledger of what is spent", todo="give the opening one")
        learning = plan.learning
        steps = learning.epochs * math.ceil(len(self._sentences) / learning.batch)
        charge = charge_of(privacy, examples=len(self._sentences), batch=learning.batch, steps=steps)
        course = plan.course(number)
        data = (encode_json((one.words, one.tags)) for one in self._learned)
        spending = spend(
            digest_of_outcome(arrays, data, number=number, seed=seed, bfloat16=plan.bfloat16), charge
        )
        optimiser = optimiser_of(model, learning, lambda name: not name.startswith("encoder."))

        def loss_of(sentence: list[Part]) -> Tensor:
            with products(plan.bfloat16):
                loss: Tensor = model(
                    batch_of([piece for piece, _ in sentence], [tags for _, tags in sentence])
                )
            return loss

        return learn_privately(
            model,
            self._sentences,
            loss_of,
            optimiser,
            privacy,
            batch=learning.batch,
            steps=steps,
            before=spending.before,
            source=spending.source,
            proximal=self._opening.proximal,
            schedule=torch.optim.lr_scheduler.LambdaLR(optimiser, course.rate(steps, learning.warmup)),
            step=step,
        )

    @functools.cached_property
    def _learned(self) -> tuple[Sentence, ...]:
        return self._read(self._settings.train)

    @functools.cached_property
    def _sentences(self) -> list[list[Part]]:
        return [self._tagger.reading.of(sentence) for sentence in self._learned]

    @functools.cached_property
    def _parts(self) -> list[Part]:
        return [part for sentence in self._sentences for part in sentence]

    @functools.cached_property
    def _weight(self) -> int:
        if self._settings.weight == "sentences":
            return len(self._learned)
        return balanced(self._learned)

    @functools.cached_property
    def _held_out(self) -> tuple[Sentence, ...]:
        return self._read(self._settings.test)

    def _read(self, name: str) -> tuple[Sentence, ...]:
        settings = self._settings
        with self._opening.read(name) as file:
            return read_corpus(
                file, settings.format, TagSet(settings.form.kinds), what=name, columns=settings.columns
            )
