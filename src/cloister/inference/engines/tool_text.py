"""Tool calls in an answer's text: ``<tool_call>{"name": …, "arguments": {…}}</tool_call>``, as Hermes and Qwen write them.

Only what is such a call becomes one; anything else between those marks is told as the text that it is.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from cloister.encoding import parse_json
from cloister.errors import FormatError
from cloister.inference.engines.answer_text import overlap
from cloister.inference.engines.torch_grammar import CALL_END, CALL_START

MAX_CALL = 1 << 20


@dataclass(frozen=True, slots=True)
class Call:
    """One call of a function."""

    name: str
    arguments: str
    """A JSON object."""


class ToolText:
    """Separates an answer's calls from its text, as it grows."""

    def __init__(self) -> None:
        self._held = ""
        self._inside = False
        self._called = False

    def add(self, text: str) -> Iterator[str | Call]:
        """Text and calls that are complete now."""
        self._held += text
        while True:
            mark = CALL_END if self._inside else CALL_START
            before, found, behind = self._held.partition(mark)
            if not found:
                break
            self._held = behind
            if self._inside:
                yield self._call(before)
            elif told := self._told(before):
                yield told
            self._inside = not self._inside
        if not self._inside:
            cut = len(self._held) - overlap(self._held, CALL_START)
            told, self._held = self._told(self._held[:cut]), self._held[cut:]
            if told:
                yield told

    def rest(self) -> str:
        """What was held back, at the end: a call that was broken off is text."""
        held, self._held = self._held, ""
        return CALL_START + held if self._inside else self._told(held)

    def _told(self, text: str) -> str:
        # Between calls stand line breaks that belong to their form.
        return "" if self._called and not text.strip() else text

    def _call(self, text: str) -> str | Call:
        try:
            found: Any = parse_json(text.strip().encode(), what="a tool call", limit=MAX_CALL)
        except FormatError:
            found = None
        if isinstance(found, dict) and isinstance(found.get("name"), str):
            arguments = found.get("arguments", {})
            if isinstance(arguments, dict):
                self._called = True
                return Call(found["name"], json.dumps(arguments, ensure_ascii=False))
        return CALL_START + text + CALL_END


def called_with(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """``messages`` as chat templates want them: the arguments of earlier calls as objects, where they are such."""
    told = []
    for message in messages:
        calls = message.get("tool_calls")
        told.append(message if not calls else message | {"tool_calls": [_unpacked(call) for call in calls]})
    return told


def _unpacked(call: dict[str, Any]) -> dict[str, Any]:
    function = call.get("function")
    if not isinstance(function, dict) or not isinstance(function.get("arguments"), str):
        return call
    try:
        arguments = parse_json(function["arguments"].encode(), what="arguments", limit=MAX_CALL)
    except FormatError:
        return call
    return call | {"function": function | {"arguments": arguments}}
