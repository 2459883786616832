"""A corpus divided among parties, for experiments: at random, by document, skewed by what they hold, of unequal sizes.

Pure, and the same for the same seed: parties that divide one corpus by themselves get parts that fit together. Every
sentence goes to exactly one party, and each party gets one at least.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Final, Literal

from cloister.errors import UsageError
from cloister.federated.training.corpus import OUTSIDE, Sentence, documents

Way = Literal["iid", "document", "skewed", "unequal"]
WAYS: Final[tuple[Way, ...]] = ("iid", "document", "skewed", "unequal")
MAX_PARTIES: Final = 1024


def partition(
    sentences: Sequence[Sentence],
    parties: int,
    way: Way,
    *,
    seed: int,
    concentration: float = 0.5,
    block: int = 12,
) -> list[list[Sentence]]:
    """One list of sentences a party.

    ``iid``: each sentence to any party, the same number to each. ``document``: whole documents; where a corpus names none,
    runs of ``block`` sentences. ``skewed``: by the kind of a sentence's first entity, in shares that are drawn from a
    Dirichlet distribution of ``concentration`` (the lower, the more lopsided). ``unequal``: at random, the party i
    gets twice what i + 1 gets. Raises UsageError.
    """
    if not 1 <= parties <= MAX_PARTIES or len(sentences) < parties:
        raise UsageError(f"{len(sentences)} sentences are not divided among {parties} parties")
    if concentration <= 0 or block < 1:
        raise UsageError("the concentration is over 0, and a block has a sentence at least")
    draw = random.Random(seed)  # noqa: S311 -- an experiment's, not a secret
    if way == "document":
        found = _dealt(_documents(sentences, block), parties, draw)
    elif way == "skewed":
        found = _skewed(sentences, parties, concentration, draw)
    else:
        weights = (
            [1.0] * parties if way == "iid" else [2.0 ** (parties - 1 - party) for party in range(parties)]
        )
        found = _shared(list(sentences), weights, draw)
    return _nobody_empty(found)


def _documents(sentences: Sequence[Sentence], block: int) -> list[list[Sentence]]:
    if any(sentence.document for sentence in sentences):
        return documents(sentences)
    return [list(sentences[start : start + block]) for start in range(0, len(sentences), block)]


def _dealt(groups: list[list[Sentence]], parties: int, draw: random.Random) -> list[list[Sentence]]:
    """Each group to whoever has fewest sentences."""
    draw.shuffle(groups)
    found: list[list[Sentence]] = [[] for _ in range(parties)]
    for group in groups:
        min(found, key=len).extend(group)
    return found


def _skewed(
    sentences: Sequence[Sentence], parties: int, concentration: float, draw: random.Random
) -> list[list[Sentence]]:
    kinds: dict[str, list[Sentence]] = {}
    for sentence in sentences:
        kinds.setdefault(_kind(sentence), []).append(sentence)
    found: list[list[Sentence]] = [[] for _ in range(parties)]
    for _, group in sorted(kinds.items()):
        shares = [
            draw.gammavariate(concentration, 1.0) for _ in range(parties)
        ]  # as a Dirichlet draw is made
        for part, more in zip(found, _shared(group, shares, draw), strict=True):
            part.extend(more)
    return found


def _kind(sentence: Sentence) -> str:
    return next((tag[2:] for tag in sentence.tags if tag != OUTSIDE), OUTSIDE)


def _shared(sentences: list[Sentence], weights: Sequence[float], draw: random.Random) -> list[list[Sentence]]:
    """In parts as large as ``weights`` are to one another."""
    draw.shuffle(sentences)
    total = sum(weights) or 1.0
    found, start, reached = [], 0, 0.0
    for weight in weights:
        reached += weight
        end = round(len(sentences) * reached / total)
        found.append(sentences[start:end])
        start = end
    found[-1].extend(sentences[start:])
    return found


def _nobody_empty(parts: list[list[Sentence]]) -> list[list[Sentence]]:
    for part in parts:
        if not part:
            part.append(max(parts, key=len).pop())
    return parts
