"""Long prompts read in pieces, so that the answers of others go on meanwhile.

llama.cpp computes a prompt in batches and gives every running answer one token for each of them: beside a batch of
512 tokens, answers all but stand still. A small batch for everybody would slow down every prompt, and bound what can
be embedded. So a long prompt is asked for in growing beginnings, none of which wants an answer, all in one slot where
each computes what it adds; and between two of them, where others are being answered, is a pause.

A beginning that has other tokens than the prompt costs time, never correctness: llama.cpp reuses equal tokens alone.
Where a chat template does not keep beginnings (it moves the last turn, say) the rest is read at once.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final

import msgspec

from cloister.inference.engines import Kind
from cloister.inference.engines.llamacpp_slots import Text

CHUNK: Final = 64
"""Tokens of a piece beside running answers; see docs/benchmarks.md."""
ALONE: Final = 256
"""Tokens of a piece where nobody else is answered: how long who comes next may have to wait."""
PAUSE: Final = 1.5
"""Length of the pause behind a piece, in times of the piece."""
UNITS: Final = 3.0
"""Characters of a token, until the first piece tells."""
UNITS_AT_MOST: Final = 16.0
"""Likewise, to tell whether a prompt can be answered at all."""
STRAY: Final = 64
"""Tokens that a template adds behind the last turn, at most, and that the next beginning has not got."""


def prompt_text(kind: Kind, body: Mapping[str, Any]) -> Text | None:
    """The text of one request's one prompt; None where it is several, or nothing that could be cut."""
    if kind == "text":
        prompt = body.get("prompt")
        if isinstance(prompt, list) and all(isinstance(token, int) for token in prompt):
            return tuple(prompt)
        return prompt if isinstance(prompt, str) else None
    messages = body.get("messages")
    if not isinstance(messages, list):
        return None
    parts: list[str] = []
    for turn in messages:
        role, content = (turn.get("role"), turn.get("content")) if isinstance(turn, Mapping) else (None, None)
        if not (isinstance(role, str) and role and isinstance(content, str)):
            return None
        parts.append(f"{role[0]}{content}\n")
    return "".join(parts)


def frame(kind: Kind, body: Mapping[str, Any]) -> bytes:
    """All of a request that may change the tokens of its prompt, but for its :func:`prompt_text`."""
    rest = {name: value for name, value in body.items() if name not in ("prompt", "messages")}
    turns = [
        (number, {name: value for name, value in turn.items() if name not in ("role", "content")})
        for number, turn in enumerate(body.get("messages") or ())
        if isinstance(turn, Mapping) and len(turn) > 2
    ]
    return msgspec.json.encode((kind, rest, turns))


def beginning(kind: Kind, body: Mapping[str, Any], length: int) -> dict[str, Any]:
    """The request cut to the first ``length`` characters or tokens of its :func:`prompt_text`."""
    if kind == "text":
        return dict(body) | {"prompt": body["prompt"][:length]}
    messages: list[dict[str, Any]] = []
    for message in body["messages"]:
        if length <= 0 and messages:
            break
        messages.append(dict(message) | {"content": message["content"][: max(0, length - 1)]})
        length -= len(message["content"]) + 2
    return dict(body) | {"messages": messages}


class Reading:
    """One prompt's way through its pieces: pure, so that what it decides can be tested."""

    def __init__(self, text: Text, *, known: int, context_length: int) -> None:
        self._length = len(text)
        self._done = known
        self._characters = isinstance(text, str)
        self._units = UNITS if self._characters else 1.0
        self._tokens = 0
        self._context = context_length
        self.cached: int | None = None
        """Tokens of the whole prompt that lay in the slot before."""
        self.useless = False
        """The template does not keep beginnings."""

    def next(self, tokens: int) -> int | None:
        """Length of the beginning that adds ``tokens``; None when the rest is to be read at once.

        That is where it is no longer than that, where pieces gain nothing, and where the prompt looks too long to be
        answered: the engine then refuses it before it computes anything.
        """
        end = self._done + max(1, int(tokens * self._units))
        units = self._units if self._tokens or not self._characters else UNITS_AT_MOST
        hopeless = self._length > self._context * units
        return None if self.useless or hopeless or end >= self._length else end

    def read(self, end: int, usage: Mapping[str, Any] | None) -> None:
        """A piece up to ``end`` was computed; ``usage`` is None where the engine refused it."""
        self._done = end
        if usage is None:
            return
        tokens, cached = int(usage.get("prompt_tokens", 0)), cached_tokens(usage)
        if self.cached is None:
            self.cached = cached
        elif cached < self._tokens - STRAY:
            self.useless = True
        self._tokens = tokens
        if self._characters and tokens:
            self._units = max(1.0, end / tokens)


class Turns:
    """One long prompt's piece at a time, first come, first served: together they slow others no more than one."""

    def __init__(self) -> None:
        self._queue: deque[object] = deque()
        self._change = threading.Condition()

    def __len__(self) -> int:
        """Who reads, and who waits."""
        return len(self._queue)

    @contextmanager
    def turn(self) -> Iterator[None]:
        token = object()
        with self._change:
            self._queue.append(token)
            self._change.wait_for(lambda: self._queue[0] is token)
        try:
            yield
        finally:
            with self._change:
                self._queue.popleft()
                self._change.notify_all()


def cached_tokens(usage: Mapping[str, Any]) -> int:
    details = usage.get("prompt_tokens_details")
    return int(details.get("cached_tokens", 0)) if isinstance(details, Mapping) else 0
