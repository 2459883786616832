"""An encoder of the BERT family with a linear layer over each word, and a CRF over a sentence's words or none.

As Souza et al. 2019 (arXiv 1909.10649) have it: against the weight of words that are nothing, the bias of ``O`` begins at
6, and without a CRF its losses count 0.01. Only words count, not their further sub-words: the CRF's neighbours are words.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.nn import functional

from cloister.federated.training.corpus import TagSet
from cloister.federated.training.crf import Crf
from cloister.federated.training.pieces import Piece

OUTSIDE_BIAS: Final = 6.0
OUTSIDE_WEIGHT: Final = 0.01


@dataclass(frozen=True, slots=True)
class Batch:
    """Pieces side by side, filled up with zeros."""

    tokens: Tensor
    """(pieces, tokens) int64"""
    read: Tensor
    """(pieces, tokens) 1 where there is a token"""
    heads: Tensor
    """(pieces, words) int64, places in ``tokens``"""
    lengths: Tensor
    """(pieces) words that count"""
    tags: Tensor
    """(pieces, words) int64"""


def batch_of(pieces: Sequence[Piece], tags: Sequence[Sequence[int]]) -> Batch:
    """``tags`` are those of each piece's words."""
    return Batch(
        tokens=filled([piece.tokens for piece in pieces]),
        read=filled([[1] * len(piece.tokens) for piece in pieces]),
        heads=filled([piece.heads for piece in pieces]),
        lengths=torch.tensor([len(piece.heads) for piece in pieces]),
        tags=filled(tags),
    )


class Tagger(nn.Module):
    """Emissions of each word, their loss, and the tags that they say."""

    def __init__(
        self,
        encoder: Any,
        tags: TagSet,
        *,
        crf: bool,
        dropout: float = 0.1,
        outside_weight: float = OUTSIDE_WEIGHT,
    ) -> None:
        """``encoder`` is a ``PreTrainedModel`` that gives ``last_hidden_state``; the weight is of losses without a CRF."""
        super().__init__()
        count = len(tags.tags)
        self.encoder = encoder
        self.dropout = nn.Dropout(dropout)
        self.linear = nn.Linear(encoder.config.hidden_size, count)
        nn.init.normal_(self.linear.weight, std=0.02)
        nn.init.zeros_(self.linear.bias)
        with torch.no_grad():
            self.linear.bias[0] = OUTSIDE_BIAS
        self.crf = Crf(count, tags.follows) if crf else None
        weights = torch.ones(count)
        weights[0] = outside_weight
        self.register_buffer("weights", weights, persistent=False)

    def emissions(self, batch: Batch) -> Tensor:
        """(pieces, words, tags) float32"""
        hidden = self.encoder(input_ids=batch.tokens, attention_mask=batch.read).last_hidden_state
        places = batch.heads[:, :, None].expand(-1, -1, hidden.shape[2])
        found: Tensor = self.linear(self.dropout(hidden.gather(1, places))).float()
        return found

    def forward(self, batch: Batch) -> Tensor:
        """The loss of a batch."""
        return self.loss(self.emissions(batch), batch.tags, batch.lengths)

    def loss(self, emissions: Tensor, tags: Tensor, lengths: Tensor) -> Tensor:
        """With a CRF a sentence's mean, without one a word's weighted mean."""
        if self.crf is not None:
            return self.crf.loss(emissions, tags, lengths).mean()
        counts = torch.arange(emissions.shape[1]) < lengths[:, None]
        weights = self.get_buffer("weights")
        return functional.cross_entropy(emissions[counts], tags[counts], weight=weights)

    def decode(self, emissions: Tensor, lengths: Tensor) -> list[list[int]]:
        """The tags of sentences, whose ``emissions`` may be of several pieces, one behind another."""
        if self.crf is not None:
            return self.crf.decode(emissions, lengths)
        likeliest = emissions.argmax(dim=2).tolist()
        return [row[:length] for row, length in zip(likeliest, lengths.tolist(), strict=True)]


def filled(rows: Sequence[Sequence[int]], value: int = 0) -> Tensor:
    """Rows of one width, filled up with ``value``."""
    width = max(map(len, rows))
    return torch.tensor([[*row, *[value] * (width - len(row))] for row in rows])
