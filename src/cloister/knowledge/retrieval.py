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
class Hit:
    """A passage that may answer."""

    found: Found
    nearness: float
    """The largest cosine between it and a question."""


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

    def hits(self, questions: Sequence[str], collections: Collection[str], *, most: int) -> list[Hit]:
        """By both ways, for a question in one or more wordings; the best first, with how near they are."""
        vectors = self.embed(list(questions))
        deep = max(DEPTH, most)
        lists = []
        for question, vector in zip(questions, vectors, strict=True):
            lists.append(self.index.by_words(question, collections, deep))
            lists.append(self.index.by_vector(vector, collections, deep))
        best = fused(lists)[:most]
        near: dict[int, float] = {}
        for vector in vectors:
            for passage, cosine in self.index.nearness(vector, best, collections).items():
                near[passage] = max(cosine, near.get(passage, -1.0))
        return [Hit(one, near.get(one.id, -1.0)) for one in self.index.passages(best, collections)]


def fused(lists: Sequence[Sequence[int]]) -> list[int]:
    """One ranking of several: each gives a passage 1 / (60 + place)."""
    scores: dict[int, float] = {}
    for ranked in lists:
        for place, passage in enumerate(ranked, 1):
            scores[passage] = scores.get(passage, 0.0) + 1 / (FUSION + place)
    return sorted(scores, key=lambda passage: (-scores[passage], passage))
