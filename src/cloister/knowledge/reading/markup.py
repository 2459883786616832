"""HTML and mail as blocks. Nothing is fetched, and nothing of a page runs."""

from __future__ import annotations

from collections.abc import Iterator
from email import message_from_bytes, policy
from typing import Any, Final

from cloister.errors import DocumentRefused
from cloister.knowledge.passages import Block
from cloister.knowledge.reading.texts import read_text, rows

MAX_PARTS: Final = 200
"""Of one mail."""
_UNSEEN: Final = frozenset(
    ("script", "style", "template", "noscript", "head", "nav", "svg", "math", "iframe", "object", "select", "button", "form")
)  # fmt: skip
_BLOCKS: Final = frozenset(
    (
        "address", "article", "aside", "blockquote", "body", "dd", "div", "dl", "dt", "figcaption", "figure", "footer", "h1",
        "h2", "h3", "h4", "h5", "h6", "header", "hr", "html", "li", "main", "ol", "p", "pre", "section", "table", "tbody",
        "td", "tfoot", "th", "thead", "tr", "ul",
    )
)  # fmt: skip
_ITEMS: Final = frozenset(("li", "dt", "dd"))


def read_html(content: bytes) -> Iterator[Block]:
    """A page's text in its order: headings, paragraphs, items, rows, code."""
    from lxml import etree, html  # noqa: PLC0415 -- loaded where it is needed

    parser = html.HTMLParser(no_network=True, remove_comments=True, remove_pis=True, huge_tree=False)
    try:
        root = html.document_fromstring(content, parser=parser)
    except (etree.LxmlError, ValueError):
        raise DocumentRefused("it is no HTML that can be read") from None
    title = root.findtext(".//title")
    if title and title.strip():
        yield Block(" ".join(title.split()), "heading", 1)
    yield from _walked(root)


def _walked(root: Any) -> Iterator[Block]:
    """Without recursion: pages nest as deep as they like."""
    words: list[str] = []
    stack: list[tuple[Any, bool]] = [(root, False)]
    kinds: list[str] = []
    while stack:
        element, left = stack.pop()
        name = element.tag if isinstance(element.tag, str) else ""
        if left:
            if name in _BLOCKS:
                yield from _said(words, kinds.pop())
            words.append(element.tail or "")
            continue
        if not name or name in _UNSEEN:
            words.append(element.tail or "")
            continue
        if name == "table":
            yield from _said(words, kinds[-1] if kinds else "p")
            yield from rows(
                [_text(cell) for cell in row.iterchildren("td", "th")] for row in element.iter("tr")
            )
            words.append(element.tail or "")
            continue
        if name in _BLOCKS:
            yield from _said(words, kinds[-1] if kinds else "p")
            kinds.append(name)
        words.append("\n" if name == "br" else element.text or "")
        stack.append((element, True))
        stack += [(child, False) for child in reversed(element)]
    yield from _said(words, "p")


def _said(words: list[str], name: str) -> Iterator[Block]:
    text, words[:] = "".join(words), []
    if not text.strip():
        return
    if name == "pre":
        yield Block(text, "code")
    elif len(name) == 2 and name[0] == "h" and name[1].isdigit():
        yield Block(" ".join(text.split()), "heading", int(name[1]))
    else:
        yield Block(" ".join(text.split()), "item" if name in _ITEMS else "paragraph")


def _text(element: Any) -> str:
    return " ".join("".join(element.itertext()).split())


def read_mail(content: bytes) -> Iterator[Block]:
    """Subject, who wrote to whom and when, the text, and the names of what is attached."""
    message = message_from_bytes(content, policy=policy.default)
    if not message.keys():
        raise DocumentRefused("it is no mail")
    yield Block(str(message.get("subject", "") or "No subject"), "heading", 1)
    for name in ("from", "to", "cc", "date"):
        if message.get(name):
            yield Block(f"{name.capitalize()}: {' '.join(str(message[name]).split())}", "item")
    body = message.get_body(("plain", "html"))
    if body is not None:
        data = body.get_payload(decode=True)
        charset = body.get_content_charset("utf-8")
        raw = data if isinstance(data, bytes) else b""
        if body.get_content_subtype() == "html":
            yield from read_html(raw)
        else:
            try:
                text = raw.decode(charset, "replace")
            except LookupError:
                text = raw.decode("utf-8", "replace")
            yield from read_text(text.replace("\0", "").encode("utf-8"))
    for number, part in enumerate(message.iter_attachments()):
        if number >= MAX_PARTS:
            raise DocumentRefused(f"it has over {MAX_PARTS} attachments")
        yield Block(f"Attached, not read: {part.get_filename() or 'without a name'}", "item")
