"""Schemas that llama.cpp's compiler does not survive, refused before it sees them.

It turns a JSON schema into a grammar without bounds of its own: a reference that leads to itself overflows its
stack, and a range that ends before it begins fills the machine's memory; either takes every other client's answer
along. A grammar that it then cannot parse is printed, names and all, where the host can read it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

import msgspec

from cloister.inference.api_errors import RequestRefused

MAX_REFERENCES: Final = 16
"""References that may lead from one to the next."""
MAX_BOUND: Final = 10**15
"""Beyond it the digits of a lower (or negative upper) bound are more than the compiler counts with."""

MAX_CHOICES: Final = 1000
"""Values, alternatives and properties of a whole schema. Compiling them takes time with their square, in which no
other client's answer goes on."""

MAX_SCHEMA: Final = 64 << 10
MAX_REPETITIONS: Final = 256
_REPETITIONS: Final = frozenset(
    {"minLength", "maxLength", "minItems", "maxItems", "minProperties", "maxProperties"}
)
_RANGES: Final = (("minLength", "maxLength"), ("minItems", "maxItems"), ("minProperties", "maxProperties"))
_CHOICES: Final = ("enum", "anyOf", "oneOf", "properties", "type")
_LOWER: Final = ("minimum", "exclusiveMinimum")
_UPPER: Final = ("maximum", "exclusiveMaximum")


def check_schemas(response_format: dict[str, Any] | None, tools: list[dict[str, Any]] | None) -> None:
    """Every schema that a chat request carries. Raises RequestRefused."""
    # A schema is compiled to a grammar by recursive code in C++, which prints what it cannot compile to standard
    # error: so only small schemas of what it can. Depth is bounded by `parse_json` already.
    for param, value in (("response_format", response_format), ("tools", tools)):
        if value is None:
            continue
        if len(msgspec.json.encode(value)) > MAX_SCHEMA:
            raise RequestRefused(f"{param} is over {MAX_SCHEMA} bytes", code="invalid_value", param=param)
        _check_schema(value, param)
    for param, schema in _schemas(response_format or {}, tools or []):
        check_whole(schema, param)


def _schemas(response_format: dict[str, Any], tools: list[dict[str, Any]]) -> Iterator[tuple[str, object]]:
    """Everything that references inside can be relative to, and the field it came in."""
    yield "response_format", response_format.get("schema")
    named = response_format.get("json_schema")
    yield "response_format", named.get("schema") if isinstance(named, dict) else None
    for tool in tools:
        function = tool.get("function")
        yield "tools", function.get("parameters") if isinstance(function, dict) else None


def _check_schema(value: object, param: str) -> None:
    if isinstance(value, list):
        for item in value:
            _check_schema(item, param)
    if not isinstance(value, dict):
        return
    check_ranges(value, param)
    for name, item in value.items():
        if name == "pattern" and isinstance(item, str):
            raise RequestRefused(
                f"{param}: patterns in schemas are not supported", code="unsupported", param=param
            )
        if name in _REPETITIONS and isinstance(item, int | float) and not 0 <= item <= MAX_REPETITIONS:
            raise RequestRefused(
                f"{param}: {name} is over {MAX_REPETITIONS}", code="invalid_value", param=param
            )
        _check_schema(item, param)


def check_ranges(schema: dict[str, Any], param: str) -> None:
    """One schema object, without what is inside it. Raises RequestRefused."""
    for low, high in _RANGES:
        least, most = schema.get(low, 0), schema.get(high)
        if isinstance(least, int | float) and isinstance(most, int | float) and least > most:
            raise RequestRefused(f"{param}: {low} is over {high}", code="invalid_value", param=param)
    for names, sign in ((_LOWER, 1), (_UPPER, -1)):
        for name in names:
            bound = schema.get(name)
            if isinstance(bound, int | float) and sign * bound > MAX_BOUND:
                raise RequestRefused(
                    f"{param}: {name} is beyond {sign * MAX_BOUND}", code="invalid_value", param=param
                )


def check_whole(schema: object, param: str) -> None:
    """A whole schema: how much of it there is, and that every reference ends at something else than a reference.

    Raises RequestRefused.
    """
    choices = 0
    for node in _objects(schema):
        choices += sum(len(node[name]) for name in _CHOICES if isinstance(node.get(name), dict | list))
        if choices > MAX_CHOICES:
            raise RequestRefused(
                f"{param} has more than {MAX_CHOICES} values, alternatives and properties",
                code="invalid_value",
                param=param,
            )
        place: object = node
        for _ in range(MAX_REFERENCES):
            if not isinstance(place, dict) or not isinstance(place.get("$ref"), str):
                break
            place = _target(schema, place["$ref"], param)
        else:
            raise RequestRefused(f"{param}: references lead in a circle", code="invalid_value", param=param)


def _objects(value: object) -> Iterator[dict[str, Any]]:
    if isinstance(value, dict):
        yield value
    for item in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from _objects(item)


def _target(schema: object, reference: str, param: str) -> object:
    """What ``#/a/b`` names; None for what is not there, which the engine refuses."""
    if not reference.startswith("#/"):
        return None
    place = schema
    for name in reference[2:].split("/"):
        if not name or isinstance(place, list):
            # The compiler reads indices and empty names in ways of its own.
            raise RequestRefused(
                f"{param}: references into lists are not supported", code="unsupported", param=param
            )
        place = place.get(name) if isinstance(place, dict) else None
    return place
