"""Mixed load for soak runs: short and long questions, clients that leave, and requests that must be refused.

Each kind of request knows what has to come of it; everything else is counted as unexpected and named. A service under such a
load must answer, refuse and recover: what it may never do is to fail, to hang or to forget a slot.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from cloister.client.bench.asking import Outcome, ask
from cloister.client.bench.load import MAX_PAUSE, Target, pause
from cloister.client.bench.questions import Question

BUSY: Final = ("status 429", "status 503")
"""Refusals that a full service may give to any request."""
MAX_REMEMBERED: Final = 100
"""Unexpected outcomes that are kept by name; all are counted."""


@dataclass(frozen=True, slots=True)
class Part:
    """One kind of request in the mixture."""

    name: str
    weight: float
    words: int = 8
    """Of the prompt."""
    tokens: int = 16
    """Of the answer, at the most."""
    stream: bool = True
    leave_after: int | None = None
    """Tokens after which the client leaves."""
    leave_at: float | None = None
    """Seconds after which the client leaves, if it has no answer by then."""
    change: Callable[[dict[str, Any]], Mapping[str, Any] | bytes] | None = None
    """Makes a bad request of a good one."""
    headers: Mapping[str, str] = field(default_factory=dict)
    expected: tuple[str | None, ...] = (None,)
    """Failures that are right; None is an answer."""


def usual_mixture(
    *, context: int, short: int = 16, long: int = 128, api_keys: bool = True
) -> tuple[Part, ...]:
    """A mixture for a model of ``context`` tokens; answers of up to ``short`` and ``long`` tokens.

    Prompts stay well inside the context for tokenizers that take up to three tokens for a made-up word.
    """
    large = max(8, (context - long) // 4)
    wrong_key = Part(
        "wrong key", 1, headers={"authorization": "Bearer " + "w" * 24}, expected=("status 401",)
    )
    return (
        Part("short", 8, tokens=short),
        Part("long answer", 3, tokens=long),
        Part("long prompt", 3, words=large, tokens=short),
        Part("not streamed", 2, tokens=short, stream=False),
        Part("leaves at once", 2, tokens=long, leave_at=0.02),
        Part("leaves midway", 3, tokens=long, leave_after=3),
        Part("leaves a long prompt", 1, words=large, tokens=long, leave_at=0.1),
        Part("over the context", 1, words=context * 2, expected=("status 400",)),
        Part("unknown field", 1, change=lambda body: body | {"id_slot": 0}, expected=("status 400",)),
        Part("wrong model", 1, change=lambda body: body | {"model": "nobody's"}, expected=("status 404",)),
        Part("no JSON", 1, change=lambda _: b'{"model": "m", "messages', expected=("status 400",)),
        *((wrong_key,) if api_keys else ()),
    )


@dataclass(slots=True)
class Tally:
    """What came of a mixed load. It grows while the load runs and may be read meanwhile."""

    done: Counter[str] = field(default_factory=Counter)
    """Requests by kind."""
    answered: int = 0
    left: int = 0
    refused: int = 0
    """Bad requests that were refused as they had to be."""
    busy: int = 0
    """Requests that a full service turned away."""
    tokens: int = 0
    firsts: list[float] = field(default_factory=list)
    """Seconds to the first token, of every answer that has one."""
    unexpected: Counter[tuple[str, str]] = field(default_factory=Counter)
    """(kind, what came) of everything that was not right."""

    def add(self, part: Part, outcome: Outcome) -> None:
        self.done[part.name] += 1
        self.tokens += outcome.tokens
        if outcome.first is not None:
            self.firsts.append(outcome.first)
        if outcome.left:
            self.left += 1
        elif outcome.failure in BUSY and outcome.failure not in part.expected:
            self.busy += 1
        elif outcome.failure not in part.expected:
            if len(self.unexpected) < MAX_REMEMBERED or (part.name, str(outcome.failure)) in self.unexpected:
                self.unexpected[part.name, outcome.failure or "answered"] += 1
            else:
                self.unexpected["others", "others"] += 1
        elif outcome.failure is None:
            self.answered += 1
        else:
            self.refused += 1


async def mixed(
    target: Target,
    model: str,
    parts: Sequence[Part],
    *,
    streams: int,
    seconds: float,
    source: random.Random,
    tally: Tally | None = None,
    patience: float = 300.0,
    clock: Callable[[], float] = time.perf_counter,
) -> Tally:
    """Keep ``streams`` busy with a seeded mixture until ``seconds`` are over; the tally is the one given, or a new one.

    A request that takes over ``patience`` seconds is given up and counted as ``hangs``.
    """
    tally = tally if tally is not None else Tally()
    began = clock()

    async def stream(own: random.Random) -> None:
        while clock() - began < seconds:
            part = own.choices(parts, weights=[part.weight for part in parts])[0]
            try:
                async with asyncio.timeout(patience):
                    outcome = await ask_part(target, model, part, own)
            except TimeoutError:
                outcome = Outcome(began=clock() - patience, took=patience, failure="hangs")
            tally.add(part, outcome)
            if outcome.failure in BUSY:
                await asyncio.sleep(min(MAX_PAUSE, pause(outcome)))

    async with asyncio.TaskGroup() as group:
        for _ in range(streams):
            group.create_task(stream(random.Random(source.getrandbits(64))))  # noqa: S311 -- words, no secrets
    return tally


async def ask_part(target: Target, model: str, part: Part, source: random.Random) -> Outcome:
    """One request of a kind."""
    body: dict[str, Any] = Question(model, part.words, part.tokens).body(source)
    if not part.stream:
        body = {name: value for name, value in body.items() if name not in ("stream", "stream_options")}
    sent: Mapping[str, Any] | bytes = part.change(body) if part.change else body
    headers = {**target.headers, **part.headers}
    return await ask(
        target.client,
        target.base,
        sent,
        headers,
        leave_after=part.leave_after,
        leave_at=part.leave_at,
    )
