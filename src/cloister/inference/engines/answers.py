"""The answers to one request, told in chunks of OpenAI's shape as their tokens come."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from typing import Any

from cloister.inference.engines import Kind
from cloister.inference.engines.answer_text import AnswerText, Texts
from cloister.inference.engines.in_process import Ended, Event, Token
from cloister.inference.engines.tool_text import Call, ToolText

Json = dict[str, Any]


class Choice:
    """One answer on its way out."""

    def __init__(
        self,
        index: int,
        kind: Kind,
        texts: Texts,
        prompt: Sequence[int],
        stops: Sequence[str],
        *,
        tools: bool = False,
        one_call: bool = False,
    ) -> None:
        """``tools`` says whether calls are looked for in the answer, ``one_call`` that it ends with the first."""
        self.index = index
        self.ended = False
        self.tokens = 0
        self._kind = kind
        self._texts = texts
        self._text = AnswerText(texts.backend, prompt, stops)
        self._tools = ToolText() if tools else None
        self._one_call = one_call
        self._calls = 0
        self._logprobs: list[Json] = []
        self._begun = False

    def tell(self, event: Event) -> list[Json]:
        """OpenAI's choices to tell of ``event``; none once the answer has ended."""
        if self.ended:
            return []
        if isinstance(event, Token):
            return self._add(event)
        return self._finish(event) if isinstance(event, Ended) else []

    def _add(self, event: Token) -> list[Json]:
        self.tokens += 1
        if event.probability is not None:
            self._logprobs.append(self._texts.logprob(event.token, event.probability, event.likeliest))
        told = self._begin()
        told += self._tell(self._text.add(event.token))
        if self._text.stopped or (self._calls and self._one_call):
            told.append(self._end("stop"))
        return told

    def _finish(self, event: Ended) -> list[Json]:
        # The token that ends an answer was computed as the others were, and counts as llama.cpp counts it.
        self.tokens += event.untold
        told = self._begin() + self._tell(self._text.rest())
        if self._tools is not None and not (self._calls and self._one_call):
            told += self._content(self._tools.rest())
        return [*told, self._end(event.reason)]

    def _begin(self) -> list[Json]:
        if self._begun or self._kind == "text":
            return []
        self._begun = True
        return [self._choice({"role": "assistant", "content": None})]

    def _tell(self, text: str) -> list[Json]:
        if self._tools is None:
            return self._content(text)
        told: list[Json] = []
        for part in self._tools.add(text):
            if self._calls and self._one_call:
                break
            told += self._call(part) if isinstance(part, Call) else self._content(part)
        return told

    def _content(self, text: str) -> list[Json]:
        if not text:
            return []
        told = self._choice({"content": text} if self._kind == "chat" else text)
        if self._logprobs:
            told["logprobs"] = {"content": self._logprobs}
            self._logprobs = []
        return [told]

    def _call(self, call: Call) -> list[Json]:
        function = {"name": call.name, "arguments": call.arguments}
        piece = {
            "index": self._calls,
            "id": f"call_{secrets.token_hex(12)}",
            "type": "function",
            "function": function,
        }
        self._calls += 1
        return [self._choice({"tool_calls": [piece]})]

    def _end(self, reason: str) -> Json:
        self.ended = True
        told = self._choice({} if self._kind == "chat" else "")
        if self._logprobs:
            told["logprobs"] = {"content": self._logprobs}
        return told | {"finish_reason": "tool_calls" if self._calls and reason == "stop" else reason}

    def _choice(self, part: Mapping[str, Any] | str) -> Json:
        name = "delta" if self._kind == "chat" else "text"
        return {"index": self.index, name: part, "logprobs": None, "finish_reason": None}
