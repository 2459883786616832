"""Texts as FTS5 reads them, so that a server's words are those of the embedded index and both rank alike.

A database in memory does it, which keeps nothing. Letters of scripts that put no spaces between words are found by pairs of
neighbours, as in the embedded index: each pair is a term of its own.
"""

from __future__ import annotations

import hashlib
import itertools
import threading
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from sqlcipher3 import dbapi2

from cloister.errors import UsageError
from cloister.knowledge.schema import TOKENIZER
from cloister.knowledge.texts import alone, asked_words, set_apart

HEADING: Final = 0
TEXT: Final = 1
LONGEST: Final = 256
"""Bytes of a term that is kept as it is."""
_PART: Final = 200
"""Texts that are read at once."""


@dataclass(frozen=True, slots=True)
class Terms:
    """Of one passage."""

    counts: dict[str, tuple[int, int]]
    """How often a term stands in title and headings, and in the text."""
    length: int
    """Tokens of both."""


class Tokens:
    """Threads may share it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._memory = dbapi2.connect(":memory:", isolation_level=None, check_same_thread=False)
        self._memory.execute(
            f"CREATE VIRTUAL TABLE texts USING fts5 (heading, text, content='', tokenize='{TOKENIZER}')"
        )
        self._memory.execute("CREATE VIRTUAL TABLE tokens USING fts5vocab (texts, 'instance')")

    def of(self, texts: Sequence[tuple[str, str]]) -> list[Terms]:
        """Of each (title and headings, text)."""
        parts = (texts[start : start + _PART] for start in range(0, len(texts), _PART))
        return [_terms(columns) for part in parts for columns in self._read(part)]

    def asked(self, question: str) -> list[str]:
        """The terms of ``question`` that are looked for: one of two words (lung, lungs) counts twice."""
        words = [word.strip('"') for word in asked_words(question)]
        terms: list[str] = []
        for _, tokens in self._read([("", word) for word in words]):
            terms += map(_term, _pairs(tokens) or tokens)
        return terms

    def close(self) -> None:
        with self._lock:
            self._memory.close()

    def _read(self, texts: Sequence[tuple[str, str]]) -> list[tuple[list[str], list[str]]]:
        """The tokens of each column, in their order."""
        found: list[tuple[list[str], list[str]]] = [([], []) for _ in texts]
        with self._lock:
            try:
                self._memory.executemany(
                    "INSERT INTO texts (rowid, heading, text) VALUES (?, ?, ?)",
                    [(row, *map(set_apart, columns)) for row, columns in enumerate(texts)],
                )
                rows = self._memory.execute("SELECT doc, col, term FROM tokens ORDER BY doc, col, offset")
                for row, column, term in rows.fetchall():
                    found[row][HEADING if column == "heading" else TEXT].append(term)
            except UnicodeEncodeError:
                raise UsageError("a text has halves of characters, which no text has") from None
            finally:
                self._memory.execute("INSERT INTO texts (texts) VALUES ('delete-all')")
        return found


def _terms(columns: tuple[list[str], list[str]]) -> Terms:
    heading, text = (Counter(map(_term, tokens + _pairs(tokens))) for tokens in columns)
    return Terms({term: (heading[term], text[term]) for term in heading | text}, sum(map(len, columns)))


def _term(token: str) -> str:
    """As an index can have it: of what is longer than words are (keys, genes) the digest."""
    written = token.encode()
    return token if len(written) <= LONGEST else f"#{hashlib.sha256(written).hexdigest()}"


def _pairs(tokens: Sequence[str]) -> list[str]:
    """Neighbours that stand alone."""
    return [f"{one} {other}" for one, other in itertools.pairwise(tokens) if alone(one) and alone(other)]
