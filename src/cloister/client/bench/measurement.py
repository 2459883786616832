"""A whole measurement: the model's name, a prompt of the size asked for, and one round of load for each count of streams.

A service that cannot be measured (nobody there, a wrong key, no room, no whole answer at all) raises; what goes wrong with
single requests under load is a figure.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

import httpx2

from cloister.client.bench.asking import Outcome
from cloister.client.bench.figures import figures
from cloister.client.bench.load import Target, steady
from cloister.client.bench.questions import Question
from cloister.client.bench.report import Report
from cloister.errors import CloisterError, InferenceError, NetworkError, UsageError


@dataclass(frozen=True, slots=True)
class Load:
    """What is asked: a round of ``seconds`` for each count of ``streams``."""

    streams: tuple[int, ...]
    seconds: float
    prompt_tokens: int
    """About."""
    tokens: int
    """Of an answer, at the most."""
    seed: int = 1


async def measure(
    target: Target,
    load: Load,
    *,
    model: str,
    way: str,
    begun: Callable[[int], None] = lambda _: None,
    told: Callable[[Outcome], None] = lambda _: None,
) -> Report:
    """Measure ``target``; an empty ``model`` is the first that the service names.

    ``begun`` is told of each round, ``told`` of each request.
    Raises NetworkError, UsageError (the key, the question), InferenceError, and what verification raises.
    """
    source = random.Random(load.seed)  # noqa: S311 -- words, no secrets
    name = model or await _first_model(target)
    question = await _sized(target, Question(name, load.prompt_tokens, load.tokens), source)
    rounds = []
    for count in load.streams:
        begun(count)
        rounds.append(
            await steady(target, question, streams=count, seconds=load.seconds, source=source, told=told)
        )
    report = Report(
        url=target.base.rstrip("/"),
        way=way,
        model=name,
        tokens=load.tokens,
        rows=tuple(figures(one) for one in rounds),
        firsts=tuple(
            (one.streams, tuple(o.first for o in one.outcomes if o.failure is None and o.first is not None))
            for one in rounds
        ),
    )
    if not any(row.answered for row in report.rows):
        raise _refusal(rounds[0].outcomes[0])
    return report


async def _first_model(target: Target) -> str:
    try:
        answer = await target.client.get(target.base + "v1/models", headers=dict(target.headers))
    except httpx2.TransportError as error:
        raise NetworkError(
            f"{target.base} does not answer ({type(error).__name__})",
            todo="check the address and that it runs",
        ) from None
    if answer.status_code != 200:
        raise _refused_with(f"status {answer.status_code}")
    try:
        name = answer.json()["data"][0]["id"]
    except (ValueError, KeyError, IndexError, TypeError):
        raise InferenceError("the service names no model", todo="name one with --model") from None
    return str(name)


async def _sized(target: Target, question: Question, source: random.Random) -> Question:
    """The question with as many words as its tokens take here; a first answer is asked for to learn that."""
    probe = Question(question.model, max(1, min(16, question.words // 4)), 1)
    outcome = await target.ask(probe, source)
    if outcome.failure is not None:
        raise _refusal(outcome)
    longer = Question(question.model, max(2, min(64, question.words // 2)), 1)
    second = await target.ask(longer, source)
    # The chat template takes tokens too, which the difference of two lengths leaves out.
    more = second.prompt_tokens - outcome.prompt_tokens
    if second.failure is not None or more <= 0:
        return question
    each = more / (longer.words - probe.words)
    around = max(0.0, outcome.prompt_tokens - each * probe.words)
    return Question(question.model, max(1, round((question.words - around) / each)), question.tokens)


def _refusal(outcome: Outcome) -> CloisterError:
    return _refused_with(outcome.failure or "no token")


def _refused_with(failure: str) -> CloisterError:
    """Why nothing can be measured."""
    if failure in ("status 401", "status 403"):
        return UsageError(f"the service refuses the API key ({failure})", todo="check --api-key-file")
    if failure in ("status 429", "status 503", "network"):
        what = "does not answer" if failure == "network" else f"has no room ({failure})"
        return NetworkError(f"the service {what}", todo="try again, or with fewer --streams")
    if failure == "status 400":
        return UsageError(
            "the service refuses the question (status 400)",
            todo="its context may be too short: fewer --prompt-tokens or --tokens",
        )
    return InferenceError(f"no answer was whole ({failure})", todo="is it an OpenAI-compatible service?")
