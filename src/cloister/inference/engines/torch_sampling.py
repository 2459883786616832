"""The next token of one answer out of the model's logits: bias, penalties, temperature, truncation, a draw.

In this order, as OpenAI's API and ``transformers`` define them: logit bias is added; presence and frequency penalties
count the answer's tokens, the repeat penalty the prompt's too; a temperature of 0 takes the likeliest token; else the
logits are divided by it and cut by top_k, min_p and top_p. Log probabilities are those of the model, before all of it.
One uniform number is drawn for each token, so an answer with a seed is the same wherever the logits are.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

import torch

_LIKELY: Final = 1024
"""Tokens among which a top_p nearly always ends: sorting these instead of a whole vocabulary is fifty times quicker."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How one answer's tokens are chosen."""

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    """0 for all."""
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repeat_penalty: float = 1.0
    bias: tuple[tuple[int, float], ...] = ()
    """Token and what is added to its logit."""
    seed: int | None = None

    @property
    def greedy(self) -> bool:
        """Whether the likeliest token is taken as the model gives it."""
        return self.temperature == 0 and not self.bias and not self.penalised

    @property
    def penalised(self) -> bool:
        return bool(self.presence_penalty or self.frequency_penalty or self.repeat_penalty != 1)


class Sampler:
    """Chooses the tokens of one answer, one after another."""

    def __init__(self, sampling: Sampling, prompt: Iterable[int], *, seed: int) -> None:
        """``seed`` begins the draws: what ``sampling`` asks for, or of the choices of one request each its own."""
        self.sampling = sampling
        self._draw = random.Random(seed)  # noqa: S311 -- not a secret
        self._seen = set(prompt) if sampling.repeat_penalty != 1 else set()
        self._counts: Counter[int] = Counter()
        self._biased = [token for token, _ in sampling.bias]
        self._biases = torch.tensor([value for _, value in sampling.bias])

    def choose(self, logits: torch.Tensor, allowed: torch.Tensor | None = None) -> int:
        """A token by ``logits`` (vocabulary; float32, left as they are), of those that ``allowed`` (bool) has."""
        sampling = self.sampling
        if sampling.bias or sampling.penalised:
            logits = self._adjusted(logits.clone())
        if allowed is not None:
            logits = logits.masked_fill(~allowed, -torch.inf)
        token = int(logits.argmax()) if sampling.temperature == 0 else self._drawn(logits)
        if sampling.penalised:
            self._counts[token] += 1
            if sampling.repeat_penalty != 1:
                self._seen.add(token)
        return token

    def _adjusted(self, logits: torch.Tensor) -> torch.Tensor:
        sampling = self.sampling
        if self._biased:
            logits[self._biased] += self._biases
        if self._seen:
            seen = list(self._seen)
            values = logits[seen]
            penalty = sampling.repeat_penalty
            logits[seen] = torch.where(values > 0, values / penalty, values * penalty)
        if self._counts and (sampling.presence_penalty or sampling.frequency_penalty):
            tokens = list(self._counts)
            counts = torch.tensor([float(self._counts[token]) for token in tokens])
            logits[tokens] -= sampling.presence_penalty + sampling.frequency_penalty * counts
        return logits

    def _drawn(self, logits: torch.Tensor) -> int:
        sampling = self.sampling
        logits = logits / sampling.temperature
        size = logits.shape[0]
        if sampling.top_k == 0 and sampling.top_p == 1 and sampling.min_p == 0:
            return _pick(torch.softmax(logits, dim=0), self._draw.random())
        count = min(sampling.top_k or _LIKELY, size)
        values, tokens = torch.topk(logits, count)
        # Of all that top_k leaves: of the whole vocabulary where there is none.
        total = values if sampling.top_k else logits
        probabilities = torch.exp(values - torch.logsumexp(total, dim=0))
        if not sampling.top_k and count < size and not _enough(probabilities, sampling):
            probabilities, tokens = torch.softmax(logits, dim=0).sort(descending=True)
        keep = probabilities >= sampling.min_p * probabilities[0]
        if sampling.top_p < 1:
            before = torch.cumsum(probabilities, dim=0) - probabilities
            keep &= before < sampling.top_p
        keep[0] = True
        kept = probabilities[keep]
        return int(tokens[keep][_pick(kept / kept.sum(), self._draw.random())])


def log_probabilities(logits: torch.Tensor, token: int, top: int) -> tuple[float, list[tuple[int, float]]]:
    """That of ``token`` and the ``top`` likeliest with theirs, by ``logits`` (vocabulary; float32)."""
    total = torch.logsumexp(logits, dim=0)
    values, tokens = torch.topk(logits, min(top, logits.shape[0]))
    likeliest = [(int(found), float(value - total)) for found, value in zip(tokens, values, strict=True)]
    return float(logits[token] - total), likeliest


def _enough(probabilities: torch.Tensor, sampling: Sampling) -> bool:
    """Whether truncation ends inside ``probabilities``, sorted."""
    return bool(
        (sampling.top_p < 1 and probabilities.sum() >= sampling.top_p)
        or (sampling.min_p > 0 and probabilities[-1] < sampling.min_p * probabilities[0])
    )


def _pick(probabilities: torch.Tensor, uniform: float) -> int:
    """The index at which the running sum passes ``uniform`` (0 to 1)."""
    running = torch.cumsum(probabilities, dim=0)
    # The sum is 1 but for rounding; what is drawn beyond it is the last that has a probability at all.
    found = int(torch.searchsorted(running, uniform * float(running[-1]), right=True))
    return min(found, int(probabilities.nonzero()[-1])) if found >= probabilities.shape[0] - 1 else found


def greedy(logits: torch.Tensor, rows: Sequence[int]) -> list[int]:
    """The likeliest token of each of ``rows`` of ``logits`` (rows, vocabulary)."""
    found: list[int] = logits[list(rows)].argmax(dim=1).tolist()
    return found
