"""Which passages answer a question: by words, by meaning, and by both.

Both are put together by their scores (a convex combination; Bruch, Gai and Ingber 2023, arXiv 2210.11934): by places alone
(reciprocal rank fusion) what vectors tell apart is lost, and both together found less than vectors alone.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal

from cloister.knowledge.embedding import Embed
from cloister.knowledge.store import Found, Scored, Store

if TYPE_CHECKING:
    from cloister.knowledge.embedding import Vectors

Way = Literal["words", "vectors", "hybrid"]
NEARNESS: Final = 0.7
"""The part of vectors. Of 0.5 to 0.9 the best for 1,000 questions to MedQuAD that are not those of the benchmark."""
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

    index: Store
    embed: Embed

    def ids(
        self, question: str, collections: Collection[str], *, most: int, way: Way = "hybrid"
    ) -> list[int]:
        """Passages of ``collections``, the best first."""
        deep = most if way != "hybrid" else max(DEPTH, most)
        rankings, _ = self._rankings([question], collections, deep, way)
        return joined(rankings)[:most]

    def find(
        self, question: str, collections: Collection[str], *, most: int, way: Way = "hybrid"
    ) -> list[Found]:
        """As :meth:`ids`, with their texts and places."""
        return self.index.passages(self.ids(question, collections, most=most, way=way), collections)

    def hits(self, questions: Sequence[str], collections: Collection[str], *, most: int) -> list[Hit]:
        """By both ways, for a question in one or more wordings; the best first, with how near they are."""
        rankings, vectors = self._rankings(questions, collections, max(DEPTH, most), "hybrid")
        best = joined(rankings)[:most]
        near: dict[int, float] = {}
        for vector in vectors:
            for passage, cosine in self.index.nearness(vector, best, collections).items():
                near[passage] = max(cosine, near.get(passage, -1.0))
        return [Hit(one, near.get(one.id, -1.0)) for one in self.index.passages(best, collections)]

    def _rankings(
        self, questions: Sequence[str], collections: Collection[str], deep: int, way: Way
    ) -> tuple[list[Ranking], Sequence[Vectors]]:
        """Of each wording, and the wordings' vectors."""
        vectors: Sequence[Vectors] = list(self.embed(list(questions))) if way != "words" else []
        near = [self.index.by_vector(one, collections, deep) for one in vectors] or [[] for _ in questions]
        words = [self.index.by_words(one, collections, deep) if way != "vectors" else [] for one in questions]
        return list(map(fused, words, near)), vectors


@dataclass(frozen=True, slots=True)
class Ranking:
    """Passages for one wording of a question, and what one has that is not among them."""

    scores: dict[int, float]
    rest: float


def fused(words: Sequence[Scored], vectors: Sequence[Scored]) -> Ranking:
    """One ranking of two: a part of it is the cosine, the rest the share of the best passage's BM25.

    What one of them does not have counts there as its last does. Both are the best first.
    """
    best = words[0][1] if words else 1.0
    shares, cosines = {one: score / best for one, score in words}, dict(vectors)
    last_share, last_cosine = min(shares.values(), default=0.0), min(cosines.values(), default=0.0)
    scores = {
        one: NEARNESS * cosines.get(one, last_cosine) + (1 - NEARNESS) * shares.get(one, last_share)
        for one in shares.keys() | cosines.keys()
    }
    return Ranking(scores, NEARNESS * last_cosine + (1 - NEARNESS) * last_share)


def joined(rankings: Sequence[Ranking]) -> list[int]:
    """The best first by what all wordings say; equal ones by their numbers."""
    found = {one for ranking in rankings for one in ranking.scores}
    sums = {one: sum(ranking.scores.get(one, ranking.rest) for ranking in rankings) for one in found}
    return sorted(found, key=lambda one: (-sums[one], one))
