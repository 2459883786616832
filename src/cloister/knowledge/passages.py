"""A document as blocks, and cut into passages: along headings, paragraphs, sentences, and only then words. Pure.

A passage never holds more than the model that embeds it reads, and never parts of two sections. It keeps the headings that
it stands under and the pages that it is on, so that an answer can name its place.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Final, Literal

from cloister.errors import UsageError

Count = Callable[[str], int]
"""Tokens of a text, by the tokenizer of the model that embeds. Of two texts with a space between it is at most their sum."""
Kind = Literal["heading", "paragraph", "item", "row", "code"]
MAX_LEVEL: Final = 6
LEAST: Final = 16
"""Tokens that a passage can be bounded to."""
_SENTENCE: Final = re.compile(r"(?<=[.!?…])[\"'”’)\]]*\s+|(?<=[。！？；])|\n+")
_BETWEEN: Final = {"paragraph": "\n\n", "item": "\n", "row": "\n", "code": "\n"}


@dataclass(frozen=True, slots=True)
class Block:
    """What a document is made of, in its order."""

    text: str
    kind: Kind = "paragraph"
    level: int = 1
    """Of a heading, 1 to 6."""
    page: int | None = None
    """From 1, where there are pages."""
    head: str = ""
    """Of a row: its table's first row, which a passage that begins with it repeats."""


@dataclass(frozen=True, slots=True)
class Passage:
    """A part of a document."""

    text: str
    headings: tuple[str, ...] = ()
    """Outermost first."""
    first_page: int | None = None
    last_page: int | None = None


def cut(blocks: Iterable[Block], *, most: int, count: Count, overlap: int = 0) -> Iterator[Passage]:
    """Passages of at most ``most`` tokens. Within a section each but the first begins with the sentences that the one before
    ended with, as far as they are at most ``overlap`` tokens. Raises UsageError for bounds that leave no room.
    """
    if most < LEAST or not 0 <= overlap <= most // 2:
        raise UsageError(f"passages of {most} tokens that share {overlap} cannot be cut")
    path: tuple[str, ...] = ()
    for is_heading, group in itertools.groupby(blocks, key=lambda block: block.kind == "heading"):
        if is_heading:
            for block in group:
                text = _line(block.text)
                if text:
                    # A level that is left out (1, then 3) counts as the next.
                    path = (*path[: max(1, min(block.level, MAX_LEVEL)) - 1], text)
        else:
            yield from _section(group, path, most=most, count=count, overlap=overlap)


@dataclass(frozen=True, slots=True)
class _Piece:
    """At most a passage long."""

    text: str
    tokens: int
    block: Block


def _section(
    blocks: Iterable[Block], headings: tuple[str, ...], *, most: int, count: Count, overlap: int
) -> Iterator[Passage]:
    held: list[_Piece] = []
    fresh = 0
    for block in blocks:
        for piece in _pieces(block, most, count):
            opened = _with_head(piece, most, count) if not held else piece
            if sum(one.tokens for one in held) + piece.tokens > most and fresh:
                yield _passage(held, headings)
                held, fresh = _shared(held, min(overlap, most - piece.tokens)), 0
                opened = piece if held else _with_head(piece, most, count)
            held.append(opened)
            fresh += 1
    if fresh:
        yield _passage(held, headings)


def _pieces(block: Block, most: int, count: Count) -> Iterator[_Piece]:
    text = block.text.strip("\n") if block.kind == "code" else block.text.strip()
    whole = block.kind != "paragraph" and count(text) <= most
    for sentence in [text] if whole else _sentences(text, most, count):
        tokens = count(sentence)
        if tokens:
            yield _Piece(sentence, tokens, block)


def _sentences(text: str, most: int, count: Count) -> Iterator[str]:
    """Sentences, and of those that are too long parts between spaces, and of these halves."""
    start = 0
    for end in [*(match.end() for match in _SENTENCE.finditer(text)), len(text)]:
        sentence, start = text[start:end].strip(), end
        if sentence:
            yield from [sentence] if count(sentence) <= most else _parts(sentence.split(), most, count)


def _parts(words: Sequence[str], most: int, count: Count) -> Iterator[str]:
    held: list[str] = []
    tokens = 0
    for word in words:
        own = count(word)
        if held and tokens + own > most:
            yield " ".join(held)
            held, tokens = [], 0
        if own > most:
            yield from _halves(word, most, count)
            continue
        held.append(word)
        tokens += own
    if held:
        yield " ".join(held)


def _halves(word: str, most: int, count: Count) -> Iterator[str]:
    waiting = [word]
    while waiting:
        part = waiting.pop()
        if len(part) > 1 and count(part) > most:
            middle = len(part) // 2
            waiting += [part[middle:], part[:middle]]
        else:
            yield part


def _with_head(piece: _Piece, most: int, count: Count) -> _Piece:
    """A row that begins a passage comes with its table's head, if there is room for both."""
    head = piece.block.head.strip()
    if not head or head == piece.text:
        return piece
    tokens = piece.tokens + count(head)
    return replace(piece, text=f"{head}\n{piece.text}", tokens=tokens) if tokens <= most else piece


def _shared(held: Sequence[_Piece], overlap: int) -> list[_Piece]:
    """The last sentences of paragraphs: what comes after often speaks of them."""
    found: list[_Piece] = []
    for piece in reversed(held):
        if piece.block.kind != "paragraph" or sum(one.tokens for one in found) + piece.tokens > overlap:
            break
        found.insert(0, piece)
    return found if len(found) < len(held) else found[1:]


def _passage(held: Sequence[_Piece], headings: tuple[str, ...]) -> Passage:
    text = held[0].text
    for before, piece in itertools.pairwise(held):
        inside = "\n" if piece.block.kind == "code" else " "
        text += (inside if before.block is piece.block else _BETWEEN[piece.block.kind]) + piece.text
    pages = [piece.block.page for piece in held if piece.block.page is not None]
    return Passage(text, headings, min(pages, default=None), max(pages, default=None))


def _line(text: str) -> str:
    return " ".join(text.split())
