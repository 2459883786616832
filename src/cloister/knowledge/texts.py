"""What is found by words: text made ready for the full-text index, and questions as its queries. Pure.

SQLite's tokenizer takes a run of Chinese, Japanese or Thai letters for one word. So each of them is set apart, and a
question's runs are asked for as pairs of neighbours. No operator of a question gets through: everything is a quoted word.
"""

from __future__ import annotations

import itertools
import re
import unicodedata
from collections.abc import Mapping
from typing import Final

MAX_WORDS: Final = 64
"""Of a question; what is longer is cut."""
SCORED: Final = 4000
"""Passages that a question's rarer words may stand in."""
HEADING: Final = 4.0
"""Times as much as in the text a word counts in title and headings."""
COMMON: Final = frozenset(
    re.findall(
        r"\w+",
        "about an and any are as at be been being but by can could did do does for from had has have having how if in into "
        "is it its may me might my no nor not of on or our shall should so some such than that the their them then there "
        "these they this those to was we were what when where which who whom whose why will with would you your",
    )
)
"""Words of English that nearly every passage has: looking for them takes most of the time, and tells nothing."""
_LETTERS: Final = (
    "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
    "\U00020000-\U0003ffff]"
)
"""Of scripts that put no spaces between words: Thai, Lao, Burmese, Khmer, Japanese, Chinese."""
_ALONE: Final = re.compile(f"({_LETTERS})")
_RUN: Final = re.compile(f"({_LETTERS}+)")
_WORD: Final = re.compile(r"[^\W_]+")


def set_apart(text: str) -> str:
    """``text`` as it is indexed: composed alike, letters of scripts without spaces one by one."""
    return _ALONE.sub(r" \1 ", unicodedata.normalize("NFKC", text))


def asked_words(question: str) -> list[str]:
    """The words of ``question`` that are looked for, each as FTS5 reads it, once."""
    asked: list[str] = []
    for word in _WORD.findall(unicodedata.normalize("NFKC", question)):
        for run in filter(None, _RUN.split(word)):
            pairs = [f"{one} {other}" for one, other in itertools.pairwise(run)] if _RUN.match(run) else []
            asked += pairs or [run]
    telling = [word for word in asked if word.lower() not in COMMON]
    return [f'"{word}"' for word in dict.fromkeys(telling or asked)][:MAX_WORDS]


def alone(token: str) -> bool:
    """Whether this is a letter of a script that puts no spaces between words."""
    return len(token) == 1 and _ALONE.fullmatch(token) is not None


def rarer(counts: Mapping[str, int], *, scored: int = SCORED) -> list[str]:
    """Of words that so many passages have those of which a passage needs one to be scored, which is what takes time.

    The rarest, and more, from rare to common, that together stand in ``scored`` passages at most.
    """
    rare: list[str] = []
    room = scored
    for word in sorted(
        (word for word, count in counts.items() if count), key=lambda word: (counts[word], word)
    ):
        room -= counts[word]
        if rare and room < 0:
            break
        rare.append(word)
    return rare


def words_query(counts: Mapping[str, int], *, scored: int = SCORED) -> str:
    """An FTS5 query for words that so many passages have; empty if none has any.

    Passages with one of the :func:`rarer` words are scored; in these the other words count as well.
    """
    rare = rarer(counts, scored=scored)
    common = [word for word, count in counts.items() if count and word not in rare]
    any_rare = " OR ".join(rare)
    # A rare word stands in both halves, and counts twice by that: so that the others do, they are written twice.
    return f"({any_rare}) AND ({any_rare} OR {' OR '.join(common + common)})" if common else any_rare
