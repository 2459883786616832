"""Answers from documents as they are told: as OpenAI's chat completions, and in the room's own shape. Pure.

Both carry the passages that the answer was given. A chat completion has them in a field ``knowledge`` beside OpenAI's own,
which its clients keep and need not know, and its citations as OpenAI's annotations.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from cloister.knowledge.asking import End, Given
from cloister.knowledge.citations import annotation, source
from cloister.knowledge.retrieval import Hit

Json = dict[str, Any]


def sources(hits: Sequence[Hit]) -> list[Json]:
    """Passages with their numbers, from 1."""
    return [source(hit.found, number, hit.nearness) for number, hit in enumerate(hits, 1)]


@dataclass(frozen=True, slots=True)
class Completion:
    """Tells a chat completion, at once or in chunks."""

    identity: str
    model: str
    created: int

    def begin(self, given: Given) -> Json:
        """The first chunk: the passages."""
        knowledge = {"question": given.question, "passages": sources(given.hits)}
        return self._chunk({"role": "assistant", "content": ""}) | {"knowledge": knowledge}

    def piece(self, text: str) -> Json:
        return self._chunk({"content": text})

    def end(self, given: Given, end: End, *, usage: bool) -> list[Json]:
        """The last chunks."""
        annotated = self._chunk({"annotations": _annotations(given, end)}) if end.citations else None
        last = self._chunk({}, end.reason) | {"knowledge": {"answered": end.answered}}
        counted = self._head("chat.completion.chunk") | {"choices": [], "usage": dict(end.usage)}
        return [*([annotated] if annotated else ()), last, *([counted] if usage else ())]

    def whole(self, given: Given, text: str, end: End) -> Json:
        message: Json = {"role": "assistant", "content": text, "refusal": None}
        if end.citations:
            message["annotations"] = _annotations(given, end)
        knowledge = {"question": given.question, "passages": sources(given.hits), "answered": end.answered}
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": end.reason}
        head = self._head("chat.completion")
        return head | {"choices": [choice], "usage": dict(end.usage), "knowledge": knowledge}

    def _chunk(self, delta: Json, reason: str | None = None) -> Json:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": reason}
        return self._head("chat.completion.chunk") | {"choices": [choice]}

    def _head(self, kind: str) -> Json:
        return {
            "id": f"chatcmpl-{self.identity}",
            "object": kind,
            "created": self.created,
            "model": self.model,
        }


def whole_answer(given: Given, text: str, end: End) -> Json:
    """One answer in the room's own shape."""
    return {
        "object": "knowledge.answer",
        "question": given.question,
        "answer": text,
        "answered": end.answered,
        "finish_reason": end.reason,
        "passages": sources(given.hits),
        "citations": [{"start": one.start, "end": one.end, "number": one.number} for one in end.citations],
        "usage": dict(end.usage),
    }


def event(told: Given | str | End) -> Json:
    """One event of a streamed answer in the room's own shape."""
    if isinstance(told, Given):
        return {"type": "passages", "question": told.question, "passages": sources(told.hits)}
    if isinstance(told, str):
        return {"type": "text", "text": told}
    return {
        "type": "end",
        "answered": told.answered,
        "finish_reason": told.reason,
        "citations": [{"start": one.start, "end": one.end, "number": one.number} for one in told.citations],
        "usage": dict(told.usage),
    }


def _annotations(given: Given, end: End) -> list[Json]:
    return [annotation(one, given.hits[one.number - 1].found) for one in end.citations]
