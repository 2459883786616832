"""Server-sent events of an upstream, and the chunks in them: strictly, bounded, and nothing but what we know.

Lines, events and answers have a largest size. What a chunk holds beyond OpenAI's fields is dropped; fields of another
type than OpenAI's are an error. Errors never quote: they reach the log, and the upstream's words may be a prompt.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType

from cloister.encoding import parse_json
from cloister.errors import FormatError, InferenceError
from cloister.inference.engines import Kind

MAX_LINE: Final = 1 << 20
MAX_EVENT: Final = 2 << 20
DONE: Final = b"[DONE]"
_IGNORED: Final = (b":", b"id:", b"retry:", b"event:")

Count = Annotated[int, Meta(ge=0, le=1 << 31)]
Index = Annotated[int, Meta(ge=0, lt=64)]


class Events:
    """Bytes in, the data of whole events out."""

    def __init__(self) -> None:
        self._rest = b""
        self._data: list[bytes] = []
        self._size = 0

    def feed(self, part: bytes) -> Iterator[bytes]:
        """Raises InferenceError."""
        *lines, self._rest = (self._rest + part).split(b"\n")
        for line in lines:
            yield from self._line(line.removesuffix(b"\r"))
        if len(self._rest) > MAX_LINE:
            raise InferenceError("the upstream sent a line without an end")

    def _line(self, line: bytes) -> Iterator[bytes]:
        if len(line) > MAX_LINE:
            raise InferenceError("the upstream sent a line over its bound")
        if not line:
            if self._data:
                yield b"\n".join(self._data)
            self._data, self._size = [], 0
        elif line.startswith(b"data:"):
            self._data.append(line[5:].removeprefix(b" "))
            self._size += len(line)
            if self._size > MAX_EVENT:
                raise InferenceError("the upstream sent an event over its bound")
        elif not line.startswith(_IGNORED):
            raise InferenceError("the upstream sent what is no server-sent event")


class _Top(msgspec.Struct, kw_only=True):
    token: str
    logprob: float
    bytes: list[int] | None = None


class _Entry(_Top, kw_only=True):
    top_logprobs: list[_Top] = []


class _Logprobs(msgspec.Struct, kw_only=True):
    """Of chats, and the older shape of completions."""

    content: list[_Entry] | None = None
    tokens: list[str] | None = None
    token_logprobs: list[float | None] | None = None
    top_logprobs: list[dict[str, float] | None] | None = None


class _Function(msgspec.Struct, kw_only=True):
    name: str | None = None
    arguments: str | None = None


class _Call(msgspec.Struct, kw_only=True):
    index: Index = 0
    id: str | None = None
    type: str | None = None
    function: _Function | None = None


class _Delta(msgspec.Struct, kw_only=True):
    role: str | UnsetType | None = UNSET
    content: str | UnsetType | None = UNSET
    reasoning_content: str | UnsetType | None = UNSET
    tool_calls: list[_Call] | UnsetType | None = UNSET


class _Choice(msgspec.Struct, kw_only=True):
    index: Index = 0
    delta: _Delta | UnsetType | None = UNSET
    text: str | UnsetType | None = UNSET
    logprobs: _Logprobs | None = None
    finish_reason: str | None = None


class _Details(msgspec.Struct, kw_only=True):
    cached_tokens: Count | None = None


class _Usage(msgspec.Struct, kw_only=True):
    prompt_tokens: Count
    completion_tokens: Count = 0
    prompt_tokens_details: _Details | None = None


class _Chunk(msgspec.Struct, kw_only=True):
    id: str = ""
    created: int = 0
    choices: Annotated[list[_Choice], Meta(max_length=64)] = []
    usage: _Usage | None = None


class _Embedding(msgspec.Struct, kw_only=True):
    index: Count
    embedding: list[float]


class Embeddings(msgspec.Struct, kw_only=True):
    data: list[_Embedding]
    usage: _Usage


class _Model(msgspec.Struct, kw_only=True):
    id: Annotated[str, Meta(min_length=1, max_length=256)]
    max_model_len: Count | None = None
    """vLLM and SGLang say it."""


class Models(msgspec.Struct, kw_only=True):
    object: Literal["list"]
    data: Annotated[list[_Model], Meta(max_length=1024)]


def decoded(data: bytes, kind: type[Any], *, limit: int = MAX_EVENT) -> Any:
    """``data`` as ``kind``, without what that does not name. Raises InferenceError."""
    try:
        return msgspec.convert(parse_json(data, what="the upstream's answer", limit=limit), kind)
    except (FormatError, msgspec.ValidationError):
        raise InferenceError("the upstream's answer does not have the form of OpenAI's") from None


def chunk_of(data: bytes, kind: Kind) -> dict[str, Any]:
    """One chunk in OpenAI's streaming shape. Raises InferenceError."""
    found: _Chunk = decoded(data, _Chunk)
    choices = [_choice(choice, kind) for choice in found.choices]
    told: dict[str, Any] = {
        "id": found.id,
        "object": "chat.completion.chunk" if kind == "chat" else "text_completion",
        "created": found.created,
        "model": "model",
        "choices": choices,
    }
    if found.usage is not None:
        told["usage"] = usage_of(found.usage)
    return told


def usage_of(usage: _Usage) -> dict[str, Any]:
    details = usage.prompt_tokens_details
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": (details and details.cached_tokens) or 0},
    }


def _choice(choice: _Choice, kind: Kind) -> dict[str, Any]:
    told: dict[str, Any] = {
        "index": choice.index,
        "logprobs": _logprobs(choice.logprobs),
        "finish_reason": choice.finish_reason,
    }
    if kind == "text":
        return told | {"text": choice.text or ""}
    return told | {"delta": msgspec.to_builtins(choice.delta or {})}


def _logprobs(found: _Logprobs | None) -> dict[str, Any] | None:
    if found is None:
        return None
    if found.content is not None:
        return {"content": msgspec.to_builtins(found.content)}
    tokens, values = found.tokens or [], found.token_logprobs or []
    tops: list[dict[str, float] | None] = found.top_logprobs or [None] * len(tokens)
    if not len(tokens) == len(values) == len(tops):
        raise InferenceError("the upstream's log probabilities do not fit their tokens")
    return {
        "content": [
            {
                "token": token,
                "logprob": value or 0.0,
                "bytes": list(token.encode()),
                "top_logprobs": [
                    {"token": other, "logprob": number} for other, number in (top or {}).items()
                ],
            }
            for token, value, top in zip(tokens, values, tops, strict=True)
        ]
    }
