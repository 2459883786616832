"""Which line of a policy file a refusal speaks of.

A check of a policy says what is wrong (``mrtd must be 96 …``, or msgspec's ``… - at `$.tdx.mrtd[1]` ``), and knows no
lines. Here its words are led back to the field; inside a long list or table, to the first entry without which the same
refusal does not happen. Nothing is decided here: a policy is refused before, whatever line is found.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from cloister.appraisal.positions import Path, line_of

Attempt = Callable[[dict[str, Any]], str]
"""The refusal of a changed table, empty when it is accepted."""

_AT = re.compile(r" - at `(?:key in )?\$([^`]*)`$|at `key` in `\$([^`]*)`$")
_FIELD = re.compile(r"(?:unknown|required) field `([^`]*)`")
_STEP = re.compile(r"\[(\d+|\.\.\.)\]|\.([^.\[]+)")


def refused_line(
    table: dict[str, Any], what: str, attempt: Attempt, positions: Mapping[Path, int], *, scope: str = ""
) -> int:
    """The line (from 1) that the refusal ``what`` of ``table`` speaks of; ``attempt`` judges a changed table.

    ``scope`` is the table whose check refused, so that its field's names need not say so.
    """
    formal = _AT.search(what)
    if formal or _FIELD.search(what):
        path = _formal_path(
            table, what, (formal.group(1) or formal.group(2) or "") if formal else "", attempt
        )
    else:
        path = _named_path(table, what, scope)
    value = _at(table, path)
    # The fields of a table are required together; entries of lists and of tables with free names stand alone.
    if isinstance(value, list) or (isinstance(value, dict) and len(path) > 1):
        path = _first_culprit(table, path, what, attempt) or path
    return line_of(positions, path)


def readable(what: str) -> str:
    """msgspec's words about a form, as a person would say them; any other words unchanged."""
    at = _AT.search(what)
    if at is None and not _FIELD.search(what):
        return what
    place = ((at.group(1) or at.group(2) or "") if at else "").lstrip(".").replace("[...]", ".*")
    said = what[: at.start()] if at else what
    said = (
        said.removeprefix("Object contains ").removeprefix("Object is ").replace("Object missing", "missing")
    )
    if "field `" in said:
        return f"{said} in [{place}]" if place else said
    value = re.fullmatch(r"Invalid enum value (.*)", said)
    return f"{place} may not be {value[1]}" if value else f"{place}: {said}"


def _formal_path(table: dict[str, Any], what: str, steps: str, attempt: Attempt) -> Path:
    """The path in msgspec's words, which write ``[...]`` for any key of a table with free names."""
    path: Path = ()
    for index, name in _STEP.findall(steps):
        if index == "...":
            culprit = _first_culprit(table, path, what, attempt)
            if culprit is None:
                return path
            path = culprit
        else:
            path = (*path, name or int(index))
    field = _FIELD.search(what)
    return (*path, field.group(1)) if field else path


def _named_path(table: dict[str, Any], what: str, scope: str) -> Path:
    """The field whose dotted name comes first in ``what``, the longest such name: ``events.cloister.config``."""
    names: dict[str, Path] = {".".join(path): path for path in _names(table)}
    within = table.get(scope)
    if isinstance(within, dict):
        names |= {".".join(path): (scope, *path) for path in _names(within)}
    best: tuple[int, int, Path] | None = None
    for name, path in names.items():
        at = what.find(name)
        while at >= 0:
            before, after = what[at - 1 : at] if at else "", what[at + len(name) : at + len(name) + 1]
            if not (before.isalnum() or before in ("_", ".")) and not (after.isalnum() or after == "_"):
                if best is None or (at, -len(name)) < best[:2]:
                    best = (at, -len(name), path)
                break
            at = what.find(name, at + 1)
    return best[2] if best else (scope,)


def _names(table: dict[str, Any]) -> list[tuple[str, ...]]:
    """Paths to every named field, at most four names deep, which is as deep as a policy goes."""
    found: list[tuple[str, ...]] = []
    level: list[tuple[tuple[str, ...], dict[str, Any]]] = [((), table)]
    for _ in range(4):
        found += [(*path, name) for path, value in level for name in value]
        level = [
            ((*path, name), item)
            for path, value in level
            for name, item in value.items()
            if isinstance(item, dict)
        ]
    return found


def _first_culprit(table: dict[str, Any], path: Path, what: str, attempt: Attempt) -> Path | None:
    """The entry of the list or table at ``path`` with which the refusal begins; None if it is not one entry's.

    By bisection over the first n entries: O(log n) attempts.
    """
    value = _at(table, path)
    if not isinstance(value, list | dict):
        return None
    keys = list(range(len(value))) if isinstance(value, list) else list(value)

    def refused(count: int) -> bool:
        kept = value[:count] if isinstance(value, list) else {key: value[key] for key in keys[:count]}
        return attempt(_with(table, path, kept)) == what

    if not refused(len(keys)) or refused(0):
        return None
    accepted, refusing = 0, len(keys)
    while refusing - accepted > 1:
        middle = (accepted + refusing) // 2
        if refused(middle):
            refusing = middle
        else:
            accepted = middle
    return (*path, keys[refusing - 1])


def _at(table: Any, path: Path) -> Any:
    for part in path:
        try:
            table = table[part]
        except (KeyError, IndexError, TypeError):
            return None
    return table


def _with(table: Any, path: Path, value: Any) -> Any:
    """A copy of ``table`` with ``value`` at ``path``."""
    if not path:
        return value
    copy: Any = list(table) if isinstance(table, list) else dict(table)
    copy[path[0]] = _with(copy[path[0]], path[1:], value)
    return copy
