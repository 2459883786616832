"""An engine that says what a test wrote down: for tests of everything around the model."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from cloister.inference.engines import EngineStats, Kind, Sink


def chunk(kind: Kind, text: str | None, *, finish: str | None = None, index: int = 0) -> dict[str, Any]:
    choice: dict[str, Any] = {"index": index, "finish_reason": finish, "logprobs": None}
    if kind == "chat":
        choice["delta"] = {} if text is None else {"content": text}
    else:
        choice["text"] = text or ""
    kinds = {"chat": "chat.completion.chunk", "text": "text_completion"}
    return {"id": "id-1", "object": kinds[kind], "created": 1, "model": "engine's own", "choices": [choice]}


class ScriptedEngine:
    """Answers every request with ``words``; ``before`` runs on the engine's thread before each word."""

    def __init__(
        self,
        words: Iterable[str] = ("one", " two"),
        *,
        slots: int = 2,
        error: Exception | None = None,
        before: Callable[[int], None] = lambda _: None,
        embedding_length: int | None = 2,
    ) -> None:
        self.context_length = 128
        self.slots = slots
        self.embedding_length = embedding_length
        self.tools = False
        self.asked: list[Mapping[str, Any]] = []
        self.tenants: list[bytes | None] = []
        self.stopped = threading.Event()
        self._words = words
        self._error = error
        self._before = before

    def generate(
        self, kind: Kind, request: Mapping[str, Any], sink: Sink, *, tenant: bytes | None = None
    ) -> None:
        self.asked.append(request)
        self.tenants.append(tenant)
        count = 0
        for count, word in enumerate(self._words, 1):
            self._before(count)
            if sink(chunk(kind, word)):
                self.stopped.set()
                return
        if self._error is not None:
            raise self._error
        sink(chunk(kind, None, finish="stop"))
        usage = {"prompt_tokens": 3, "completion_tokens": count, "total_tokens": 3 + count}
        sink(chunk(kind, None) | {"choices": [], "usage": usage})

    def embed(self, request: Mapping[str, Any]) -> Mapping[str, Any]:
        self.asked.append(request)
        data = [{"index": index, "embedding": [0.6, 0.8]} for index, _ in enumerate(request["input"])]
        usage = {"prompt_tokens": len(data), "total_tokens": len(data)}
        return {"object": "list", "model": "engine's own", "data": data, "usage": usage}

    def stats(self) -> EngineStats:
        return EngineStats(0, 3 * len(self.asked), 0, len(self.asked))

    def close(self) -> None:
        self.stopped.set()
