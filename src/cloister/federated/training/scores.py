"""How many entities were found, counted whole: the kind and both ends have to be right (CoNLL 2003, by ``seqeval``)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from cloister.errors import UsageError


@dataclass(frozen=True, slots=True)
class Scores:
    """Between 0 and 1, over all kinds of entities together."""

    precision: float
    recall: float
    f1: float
    entities: int
    """In the text."""


def entity_scores(expected: Sequence[Sequence[str]], found: Sequence[Sequence[str]]) -> Scores:
    """Of the tags of sentences in IOB2; an ``I-`` that continues nothing is no entity."""
    from seqeval.metrics.v1 import precision_recall_fscore_support  # noqa: PLC0415 -- scikit-learn
    from seqeval.scheme import IOB2  # noqa: PLC0415

    if [len(one) for one in expected] != [len(one) for one in found]:
        raise UsageError("as many tags are found as there are words")
    texts, answers = [list(one) for one in expected], [list(one) for one in found]
    precision, recall, f1, entities = precision_recall_fscore_support(
        texts, answers, scheme=IOB2, average="micro", zero_division=0
    )
    return Scores(float(precision), float(recall), float(f1), int(entities))
