"""What is asked of an engine or a server, and what came of it, whoever answers: in this process or over HTTP."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from benchmarks.local_tokenizer import prompt as words
from benchmarks.measurement import percentile


@dataclass(frozen=True, slots=True)
class Task:
    """``streams`` requests at once, each with its own prompt."""

    prompt_tokens: int
    tokens: int
    streams: int = 1
    seed: int = 0
    text: str | None = None
    """The prompt of every stream, instead of made-up words."""

    def prompts(self) -> list[str]:
        if self.text is not None:
            return [self.text] * self.streams
        return [words(self.prompt_tokens, self.seed * 1000 + number) for number in range(self.streams)]

    def body(self, prompt: str) -> dict[str, Any]:
        """A completions body without what names model and stream."""
        return {"prompt": prompt, "max_tokens": self.tokens, "temperature": 0}


@dataclass(frozen=True, slots=True)
class Stream:
    """One answered request; times in seconds on one clock."""

    began: float
    first: float
    last: float
    prompt_tokens: int
    tokens: int
    arrivals: tuple[float, ...] = ()
    """Of each chunk with text, where they were kept."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One task's streams, and what the answering process took."""

    streams: tuple[Stream, ...]
    cpu: float = 0.0
    """Seconds of processor time of the answering process meanwhile."""
    memory: int = 0
    """Its high-water mark in bytes."""

    @property
    def prefill(self) -> float:
        """Tokens of prompts read per second, until every stream had its first token."""
        took = max(one.first for one in self.streams) - min(one.began for one in self.streams)
        return sum(one.prompt_tokens for one in self.streams) / took

    @property
    def decode(self) -> float:
        """Tokens per second after the first one, all streams together, from the first one's start to the last one's end."""
        took = max(one.last for one in self.streams) - min(one.first for one in self.streams)
        return sum(one.tokens - 1 for one in self.streams) / took if took > 0 else float("nan")

    @property
    def firsts(self) -> list[float]:
        """Seconds to each stream's first token."""
        return [one.first - one.began for one in self.streams]

    @property
    def tokens(self) -> int:
        return sum(one.tokens for one in self.streams)

    def first(self, percent: float) -> float:
        return percentile(self.firsts, percent)

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def sample_of(value: dict[str, Any]) -> Sample:
    """The inverse of :meth:`Sample.as_json`."""
    streams: Sequence[dict[str, Any]] = value["streams"]
    return Sample(
        streams=tuple(Stream(**{**one, "arrivals": tuple(one["arrivals"])}) for one in streams),
        cpu=value["cpu"],
        memory=value["memory"],
    )
