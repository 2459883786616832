"""What engines that compute in this process share: the events of an answer, and telling them as OpenAI's chunks.

A computing thread tells the :class:`Event` s of each answer to a queue; the request's own thread makes text of them
(answers.py) and hands it on, until every answer has ended or nobody wants more.
"""

from __future__ import annotations

import os
import queue
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal

from cloister.errors import InferenceError
from cloister.inference.engines import Kind, Sink

if TYPE_CHECKING:
    from cloister.inference.engines.answers import Choice

ASK_SECONDS: Final = 0.25
"""How often a request that waits looks whether it is still wanted."""
_STILL_WORKING: Final[Mapping[str, Any]] = {}
_OBJECT: Final[Mapping[Kind, str]] = {"chat": "chat.completion.chunk", "text": "text_completion"}


@dataclass(frozen=True, slots=True)
class Token:
    """One token of an answer."""

    token: int
    probability: float | None = None
    """Its log probability, where those were asked for."""
    likeliest: Sequence[tuple[int, float]] = ()


@dataclass(frozen=True, slots=True)
class Ended:
    """An answer has all its tokens."""

    reason: Literal["stop", "length"]
    untold: int = 0
    """Tokens that were computed and are not in the answer: the one that ends it, where the engine counts it."""


@dataclass(frozen=True, slots=True)
class Failed:
    error: InferenceError


class Reading:
    """A piece of the prompt was read."""


Event = Token | Ended | Failed | Reading
Told = queue.SimpleQueue[tuple[int, Event]]
"""Events with the number of the answer they belong to."""


def teller(told: Told, index: int) -> Callable[[Event], None]:
    """Tells events of the answer ``index``; what a computing thread is given."""
    return lambda event: told.put((index, event))


def answer(
    kind: Kind,
    choices: Sequence[Choice],
    told: Told,
    sink: Sink,
    *,
    created: float,
    drop: Callable[[int], None],
    usage: Callable[[], Mapping[str, Any]],
) -> None:
    """Tell ``sink`` every answer to its end, then the usage; it stops where ``sink`` wants no more.

    ``drop`` is called with the number of an answer of which no more tokens are wanted. Raises what an answer failed with.
    """
    head: Mapping[str, Any] = {
        "id": f"{'chatcmpl' if kind == 'chat' else 'cmpl'}-{secrets.token_hex(16)}",
        "object": _OBJECT[kind],
        "created": int(created),
        "model": "model",
    }
    while not all(choice.ended for choice in choices):
        try:
            index, event = told.get(timeout=ASK_SECONDS)
        except queue.Empty:
            if sink(_STILL_WORKING):
                return
            continue
        if isinstance(event, Failed):
            raise event.error
        choice = choices[index]
        parts = choice.tell(event)
        if choice.ended:
            drop(index)
        chunks: list[Mapping[str, Any]] = [{**head, "choices": [part]} for part in parts]
        if any(sink(chunk) for chunk in chunks or [_STILL_WORKING]):
            return
    sink({**head, "choices": [], "usage": usage()})


def usage_of(
    prompts: Sequence[Sequence[int]], choices: Sequence[Choice], *, cached: int
) -> Mapping[str, Any]:
    """OpenAI's ``usage``; ``cached`` are tokens of the prompts that were in memory already."""
    prompt = sum(map(len, prompts))
    answered = sum(choice.tokens for choice in choices)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": answered,
        "total_tokens": prompt + answered,
        "prompt_tokens_details": {"cached_tokens": cached},
    }


def processors() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0))
