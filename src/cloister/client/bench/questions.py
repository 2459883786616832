"""Requests made up from seeded words: of about so many tokens, each different from its first word on.

No service can answer a made-up prompt from what it keeps of another one, and nothing of the user's is in it.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any, Final

_ONSETS: Final = ("b", "c", "d", "f", "g", "l", "m", "n", "p", "r", "s", "t", "v", "st", "tr", "pl")
_VOWELS: Final = ("a", "e", "i", "o", "u", "ai", "ea", "oo")
_CODAS: Final = ("", "l", "n", "r", "s", "t", "m", "nd")
WORDS: Final = tuple(onset + vowel + coda for onset in _ONSETS for vowel in _VOWELS for coda in _CODAS)
"""1024 syllables; most tokenizers take one or two tokens for each."""


@dataclass(frozen=True, slots=True)
class Question:
    """A streamed chat completion of ``words`` words that is answered with at most ``tokens`` tokens."""

    model: str
    words: int
    tokens: int

    def body(self, source: random.Random) -> dict[str, Any]:
        """The request's JSON. ``source`` decides the words."""
        return {
            "model": self.model,
            "messages": [{"role": "user", "content": words(source, self.words)}],
            "max_tokens": self.tokens,
            "temperature": 1,
            "seed": source.getrandbits(31),
            "stream": True,
            "stream_options": {"include_usage": True},
        }


def words(source: random.Random, count: int) -> str:
    """``count`` made-up words."""
    return " ".join(source.choices(WORDS, k=max(1, count)))
