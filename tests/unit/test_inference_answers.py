from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from cloister.inference.answers import Usage, gathered
from cloister.inference.openai_requests import EngineRequest, convert
from cloister.inference.openai_responses import ResponsesRequest, ResponseWriter

REQUEST = EngineRequest(kind="chat", body={}, model="m")


def delta(fields: dict[str, Any], *, finish: str | None = None, index: int = 0) -> dict[str, Any]:
    return {"id": "i", "choices": [{"index": index, "delta": fields, "finish_reason": finish}]}


def call_piece(index: int, **fields: Any) -> dict[str, Any]:
    return delta({"tool_calls": [{"index": index, **fields}]})


CALLS = [
    delta({"role": "assistant", "content": None}),
    delta({"content": "Looking."}),
    call_piece(0, id="c0", type="function", function={"name": "sky", "arguments": ""}),
    call_piece(0, function={"arguments": '{"a":'}),
    call_piece(0, function={"arguments": "1}"}),
    call_piece(1, id="c1", type="function", function={"name": "sea", "arguments": "{}"}),
    delta({}, finish="tool_calls"),
    {"choices": [], "usage": {"prompt_tokens": 4, "completion_tokens": 9}},
]


async def stream(chunks: list[dict[str, Any]]) -> AsyncIterator[dict[str, Any]]:
    for chunk in chunks:
        yield chunk


def test_calls_in_pieces_are_put_together() -> None:
    answer = asyncio.run(gathered(stream(CALLS), REQUEST))
    choice = answer["choices"][0]
    assert choice["finish_reason"] == "tool_calls"
    assert choice["message"]["content"] == "Looking."
    assert choice["message"]["tool_calls"] == [
        {"id": "c0", "type": "function", "function": {"name": "sky", "arguments": '{"a":1}'}},
        {"id": "c1", "type": "function", "function": {"name": "sea", "arguments": "{}"}},
    ]


def test_calls_become_items_of_a_response_in_openais_order() -> None:
    request = convert({"model": "m", "input": "a"}, ResponsesRequest)
    writer = ResponseWriter(request, identity="0", created=1)

    async def main() -> list[dict[str, Any]]:
        return [event async for event in writer.events(stream(CALLS))]

    events = asyncio.run(main())
    assert [event["type"].removeprefix("response.") for event in events] == [
        "created",
        "in_progress",
        "output_item.added",
        "content_part.added",
        "output_text.delta",
        "output_item.added",
        "function_call_arguments.delta",
        "function_call_arguments.delta",
        "output_item.added",
        "function_call_arguments.delta",
        "output_text.done",
        "content_part.done",
        "output_item.done",
        "function_call_arguments.done",
        "output_item.done",
        "function_call_arguments.done",
        "output_item.done",
        "completed",
    ]
    assert [item["type"] for item in events[-1]["response"]["output"]] == [
        "message",
        "function_call",
        "function_call",
    ]
    first = events[-1]["response"]["output"][1]
    assert (first["call_id"], first["name"], first["arguments"]) == ("c0", "sky", '{"a":1}')


def test_choices_that_interleave_are_told_apart() -> None:
    chunks = [
        delta({"content": text}, index=index) for text, index in (("a", 0), ("x", 1), ("b", 0), ("y", 1))
    ]
    answer = asyncio.run(gathered(stream(chunks), REQUEST))
    assert [choice["message"]["content"] for choice in answer["choices"]] == ["ab", "xy"]


def test_usage_counts_one_prompt_once_and_several_each() -> None:
    for one, expected in ((True, 4), (False, 8)):
        usage = Usage(one_prompt=one)
        usage.add({"prompt_tokens": 4, "completion_tokens": 1})
        usage.add({"prompt_tokens": 4, "completion_tokens": 2})
        assert usage.told() == {
            "prompt_tokens": expected,
            "completion_tokens": 3,
            "total_tokens": expected + 3,
        }


def test_cached_tokens_are_told_where_the_engine_tells_them() -> None:
    for one, expected in ((True, 3), (False, 5)):
        usage = Usage(one_prompt=one)
        for cached in (3, 2):
            usage.add({"prompt_tokens": 4, "prompt_tokens_details": {"cached_tokens": cached}})
        assert usage.told()["prompt_tokens_details"] == {"cached_tokens": expected}


def test_text_between_two_calls_keeps_its_place() -> None:
    chunks = [
        call_piece(0, id="c", function={"name": "f", "arguments": "{}"}),
        delta({"content": "and"}),
        call_piece(1, id="c", function={"name": "f", "arguments": "{}"}),
    ]
    writer = ResponseWriter(convert({"model": "m", "input": "a"}, ResponsesRequest), identity="0", created=1)
    response = asyncio.run(writer.gathered(stream(chunks)))
    assert [item["type"] for item in response["output"]] == ["function_call", "message", "function_call"]

    async def places() -> list[int]:
        again = ResponseWriter(
            convert({"model": "m", "input": "a"}, ResponsesRequest), identity="0", created=1
        )
        events = [event async for event in again.events(stream(chunks))]
        return [event["output_index"] for event in events if event["type"] == "response.output_item.added"]

    assert asyncio.run(places()) == [0, 1, 2]
