"""Which passages answer a question: by words, by meaning, and by both (reciprocal rank fusion, Cormack et al. 2009)."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from cloister.knowledge.embedding import Embed
from cloister.knowledge.index import Found, Index

Way = Literal["words", "vectors", "hybrid"]
FUSION: Final = 60
"""The constant of the paper: how much the first places count over those behind."""
DEPTH: Final = 50
"""Places of each list that are looked at."""


@dataclass(frozen=True, slots=True)
class Retrieval:
    """Questions to one index."""

    index: Index
    embed: Embed

    def ids(
        self, question: str, collections: Collection[str], *, most: int, way: Way = "hybrid"
    ) -> list[int]:
        """Passages of ``collections``, the best first."""
        lists = []
        deep = most if way != "hybrid" else max(DEPTH, most)
        if way != "vectors":
            lists.append(self.index.by_words(question, collections, deep))
        if way != "words":
            lists.append(self.index.by_vector(self.embed([question])[0], collections, deep))
        return fused(lists)[:most]

    def find(
        self, question: str, collections: Collection[str], *, most: int, way: Way = "hybrid"
    ) -> list[Found]:
        """As :meth:`ids`, with their texts and places."""
        return self.index.passages(self.ids(question, collections, most=most, way=way), collections)


def fused(lists: Sequence[Sequence[int]]) -> list[int]:
    """One ranking of several: each gives a passage 1 / (60 + place)."""
    scores: dict[int, float] = {}
    for ranked in lists:
        for place, passage in enumerate(ranked, 1):
            scores[passage] = scores.get(passage, 0.0) + 1 / (FUSION + place)
    return sorted(scores, key=lambda passage: (-scores[passage], passage))
