"""Documents added, removed and asked about: reading, cutting, embedding and the index in one place.

Adding is idempotent: a document whose content is there already is not read again. Who may do what with which collection is
the caller's to know: every call names the collections that it is about, and sees no others.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from cloister.errors import DocumentRefused
from cloister.knowledge.embedding import TextEncoder
from cloister.knowledge.passages import cut
from cloister.knowledge.reader import Read, read_document
from cloister.knowledge.retrieval import Hit, Retrieval, Way
from cloister.knowledge.store import Document, Found, Store

HEADINGS: Final = 40
"""Tokens of a passage that are left for its title and headings."""
OVERLAP: Final = 8
"""The part of a passage that the next one may begin with is one of so many."""
MAX_PASSAGES: Final = 50_000
"""Of one document."""


@dataclass(frozen=True, slots=True)
class Added:
    """What became of a document."""

    what: Literal["added", "replaced", "unchanged"]
    passages: int


@dataclass(frozen=True, slots=True)
class Removed:
    """What became of a document that was to go."""

    there: bool
    copies: int
    """Documents of the same content that are left, in the collections that the caller may see."""


class Library:
    """Over one index. Threads may share it."""

    def __init__(
        self,
        index: Store,
        encoder: TextEncoder,
        *,
        read: Callable[[str, bytes], Read] = read_document,
        now: Callable[[], int] = lambda: int(time.time()),
        keep: Callable[[], None] = lambda: None,
    ) -> None:
        """``keep`` is called behind each change, and what it raises the change raises: it is there, and not kept."""
        self._keep = keep
        self._index = index
        self._encoder = encoder
        self._read = read
        self._now = now
        self._retrieval = Retrieval(index, encoder)

    def add(
        self,
        collection: str,
        name: str,
        content: bytes,
        *,
        told: Callable[[int, int], None] = lambda _done, _of: None,
    ) -> Added:
        """``told`` hears how many passages are embedded, and of how many. Raises DocumentRefused, KnowledgeError."""
        digest = hashlib.sha256(content).digest()
        before = self._index.digest(collection, name)
        if before == digest:
            self._keep()  # it may be what was not kept before
            return Added("unchanged", 0)
        read = self._read(name, content)
        most = self._encoder.length - HEADINGS
        passages = []
        for passage in cut(read.blocks, most=most, count=self._encoder.count, overlap=most // OVERLAP):
            passages.append(passage)
            if len(passages) > MAX_PASSAGES:
                raise DocumentRefused(f"it has over {MAX_PASSAGES} passages", todo="split it")
        if not passages:
            raise DocumentRefused("it holds no text", todo="scanned pages have none: recognise them first")
        done = 0

        def count(more: int) -> None:
            nonlocal done
            done += more
            told(done, len(passages))

        places = (" > ".join(dict.fromkeys((read.title, *one.headings))) for one in passages)
        # Of a long place the end is what is next to the text.
        texts = [f"{self._short(place)}\n{one.text}" for place, one in zip(places, passages, strict=True)]
        vectors = self._encoder(texts, told=count)
        document = Document(collection, name, read.title, digest, len(passages), self._now())
        self._index.add(document, passages, vectors)
        self._keep()
        return Added("added" if before is None else "replaced", len(passages))

    def holds(self, collection: str, name: str, digest: bytes) -> bool:
        """Whether the document of this name has this content."""
        return self._index.digest(collection, name) == digest

    def remove(self, collection: str, name: str, *, visible: Collection[str]) -> Removed:
        """Remove it with its words and vectors, and say whether its content is still there under another name."""
        digest = self._index.digest(collection, name)
        if digest is None or not self._index.remove(collection, name):
            self._keep()
            return Removed(there=False, copies=0)
        self._keep()
        return Removed(there=True, copies=sum(one.digest == digest for one in self._index.documents(visible)))

    def documents(self, collections: Collection[str]) -> list[Document]:
        """Of these collections, by name."""
        return self._index.documents(collections)

    def find(
        self, question: str, collections: Collection[str], *, most: int = 8, way: Way = "hybrid"
    ) -> list[Found]:
        """Passages that may answer, the best first."""
        return self._retrieval.find(question, collections, most=most, way=way)

    def hits(self, questions: Sequence[str], collections: Collection[str], *, most: int = 8) -> list[Hit]:
        """As :meth:`find`, for one question in several wordings, each passage with how near it is."""
        return self._retrieval.hits(questions, collections, most=most)

    def close(self) -> None:
        """Close the index."""
        self._index.close()

    def _short(self, place: str) -> str:
        words = place.split()
        while words and self._encoder.count(" ".join(words)) > HEADINGS - 2:
            del words[: max(1, len(words) // 8)]
        return " ".join(words)
