"""What engines that compute in this process read in the same way from OpenAI's bodies. All of it raises RequestRefused."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from cloister.inference.api_errors import RequestRefused

Json = dict[str, Any]


def fitting(tokens: Sequence[int], param: str, *, room: int) -> Sequence[int]:
    """``tokens``, of which there have to be some and at most ``room``."""
    if not tokens:
        raise RequestRefused(f"{param} has no tokens", code="invalid_value", param=param)
    if len(tokens) > room:
        raise RequestRefused(
            f"{param} has {len(tokens)} tokens, and {room} fit", code="context_length_exceeded", param=param
        )
    return tokens


def token_lists(
    texts: Any, param: str, *, encode: Callable[[str], Sequence[int]], vocabulary: int, room: int
) -> list[Sequence[int]]:
    """Each text of OpenAI's ``prompt`` or ``input`` (a text, tokens, or a list of either) as tokens."""
    parts = texts if isinstance(texts, list) else [texts]
    if not parts or isinstance(parts[0], int):
        parts = [parts]
    found = []
    for part in parts:
        tokens = encode(part) if isinstance(part, str) else part
        if not all(isinstance(token, int) and 0 <= token < vocabulary for token in tokens):
            raise RequestRefused(
                f"{param} has tokens that the model does not know", code="invalid_value", param=param
            )
        found.append(fitting(tokens, param, room=room))
    return found


def stop_words(body: Mapping[str, Any]) -> list[str]:
    stops = body.get("stop") or ()
    return [stops] if isinstance(stops, str) else list(stops)


def choices(body: Mapping[str, Any], *, slots: int) -> int:
    """How many answers are wanted to each prompt."""
    count = int(body.get("n", 1))
    if count > slots:
        raise RequestRefused(f"n is over {slots}", code="invalid_value", param="n")
    return count


def template_settings(body: Mapping[str, Any], template: str, *, engine: str) -> Json:
    """What the chat template is given beside messages and tools."""
    if "reasoning_effort" not in body:
        return {}
    if "reasoning_effort" not in template:
        raise unsupported(engine, "reasoning_effort")
    return {"reasoning_effort": body["reasoning_effort"]}


def json_schema(shape: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
    """The schema of OpenAI's ``response_format``; None where the answer is any text."""
    kind = None if shape is None else shape.get("type")
    if shape is None or kind == "text":
        return None
    schema: Any = None
    if kind == "json_object":
        schema = shape.get("schema") or {"type": "object"}
    elif kind == "json_schema" and isinstance(named := shape.get("json_schema"), Mapping):
        schema = named.get("schema")
    if not isinstance(schema, Mapping):
        raise RequestRefused(
            "response_format is none of text, json_object and json_schema with a schema",
            code="invalid_value",
            param="response_format",
        )
    return schema


def unsupported(engine: str, what: str, param: str | None = None) -> RequestRefused:
    return RequestRefused(
        f"The engine {engine} does not support {what}", code="unsupported", param=param or what
    )
