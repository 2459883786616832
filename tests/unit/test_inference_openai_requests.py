from __future__ import annotations

import contextlib
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloister.inference.api_errors import RequestRefused
from cloister.inference.openai_requests import (
    MAX_BODY,
    ChatRequest,
    EmbeddingsRequest,
    TextRequest,
    chat_request,
    convert,
    embeddings_requests,
    parse_body,
    text_request,
)
from cloister.inference.openai_responses import ResponsesRequest, as_chat

HELLO: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "hello"}]}


def chat(**fields: Any) -> dict[str, Any]:
    return chat_request(convert(parse_body(json.dumps(HELLO | fields).encode()), ChatRequest)).body


def text(**fields: Any) -> dict[str, Any]:
    return text_request(convert({"model": "m", "prompt": "a"} | fields, TextRequest)).body


@pytest.mark.parametrize(
    ("data", "code"),
    [
        pytest.param(b"", "invalid_json", id="empty"),
        pytest.param(b"{", "invalid_json", id="cut off"),
        pytest.param(b'{"a":1,"a":2}', "invalid_json", id="a name twice"),
        pytest.param(b'{"a":NaN}', "invalid_json", id="not a number"),
        pytest.param(b"[" * 100_000, "invalid_json", id="too deep"),
        pytest.param(b"[]", "invalid_json", id="no object"),
        pytest.param(b'{"model":"\\ud800"}', "invalid_json", id="half a surrogate pair"),
        pytest.param(b'{"\\udc00":1}', "invalid_json", id="half a pair in a name"),
        pytest.param(b'"\xff"', "invalid_json", id="not UTF-8"),
        pytest.param(b" " * (MAX_BODY + 1), "invalid_json", id="too long"),
    ],
)
def test_a_body_that_is_not_a_json_object_is_refused(data: bytes, code: str) -> None:
    with pytest.raises(RequestRefused) as refused:
        parse_body(data)
    assert (refused.value.status, refused.value.code) == (400, code)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        pytest.param({"id_slot": 0}, "id_slot", id="another client's slot"),
        pytest.param({"cache_prompt": True}, "cache_prompt", id="shared prompt cache"),
        pytest.param({"n_cache_reuse": 1}, "n_cache_reuse", id="shifted prompt cache"),
        pytest.param({"grammar": "root ::= root"}, "grammar", id="raw grammar"),
        pytest.param({"json_schema": {}}, "json_schema", id="raw schema"),
        pytest.param({"lora": []}, "lora", id="adapters"),
        pytest.param({"verbose": True}, "verbose", id="debugging"),
        pytest.param({"chat_template": "{{ 1 }}"}, "chat_template", id="template"),
        pytest.param({"chat_template_kwargs": {}}, "chat_template_kwargs", id="template arguments"),
        pytest.param({"temperature": "hot"}, "temperature", id="temperature of text"),
        pytest.param({"temperature": 3}, "temperature", id="too hot"),
        pytest.param({"n": 0}, "n", id="no choices"),
        pytest.param({"max_tokens": -1}, "max_tokens", id="endless answer"),
        pytest.param({"max_tokens": 1.5}, "max_tokens", id="half a token"),
        pytest.param({"stop": ["x"] * 17}, "stop", id="too many stops"),
        pytest.param({"stop": ""}, "stop", id="empty stop"),
        pytest.param({"store": True}, "store", id="storing"),
        pytest.param({"logit_bias": {"1": 1000}}, "logit_bias[...]", id="bias"),
        pytest.param({"top_logprobs": 3}, "top_logprobs", id="top without logprobs"),
        pytest.param({"messages": []}, "messages", id="no messages"),
        pytest.param({"messages": [{"role": "root", "content": ""}]}, "messages[0].role", id="unknown role"),
        pytest.param(
            {
                "messages": [
                    {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://x"}}]}
                ]
            },
            "messages[0].content[0].type",
            id="an address to fetch",
        ),
        pytest.param(
            {"response_format": {"type": "json_schema", "json_schema": {"schema": {"pattern": "((a+)+)+"}}}},
            "response_format",
            id="pattern",
        ),
        pytest.param(
            {"response_format": {"schema": {"maxItems": 10**9}}}, "response_format", id="repetition"
        ),
        pytest.param(
            {"response_format": {"schema": {"enum": ["x" * 100_000]}}}, "response_format", id="big schema"
        ),
        pytest.param(
            {"tools": [{"function": {"parameters": {"minLength": 1e9}}}]}, "tools", id="tool schema"
        ),
    ],
)
def test_a_field_that_is_not_openais_or_not_meant_is_refused_by_name(
    fields: dict[str, Any], param: str
) -> None:
    with pytest.raises(RequestRefused) as refused:
        chat(**fields)
    assert refused.value.status == 400
    assert refused.value.param == param


def test_a_named_tool_is_the_only_one_and_required() -> None:
    tools = [{"type": "function", "function": {"name": name}} for name in ("a", "b")]
    body = chat(tools=tools, tool_choice={"type": "function", "function": {"name": "b"}})
    assert (body["tools"], body["tool_choice"]) == (tools[1:], "required")
    for choice in ({"type": "function", "function": {"name": "c"}}, {"type": "function"}, {}):
        with pytest.raises(RequestRefused):
            chat(tools=tools, tool_choice=choice)


def test_a_missing_field_is_named() -> None:
    with pytest.raises(RequestRefused, match="messages") as refused:
        convert({"model": "m"}, ChatRequest)
    assert refused.value.code == "missing_required_parameter"


def test_null_means_not_given() -> None:
    assert chat(temperature=None, tools=None) == {"messages": [{"role": "user", "content": "hello"}]}


def test_text_parts_join_and_a_developer_speaks_as_the_system() -> None:
    messages = [
        {"role": "developer", "content": [{"type": "text", "text": "be"}, {"type": "text", "text": " kind"}]},
        {"role": "assistant", "content": None, "refusal": "no", "annotations": [], "audio": None},
    ]
    assert chat(messages=messages)["messages"] == [
        {"role": "system", "content": "be kind"},
        {"role": "assistant", "content": "no"},
    ]


def test_the_newer_token_bound_wins_and_seeds_fit_the_engine() -> None:
    assert chat(max_tokens=5, max_completion_tokens=7)["max_tokens"] == 7
    assert 0 <= chat(seed=-1)["seed"] < 2**32 - 1
    assert 0 <= chat(seed=2**32 - 1)["seed"] < 2**32 - 1
    assert chat(seed=7)["seed"] == 7


def test_chosen_log_probabilities_alone_still_ask_the_engine_for_one() -> None:
    assert chat(logprobs=True)["top_logprobs"] == 1
    assert text(logprobs=0)["n_probs"] == 1


@pytest.mark.parametrize(
    "fields",
    [
        {"prompt": ""},
        {"prompt": []},
        {"prompt": ["a", ""]},
        {"prompt": [[]]},
        {"prompt": ["a", 1]},
        {"prompt": ["a"] * 17},
        {"prompt": ["a", "b"], "n": 2},
        {"best_of": 3},
        {"echo": True},
        {"suffix": "end"},
    ],
)
def test_prompts_that_cannot_be_answered_are_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(RequestRefused):
        text(**fields)


def test_completions_have_openais_bound_by_default() -> None:
    assert text()["max_tokens"] == 16


def embeddings(**fields: Any) -> list[dict[str, Any]]:
    return embeddings_requests(convert({"model": "m"} | fields, EmbeddingsRequest), length=4)


def test_embeddings_go_to_the_engine_a_few_at_a_time() -> None:
    asked = embeddings(input=[str(number) for number in range(20)])
    assert [len(body["input"]) for body in asked] == [8, 8, 4]
    assert embeddings(input="a", dimensions=4) == [{"input": ["a"], "encoding_format": "float"}]
    assert embeddings(input=[1, 2], encoding_format="base64") == [
        {"input": [[1, 2]], "encoding_format": "base64"}
    ]


@pytest.mark.parametrize(
    "fields", [{"input": "a", "dimensions": 8}, {"input": [""]}, {"input": []}, {"input": ""}]
)
def test_embeddings_of_nothing_or_of_another_length_are_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(RequestRefused):
        embeddings(**fields)


def test_a_response_becomes_a_chat_with_its_calls_and_results() -> None:
    items = [
        {"role": "user", "content": [{"type": "input_text", "text": "weather?"}]},
        {"type": "reasoning", "id": "r", "summary": []},
        {"type": "function_call", "call_id": "c", "name": "w", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "c", "output": "rain"},
    ]
    tool = {"type": "function", "name": "w", "parameters": {"type": "object"}, "strict": True}
    request = convert(
        {
            "model": "m",
            "input": items,
            "instructions": "short",
            "max_output_tokens": 9,
            "tools": [tool],
            "tool_choice": {"type": "function", "name": "w"},
            "text": {"format": {"type": "json_schema", "name": "x", "schema": {"type": "object"}}},
        },
        ResponsesRequest,
    )
    body = as_chat(request).body
    call = {"id": "c", "type": "function", "function": {"name": "w", "arguments": "{}"}}
    assert body["messages"] == [
        {"role": "system", "content": "short"},
        {"role": "user", "content": "weather?"},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": "rain", "tool_call_id": "c"},
    ]
    assert body["max_tokens"] == 9
    assert body["tools"] == [
        {"type": "function", "function": {"name": "w", "parameters": {"type": "object"}}}
    ]
    assert body["tool_choice"] == "required"
    assert body["response_format"]["json_schema"] == {"schema": {"type": "object"}}


@pytest.mark.parametrize(
    "fields",
    [
        pytest.param({"previous_response_id": "resp_1"}, id="memory"),
        pytest.param({"conversation": "c"}, id="conversation"),
        pytest.param({"background": True}, id="background"),
        pytest.param({"text": {"format": "json"}}, id="format of another type"),
        pytest.param({"reasoning": {"effort": 3}}, id="effort of another type"),
        pytest.param({"truncation": "auto"}, id="truncation"),
        pytest.param({"tools": [{"type": "web_search"}]}, id="hosted tool"),
        pytest.param({"input": [{"type": "item_reference", "id": "x"}]}, id="reference"),
        pytest.param({"input": []}, id="nothing"),
        pytest.param({"input": [{"role": "user", "content": 3}]}, id="content of another type"),
    ],
)
def test_a_response_that_needs_a_memory_or_a_hosted_tool_is_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(RequestRefused):
        as_chat(convert({"model": "m", "input": "a"} | fields, ResponsesRequest))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


@given(st.sampled_from(["chat", "text", "embeddings", "responses"]), st.data())
def test_any_json_is_taken_or_refused_but_never_breaks(endpoint: str, data: st.DataObject) -> None:
    kinds = {
        "chat": ChatRequest,
        "text": TextRequest,
        "embeddings": EmbeddingsRequest,
        "responses": ResponsesRequest,
    }
    names = list(kinds[endpoint].__struct_fields__)
    body = {"model": "m"} | data.draw(st.dictionaries(st.sampled_from(names), JSON, max_size=6))
    with contextlib.suppress(RequestRefused):
        if endpoint == "chat":
            chat_request(convert(body, ChatRequest))
        elif endpoint == "text":
            text_request(convert(body, TextRequest))
        elif endpoint == "embeddings":
            embeddings_requests(convert(body, EmbeddingsRequest), length=4)
        else:
            as_chat(convert(body, ResponsesRequest))
