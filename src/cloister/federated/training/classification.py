"""The task ``sequence-classification``: which of some labels a text has, by an encoder with a linear layer.

Settings: ``labels`` and ``train``, the JSONL file that is learned from ({"text": ..., "label": ...} a line), have to be
there. ``test`` is the file that is scored on, if there is one; of a text ``length`` tokens are read. How it trains:
settings.py. Scores are macro-averages over the labels that occur.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from cloister.errors import UsageError
from cloister.federated.tasks import Opening, Scored, Settings, Step, Trained
from cloister.federated.training.learning import fit, products
from cloister.federated.training.settings import Plan, read_plan
from cloister.federated.training.tagger import filled
from cloister.federated.training.task_settings import SettingsReader
from cloister.federated.training.texts import read_labelled
from cloister.federated.training.weights import put_weights, weights_of
from cloister.federated.updates import Arrays
from cloister.inference.pretrained import (
    check_directory,
    check_length,
    copy_tokenizer,
    open_classifier,
    open_tokenizer,
    save_pretrained,
)

NAME: Final = "sequence-classification"
_BATCH: Final = 32
"""Of scoring."""


@dataclass(frozen=True, slots=True)
class ClassificationSettings:
    """What the federation says, read."""

    labels: tuple[str, ...]
    train: str
    test: str
    """``""`` without."""
    length: int
    plan: Plan


@dataclass(frozen=True, slots=True)
class Example:
    """A text as the encoder reads it, and the place of its label."""

    tokens: list[int]
    label: int


def read_settings(settings: Settings) -> ClassificationSettings:
    """Raises UsageError."""
    reader = SettingsReader(settings, task=NAME)
    found = ClassificationSettings(
        labels=reader.texts("labels", least=2),
        train=reader.text("train"),
        test=reader.text("test", ""),
        length=reader.number("length", 256, low=8, high=8192),
        plan=read_plan(reader, rate=50, head_rate=1000),
    )
    reader.end()
    return found


class ClassificationTraining:
    """An open task: :class:`~cloister.federated.tasks.Training`. Data are read when they are first learned from."""

    def __init__(self, opening: Opening) -> None:
        self._settings = read_settings(opening.settings)
        if opening.privacy is not None:
            raise UsageError(
                f"the task {NAME} does not hide single examples", todo="train without their privacy"
            )
        self._opening = opening
        check_directory(opening.model)
        # What the directory lacks of a classifier, its head, is drawn as it is opened.
        torch.manual_seed(opening.seed)
        with opening.model.folder() as folder:
            self._model = open_classifier(folder, self._settings.labels)
            self._tokenizer = open_tokenizer(folder)
        check_length(self._model, self._settings.length)
        if self._tokenizer.pad_token_id is None:
            raise UsageError("the model's tokenizer has no token that fills up", todo="give it a pad_token")

    def arrays(self) -> dict[str, NDArray[Any]]:
        return weights_of(self._model)

    def train(self, arrays: Arrays, *, number: int, seed: int, step: Step) -> Trained:
        began = time.monotonic()
        put_weights(self._model, arrays)
        plan, encoder = self._settings.plan, f"{self._model.base_model_prefix}."
        loss = fit(
            self._model,
            self._learned,
            lambda rows: functional.cross_entropy(self._logits(rows), _labels(rows)),
            plan.learning,
            size=lambda one: len(one.tokens),
            head=lambda name: not name.startswith(encoder),
            seed=seed,
            course=plan.course(number),
            proximal=self._opening.proximal,
            bfloat16=plan.bfloat16,
            step=step,
        )
        count = len(self._learned)
        metrics = {"loss": loss, "examples": float(count), "seconds": time.monotonic() - began}
        return Trained(self.arrays(), count, metrics)

    def score(self, arrays: Arrays) -> Scored:
        if not self._settings.test:
            return Scored(0, {})
        put_weights(self._model, arrays)
        self._model.eval()
        rows = sorted(self._held_out, key=lambda one: len(one.tokens))
        found: list[int] = []
        total = 0.0
        with torch.inference_mode(), products(self._settings.plan.bfloat16):
            for start in range(0, len(rows), _BATCH):
                part = rows[start : start + _BATCH]
                logits = self._logits(part)
                total += float(functional.cross_entropy(logits, _labels(part), reduction="sum"))
                found += logits.argmax(dim=1).tolist()
        return Scored(len(rows), macro([one.label for one in rows], found) | {"loss": total / len(rows)})

    def save(self, arrays: Arrays, folder: Path) -> None:
        put_weights(self._model, arrays)
        save_pretrained(self._model, folder)
        copy_tokenizer(self._opening.model, folder)

    def _logits(self, rows: Sequence[Example]) -> Tensor:
        tokens = [one.tokens for one in rows]
        logits: Tensor = self._model(
            input_ids=filled(tokens, self._tokenizer.pad_token_id),
            attention_mask=filled([[1] * len(one) for one in tokens]),
        ).logits
        return logits.float()

    @functools.cached_property
    def _learned(self) -> list[Example]:
        return self._read(self._settings.train)

    @functools.cached_property
    def _held_out(self) -> list[Example]:
        return self._read(self._settings.test)

    def _read(self, name: str) -> list[Example]:
        settings = self._settings
        with self._opening.read(name) as file:
            texts = read_labelled(file, settings.labels, what=name)
        read = self._tokenizer([one.text for one in texts], truncation=True, max_length=settings.length)
        return [
            Example(tokens, settings.labels.index(one.label))
            for one, tokens in zip(texts, read["input_ids"], strict=True)
        ]


def macro(expected: Sequence[int], found: Sequence[int]) -> dict[str, float]:
    """F1, precision and recall: the means over the labels that are in either."""
    precision, recall, f1 = [], [], []
    for label in sorted({*expected, *found}):
        right = sum(one == other == label for one, other in zip(expected, found, strict=True))
        said, are = found.count(label), expected.count(label)
        precision.append(right / said if said else 0.0)
        recall.append(right / are if are else 0.0)
        f1.append(2 * right / (said + are))
    count = len(f1)
    return {"f1": sum(f1) / count, "precision": sum(precision) / count, "recall": sum(recall) / count}


def _labels(rows: Sequence[Example]) -> Tensor:
    return torch.tensor([one.label for one in rows])
