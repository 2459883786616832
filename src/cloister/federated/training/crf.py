"""A conditional random field over the tags of a sentence: its likelihood, and the likeliest tags that IOB2 allows.

Linear-chain, as in Lafferty, McCallum and Pereira 2001: the score of tags y given emissions e is
start[y1] + Σ e[t, yt] + Σ transition[y(t-1), yt] + end[yn]. The loss is the negative logarithm of the tags' probability (the
partition by the forward algorithm, in logarithms); decoding is Viterbi's, over sequences that may be. Why it is ours:
docs/adr/0010-crf.md.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor, nn

from cloister.errors import UsageError

NEVER = -1e4
"""Added to what may not be: far below every score, and a number still."""


class Crf(nn.Module):
    """Scores of neighbouring tags. ``follows(before, after)`` says what may stand behind what, None being the beginning."""

    def __init__(self, tags: int, follows: Callable[[int | None, int], bool]) -> None:
        super().__init__()
        if tags < 1:
            raise UsageError("a CRF has one tag at least")
        self.start = nn.Parameter(torch.empty(tags).uniform_(-0.1, 0.1))
        self.end = nn.Parameter(torch.empty(tags).uniform_(-0.1, 0.1))
        self.transitions = nn.Parameter(torch.empty(tags, tags).uniform_(-0.1, 0.1))
        first = [0.0 if follows(None, after) else NEVER for after in range(tags)]
        later = [
            [0.0 if follows(before, after) else NEVER for after in range(tags)] for before in range(tags)
        ]
        # Rules and not weights: no update can change them.
        self.register_buffer("first", torch.tensor(first), persistent=False)
        self.register_buffer("later", torch.tensor(later), persistent=False)

    def loss(self, emissions: Tensor, tags: Tensor, lengths: Tensor) -> Tensor:
        """(sentences) the negative log-likelihood of ``tags`` (sentences, words; int64), of which ``lengths`` (sentences;
        1 at least) count, under ``emissions`` (sentences, words, tags; float32)."""
        _check(emissions, lengths)
        return self._partition(emissions, lengths) - self._score(emissions, tags, lengths)

    def decode(self, emissions: Tensor, lengths: Tensor) -> list[list[int]]:
        """The likeliest tags of each sentence among those that may be. Shapes as in :meth:`loss`."""
        _check(emissions, lengths)
        first, later = cast("Tensor", self.first), cast("Tensor", self.later)
        with torch.no_grad():
            moves = self.transitions + later
            best = self.start + first + emissions[:, 0]
            came: list[Tensor] = []
            for word in range(1, emissions.shape[1]):
                scores, before = (best[:, :, None] + moves).max(dim=1)
                goes_on = (word < lengths)[:, None]
                best = torch.where(goes_on, scores + emissions[:, word], best)
                came.append(before)
            last = (best + self.end).argmax(dim=1).tolist()
            steps = torch.stack(came, dim=1).tolist() if came else [[] for _ in last]
        found = []
        for tag, taken, length in zip(last, steps, lengths.tolist(), strict=True):
            path = [tag]
            for before in reversed(taken[: length - 1]):
                path.append(before[path[-1]])
            found.append(path[::-1])
        return found

    def _partition(self, emissions: Tensor, lengths: Tensor) -> Tensor:
        """(sentences) the logarithm of what all tags together score."""
        reached = self.start + emissions[:, 0]
        for word in range(1, emissions.shape[1]):
            step = torch.logsumexp(reached[:, :, None] + self.transitions, dim=1) + emissions[:, word]
            reached = torch.where((word < lengths)[:, None], step, reached)
        return torch.logsumexp(reached + self.end, dim=1)

    def _score(self, emissions: Tensor, tags: Tensor, lengths: Tensor) -> Tensor:
        counts = torch.arange(emissions.shape[1], device=emissions.device) < lengths[:, None]
        said = emissions.gather(2, tags[:, :, None]).squeeze(2)
        moved = self.transitions[tags[:, :-1], tags[:, 1:]]
        last = tags.gather(1, lengths[:, None] - 1).squeeze(1)
        inside = torch.where(counts, said, 0.0).sum(dim=1) + torch.where(counts[:, 1:], moved, 0.0).sum(dim=1)
        return self.start[tags[:, 0]] + inside + self.end[last]


def _check(emissions: Tensor, lengths: Tensor) -> None:
    if emissions.dim() != 3 or lengths.shape != emissions.shape[:1]:
        raise UsageError("emissions are (sentences, words, tags), lengths (sentences)")
    if int(lengths.min()) < 1 or int(lengths.max()) > emissions.shape[1]:
        raise UsageError("a sentence has one word at least, and no more than its emissions")
