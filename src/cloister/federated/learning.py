"""A tagger learns from sentences, and says what it makes of others: the part of a round that a party computes.

Deterministic: the same weights, sentences, settings and seed give the same update on the same machine. Sentences of about
one length are computed together, since what fills up a batch costs as much as what is in it.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from cloister.errors import CloisterError, UsageError
from cloister.federated.corpus import Sentence, TagSet
from cloister.federated.pieces import Encode, Marks, Piece, pieces
from cloister.federated.scores import Scores, entity_scores
from cloister.federated.tagger import Batch, Tagger, batch_of


@dataclass(frozen=True, slots=True)
class Learning:
    """How a tagger is trained. The same for every party."""

    epochs: int = 1
    batch: int = 16
    rate: float = 5e-5
    """Of the encoder."""
    head_rate: float = 1e-3
    """Of the linear layer and the CRF, which begin with nothing."""
    decay: float = 0.01
    warmup: float = 0.1
    """Share of the steps in which the rates rise; then they fall to nothing in a line."""
    clip: float = 1.0
    """The most that all gradients together may measure."""

    def __post_init__(self) -> None:
        numbers = (self.rate, self.head_rate, self.decay, self.warmup, self.clip)
        if (
            not 1 <= self.epochs <= 1000
            or not 1 <= self.batch <= 4096
            or not all(map(math.isfinite, numbers))
        ):
            raise UsageError("an epoch and a sentence at least are learned, with rates that are numbers")
        if min(self.rate, self.head_rate, self.clip) <= 0 or self.decay < 0 or not 0 <= self.warmup < 1:
            raise UsageError("rates and the clip are over 0, the warm-up is a share of the steps")


@dataclass(frozen=True, slots=True)
class Reading:
    """How an encoder reads sentences."""

    encode: Encode
    marks: Marks
    tags: TagSet
    length: int = 256
    stride: int = 128

    def of(self, sentence: Sentence) -> list[tuple[Piece, list[int]]]:
        """Its pieces, and the tags of their words."""
        numbers = self.tags.numbers(sentence.tags)
        found = pieces(sentence.words, self.encode, self.marks, length=self.length, stride=self.stride)
        return [(piece, numbers[piece.start : piece.start + len(piece.heads)]) for piece in found]


def learn(
    model: Tagger,
    sentences: Sequence[Sentence],
    reading: Reading,
    learning: Learning,
    *,
    seed: int,
    step: Callable[[int, int], None] = lambda done, steps: None,
) -> float:
    """Train ``model``; the answer is the mean loss of the last epoch. ``step`` hears of progress.

    Raises CloisterError where the loss is no number: an update of that would spoil everybody's.
    """
    torch.manual_seed(seed)
    draw = random.Random(seed)  # noqa: S311 -- the order of sentences is no secret
    read = [part for sentence in sentences for part in reading.of(sentence)]
    steps = learning.epochs * math.ceil(len(read) / learning.batch)
    optimiser = _optimiser(model, learning)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, _slope(steps, learning.warmup))
    model.train()
    done, total = 0, 0.0
    for _ in range(learning.epochs):
        total = 0.0
        for batch in _shuffled(read, learning.batch, draw):
            loss = model(batch)
            if not torch.isfinite(loss):
                raise CloisterError("the loss is no number any more", todo="lower the rates")
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), learning.clip)
            optimiser.step()
            schedule.step()
            total += float(loss.detach()) * len(batch.lengths)
            done += 1
            step(done, steps)
    return total / len(read)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a tagger makes of sentences."""

    scores: Scores
    tags: tuple[tuple[str, ...], ...]


def predict(model: Tagger, sentences: Sequence[Sentence], reading: Reading, *, batch: int = 32) -> Outcome:
    """Tags of every sentence, pieces of one decoded together, and how right they are."""
    model.eval()
    read = [(number, part) for number, sentence in enumerate(sentences) for part in reading.of(sentence)]
    read.sort(key=lambda one: len(one[1][0].tokens))
    emissions: list[list[tuple[int, torch.Tensor]]] = [[] for _ in sentences]
    with torch.inference_mode():
        for start in range(0, len(read), batch):
            rows = read[start : start + batch]
            found = model.emissions(batch_of([part[0] for _, part in rows], [part[1] for _, part in rows]))
            for (number, (piece, _)), row in zip(rows, found, strict=True):
                emissions[number].append((piece.start, row[: len(piece.heads)]))
        names = reading.tags.tags
        answers: list[tuple[str, ...]] = []
        for parts in emissions:
            whole = torch.cat([row for _, row in sorted(parts, key=lambda one: one[0])])
            tags = model.decode(whole[None], torch.tensor([len(whole)]))[0]
            answers.append(tuple(names[tag] for tag in tags))
    return Outcome(entity_scores([one.tags for one in sentences], answers), tuple(answers))


def _shuffled(read: Sequence[tuple[Piece, list[int]]], size: int, draw: random.Random) -> Iterator[Batch]:
    """Batches of about one length, in any order; who shares a batch with whom differs from epoch to epoch."""
    order = sorted(range(len(read)), key=lambda place: (len(read[place][0].tokens), draw.random()))
    batches = [order[start : start + size] for start in range(0, len(order), size)]
    draw.shuffle(batches)
    for places in batches:
        yield batch_of([read[place][0] for place in places], [read[place][1] for place in places])


def _optimiser(model: Tagger, learning: Learning) -> torch.optim.Optimizer:
    """Normalisations and biases do not decay (Devlin et al. 2019)."""
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            rate = learning.rate if name.startswith("encoder.") else learning.head_rate
            decay = 0.0 if parameter.dim() < 2 or name.startswith("crf.") else learning.decay
            groups.setdefault((rate, decay), []).append(parameter)
    settings: list[dict[str, Any]] = [
        {"params": parameters, "lr": rate, "weight_decay": decay}
        for (rate, decay), parameters in groups.items()
    ]
    return torch.optim.AdamW(settings)


def _slope(steps: int, warmup: float) -> Callable[[int], float]:
    rising = max(1, round(steps * warmup))
    return lambda step: min((step + 1) / rising, max(0.0, (steps - step) / max(1, steps - rising)))
