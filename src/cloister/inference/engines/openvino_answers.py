"""The answers to one request, told in chunks of OpenAI's shape as their tokens come."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from cloister.inference.engines import Kind
from cloister.inference.engines.openvino_pipeline import Ended, Token
from cloister.inference.engines.openvino_requests import Ask
from cloister.inference.engines.torch_text import AnswerText, Texts

Json = dict[str, Any]


class Choice:
    """One answer on its way out."""

    def __init__(self, index: int, ask: Ask, kind: Kind, texts: Texts, prompt: Sequence[int]) -> None:
        self.index = index
        self.ended = False
        self.tokens = 0
        self._kind = kind
        self._texts = texts
        self._text = AnswerText(texts.backend, prompt, ask.stops)
        self._wanted = ask.logprobs
        self._logprobs: list[Json] = []
        self._begun = False

    def add(self, event: Token) -> list[Json]:
        """OpenAI's choices to tell for one more token."""
        self.tokens += 1
        if self._wanted:
            likeliest = [(event.token, event.probability)]
            self._logprobs.append(self._texts.logprob(event.token, event.probability, likeliest))
        told = self._begin()
        told += self._content(self._text.add(event.token))
        if self._text.stopped:
            told.append(self._end("stop"))
        return told

    def end(self, event: Ended) -> list[Json]:
        """OpenAI's choices to tell at the end."""
        # The token that ends an answer was computed as the others were, and counts as llama.cpp counts it.
        self.tokens += event.reason == "stop"
        return [*self._begin(), *self._content(self._text.rest()), self._end(event.reason)]

    def _begin(self) -> list[Json]:
        if self._begun or self._kind == "text":
            return []
        self._begun = True
        return [self._choice({"role": "assistant", "content": None})]

    def _content(self, text: str) -> list[Json]:
        if not text:
            return []
        told = self._choice({"content": text} if self._kind == "chat" else text)
        if self._logprobs:
            told["logprobs"] = {"content": self._logprobs}
            self._logprobs = []
        return [told]

    def _end(self, reason: str) -> Json:
        self.ended = True
        told = self._choice({} if self._kind == "chat" else "")
        if self._logprobs:
            told["logprobs"] = {"content": self._logprobs}
        return told | {"finish_reason": reason}

    def _choice(self, part: Mapping[str, Any] | str) -> Json:
        name = "delta" if self._kind == "chat" else "text"
        return {"index": self.index, name: part, "logprobs": None, "finish_reason": None}
