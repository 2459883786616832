"""Elements of a page as values: what a run's report and its live page are made of, so that no text is ever markup.

Whoever makes an element gives it texts; escaping happens here alone, once, when a page is written. Tags and attributes that
could run, load or send anything do not exist. Names and reasons come from strangers: what does not print, or turns the
direction of writing, is shown as an escape.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Final, TypeAlias

MAX_TEXT: Final = 2048
"""Characters of one text."""
_TAGS: Final = (
    "article caption code dd desc div dl dt figcaption figure footer g h1 h2 h3 header li line main ol p path section span "
    "strong svg table tbody td text th thead time title tr ul"
)
_ATTRIBUTES: Final = (
    "aria-label aria-labelledby class d datetime id role scope stroke-dasharray tabindex text-anchor viewBox x x1 x2 y y1 "
    "y2"
)
TAGS: Final = frozenset(_TAGS.split())
ATTRIBUTES: Final = frozenset(_ATTRIBUTES.split())


@dataclass(frozen=True, slots=True)
class Element:
    """Made by :func:`el`."""

    tag: str
    attributes: tuple[tuple[str, str], ...]
    children: tuple[Element | str, ...]


Child: TypeAlias = "Element | str | Sequence[Child] | None"


def el(tag: str, attributes: Mapping[str, str | None] | None = None, *children: Child) -> Element:
    """An element; what is None or empty is left out. Raises ValueError for tags and attributes that pages do not have."""
    given = {name: value for name, value in (attributes or {}).items() if value}
    strange = {tag} - TAGS | given.keys() - ATTRIBUTES
    if strange:
        raise ValueError(f"pages have no {sorted(strange)[0]!r}")
    found: list[Element | str] = []
    for child in children:
        _gather(child, found)
    return Element(tag, tuple((name, _inert(value)) for name, value in given.items()), tuple(found))


def inert(text: str, *, limit: int = MAX_TEXT) -> str:
    """``text`` on one line, with visible escapes for what does not print, in at most about ``limit`` characters."""
    return _inert(text[:limit]) + ("…" if len(text) > limit else "")


def html(element: Element | str) -> str:
    """As HTML, every text and value escaped."""
    if isinstance(element, str):
        return escape(element)
    attributes = "".join(f' {name}="{escape(value)}"' for name, value in element.attributes)
    inside = "".join(html(child) for child in element.children)
    return f"<{element.tag}{attributes}>{inside}</{element.tag}>"


def plain(element: Element | str) -> object:
    """As JSON: a text, or ``[tag, {attribute: value}, [child …]]``."""
    if isinstance(element, str):
        return element
    return [element.tag, dict(element.attributes), [plain(child) for child in element.children]]


def _gather(child: Child, found: list[Element | str]) -> None:
    if isinstance(child, Element):
        found.append(child)
    elif isinstance(child, str):
        if child:
            found.append(inert(child))
    elif child is not None:
        for one in child:
            _gather(one, found)


def _inert(text: str) -> str:
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else f"\\u{ord(char):04x}" for char in text)
