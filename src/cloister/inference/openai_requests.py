"""OpenAI's request bodies, strictly: known fields of known types, bounded; everything else is refused by name.

What passes is handed to the engine as it is. Fields that only concern OpenAI's own accounts are accepted and
change nothing. Fields of the engine that would reach other clients' state (pinned slots, shared prompt caches,
raw grammars, files or addresses to fetch) have no name here, so they cannot be sent.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Annotated, Any, Final, Literal, TypeVar

import msgspec
from msgspec import Meta

from cloister.encoding import Record, parse_json
from cloister.errors import FormatError
from cloister.inference.api_errors import RequestRefused
from cloister.inference.engines import Kind
from cloister.inference.schema_limits import check_schemas

MAX_BODY: Final = 4 << 20
MAX_PROMPTS: Final = 16
MAX_INPUTS: Final = 2048
INPUTS_AT_ONCE: Final = 8
COMPLETION_TOKENS: Final = 16
"""OpenAI's default of ``max_tokens`` for completions."""

Count = Annotated[int, Meta(ge=1, le=1 << 20)]
Unit = Annotated[float, Meta(ge=0, le=1)]
Temperature = Annotated[float, Meta(ge=0, le=2)]
Penalty = Annotated[float, Meta(ge=-2, le=2)]
Seed = Annotated[int, Meta(ge=-(1 << 53), le=1 << 53)]
Choices = Annotated[int, Meta(ge=1, le=64)]
_StopWord = Annotated[str, Meta(min_length=1, max_length=256)]
Stop = _StopWord | Annotated[list[_StopWord], Meta(max_length=16)]
Bias = Annotated[dict[str, Annotated[float, Meta(ge=-100, le=100)]], Meta(max_length=1024)]
Texts = str | list[str | int | list[int]]
"""A text, its tokens, or several of either."""
Json = dict[str, Any]

_T = TypeVar("_T")


class TextPart(Record, frozen=True, kw_only=True):
    type: Literal["text", "input_text", "output_text", "refusal"]
    text: str | None = None
    refusal: str | None = None
    annotations: list[Json] | None = None
    logprobs: list[Json] | None = None


class Message(Record, frozen=True, kw_only=True):
    """One turn. Answers of the SDK can be sent back as they came, so their empty fields have names too."""

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: str | list[TextPart] | None = None
    name: str | None = None
    tool_calls: Annotated[list[Json], Meta(max_length=128)] | None = None
    tool_call_id: str | None = None
    reasoning_content: str | None = None
    refusal: str | None = None
    annotations: list[Json] | None = None
    audio: None = None
    function_call: None = None


class StreamOptions(Record, frozen=True, kw_only=True):
    include_usage: bool | None = None
    include_obfuscation: bool | None = None


class _Common(Record, frozen=True, kw_only=True):
    model: str
    temperature: Temperature | None = None
    top_p: Unit | None = None
    n: Choices | None = None
    stop: Stop | None = None
    seed: Seed | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    logit_bias: Bias | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    # llama.cpp's own samplers, harmless to others
    top_k: Annotated[int, Meta(ge=0, le=1 << 20)] | None = None
    min_p: Unit | None = None
    repeat_penalty: Annotated[float, Meta(ge=0, le=10)] | None = None
    # OpenAI's accounts: accepted, without meaning here
    user: str | None = None


class ChatRequest(_Common, frozen=True, kw_only=True):
    messages: Annotated[list[Message], Meta(min_length=1, max_length=4096)]
    max_tokens: Count | None = None
    max_completion_tokens: Count | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None
    response_format: Json | None = None
    tools: Annotated[list[Json], Meta(max_length=128)] | None = None
    tool_choice: str | Json | None = None
    parallel_tool_calls: bool | None = None
    reasoning_effort: str | None = None
    metadata: Json | None = None
    store: Literal[False] | None = None
    service_tier: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    prompt_cache_retention: str | None = None
    prediction: Json | None = None
    modalities: list[Literal["text"]] | None = None
    verbosity: str | None = None


class TextRequest(_Common, frozen=True, kw_only=True):
    prompt: Texts
    max_tokens: Count | None = None
    logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None
    best_of: Annotated[int, Meta(ge=1, le=64)] | None = None
    echo: Literal[False] | None = None
    suffix: Literal[""] | None = None


class EmbeddingsRequest(Record, frozen=True, kw_only=True):
    model: str
    input: Texts
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: Count | None = None
    user: str | None = None


@dataclass(frozen=True, slots=True)
class EngineRequest:
    """What the engine is asked, and how its answer is to be told."""

    kind: Kind
    body: Json
    model: str
    stream: bool = False
    include_usage: bool = False


def parse_body(data: bytes) -> Json:
    """The request's JSON object. Raises RequestRefused (400)."""
    try:
        value = parse_json(data, what="the request body", limit=MAX_BODY)
    except FormatError as error:
        raise RequestRefused(error.what, code="invalid_json") from None
    if not isinstance(value, dict):
        raise RequestRefused("the request body is not a JSON object", code="invalid_json")
    # OpenAI's API takes null for "not given"; the SDKs send it where a program passes None.
    return {name: item for name, item in value.items() if item is not None}


def convert(body: Json, kind: type[_T]) -> _T:
    """``body`` as a request record. Raises RequestRefused that names the field."""
    try:
        return msgspec.convert(body, kind, strict=True)
    except msgspec.ValidationError as error:
        text = str(error)
        unknown = re.search(r"unknown field `(.*?)`", text)
        place = re.search(r"`\$\.?(.*?)`$", text)
        param = unknown.group(1) if unknown else place.group(1) if place else None
        missing = re.search(r"missing required field `(.*?)`", text)
        if missing:
            raise RequestRefused(
                f"Missing required parameter: {missing.group(1)}",
                code="missing_required_parameter",
                param=missing.group(1),
            ) from None
        if unknown:
            raise RequestRefused(
                f"Unrecognized request argument supplied: {param}", code="unknown_parameter", param=param
            ) from None
        raise RequestRefused(f"Invalid value: {text}", code="invalid_value", param=param) from None


def chat_request(request: ChatRequest) -> EngineRequest:
    """The engine's body for a chat completion. Raises RequestRefused."""
    check_schemas(request.response_format, request.tools)
    body = _common(request)
    body["messages"] = [_message(message) for message in request.messages]
    tokens = request.max_completion_tokens or request.max_tokens
    if tokens is not None:
        body["max_tokens"] = tokens
    for name in (
        "logprobs",
        "response_format",
        "tools",
        "tool_choice",
        "parallel_tool_calls",
        "reasoning_effort",
    ):
        value = getattr(request, name)
        if value is not None:
            body[name] = value
    if isinstance(request.tool_choice, dict):
        body |= _named_tool(request.tool_choice, request.tools or [])
    if request.logprobs:
        # Zero probabilities would mean none at all to the engine, where OpenAI means the chosen token's.
        body["top_logprobs"] = max(1, request.top_logprobs or 0)
    elif request.top_logprobs is not None:
        raise RequestRefused("top_logprobs needs logprobs to be true", param="top_logprobs")
    return _engine_request("chat", body, request)


def text_request(request: TextRequest) -> EngineRequest:
    """The engine's body for a completion. Raises RequestRefused."""
    prompts = split_texts(request.prompt, param="prompt", limit=MAX_PROMPTS)
    if request.best_of not in (None, request.n or 1):
        raise RequestRefused("best_of other than n is not supported", code="unsupported", param="best_of")
    if (request.n or 1) > 1 and len(prompts) > 1:
        raise RequestRefused("n over 1 with several prompts is not supported", code="unsupported", param="n")
    body = _common(request)
    body["prompt"] = request.prompt
    body["max_tokens"] = request.max_tokens or COMPLETION_TOKENS
    if request.logprobs is not None:
        body["n_probs"] = max(1, request.logprobs)
    return _engine_request("text", body, request)


def embeddings_requests(request: EmbeddingsRequest, *, length: int | None) -> list[Json]:
    """The engine's bodies for embeddings of ``length`` numbers: a few texts each, so that a client that leaves is
    noticed in between. Raises RequestRefused.
    """
    if request.dimensions not in (None, length):
        raise RequestRefused(
            f"Embeddings of this model have {length} dimensions", code="unsupported", param="dimensions"
        )
    texts = split_texts(request.input, param="input", limit=MAX_INPUTS)
    shape = request.encoding_format or "float"
    return [
        {"input": texts[start : start + INPUTS_AT_ONCE], "encoding_format": shape}
        for start in range(0, len(texts), INPUTS_AT_ONCE)
    ]


def split_texts(texts: Texts, *, param: str, limit: int) -> list[str | list[int]]:
    """The single texts of a prompt or input, none of them empty. Raises RequestRefused."""
    parts: list[str | list[int]]
    if isinstance(texts, str):
        parts = [texts]
    else:
        tokens = [part for part in texts if isinstance(part, int)]
        parts = [tokens] if tokens else [part for part in texts if not isinstance(part, int)]
        if tokens and len(tokens) != len(texts):
            raise RequestRefused(f"{param} mixes tokens and texts", code="invalid_value", param=param)
    if not parts or any(not part for part in parts):
        raise RequestRefused(f"{param} is empty", code="invalid_value", param=param)
    if len(parts) > limit:
        raise RequestRefused(
            f"{param} has {len(parts)} texts, over {limit}", code="invalid_value", param=param
        )
    return parts


def _engine_request(kind: Kind, body: Json, request: ChatRequest | TextRequest) -> EngineRequest:
    options = request.stream_options
    return EngineRequest(
        kind=kind,
        body=body,
        model=request.model,
        stream=bool(request.stream),
        include_usage=options is not None and bool(options.include_usage),
    )


_PASSED: Final = (
    "temperature",
    "top_p",
    "n",
    "stop",
    "presence_penalty",
    "frequency_penalty",
    "logit_bias",
    "top_k",
    "min_p",
    "repeat_penalty",
)


def _common(request: _Common) -> Json:
    body: Json = {name: value for name in _PASSED if (value := getattr(request, name)) is not None}
    if request.seed is not None:
        # The engine's seeds have 32 bits, and all ones mean "random".
        body["seed"] = request.seed % 0xFFFFFFFF
    return body


def _named_tool(choice: Json, tools: list[Json]) -> Json:
    # The engine would take a named choice for "auto": with that tool alone, and required, it is the same.
    function = choice.get("function")
    name = function.get("name") if isinstance(function, dict) else None
    named = [
        tool
        for tool in tools
        if isinstance(tool.get("function"), dict) and tool["function"].get("name") == name
    ]
    if len(named) != 1 or not isinstance(name, str):
        raise RequestRefused("tool_choice names no tool", code="invalid_value", param="tool_choice")
    return {"tools": named, "tool_choice": "required"}


def _message(message: Message) -> Json:
    role = "system" if message.role == "developer" else message.role
    content = message.content
    if isinstance(content, list):
        content = "".join(part.text or part.refusal or "" for part in content)
    told: Json = {"role": role, "content": content if content is not None else message.refusal or ""}
    for name in ("name", "tool_calls", "tool_call_id", "reasoning_content"):
        value = getattr(message, name)
        if value is not None:
            told[name] = value
    return told
