"""Who leads, by which figure, and who may be chosen: pure, from what was measured.

Latency is the time of one whole answer: the first token after a prompt of 512, and 128 tokens more for one stream alone.
Throughput is the tokens a second of all streams together. Memory is the most that the process held. Nothing is chosen that
loses more quality than the bound, and nothing whose loss is unknown, unless it computes the weights as they were given.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal

from cloister.inference.optimized import Goal
from cloister.inference.optimizer.candidates import Candidate
from cloister.inference.optimizer.measurement import Sample, median

ANSWER_TOKENS: Final = 128
PROMPT_TOKENS: Final = 512
WINDOW: Final = 64
"""Tokens of a piece of the text that quality is judged by; the second half is looked at."""
MIN_WINDOWS: Final = 4
MAX_WINDOWS: Final = 32
SHORT: Final = 60.0
"""Seconds of budget below which engines that take seconds to be loaded are tried last."""
MARGIN: Final = 1.03
"""A variant (other threads, smaller keys and values) has to be this much better: less is noise."""


@dataclass(frozen=True, slots=True)
class Judgement:
    """How well a candidate predicts the text."""

    perplexity: float
    tokens: int
    change: float
    """Of the perplexity, relative to the reference's; more is worse."""
    change_error: float
    """Its standard error."""
    agreement: float
    """Share of places at which the likeliest next token is the reference's."""
    reference: str
    text_sha256: str


@dataclass(slots=True)
class Entrant:
    """A candidate and what is known of it so far."""

    candidate: Candidate
    state: Literal["waiting", "measured", "failed", "left out"] = "waiting"
    reason: str = ""
    path: Path | None = None
    """Where its files are."""
    disk: int = 0
    samples: list[Sample] = field(default_factory=list)
    memory: int = 0
    judgement: Judgement | None = None
    unjudged: str = ""
    """Why its quality could not be measured."""

    @property
    def sample(self) -> Sample:
        return median(self.samples)

    @property
    def is_variant(self) -> bool:
        return self.candidate.threads is not None or self.candidate.kv_cache != "f16"

    @property
    def is_lossless(self) -> bool:
        """Whether it computes the weights as they were given, keys and values in 16 bits."""
        return (
            self.candidate.form == "as it is"
            and self.candidate.precision in (None, "fp32")
            and (self.candidate.kv_cache == "f16")
        )


def cost(entrant: Entrant, goal: Goal) -> float:
    """What the goal wants little of; of a measured entrant."""
    sample = entrant.sample
    if goal == "latency":
        found = (
            sample.first_token * PROMPT_TOKENS / max(1, sample.prompt_tokens) + ANSWER_TOKENS / sample.decode
        )
    elif goal == "throughput":
        found = 1 / sample.streams_together
    else:
        found = float(entrant.memory)
    return found * (MARGIN if entrant.is_variant else 1.0)


def ranked(entrants: Sequence[Entrant], goal: Goal) -> list[Entrant]:
    """The measured ones, the best first."""
    measured = [entrant for entrant in entrants if entrant.state == "measured"]
    return sorted(measured, key=lambda entrant: cost(entrant, goal))


def refused(entrant: Entrant, max_loss: float) -> str:
    """Why a measured entrant may not be chosen; "" where it may."""
    if entrant.judgement is None:
        if entrant.is_lossless:
            return ""
        return f"its quality is not known: {entrant.unjudged or 'there was no time left to measure it'}"
    if entrant.judgement.change > max_loss:
        return f"loses {entrant.judgement.change:.1%} of quality, over the bound of {max_loss:.1%}"
    return ""


def chosen(entrants: Sequence[Entrant], goal: Goal, max_loss: float) -> Entrant | None:
    """The best that may be chosen."""
    return next((one for one in ranked(entrants, goal) if not refused(one, max_loss)), None)


def references_of(candidates: Sequence[Candidate], *, short: bool = False) -> list[Candidate]:
    """What others may be compared with, the best first: the least quantised; 16 bits count as no loss. Of equals one of
    torch, which looks at all places of a text at once, then the most promising. In a ``short`` search torch comes last: it
    takes seconds to be loaded."""
    least = max((min(one.bits, 16.0) for one in candidates), default=0.0)
    equals = [one for one in candidates if min(one.bits, 16.0) == least]
    return sorted(equals, key=lambda one: ((one.engine == "torch") != short, one.promise), reverse=True)


def affordable(seconds: float, tokens_per_second: float) -> int:
    """How many windows can be looked at in ``seconds`` by who decodes so quickly: a place costs about two tokens' time."""
    places = seconds * tokens_per_second / 2
    return max(MIN_WINDOWS, min(MAX_WINDOWS, int(places / (WINDOW // 2))))
