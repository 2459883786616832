"""Answers of a given shape: which tokens may come next, by a JSON schema or by the form of a tool call.

The grammars are those of ``llguidance`` (compiled once for each answer, with bounds on its time and size); here they are
built for one tokenizer and asked token by token. A schema that it cannot honour in full is refused.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping, Sequence
from typing import Any, Final

import torch

from cloister.errors import InferenceError
from cloister.inference.api_errors import RequestRefused

Json = Mapping[str, Any]

_COMPACT: Final = {"x-guidance": {"whitespace_flexible": False}}
"""Without it a small model writes line breaks until its tokens are used up."""
CALL_START: Final = "<tool_call>"
CALL_END: Final = "</tool_call>"


class Matcher:
    """One answer's place in its grammar."""

    def __init__(self, matcher: Any, vocabulary: int) -> None:
        """``matcher`` is an ``LLMatcher``."""
        self._matcher = matcher
        self._vocabulary = vocabulary

    def allowed(self) -> torch.Tensor:
        bits = torch.frombuffer(bytearray(self._matcher.compute_bitmask()), dtype=torch.uint8)
        self._check()
        flags = (bits.unsqueeze(1) >> torch.arange(8, dtype=torch.uint8)).bitwise_and_(1).flatten().bool()
        allowed = torch.zeros(self._vocabulary, dtype=torch.bool)
        count = min(self._vocabulary, flags.shape[0])
        allowed[:count] = flags[:count]
        return allowed

    def took(self, token: int) -> bool:
        self._matcher.consume_token(token)
        self._check()
        return bool(self._matcher.is_stopped())

    def _check(self) -> None:
        if self._matcher.is_error():
            raise InferenceError("the answer's grammar became too large to follow")


class Grammars:
    """Builds the grammars of one tokenizer; what they share is made when the first is asked for."""

    def __init__(self, backend: Any, *, vocabulary: int, ends: Sequence[int]) -> None:
        """``backend`` is a ``tokenizers.Tokenizer``; ``ends`` are the tokens that may end an answer."""
        self._backend = backend
        self._vocabulary = vocabulary
        self._ends = list(ends)
        self._lock = threading.Lock()
        self._tokenizer: Any = None

    def json(self, schema: Json) -> Matcher:
        """JSON by ``schema``. Raises RequestRefused."""
        return self._matcher(f"start: %json {json.dumps({**schema, **_COMPACT})}", "response_format")

    def tool_call(self, tools: Sequence[Json]) -> Matcher:
        """One call of one of ``tools`` (OpenAI's), in the form that Hermes and Qwen write. Raises RequestRefused."""
        forms = [
            {
                "type": "object",
                "properties": {
                    "name": {"const": tool["function"]["name"]},
                    "arguments": tool["function"].get("parameters") or {"type": "object"},
                },
                "required": ["name", "arguments"],
                "additionalProperties": False,
            }
            for tool in tools
        ]
        lark = f'start: "{CALL_START}\\n" call "\\n{CALL_END}"\ncall: %json {json.dumps({"anyOf": forms, **_COMPACT})}'
        return self._matcher(lark, "tools")

    def _matcher(self, lark: str, param: str) -> Matcher:
        try:
            import llguidance  # noqa: PLC0415 -- optional: only answers of a given shape need it
        except ImportError:
            raise RequestRefused(
                f"{param}: answers of a given shape need llguidance, which is not installed here",
                code="unsupported",
                param=param,
            ) from None
        with self._lock:
            if self._tokenizer is None:
                self._tokenizer = llguidance.LLTokenizer(self._backend.to_str(), eos_token=self._ends)
        matcher = llguidance.LLMatcher(
            self._tokenizer, llguidance.LLMatcher.grammar_from_lark(lark), log_level=0
        )
        if matcher.is_error():
            # Its text quotes the schema: it goes to whoever sent that, and nowhere else.
            raise RequestRefused(f"{param}: {matcher.get_error()[:300]}", code="invalid_value", param=param)
        return Matcher(matcher, self._vocabulary)
