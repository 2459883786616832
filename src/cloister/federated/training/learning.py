"""Models learn from examples, and a tagger says what it makes of sentences: the part of a round that a party computes.

Deterministic: the same weights, examples, settings and seed give the same update on the same machine. Examples of about
one length are computed together, since what fills up a batch costs as much as what is in it.
"""

from __future__ import annotations

import contextlib
import math
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar

import torch
from torch import Tensor, nn

from cloister.errors import CloisterError, UsageError
from cloister.federated.training.corpus import Sentence, TagSet
from cloister.federated.training.pieces import Encode, Marks, Piece, pieces
from cloister.federated.training.scores import Scores, entity_scores
from cloister.federated.training.tagger import Tagger, batch_of, filled

E = TypeVar("E")
Part = tuple[Piece, list[int]]
"""A piece of a sentence, and the tags of its words."""


@dataclass(frozen=True, slots=True)
class Learning:
    """How a model is trained. The same for every party."""

    epochs: int = 1
    batch: int = 16
    rate: float = 5e-5
    """Of what was trained before."""
    head_rate: float = 1e-3
    """Of the layers that begin with nothing."""
    decay: float = 0.01
    warmup: float = 0.1
    """Share of a round's steps in which the rates rise; then they fall to nothing in a line (:class:`Course`)."""
    clip: float = 1.0
    """The most that all gradients together may measure."""

    def __post_init__(self) -> None:
        numbers = (self.rate, self.head_rate, self.decay, self.warmup, self.clip)
        if (
            not 1 <= self.epochs <= 1000
            or not 1 <= self.batch <= 4096
            or not all(map(math.isfinite, numbers))
        ):
            raise UsageError("an epoch and an example at least are learned, with rates that are numbers")
        if min(self.rate, self.head_rate, self.clip) <= 0 or self.decay < 0 or not 0 <= self.warmup < 1:
            raise UsageError("rates and the clip are over 0, the warm-up is a share of the steps")


@dataclass(frozen=True, slots=True)
class Course:
    """A training's place among all rounds of a federation."""

    number: int = 1
    """From 1."""
    rounds: int = 1

    def __post_init__(self) -> None:
        if not 1 <= self.number <= self.rounds:
            raise UsageError(f"there is no round {self.number} of {self.rounds}")

    def rate(self, steps: int, warmup: float) -> Callable[[int], float]:
        """The share of the full rate at each of this round's ``steps``.

        It falls in a line over all rounds: with parties whose data differ, steps that do not become smaller never reach
        what all of them agree on (Li et al. 2020, arXiv 1907.02189, theorem 4). It rises anew in each round, since the
        optimiser knows nothing then of how large gradients are. One round alone is the schedule of BERT.
        """
        rising = max(1, round(steps * warmup))
        before, whole = steps * (self.number - 1), steps * self.rounds
        return lambda step: min(
            (step + 1) / rising, max(0.0, (whole - before - step) / max(1, whole - rising))
        )


ALONE: Final = Course()


@dataclass(frozen=True, slots=True)
class Reading:
    """How an encoder reads sentences."""

    encode: Encode
    marks: Marks
    tags: TagSet
    length: int = 256
    stride: int = 128

    def of(self, sentence: Sentence) -> list[Part]:
        """Its pieces, and the tags of their words."""
        numbers = self.tags.numbers(sentence.tags)
        found = pieces(sentence.words, self.encode, self.marks, length=self.length, stride=self.stride)
        return [(piece, numbers[piece.start : piece.start + len(piece.heads)]) for piece in found]


def fit(
    model: nn.Module,
    examples: Sequence[E],
    loss_of: Callable[[Sequence[E]], Tensor],
    learning: Learning,
    *,
    size: Callable[[E], int],
    head: Callable[[str], bool],
    seed: int,
    course: Course = ALONE,
    proximal: float = 0.0,
    bfloat16: bool = False,
    step: Callable[[int, int], None] = lambda done, steps: None,
) -> float:
    """Train what of ``model`` has gradients; the answer is the mean loss of the last epoch, without the proximal term.

    ``loss_of`` gives the mean loss of a batch, ``size`` an example's tokens; parameters that ``head`` says of their names
    learn at the head's rate. ``proximal`` is FedProx's μ: μ/2 · ‖w - w₀‖² is added to the loss, w₀ being the weights at the
    beginning (Li et al. 2020, arXiv 1812.06127). ``step`` hears of progress.

    Raises CloisterError where the loss is no number: an update of that would spoil everybody's.
    """
    torch.manual_seed(seed)
    draw = random.Random(seed)  # noqa: S311 -- the order of examples is no secret
    steps = learning.epochs * math.ceil(len(examples) / learning.batch)
    trained = [one for one in model.parameters() if one.requires_grad]
    pull = _Pull(trained, proximal)
    optimiser = optimiser_of(model, learning, head)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, course.rate(steps, learning.warmup))
    model.train()
    done, total = 0, 0.0
    for _ in range(learning.epochs):
        total = 0.0
        for rows in _shuffled(examples, learning.batch, size, draw):
            with products(bfloat16):
                loss = loss_of(rows)
            if not torch.isfinite(loss):
                raise CloisterError("the loss is no number any more", todo="lower the rates")
            optimiser.zero_grad(set_to_none=True)
            torch.autograd.backward(loss)
            pull.add()
            nn.utils.clip_grad_norm_(trained, learning.clip)
            optimiser.step()
            schedule.step()
            total += float(loss.detach()) * len(rows)
            done += 1
            step(done, steps)
    return total / len(examples)


def optimiser_of(model: nn.Module, learning: Learning, head: Callable[[str], bool]) -> torch.optim.Optimizer:
    """For what of ``model`` is trained. Normalisations, biases and a CRF's scores do not decay (Devlin et al. 2019)."""
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        rate = learning.head_rate if head(name) else learning.rate
        decay = 0.0 if parameter.dim() < 2 or name.startswith("crf.") else learning.decay
        groups.setdefault((rate, decay), []).append(parameter)
    settings: list[dict[str, Any]] = [
        {"params": parameters, "lr": rate, "weight_decay": decay}
        for (rate, decay), parameters in groups.items()
    ]
    # One pass over weights, gradients and moments: a seventh of a step of a small encoder.
    return torch.optim.AdamW(settings, fused=True)


def products(bfloat16: bool) -> contextlib.AbstractContextManager[object]:
    """Products of matrices in bfloat16 while it lasts; weights, gradients and the optimiser stay in float32."""
    return torch.autocast("cpu", dtype=torch.bfloat16) if bfloat16 else contextlib.nullcontext()


def learn(
    model: Tagger,
    sentences: Sequence[Sentence],
    reading: Reading,
    learning: Learning,
    *,
    seed: int,
    step: Callable[[int, int], None] = lambda done, steps: None,
) -> float:
    """Train a tagger once, as :func:`fit` does."""
    parts = [part for sentence in sentences for part in reading.of(sentence)]
    return learn_parts(model, parts, learning, seed=seed, step=step)


def learn_parts(
    model: Tagger,
    parts: Sequence[Part],
    learning: Learning,
    *,
    seed: int,
    course: Course = ALONE,
    proximal: float = 0.0,
    bfloat16: bool = False,
    step: Callable[[int, int], None] = lambda done, steps: None,
) -> float:
    """As :func:`learn`, in one of many rounds, of sentences that are read already."""
    return fit(
        model,
        parts,
        lambda rows: model(batch_of([piece for piece, _ in rows], [tags for _, tags in rows])),
        learning,
        size=lambda part: len(part[0].tokens),
        head=lambda name: not name.startswith("encoder."),
        seed=seed,
        course=course,
        proximal=proximal,
        bfloat16=bfloat16,
        step=step,
    )


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a tagger makes of sentences."""

    scores: Scores
    tags: tuple[tuple[str, ...], ...]
    loss: float = field(compare=False)
    """The mean of the batches that were decoded, weighted by their sentences."""


def predict(
    model: Tagger, sentences: Sequence[Sentence], reading: Reading, *, batch: int = 32, bfloat16: bool = False
) -> Outcome:
    """Tags of every sentence, pieces of one decoded together, and how right they are."""
    names = reading.tags.tags
    with torch.inference_mode():
        emissions = _emissions(model, sentences, reading, batch, bfloat16)
        order = sorted(range(len(sentences)), key=lambda place: len(emissions[place]))
        answers: dict[int, tuple[str, ...]] = {}
        total = 0.0
        for start in range(0, len(order), batch):
            places = order[start : start + batch]
            rows = nn.utils.rnn.pad_sequence([emissions[place] for place in places], batch_first=True)
            lengths = torch.tensor([len(emissions[place]) for place in places])
            said = filled([reading.tags.numbers(sentences[place].tags) for place in places])
            total += float(model.loss(rows, said, lengths)) * len(places)
            for place, tags in zip(places, model.decode(rows, lengths), strict=True):
                answers[place] = tuple(names[tag] for tag in tags)
    found = tuple(answers[place] for place in range(len(sentences)))
    scores = entity_scores([one.tags for one in sentences], found)
    return Outcome(scores, found, total / len(sentences))


def _emissions(
    model: Tagger, sentences: Sequence[Sentence], reading: Reading, batch: int, bfloat16: bool
) -> list[Tensor]:
    """(words, tags) of each sentence."""
    model.eval()
    read = [(number, part) for number, sentence in enumerate(sentences) for part in reading.of(sentence)]
    read.sort(key=lambda one: len(one[1][0].tokens))
    emissions: list[list[tuple[int, Tensor]]] = [[] for _ in sentences]
    for start in range(0, len(read), batch):
        rows = read[start : start + batch]
        with products(bfloat16):
            found = model.emissions(batch_of([part[0] for _, part in rows], [part[1] for _, part in rows]))
        for (number, (piece, _)), row in zip(rows, found, strict=True):
            emissions[number].append((piece.start, row[: len(piece.heads)]))
    return [torch.cat([row for _, row in sorted(parts, key=lambda one: one[0])]) for parts in emissions]


class _Pull:
    """FedProx's term, as its gradient: μ · (w - w₀) is what μ/2 · ‖w - w₀‖² adds to the gradient of w."""

    def __init__(self, parameters: Iterable[nn.Parameter], strength: float) -> None:
        self._strength = strength
        self._began = [(one, one.detach().clone()) for one in parameters] if strength else []

    def add(self) -> None:
        for parameter, before in self._began:
            pull = (parameter.detach() - before).mul_(self._strength)
            parameter.grad = pull if parameter.grad is None else parameter.grad.add_(pull)


def _shuffled(
    examples: Sequence[E], batch: int, size: Callable[[E], int], draw: random.Random
) -> Iterator[list[E]]:
    """Batches of about one length, in any order; who shares a batch with whom differs from epoch to epoch."""
    order = sorted(range(len(examples)), key=lambda place: (size(examples[place]), draw.random()))
    batches = [order[start : start + batch] for start in range(0, len(order), batch)]
    draw.shuffle(batches)
    for places in batches:
        yield [examples[place] for place in places]
