"""Citations of an answer: the numbers in brackets that name passages it was given. Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import quote

from cloister.knowledge.store import Found

MAXCITED: Final = 256
CITED: Final = re.compile(r"\[(\d{1,3}(?:\s*,\s*\d{1,3})*)\]")
"""Numbers in brackets."""


@dataclass(frozen=True, slots=True)
class Citation:
    """A place in an answer and the passage that it names."""

    start: int
    end: int
    """Characters of the answer, the end not included."""
    number: int
    """From 1."""


def citations(answer: str, given: int) -> tuple[Citation, ...]:
    """Those of ``answer`` that name one of ``given`` passages; a number that names none is no citation."""
    found: list[Citation] = []
    for match in CITED.finditer(answer):
        for text in match[1].split(","):
            number = int(text)
            if 1 <= number <= given and len(found) < MAXCITED:
                found.append(Citation(match.start(), match.end(), number))
    return tuple(found)


def annotation(citation: Citation, found: Found) -> dict[str, Any]:
    """A citation as OpenAI's clients know them; the address is a name, and not one to be fetched."""
    return {
        "type": "url_citation",
        "url_citation": {
            "start_index": citation.start,
            "end_index": citation.end,
            "title": found.title,
            "url": address(found),
        },
    }


def address(found: Found) -> str:
    """A name of the passage's place."""
    path = "/".join(quote(part, safe="") for part in found.document.split("/"))
    page = f"page={found.passage.first_page}&" if found.passage.first_page is not None else ""
    return f"knowledge:{quote(found.collection, safe='')}/{path}#{page}passage={found.number}"


def source(found: Found, number: int, nearness: float) -> dict[str, Any]:
    """A passage that an answer was given."""
    passage = found.passage
    return {
        "number": number,
        "collection": found.collection,
        "document": found.document,
        "title": found.title,
        "headings": list(passage.headings),
        "first_page": passage.first_page,
        "last_page": passage.last_page,
        "passage": found.number,
        "nearness": round(nearness, 3),
        "text": passage.text,
        "url": address(found),
    }
