"""Plain text, Markdown and tables of values as blocks."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Iterator
from typing import Any, Final

from cloister.errors import DocumentRefused
from cloister.knowledge.passages import Block

MAX_FIELD: Final = 1 << 20
MAX_COLUMNS: Final = 1000
_PARAGRAPH: Final = re.compile(r"\n[ \t]*\n+")


def decoded(content: bytes) -> str:
    """Text of UTF-8, or of UTF-16 and UTF-32 that say so. Raises DocumentRefused."""
    marks = (
        (b"\xef\xbb\xbf", "utf-8-sig"), (b"\xff\xfe\0\0", "utf-32"), (b"\0\0\xfe\xff", "utf-32"), (b"\xff\xfe", "utf-16"),
        (b"\xfe\xff", "utf-16"),
    )  # fmt: skip
    encoding = next((name for mark, name in marks if content.startswith(mark)), "utf-8")
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError:
        raise DocumentRefused("its text is not UTF-8", todo="save it as UTF-8") from None
    if "\0" in text:
        raise DocumentRefused("it holds bytes that no text has")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def read_text(content: bytes) -> Iterator[Block]:
    """Paragraphs, between empty lines."""
    for part in _PARAGRAPH.split(decoded(content)):
        if part.strip():
            yield Block(" ".join(part.split()))


def read_markdown(content: bytes) -> Iterator[Block]:
    """CommonMark with tables. HTML inside is left out; links and images are their words."""
    from markdown_it import MarkdownIt  # noqa: PLC0415 -- loaded where it is needed

    tokens = (
        MarkdownIt("commonmark", {"html": False, "maxNesting": 40}).enable("table").parse(decoded(content))
    )
    inside: list[Any] = []
    cells: list[str] = []
    head = ""
    for token in tokens:
        if token.nesting == 1:
            inside.append(token)
            if token.type == "tr_open":
                cells = []
            elif token.type == "table_open":
                head = ""
        elif token.nesting == -1:
            inside.pop()
            if token.type == "tr_close":
                row = " | ".join(cells)
                head = head or row
                yield Block(row, "row", head=head)
        elif token.type in ("fence", "code_block"):
            yield Block(token.content, "code")
        elif token.type == "inline":
            text = _words(token)
            around = [one.type for one in inside]
            if "tr_open" in around:
                cells.append(text)
            elif around and around[-1] == "heading_open":
                yield Block(text, "heading", int(inside[-1].tag[1]))
            elif "list_item_open" in around:
                yield Block(text, "item")
            else:
                yield Block(text)


def _words(token: Any) -> str:
    parts = []
    for child in token.children or ():
        if child.type in ("softbreak", "hardbreak"):
            parts.append(" ")
        elif child.type in ("text", "code_inline", "text_special", "image"):
            parts.append(child.content)
    return "".join(parts).strip()


def read_values(content: bytes) -> Iterator[Block]:
    """Rows of comma-, semicolon- or tab-separated values; the first is the head of the others."""
    text = decoded(content)
    csv.field_size_limit(MAX_FIELD)
    try:
        dialect: Any = csv.Sniffer().sniff(text[:8192], delimiters=",;\t|")
    except csv.Error:
        dialect = csv.excel
    try:
        yield from rows(csv.reader(io.StringIO(text, newline=""), dialect))
    except csv.Error:
        raise DocumentRefused("its values cannot be read", todo="quote fields with line breaks") from None


def rows(lines: Iterable[Iterable[object]], page: int | None = None) -> Iterator[Block]:
    """Lines of a table as blocks; empty ones are left out."""
    head = ""
    for line in lines:
        cells = ["" if cell is None else " ".join(str(cell).split()) for cell in line]
        if len(cells) > MAX_COLUMNS:
            raise DocumentRefused(f"a table has over {MAX_COLUMNS} columns")
        if any(cells):
            row = " | ".join(cells)
            head = head or row
            yield Block(row, "row", page=page, head=head)
