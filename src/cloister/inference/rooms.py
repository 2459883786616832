"""What another room adds to the API of one model: endpoints, and names of models that it answers for itself.

The API lends the room its engine with the same admission as everybody's (:class:`Desk`) and passes on who asks. A room
refuses as the API does, by :class:`~cloister.inference.api_errors.RequestRefused`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from starlette.routing import Route

from cloister.inference.exchange import JSON, Answer, Asked, Caller, Exchange, Reply
from cloister.inference.generation import Generations
from cloister.inference.openai_requests import ChatRequest


@dataclass(frozen=True, slots=True)
class Desk:
    """What the API lends to a room."""

    generations: Generations
    context_length: int
    """Tokens of one request to the engine, prompt and answer together."""
    caller_of: Callable[[str | None], Caller]
    now: Callable[[], float]

    def route(self, method: str, path: str, answer: Answer, *, content: str | None = JSON) -> Route:
        """An endpoint with the API's keys, bounds and refusals."""
        return Route(path, Exchange(answer, self.caller_of, content=content), methods=[method])


@dataclass(frozen=True, slots=True, kw_only=True)
class Room:
    """What is added."""

    routes: Sequence[Route]
    prefix: str
    """Of the names of models that the room answers for."""
    models: Callable[[Caller], Sequence[str]]
    """Those that this caller may ask."""
    chat: Callable[[ChatRequest, Reply, Asked], Awaitable[None]]
    """Answers a chat completion of a model with the room's prefix."""


OpenRoom = Callable[[Desk], Room]
