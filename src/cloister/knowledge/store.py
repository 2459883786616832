"""What keeps documents so that they are found: the interface of the index, and of servers for those who outgrow it.

Every question names the collections that may answer it, and nothing of others takes part in it: neither a passage, nor a
count, nor how rare a word is.
"""

from __future__ import annotations

import ssl
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol

from cloister.errors import UsageError
from cloister.knowledge.passages import Passage

if TYPE_CHECKING:
    from cloister.knowledge.embedding import Vectors

MAX_FOUND: Final = 1000
MAX_NAME: Final = 1024
Scored = tuple[int, float]
"""A passage, and how well it answers."""


@dataclass(frozen=True, slots=True)
class Document:
    """What is known of a document beside its passages."""

    collection: str
    name: str
    title: str
    digest: bytes
    """SHA-256 of its content as it came."""
    passages: int
    added: int
    """Unix seconds."""


@dataclass(frozen=True, slots=True)
class Found:
    """A passage with its place."""

    id: int
    collection: str
    document: str
    title: str
    number: int
    """Within its document, from 1."""
    passage: Passage


@dataclass(frozen=True, slots=True)
class Place:
    """Where a server is, who it must be, and who this workload is to it."""

    host: str
    port: int
    name: str
    """Its name in the mesh, which its certificate has to show."""
    user: str
    database: str
    context: Callable[[], ssl.SSLContext]
    """For the next connection. Raises what the mesh refuses, and NetworkError."""


class Store(Protocol):
    """Documents with their passages, words and vectors. Threads may share it. Its methods raise KnowledgeError."""

    @property
    def dimensions(self) -> int:
        """Of each vector."""
        ...

    def add(self, document: Document, passages: Sequence[Passage], vectors: Vectors) -> bool:
        """Put a document in place of the one of its name, whole or not at all. Whether anything changed: its digest may be
        there already. ``vectors`` is (passages, dimensions)."""
        ...

    def remove(self, collection: str, name: str) -> bool:
        """Remove a document with all that was made of it. Whether it was there."""
        ...

    def digest(self, collection: str, name: str) -> bytes | None:
        """Of the document of this name, if there is one."""
        ...

    def documents(self, collections: Collection[str]) -> list[Document]:
        """All of these collections, by name."""
        ...

    def by_words(self, question: str, collections: Collection[str], most: int) -> list[Scored]:
        """Passages with words of ``question``, by BM25, the best first; a word in title or headings counts four times."""
        ...

    def by_vector(self, vector: Vectors, collections: Collection[str], most: int) -> list[Scored]:
        """Passages whose vectors are nearest to ``vector`` (dimensions,), with their cosines, the nearest first."""
        ...

    def nearness(self, vector: Vectors, ids: Sequence[int], collections: Collection[str]) -> dict[int, float]:
        """The cosine between ``vector`` (dimensions,) and each of ``ids`` that is in ``collections``."""
        ...

    def passages(self, ids: Sequence[int], collections: Collection[str]) -> list[Found]:
        """Those of ``ids`` that are in ``collections``, in this order."""
        ...

    def close(self) -> None:
        """Leave it. Nothing is lost."""
        ...


def check_added(document: Document, passages: Sequence[Passage], vectors: Vectors, dimensions: int) -> None:
    """Raise :class:`UsageError` for what no store takes."""
    import numpy as np  # noqa: PLC0415 -- of the room alone

    for name in (document.collection, document.name):
        if not 0 < len(name) <= MAX_NAME or not name.isprintable():
            raise UsageError(f"a name has 1 to {MAX_NAME} characters that print")
    if vectors.shape != (len(passages), dimensions) or not np.isfinite(vectors).all():
        raise UsageError(f"{len(passages)} passages came with vectors of the shape {vectors.shape}")
    if not vectors.any(axis=1).all():
        raise UsageError("a vector of nothing but zeros is near to nothing")


def check_asked(vector: Vectors, dimensions: int) -> None:
    """Raise :class:`UsageError` for a vector that is none of this store's."""
    if vector.shape != (dimensions,):
        raise UsageError(f"a vector of this index has {dimensions} numbers, and not {vector.shape}")
    if not vector.any():
        raise UsageError("a vector of nothing but zeros is near to nothing")


def best(ranked: list[Scored], most: int) -> list[Scored]:
    """The best of several collections."""
    return sorted(ranked, key=lambda one: (-one[1], one[0]))[:most]


def bounded(most: int) -> int:
    """``most``, which is a number of passages that can be asked for."""
    if not 1 <= most <= MAX_FOUND:
        raise UsageError(f"1 to {MAX_FOUND} passages can be asked for, and not {most}")
    return most
