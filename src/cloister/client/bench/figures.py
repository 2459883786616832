"""What a round of load comes to: percentiles, rates, a histogram. Pure."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from cloister.client.bench.load import Round

BINS = 12
"""Of a histogram."""


@dataclass(frozen=True, slots=True)
class Spread:
    """Percentiles of measured times, seconds."""

    p50: float
    p95: float
    p99: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread | None:
        """None where nothing was measured."""
        if not values:
            return None
        ordered = sorted(values)
        return cls(*(percentile(ordered, share) for share in (0.50, 0.95, 0.99)))


@dataclass(frozen=True, slots=True)
class Figures:
    """One row of the table."""

    streams: int
    seconds: float
    requests: int
    answered: int
    tokens: int
    tokens_per_second: float
    first: Spread | None
    """To the first token, of answers that were whole."""
    between: Spread | None
    """Between the arrivals of two tokens of one answer."""
    prompt_tokens: int
    """Median, as the service counts."""
    errors: dict[str, int]


@dataclass(frozen=True, slots=True)
class Bin:
    """Values from ``low`` (inclusive) to ``high``, seconds."""

    low: float
    high: float
    count: int


def figures(round_: Round) -> Figures:
    """The row of one round. Tokens of answers that broke off count for nothing."""
    whole = [outcome for outcome in round_.outcomes if outcome.failure is None]
    tokens = sum(outcome.tokens for outcome in whole)
    errors = Counter(outcome.failure for outcome in round_.outcomes if outcome.failure is not None)
    prompts = sorted(outcome.prompt_tokens for outcome in whole)
    return Figures(
        streams=round_.streams,
        seconds=round_.seconds,
        requests=len(round_.outcomes),
        answered=len(whole),
        tokens=tokens,
        tokens_per_second=tokens / round_.seconds if round_.seconds > 0 else 0.0,
        first=Spread.of([outcome.first for outcome in whole if outcome.first is not None]),
        between=Spread.of([gap for outcome in whole for gap in outcome.gaps]),
        prompt_tokens=prompts[len(prompts) // 2] if prompts else 0,
        errors=dict(sorted(errors.items())),
    )


def percentile(ordered: Sequence[float], share: float) -> float:
    """The smallest value that at least ``share`` of the sorted values do not exceed (nearest rank)."""
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


def histogram(values: Sequence[float], bins: int = BINS) -> list[Bin]:
    """Counts over ranges that grow by a constant factor: times spread over orders of magnitude."""
    positive = [value for value in values if value > 0]
    if not positive:
        return []
    low, high = min(positive), max(positive)
    if high <= low * 1.0001:
        return [Bin(low, high, len(positive))]
    step = (high / low) ** (1 / bins)
    edges = [low * step**number for number in range(bins)] + [high]
    counts = [0] * bins
    for value in positive:
        counts[min(bins - 1, int(math.log(value / low) / math.log(step)))] += 1
    return [Bin(edges[number], edges[number + 1], counts[number]) for number in range(bins)]
