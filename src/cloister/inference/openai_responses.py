"""OpenAI's Responses API on top of chat completions: text and function calls, streamed or not.

The engine's Responses handler is not reachable in process, so requests become chat completions here and the
chunks become response events. Nothing is stored: what needs a memory of earlier responses is refused by name.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from typing import Annotated, Any, Final, Literal

from msgspec import Meta, to_builtins

from cloister.encoding import Record
from cloister.inference.answers import Usage, add_tool_call
from cloister.inference.api_errors import RequestRefused
from cloister.inference.openai_requests import (
    ChatRequest,
    Count,
    EngineRequest,
    Json,
    StreamOptions,
    Temperature,
    Unit,
    chat_request,
    convert,
)

Chunk = Mapping[str, Any]
_STOPPED_SHORT: Final = "max_output_tokens"


class TextFormat(Record, frozen=True, kw_only=True):
    type: Literal["text", "json_object", "json_schema"] = "text"
    name: str | None = None
    description: str | None = None
    schema: Json | None = None
    strict: bool | None = None


class TextOptions(Record, frozen=True, kw_only=True):
    format: TextFormat | None = None
    verbosity: str | None = None


class Reasoning(Record, frozen=True, kw_only=True):
    effort: str | None = None
    summary: str | None = None
    generate_summary: str | None = None


class ResponsesRequest(Record, frozen=True, kw_only=True):
    model: str
    input: str | Annotated[list[Json], Meta(min_length=1, max_length=4096)]
    instructions: str | None = None
    max_output_tokens: Count | None = None
    temperature: Temperature | None = None
    top_p: Unit | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    text: TextOptions | None = None
    tools: Annotated[list[Json], Meta(max_length=128)] | None = None
    tool_choice: str | Json | None = None
    parallel_tool_calls: bool | None = None
    reasoning: Reasoning | None = None
    metadata: Json | None = None
    truncation: Literal["disabled"] | None = None
    background: Literal[False] | None = None
    # Accepted, without meaning here: nothing is stored, whatever is asked.
    store: bool | None = None
    include: list[str] | None = None
    user: str | None = None
    service_tier: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None


def as_chat(request: ResponsesRequest) -> EngineRequest:
    """The chat completion that answers ``request``. Raises RequestRefused."""
    messages: list[Json] = []
    if request.instructions:
        messages.append({"role": "system", "content": request.instructions})
    if isinstance(request.input, str):
        messages.append({"role": "user", "content": request.input})
    else:
        for item in request.input:
            messages.extend(_messages(item))
    body: Json = {"model": request.model, "messages": messages}
    for name in ("temperature", "top_p", "stream", "parallel_tool_calls"):
        value = getattr(request, name)
        if value is not None:
            body[name] = value
    if request.max_output_tokens is not None:
        body["max_completion_tokens"] = request.max_output_tokens
    if request.tools:
        body["tools"] = [_tool(tool) for tool in request.tools]
    if request.tool_choice is not None:
        body["tool_choice"] = _tool_choice(request.tool_choice)
    if request.reasoning and request.reasoning.effort:
        body["reasoning_effort"] = request.reasoning.effort
    shape = request.text.format if request.text else None
    if shape is not None and shape.type == "json_schema":
        body["response_format"] = {"type": "json_schema", "json_schema": {"schema": shape.schema or {}}}
    elif shape is not None and shape.type == "json_object":
        body["response_format"] = {"type": "json_object"}
    return chat_request(convert(body, ChatRequest))


def _messages(item: Json) -> list[Json]:
    kind = item.get("type", "message")
    if kind == "message":
        content = item.get("content")
        return [{"role": item.get("role", "user"), "content": content if content is not None else ""}]
    if kind == "function_call":
        function = {"name": item.get("name", ""), "arguments": item.get("arguments", "")}
        call = {"id": item.get("call_id", ""), "type": "function", "function": function}
        return [{"role": "assistant", "tool_calls": [call]}]
    if kind == "function_call_output":
        output = item.get("output", "")
        return [{"role": "tool", "tool_call_id": item.get("call_id", ""), "content": output}]
    if kind == "reasoning":
        return []
    raise RequestRefused(f"Input items of type {kind} are not supported", code="unsupported", param="input")


def _tool_choice(choice: str | Json) -> str | Json:
    if isinstance(choice, dict) and choice.get("type") == "function":
        return {"type": "function", "function": {"name": choice.get("name", "")}}
    return choice


def _tool(tool: Json) -> Json:
    if tool.get("type") != "function":
        raise RequestRefused("Only function tools are supported", code="unsupported", param="tools")
    function = {
        name: tool[name] for name in ("name", "description", "parameters") if tool.get(name) is not None
    }
    return {"type": "function", "function": function}


class ResponseWriter:
    """Turns the chunks of one chat completion into the events of one response, and the response itself."""

    def __init__(self, request: ResponsesRequest, *, identity: str, created: int) -> None:
        """``identity`` is unique hexadecimal, ``created`` in seconds since 1970."""
        self._request = request
        self._identity = identity
        self._created = created
        self._sequence = 0
        self._usage = Usage(one_prompt=True)
        self._text = ""
        self._started = False
        self._calls: list[Json] = []
        self._text_place = 0
        self._call_places: list[int] = []
        self._finish = "stop"

    async def events(self, chunks: AsyncIterator[Chunk]) -> AsyncIterator[Json]:
        """Events in OpenAI's order; the last is ``response.completed`` or ``response.incomplete``."""
        opened = False
        async for chunk in chunks:
            if not opened:
                # Only now: a refused request is an HTTP error, not a failed response.
                opened = True
                yield self._event("response.created", response=self.response("in_progress"))
                yield self._event("response.in_progress", response=self.response("in_progress"))
            if "usage" in chunk:
                self._usage.add(chunk["usage"])
            for choice in chunk.get("choices", ()):
                self._finish = choice.get("finish_reason") or self._finish
                for event in self._delta(choice.get("delta") or {}):
                    yield event
        for event in self._closing():
            yield event
        status = self.status
        yield self._event(f"response.{status}", response=self.response(status))

    async def gathered(self, chunks: AsyncIterator[Chunk]) -> Json:
        """The whole response."""
        async for _ in self.events(chunks):
            pass
        return self.response(self.status)

    @property
    def status(self) -> str:
        return "incomplete" if self._finish == "length" else "completed"

    def response(self, status: str) -> Json:
        request = self._request
        done = status != "in_progress"
        usage = self._usage
        return {
            "id": f"resp_{self._identity}",
            "object": "response",
            "created_at": self._created,
            "status": status,
            "error": None,
            "incomplete_details": {"reason": _STOPPED_SHORT} if status == "incomplete" else None,
            "instructions": request.instructions,
            "max_output_tokens": request.max_output_tokens,
            "model": request.model,
            "output": self._output() if done else [],
            "parallel_tool_calls": bool(request.parallel_tool_calls),
            "previous_response_id": None,
            "reasoning": {"effort": None, "summary": None},
            "store": False,
            "temperature": request.temperature,
            "text": to_builtins(request.text or TextOptions(format=TextFormat())),
            "tool_choice": request.tool_choice or "auto",
            "tools": request.tools or [],
            "top_p": request.top_p,
            "truncation": "disabled",
            "metadata": request.metadata or {},
            "usage": {
                "input_tokens": usage.prompt_tokens,
                "input_tokens_details": {"cached_tokens": usage.cached_tokens or 0},
                "output_tokens": usage.completion_tokens,
                "output_tokens_details": {"reasoning_tokens": 0},
                "total_tokens": usage.prompt_tokens + usage.completion_tokens,
            }
            if done
            else None,
        }

    def _delta(self, delta: Chunk) -> list[Json]:
        events: list[Json] = []
        if delta.get("content"):
            if not self._started:
                self._started = True
                self._text_place = len(self._calls)
                events.append(self._added(self._message("in_progress", ""), self._text_place))
                events.append(self._at_text("response.content_part.added", part=_part(""), content_index=0))
            self._text += delta["content"]
            events.append(
                self._at_text(
                    "response.output_text.delta", delta=delta["content"], content_index=0, logprobs=[]
                )
            )
        for piece in delta.get("tool_calls") or ():
            before = len(self._calls)
            add_tool_call(self._calls, piece)
            index = int(piece.get("index", 0))
            while len(self._call_places) < len(self._calls):
                self._call_places.append(len(self._call_places) + self._started)
            if len(self._calls) > before:
                events.append(self._added(self._call(index, "in_progress"), self._place(index)))
            arguments = (piece.get("function") or {}).get("arguments")
            if arguments:
                events.append(self._at_call("response.function_call_arguments.delta", index, delta=arguments))
        return events

    def _closing(self) -> list[Json]:
        events: list[Json] = []
        if self._started:
            events.append(
                self._at_text("response.output_text.done", text=self._text, content_index=0, logprobs=[])
            )
            events.append(
                self._at_text("response.content_part.done", part=_part(self._text), content_index=0)
            )
            events.append(
                self._event(
                    "response.output_item.done",
                    output_index=self._text_place,
                    item=self._message(self.status, self._text),
                )
            )
        for index, call in enumerate(self._calls):
            arguments = call["function"]["arguments"]
            events.append(
                self._at_call(
                    "response.function_call_arguments.done",
                    index,
                    arguments=arguments,
                    name=call["function"]["name"],
                )
            )
            item = self._call(index, "completed")
            events.append(
                self._event("response.output_item.done", output_index=self._place(index), item=item)
            )
        return events

    def _output(self) -> list[Json]:
        items = [self._call(index, "completed") for index in range(len(self._calls))]
        if self._started or not self._calls:
            items.insert(self._text_place, self._message(self.status, self._text))
        return items

    def _message(self, status: str, text: str) -> Json:
        content = [] if status == "in_progress" else [_part(text)]
        return {
            "id": f"msg_{self._identity}",
            "type": "message",
            "status": status,
            "role": "assistant",
            "content": content,
        }

    def _call(self, index: int, status: str) -> Json:
        call = self._calls[index]
        return {
            "id": f"fc_{self._identity}_{index}",
            "type": "function_call",
            "status": status,
            "call_id": call["id"] or f"call_{self._identity}_{index}",
            "name": call["function"]["name"],
            "arguments": call["function"]["arguments"] if status == "completed" else "",
        }

    def _place(self, index: int) -> int:
        return self._call_places[index]

    def _added(self, item: Json, output_index: int) -> Json:
        return self._event("response.output_item.added", output_index=output_index, item=item)

    def _at_text(self, kind: str, **fields: object) -> Json:
        return self._event(kind, item_id=f"msg_{self._identity}", output_index=self._text_place, **fields)

    def _at_call(self, kind: str, index: int, **fields: object) -> Json:
        item = f"fc_{self._identity}_{index}"
        return self._event(kind, item_id=item, output_index=self._place(index), **fields)

    def _event(self, kind: str, **fields: object) -> Json:
        event: Json = {"type": kind, "sequence_number": self._sequence, **fields}
        self._sequence += 1
        return event


def _part(text: str) -> Json:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}
