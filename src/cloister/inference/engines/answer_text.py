"""Tokens as text, and an answer's text as it may be told: whole characters, nothing of a stop word.

The tokenizer's own decoder joins tokens to text. A character of several tokens is told with its last one, and what could
be the beginning of a stop word is held back until it is known not to be.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from tokenizers.decoders import DecodeStream

Json = dict[str, Any]

_BROKEN: Final = "\ufffd"
_BEFORE: Final = 6
"""Tokens before an answer that its first one is decoded behind: a space at its beginning depends on them."""


class Texts:
    """What single tokens are, for log probabilities: their text, and their bytes where they are no whole characters."""

    def __init__(self, backend: Any) -> None:
        """``backend`` is a ``tokenizers.Tokenizer``."""
        self.backend = backend
        table = _printable_bytes()
        self._bytes = (
            {char: value for value, char in table.items()} if "ByteLevel" in str(backend.decoder) else {}
        )

    def piece(self, token: int) -> tuple[str, bytes]:
        """The text of one token, as far as it is text, and its bytes."""
        stored: str = self.backend.id_to_token(token) or ""
        if len(stored) == 6 and stored.startswith("<0x") and stored.endswith(">"):
            data = bytes([int(stored[3:5], 16)])
        elif self._bytes and stored and all(char in self._bytes for char in stored):
            data = bytes(self._bytes[char] for char in stored)
        else:
            data = stored.replace("▁", " ").encode()
        return data.decode(errors="replace"), data

    def logprob(self, token: int, probability: float, likeliest: Sequence[tuple[int, float]]) -> Json:
        """One entry of OpenAI's ``logprobs.content``."""
        return self._entry(token, probability) | {
            "top_logprobs": [self._entry(other, value) for other, value in likeliest]
        }

    def _entry(self, token: int, probability: float) -> Json:
        text, data = self.piece(token)
        return {"token": text, "logprob": probability, "bytes": list(data)}


class AnswerText:
    """The text of one answer, grown token by token."""

    def __init__(self, backend: Any, prompt: Sequence[int], stops: Sequence[str]) -> None:
        self._backend = backend
        self._stops = stops
        self._stream = DecodeStream(skip_special_tokens=True)
        self._held = ""
        self.stopped = False
        """Whether a stop word came; nothing is told behind it."""
        for token in prompt[-_BEFORE:]:
            self._stream.step(backend, token)

    def add(self, token: int) -> str:
        """What may be told now."""
        if self.stopped:
            return ""
        self._held += self._stream.step(self._backend, token) or ""
        if not self._stops:
            told, self._held = self._held, ""
            return told
        found = [place for stop in self._stops if (place := self._held.find(stop)) >= 0]
        if found:
            self.stopped = True
            told, self._held = self._held[: min(found)], ""
            return told
        keep = max(overlap(self._held, stop) for stop in self._stops)
        cut = len(self._held) - keep
        told, self._held = self._held[:cut], self._held[cut:]
        return told

    def rest(self) -> str:
        """What was held back, at the end."""
        told, self._held = self._held, ""
        return told


def overlap(text: str, stop: str) -> int:
    """The length of the longest beginning of ``stop`` that ``text`` ends with."""
    for length in range(min(len(text), len(stop) - 1), 0, -1):
        if text.endswith(stop[:length]):
            return length
    return 0


def _printable_bytes() -> dict[int, str]:
    """GPT-2's table: each byte as a printable character; the printable ones stand for themselves."""
    printable = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAC + 1), *range(0xAE, 0xFF + 1)]
    others = [value for value in range(256) if value not in printable]
    return {value: chr(value) for value in printable} | {
        value: chr(256 + place) for place, value in enumerate(others)
    }
