"""Texts, with a label or alone, out of JSONL: one object a line, checked, never repaired.

Read from a file that is open, so that sealed files come through ``cloister.sealing.open``. An error names the line, and says
nothing of what is in it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import BinaryIO, Final, TypeVar

from cloister.encoding import Record, decode_json
from cloister.errors import FormatError

MAX_LINE: Final = 1 << 20
MAX_LINES: Final = 2_000_000
R = TypeVar("R", bound=Record)


class Text(Record, frozen=True):
    """A text to learn from."""

    text: str


class LabelledText(Record, frozen=True):
    """A text of which it is known what it is."""

    text: str
    label: str


def read_texts(file: BinaryIO, *, what: str) -> tuple[Text, ...]:
    """Each with a letter at least. Raises FormatError; ``what`` names the file."""
    return _read(file, Text, lambda one: "" if one.text.strip() else "has no text", what)


def read_labelled(file: BinaryIO, labels: tuple[str, ...], *, what: str) -> tuple[LabelledText, ...]:
    """As :func:`read_texts`, and each label is one of ``labels``."""

    def wrong(one: LabelledText) -> str:
        if not one.text.strip():
            return "has no text"
        return "" if one.label in labels else "has a label that is none of the task's"

    return _read(file, LabelledText, wrong, what)


def _read(file: BinaryIO, kind: type[R], wrong: Callable[[R], str], what: str) -> tuple[R, ...]:
    found: list[R] = []
    number = 0
    while line := file.readline(MAX_LINE + 1):
        number += 1
        if len(line) > MAX_LINE or number > MAX_LINES:
            raise FormatError(
                f"{what}: line {number} is longer than {MAX_LINE} bytes, or one more than {MAX_LINES}"
            )
        if line.strip():
            one = decode_json(line, kind, what=f"{what}, line {number}", limit=MAX_LINE)
            if why := wrong(one):
                raise FormatError(f"{what}: line {number} {why}")
            found.append(one)
    if not found:
        raise FormatError(f"{what} has no texts")
    return tuple(found)
