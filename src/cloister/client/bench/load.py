"""Streams that ask one question after the other for a while: the load of `cloister bench`.

So many streams as were asked for are always busy, each with a question of its own (a closed loop). Whom the service asks to
come back later waits as long as it was told, at most :data:`MAX_PAUSE`, so that a full service is not hammered.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

import httpx2

from cloister.client.bench.asking import Outcome, ask
from cloister.client.bench.questions import Question

MAX_PAUSE: Final = 2.0
"""Seconds that a refused stream pauses at the most."""
MIN_PAUSE: Final = 0.1


@dataclass(frozen=True, slots=True)
class Target:
    """Who is asked. ``client`` is sealed or plain; ``base`` ends with ``/``."""

    client: httpx2.AsyncClient
    base: str
    headers: Mapping[str, str]

    async def ask(self, question: Question, source: random.Random) -> Outcome:
        return await ask(self.client, self.base, question.body(source), self.headers)


@dataclass(frozen=True, slots=True)
class Round:
    """What ``streams`` at once did in ``seconds``."""

    streams: int
    seconds: float
    outcomes: tuple[Outcome, ...]


async def steady(
    target: Target,
    question: Question,
    *,
    streams: int,
    seconds: float,
    source: random.Random,
    told: Callable[[Outcome], None] = lambda _: None,
    clock: Callable[[], float] = time.perf_counter,
) -> Round:
    """Keep ``streams`` busy until ``seconds`` are over; what runs then is asked to its end. ``told`` of each outcome."""
    began = clock()
    outcomes: list[Outcome] = []

    async def stream(own: random.Random) -> None:
        while True:
            outcome = await target.ask(question, own)
            outcomes.append(outcome)
            told(outcome)
            if clock() - began >= seconds:
                return
            if outcome.failure is not None:
                await asyncio.sleep(pause(outcome))

    async with asyncio.TaskGroup() as group:
        for _ in range(streams):
            group.create_task(stream(random.Random(source.getrandbits(64))))  # noqa: S311 -- words, no secrets
    return Round(streams=streams, seconds=clock() - began, outcomes=tuple(outcomes))


def pause(outcome: Outcome) -> float:
    """Seconds to wait after a failure."""
    return min(MAX_PAUSE, max(MIN_PAUSE, outcome.retry_after or MIN_PAUSE))
