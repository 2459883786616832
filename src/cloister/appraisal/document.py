"""A policy file as a document: its TOML table, the line of everything in it, and what a draft left to decide.

It refuses what is no TOML, too long or nested too deep, with the line. What the fields mean is not its business
(policy.py).
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from cloister.appraisal.positions import Path, find_positions, line_of
from cloister.errors import FormatError, PolicyError

MAX_POLICY = 256 * 1024
DECIDE: Final = "DECIDE"
"""A text that begins so is no value: a draft leaves it where a person has to decide."""
PAGE: Final = "see docs/reference/policy.md"


@dataclass(frozen=True, slots=True)
class Mark:
    """A place of a draft where a person has to decide."""

    line: int
    field: str
    note: str
    """What the draft says about it, such as ``measured 17``."""


@dataclass(frozen=True, slots=True)
class Document:
    """What a file says, before anybody judges it."""

    table: dict[str, Any]
    positions: Mapping[Path, int]

    @property
    def marks(self) -> tuple[Mark, ...]:
        """Everything that begins with :data:`DECIDE`, in the order of the lines."""
        found: list[Mark] = []
        rest: list[tuple[Path, Any]] = [((), self.table)]
        while rest:
            path, value = rest.pop()
            if isinstance(value, dict):
                rest += [((*path, key), item) for key, item in value.items()]
            elif isinstance(value, list):
                rest += [((*path, index), item) for index, item in enumerate(value)]
            elif isinstance(value, str) and value.startswith(DECIDE):
                note = _printable(value[len(DECIDE) : 160].lstrip(": "))
                field = _printable(".".join(part for part in path if isinstance(part, str))[:100])
                found.append(Mark(line_of(self.positions, path), field, note or "no value was proposed"))
        return tuple(sorted(found, key=lambda mark: mark.line))


def parse_document(text: str, *, name: str) -> Document:
    """Parse the TOML ``text`` of the file ``name``. Raises :class:`~cloister.errors.PolicyError`."""
    if len(text.encode("utf-8", "replace")) > MAX_POLICY:
        raise PolicyError(f"{name} is longer than {MAX_POLICY} bytes", todo="a policy is written by a person")
    try:
        # First, because tomllib takes quadratic time over what is nested very deep.
        positions = find_positions(text)
    except FormatError as error:
        line, _, what = error.what.removeprefix("line ").partition(": ")
        raise PolicyError(f"{name}:{line}: {what}", todo=PAGE) from None
    try:
        return Document(tomllib.loads(text), positions)
    except (ValueError, RecursionError) as error:  # a number of 5000 digits is a ValueError of its own
        what = _printable(str(error)[:200])
        found = re.search(r" \(at line (\d+), column \d+\)$", what)
        line = found[1] if found else str(_last_line(text, error))
        raise PolicyError(f"{name}:{line}: not TOML: {what}", todo=PAGE) from None


def _last_line(text: str, error: ValueError | RecursionError) -> int:
    """Where tomllib names no line: the end of the text, or the number that is too long for Python."""
    digits = None if "at end of document" in str(error) else re.search(r"[0-9_]{4000}", text)
    return text.count("\n", 0, digits.start() if digits else len(text.rstrip("\n"))) + 1


def _printable(text: str) -> str:
    return "".join(char if char.isprintable() else "?" for char in text)
