"""Schemas that take llama.cpp down with them are refused; what people write is not."""

from __future__ import annotations

from typing import Any

import pytest

from cloister.inference.api_errors import RequestRefused
from cloister.inference.openai_requests import ChatRequest, chat_request, convert

CIRCLE = {"$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}}


def asked(schema: object, where: str) -> None:
    body: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "x"}]}
    if where == "json_schema":
        body["response_format"] = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    elif where == "json_object":
        body["response_format"] = {"type": "json_object", "schema": schema}
    else:
        body["tools"] = [{"type": "function", "function": {"name": "x", "parameters": schema}}]
    chat_request(convert(body, ChatRequest))


@pytest.mark.parametrize("where", ["json_schema", "json_object", "tools"])
@pytest.mark.parametrize(
    "schema",
    [
        pytest.param({"allOf": [{"$ref": "#/$defs/a"}], **CIRCLE}, id="stack overflow: a circle"),
        pytest.param(
            {"allOf": [{"$ref": "#/$defs/a"}], "$defs": {"a": {"$ref": "#/$defs/a"}}},
            id="stack overflow: itself",
        ),
        pytest.param(
            {"properties": {"x": {"allOf": [{"anyOf": [{"$ref": "#/$defs/a"}]}]}}, **CIRCLE},
            id="stack overflow: deep inside",
        ),
        pytest.param({"allOf": [{"$ref": "#/allOf/0"}]}, id="stack overflow: through a list"),
        pytest.param(
            {"allOf": [{"$ref": "#/a/"}], "a": {"$ref": "#/a/"}}, id="stack overflow: an empty name"
        ),
        pytest.param({"type": "array", "items": {}, "minItems": 5, "maxItems": 2}, id="memory: items"),
        pytest.param({"type": "string", "minLength": 9, "maxLength": 2}, id="memory: length"),
        pytest.param({"type": "integer", "minimum": 2 * 10**15}, id="memory: minimum"),
        pytest.param({"type": "integer", "exclusiveMinimum": 1e18}, id="memory: a float"),
        pytest.param({"type": "integer", "maximum": -2 * 10**15}, id="memory: maximum"),
        pytest.param({"enum": list(range(1001))}, id="time: values"),
        pytest.param({"properties": {str(n): {} for n in range(1001)}}, id="time: properties"),
        pytest.param({"anyOf": [{"oneOf": [True] * 40}] * 40}, id="time: alternatives"),
        pytest.param({"items": [{"exclusiveMaximum": -(2**53) + 1}]}, id="memory: inside"),
    ],
)
def test_a_schema_that_would_take_the_engine_down_is_refused(schema: object, where: str) -> None:
    with pytest.raises(RequestRefused) as caught:
        asked(schema, where)
    assert caught.value.param == ("tools" if where == "tools" else "response_format")


@pytest.mark.parametrize("where", ["json_schema", "json_object", "tools"])
@pytest.mark.parametrize(
    "schema",
    [
        {"type": "integer", "minimum": -(2**53) + 1, "maximum": 2**53 - 1},
        {"$ref": "#/$defs/n", "$defs": {"n": {"properties": {"next": {"$ref": "#/$defs/n"}}}}},
        {"properties": {"x": {"allOf": [{"$ref": "#/$defs/a"}]}}, "$defs": {"a": {"enum": ["b"]}}},
        {"type": "object", "properties": {"$ref": {"type": "string"}, "minItems": {"type": "integer"}}},
        {"$ref": "#"},
        {"enum": list(range(1000))},
        {"type": "array", "items": {"type": "string"}, "minItems": 2, "maxItems": 2},
        True,
    ],
)
def test_a_schema_as_people_write_them_passes(schema: object, where: str) -> None:
    asked(schema, where)
