"""Where things stand in a TOML text: the line of each table, field and array element.

`tomllib` reads TOML and tells no positions. This walks beside it over the text's structure (strings of all four
kinds, comments, arrays, inline tables, table headers, dotted keys) and remembers lines; it decodes no value and judges
no syntax. Where a text is not TOML it stops, because `tomllib` will refuse that text. It refuses what is nested deeper
than 32, before `tomllib` spends time on it; its own time is linear in the text.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from typing import Final

from cloister.errors import FormatError

MAX_DEPTH: Final = 32
"""Parts of a path: what is nested deeper, by brackets or by dots, is refused."""

Path = tuple[str | int, ...]
"""Keys and array indexes from the document down, such as ``("tdx", "mrtd", 1)``."""

_BLANK = re.compile(r"(?:[ \t\r\n]+|#[^\n]*)*+")
_SPACE = re.compile(r"[ \t]*+")
_BARE_KEY = re.compile(r"[A-Za-z0-9_-]++")
_STRING = re.compile(
    r'"""(?:[^"\\]|\\.|"(?!""))*+"""(?:"{0,2})'
    r"|'''(?:[^']|'(?!''))*+'''(?:'{0,2})"
    r'|"(?!"")(?:[^"\\\n]|\\[^\n])*+"'
    r'|""(?!")'
    r"|'(?!'')[^'\n]*+'"
    r"|''(?!')",
    re.DOTALL,
)
_SCALAR = re.compile(r"[^,\]}#\n\[{]++")
"""A number, date or boolean ends before the next of these; none of them contains one."""


def find_positions(text: str) -> dict[Path, int]:
    """The line (from 1) of every table, field and array element of ``text``; ``()`` is line 1.

    Raises :class:`~cloister.errors.FormatError` when something is nested deeper than 32; ``what`` begins with
    ``line N: ``.
    """
    return _Finder(text.replace("\r\n", "\n")).find()


def line_of(positions: Mapping[Path, int], path: Path) -> int:
    """The line of ``path``, or of the nearest table that holds it."""
    while path not in positions and path:
        path = path[:-1]
    return positions.get(path, 1)


class _Stop(Exception):
    """This is not TOML: tomllib says why."""


class _Open:
    """An array (``index`` counts) or an inline table (``index`` is None) that is not closed yet."""

    __slots__ = ("index", "path")

    def __init__(self, path: Path, index: int | None) -> None:
        self.path, self.index = path, index


class _Finder:
    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0
        self._counted = (0, 1)
        """Up to this offset, this line: lines are counted once."""
        self._lines: dict[Path, int] = {(): 1}
        self._tables: dict[Path, int] = {}
        """Arrays of tables, and how many elements each has."""

    def find(self) -> dict[Path, int]:
        base: Path = ()
        try:
            while True:
                self._skip(_BLANK)
                if self._at >= len(self._text):
                    break
                if self._text[self._at] == "[":
                    base = self._header()
                else:
                    self._pair(base)
        except _Stop:
            pass
        return self._lines

    def _header(self) -> Path:
        line = self._line()
        repeated = self._text.startswith("[[", self._at)
        self._at += 2 if repeated else 1
        parts = self._key()
        self._expect("]]" if repeated else "]")
        path: Path = ()
        for number, part in enumerate(parts, 1):
            path = self._deeper(path, part, line)
            if number == len(parts):
                # The table's own header tells its line better than a table within it that came first.
                self._lines[path] = line if path not in self._tables else self._lines[path]
                if repeated:
                    count = self._tables.get(path, 0)
                    self._tables[path] = count + 1
                    path = self._deeper(path, count, line)
            elif path in self._tables:
                path = (*path, self._tables[path] - 1)
        return path

    def _pair(self, base: Path) -> None:
        """``key = value``; the value may hold further pairs, which are walked without recursion."""
        stack: list[_Open] = []
        self._value_of(self._keys(base), stack)
        while stack:
            self._skip(_BLANK)
            top = stack[-1]
            char = self._text[self._at : self._at + 1]
            if char == ("}" if top.index is None else "]"):
                self._at += 1
                stack.pop()
            elif char == ",":
                self._at += 1
            elif not char:
                raise _Stop
            elif top.index is None:
                self._value_of(self._keys(top.path), stack)
            else:
                path = self._deeper(top.path, top.index, self._line())
                top.index += 1
                self._value_of(path, stack)

    def _keys(self, base: Path) -> Path:
        line = self._line()
        for part in self._key():
            base = self._deeper(base, part, line)
        self._expect("=")
        return base

    def _value_of(self, path: Path, stack: list[_Open]) -> None:
        self._skip(_SPACE)
        char = self._text[self._at : self._at + 1]
        if char in ("[", "{"):
            self._at += 1
            stack.append(_Open(path, 0 if char == "[" else None))
        else:
            self._take(_STRING if char in ('"', "'") else _SCALAR)

    def _key(self) -> list[str]:
        """The parts of a dotted key."""
        parts = []
        while True:
            self._skip(_SPACE)
            quoted = self._text[self._at : self._at + 1] in ('"', "'")
            raw = self._take(_STRING if quoted else _BARE_KEY)
            parts.append(_unquoted(raw) if quoted else raw)
            if len(parts) > MAX_DEPTH:
                raise self._too_deep()
            self._skip(_SPACE)
            if not self._text.startswith(".", self._at):
                return parts
            self._at += 1

    def _deeper(self, path: Path, part: str | int, line: int) -> Path:
        if len(path) >= MAX_DEPTH:
            raise self._too_deep()
        path = (*path, part)
        self._lines.setdefault(path, line)
        return path

    def _too_deep(self) -> FormatError:
        return FormatError(f"line {self._line()}: nested deeper than {MAX_DEPTH}")

    def _line(self) -> int:
        offset, line = self._counted
        line += self._text.count("\n", offset, self._at)
        self._counted = (self._at, line)
        return line

    def _skip(self, pattern: re.Pattern[str]) -> None:
        match = pattern.match(self._text, self._at)
        self._at = match.end() if match else self._at

    def _take(self, pattern: re.Pattern[str]) -> str:
        match = pattern.match(self._text, self._at)
        if match is None:
            raise _Stop
        self._at = match.end()
        return match.group()

    def _expect(self, text: str) -> None:
        self._skip(_SPACE)
        if not self._text.startswith(text, self._at):
            raise _Stop
        self._at += len(text)


def _unquoted(raw: str) -> str:
    """The key that a quoted key spells: escapes are tomllib's business."""
    if "\\" not in raw:
        return raw[1:-1]
    try:
        return str(tomllib.loads(f"key = {raw}")["key"])
    except ValueError:
        raise _Stop from None
