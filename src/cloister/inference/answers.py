"""The engine's chunks told as OpenAI tells them: a stream of chunks, or one answer gathered from them.

Every request is computed as a stream, also one that wants a single answer: only so can a client that leaves free
its slot. What the engine adds for its own debugging (timings, progress) is left out.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any, Final

from cloister.inference.openai_requests import EngineRequest, Json

Chunk = Mapping[str, Any]

_OBJECT: Final = {"chat": "chat.completion", "text": "text_completion"}
_TOLD: Final = ("id", "object", "created", "model", "system_fingerprint", "choices")


class Usage:
    """Token counts, summed over the choices and prompts of one request."""

    def __init__(self, *, one_prompt: bool) -> None:
        self._one_prompt = one_prompt
        self.prompt_tokens = 0
        self.completion_tokens = 0

    def add(self, usage: Chunk) -> None:
        prompt = int(usage.get("prompt_tokens", 0))
        # Several choices of one prompt read it once; several prompts are read each.
        self.prompt_tokens = (
            max(self.prompt_tokens, prompt) if self._one_prompt else self.prompt_tokens + prompt
        )
        self.completion_tokens += int(usage.get("completion_tokens", 0))

    def told(self) -> Json:
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "total_tokens": self.prompt_tokens + self.completion_tokens,
        }


async def streamed(chunks: AsyncIterator[Chunk], request: EngineRequest) -> AsyncIterator[Json]:
    """Chunks of ``chat.completion.chunk`` or ``text_completion`` shape; usage last, if it was asked for."""
    usage = Usage(one_prompt=_one_prompt(request))
    last: Json = {}
    async for chunk in chunks:
        if "usage" in chunk:
            usage.add(chunk["usage"])
        told = {name: chunk[name] for name in _TOLD if name in chunk} | {"model": request.model}
        last = told
        if not told.get("choices"):
            continue
        if request.kind == "text":
            told["choices"] = [_text_choice(choice) for choice in told["choices"]]
        if request.include_usage:
            told["usage"] = None
        yield told
    if request.include_usage and last:
        yield last | {"choices": [], "usage": usage.told()}


async def gathered(chunks: AsyncIterator[Chunk], request: EngineRequest) -> Json:
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
