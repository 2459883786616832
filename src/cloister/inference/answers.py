"""The engine's chunks told as OpenAI tells them: a stream of chunks, or one answer gathered from them.

Every request is computed as a stream, also one that wants a single answer: only so can a client that leaves free
its slot. What the engine adds for its own debugging (timings, progress) is left out.
"""

from __future__ import annotations

from collections.abc import AsyncIterable, Mapping, Sequence
from typing import Any, Final

import msgspec

from cloister.inference.openai_requests import EngineRequest, Json

Chunk = Mapping[str, Any]

_OBJECT: Final = {"chat": "chat.completion", "text": "text_completion"}
_HEAD: Final = ("id", "object", "created", "model", "system_fingerprint")
_TOLD: Final = (*_HEAD, "choices")
DONE: Final = b"data: [DONE]\n\n"


class Usage:
    """Token counts, summed over the choices and prompts of one request."""

    def __init__(self, *, one_prompt: bool) -> None:
        self._one_prompt = one_prompt
        self.prompt_tokens = 0
        self.completion_tokens = 0
        self.cached_tokens: int | None = None
        """Of the prompt, those that the engine had from an earlier request of the same client; None if it tells none."""

    def add(self, usage: Chunk) -> None:
        prompt = int(usage.get("prompt_tokens", 0))
        # Several choices of one prompt read it once; several prompts are read each.
        self.prompt_tokens = (
            max(self.prompt_tokens, prompt) if self._one_prompt else self.prompt_tokens + prompt
        )
        self.completion_tokens += int(usage.get("completion_tokens", 0))
        details = usage.get("prompt_tokens_details")
        if isinstance(details, Mapping):
            cached, before = int(details.get("cached_tokens", 0)), self.cached_tokens or 0
            self.cached_tokens = max(before, cached) if self._one_prompt else before + cached

    def told(self) -> Json:
        told: Json = {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "total_tokens": self.prompt_tokens + self.completion_tokens,
        }
        if self.cached_tokens is not None:
            told["prompt_tokens_details"] = {"cached_tokens": self.cached_tokens}
        return told


class StreamedAnswer:
    """A request's chunks as server-sent events (``chat.completion.chunk``, ``text_completion``); usage last, if asked for.

    What is the same in every chunk is encoded once. A beginning that says nothing yet (a role) waits for what is said.
    """

    def __init__(self, request: EngineRequest) -> None:
        self._request = request
        self._usage = Usage(one_prompt=_one_prompt(request))
        self._head: Json | None = None
        self._begin = b""
        self._end = b',"usage":null}\n\n' if request.include_usage else b"}\n\n"
        self._said = False
        self._held = b""

    def events(self, chunks: Sequence[Chunk]) -> bytes:
        """The events of ``chunks``; nothing if they say nothing to the client."""
        parts = [self._held]
        for chunk in chunks:
            if "usage" in chunk:
                self._usage.add(chunk["usage"])
            head = {name: chunk[name] for name in _HEAD if name in chunk}
            if head != self._head:
                self._head = head
                told = msgspec.json.encode(head | {"model": self._request.model})
                self._begin = b"data: " + told[:-1] + b',"choices":'
            choices = chunk.get("choices")
            if not choices:
                continue
            if self._request.kind == "text":
                choices = [_text_choice(choice) for choice in choices]
            self._said = self._said or any(map(_says_something, choices))
            parts += (self._begin, msgspec.json.encode(choices), self._end)
        data = b"".join(parts)
        self._held = b"" if self._said else data
        return data if self._said else b""

    def last(self) -> bytes:
        """What ends the stream."""
        if not self._request.include_usage or self._head is None:
            return self._held + DONE
        usage = msgspec.json.encode(self._usage.told())
        return self._held + self._begin + b'[],"usage":' + usage + b"}\n\n" + DONE


async def gathered(chunks: AsyncIterable[Chunk], request: EngineRequest) -> Json:
    """One ``chat.completion`` or ``text_completion``, of all its chunks."""
    usage = Usage(one_prompt=_one_prompt(request))
    choices: dict[int, Json] = {}
    first: Json = {}
    async for chunk in chunks:
        if not first:
            first = {name: chunk[name] for name in _TOLD if name in chunk}
        if "usage" in chunk:
            usage.add(chunk["usage"])
        for part in chunk.get("choices", ()):
            index = int(part.get("index", 0))
            known = choices.setdefault(index, _empty_choice(request, index))
            (_add_delta if request.kind == "chat" else _add_text)(known, part)
            if part.get("logprobs"):
                _add_logprobs(known, part["logprobs"])
            known["finish_reason"] = part.get("finish_reason") or known["finish_reason"]
    told = [choices[index] for index in sorted(choices)]
    if request.kind == "text":
        told = [_text_choice(choice) for choice in told]
    else:
        for choice in told:
            message = choice["message"]
            if message["content"] is None and "tool_calls" not in message:
                message["content"] = ""
    return first | {
        "object": _OBJECT[request.kind],
        "model": request.model,
        "choices": told,
        "usage": usage.told(),
    }


def embeddings(parts: Sequence[Chunk], model: str) -> Json:
    """One list of embeddings, of the lists of its parts."""
    items = [item for part in parts for item in part["data"]]
    tokens = sum(int(part["usage"]["prompt_tokens"]) for part in parts)
    return {
        "object": "list",
        "model": model,
        "data": [
            {"object": "embedding", "index": index, "embedding": item["embedding"]}
            for index, item in enumerate(items)
        ],
        "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
    }


def _says_something(choice: Chunk) -> bool:
    if choice.get("finish_reason") or choice.get("text"):
        return True
    return any(value for name, value in (choice.get("delta") or {}).items() if name != "role")


def _one_prompt(request: EngineRequest) -> bool:
    prompt = request.body.get("prompt")
    return not isinstance(prompt, list) or isinstance(prompt[0], int)


def _empty_choice(request: EngineRequest, index: int) -> Json:
    if request.kind == "chat":
        message: Json = {"role": "assistant", "content": None, "refusal": None}
        return {"index": index, "message": message, "logprobs": None, "finish_reason": None}
    return {"index": index, "text": "", "logprobs": None, "finish_reason": None}


def _add_text(choice: Json, part: Chunk) -> None:
    choice["text"] += part.get("text") or ""


def _add_delta(choice: Json, part: Chunk) -> None:
    message = choice["message"]
    delta = part.get("delta") or {}
    for name in ("content", "reasoning_content"):
        if delta.get(name):
            message[name] = (message.get(name) or "") + delta[name]
    for piece in delta.get("tool_calls") or ():
        add_tool_call(message.setdefault("tool_calls", []), piece)


def add_tool_call(calls: list[Json], piece: Chunk) -> None:
    """Add one streamed ``piece`` to the call of ``calls`` that it belongs to."""
    index = int(piece.get("index", 0))
    while len(calls) <= index:
        calls.append({"id": "", "type": "function", "function": {"name": "", "arguments": ""}})
    call = calls[index]
    function = piece.get("function") or {}
    call["id"] = piece.get("id") or call["id"]
    call["function"]["name"] += function.get("name") or ""
    call["function"]["arguments"] += function.get("arguments") or ""


def _add_logprobs(choice: Json, logprobs: Chunk) -> None:
    content = logprobs.get("content") or []
    if choice["logprobs"] is None:
        choice["logprobs"] = {"content": [], "refusal": None}
    choice["logprobs"]["content"].extend(content)


def _text_choice(choice: Chunk) -> Json:
    """Log probabilities of completions have their own, older shape: parallel lists."""
    logprobs = choice.get("logprobs")
    if not isinstance(logprobs, Mapping):
        return dict(choice) | {"logprobs": None}
    entries = logprobs.get("content") or []
    offsets: list[int] = []
    position = 0
    for entry in entries:
        offsets.append(position)
        position += len(entry["token"])
    return dict(choice) | {
        "logprobs": {
            "tokens": [entry["token"] for entry in entries],
            "token_logprobs": [entry["logprob"] for entry in entries],
            "top_logprobs": [
                {top["token"]: top["logprob"] for top in entry.get("top_logprobs", ())} for entry in entries
            ],
            "text_offset": offsets,
        }
    }
