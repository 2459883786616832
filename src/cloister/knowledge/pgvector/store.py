"""A store over PostgreSQL with pgvector: what the embedded index does (knowledge/index.py), for more than memory holds.

Words are ranked by the same BM25 over the same tokens, vectors by their cosine, found by an HNSW graph for each collection.
Several services may share one database.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final, Self

from cloister.knowledge.passages import Passage
from cloister.knowledge.pgvector.link import Link, Run, reached, texts
from cloister.knowledge.pgvector.statements import (
    BEST,
    COUNTS,
    GONE,
    NEAREST,
    NEARNESS,
    PASSAGES,
    PLACES,
    WORDS,
)
from cloister.knowledge.pgvector.tables import (
    change,
    collection_number,
    end_collection,
    look,
    numbers,
    prepare,
)
from cloister.knowledge.pgvector.tokens import Terms, Tokens
from cloister.knowledge.store import Document, Found, Place, Scored, best, bounded, check_added, check_asked
from cloister.knowledge.texts import HEADING, rarer

if TYPE_CHECKING:
    from cloister.knowledge.embedding import Vectors

K1: Final = 1.2
B: Final = 0.75
"""Of BM25, as FTS5 has them."""
LEAST: Final = 1e-6
"""What a word tells that most passages have, as FTS5 says."""
LOOKED_AT: Final = 1000
"""Of a graph's nodes, at most, which is pgvector's bound; four times as many as are asked for, and 200 at least."""
_PART: Final = 200
"""Passages that are sent at once."""


class PgvectorStore:
    """A :class:`~cloister.knowledge.store.Store`. Threads may share it."""

    def __init__(self, questions: Link, changes: Link, dimensions: int) -> None:
        self._questions = questions
        self._changes = changes
        """A long document holds up no question."""
        self._tokens = Tokens()
        self.dimensions = dimensions

    @classmethod
    def open(cls, place: Place, *, model: str, dimensions: int) -> Self:
        """The tables at ``place``, which are made where there are none; ``model`` is what vectors are computed with.

        Raises NetworkError, KnowledgeError, UsageError.
        """
        changes = Link(place)
        try:
            reached(changes)
            with changes.turn() as run:
                prepare(run, model=model, dimensions=dimensions)
        except BaseException:
            changes.close()
            raise
        return cls(Link(place), changes, dimensions)

    def close(self) -> None:
        for link in (self._questions, self._changes):
            link.close()
        self._tokens.close()

    def add(self, document: Document, passages: Sequence[Passage], vectors: Vectors) -> bool:
        check_added(document, passages, vectors, self.dimensions)
        with self._changes.turn() as run:
            change(run)
            if _digest(run, document.collection, document.name) == document.digest:
                return False
            _remove(run, document.collection, document.name, last=False)
            collection = collection_number(run, document.collection, self.dimensions)
            own = run(
                "INSERT INTO documents (collection, key, name, title, digest, passages, added) "
                "VALUES (:collection, :key, :name, :title, :digest, :passages, :added) RETURNING id",
                collection=collection, key=_key(document.name), name=document.name, title=_plain(document.title),
                digest=document.digest, passages=len(passages), added=document.added,
            )[0][0]  # fmt: skip
            tokens = 0
            for start in range(0, len(passages), _PART):
                part = passages[start : start + _PART]
                terms = self._tokens.of(
                    [(" ".join((document.title, *one.headings)), one.text) for one in part]
                )
                tokens += sum(one.length for one in terms)
                _put(run, collection, own, start, part, vectors[start : start + _PART], terms)
            run(
                "UPDATE collections SET passages = passages + :passages, tokens = tokens + :tokens WHERE id = :own",
                passages=len(passages), tokens=tokens, own=collection,
            )  # fmt: skip
        return True

    def remove(self, collection: str, name: str) -> bool:
        with self._changes.turn() as run:
            change(run)
            return _remove(run, collection, name, last=True)

    def digest(self, collection: str, name: str) -> bytes | None:
        with self._looking() as run:
            return _digest(run, collection, name)

    def documents(self, collections: Collection[str]) -> list[Document]:
        with self._looking() as run:
            rows = run(
                "SELECT c.name, d.name, d.title, d.digest, d.passages, d.added FROM documents d "
                "JOIN collections c ON c.id = d.collection WHERE c.name = ANY(CAST(:names AS text[])) "
                'ORDER BY c.name COLLATE "C", d.name COLLATE "C"',
                names=_names(collections),
            )
        return [Document(*row) for row in rows]

    def by_words(self, question: str, collections: Collection[str], most: int) -> list[Scored]:
        terms, ranked, most = self._tokens.asked(question), list[Scored](), bounded(most)
        with self._looking() as run:
            for own in numbers(run, _names(collections)):
                counts = dict(run(COUNTS.format(own), terms=texts(terms)))
                if counts:
                    known = [term for term in terms if term in counts]
                    ranked += _scored(run, own, known, counts, most)
        return best(ranked, most)

    def by_vector(self, vector: Vectors, collections: Collection[str], most: int) -> list[Scored]:
        check_asked(vector, self.dimensions)
        ranked, most = list[Scored](), bounded(most)
        with self._looking() as run:
            run(f"SET LOCAL hnsw.ef_search = {min(LOOKED_AT, max(200, 4 * most))}")
            run("SET LOCAL hnsw.iterative_scan = strict_order")  # beyond what was removed
            for own in numbers(run, _names(collections)):
                rows = run(NEAREST.format(own), asked=_written(vector), most=most)
                ranked += [(row[0], row[1]) for row in rows]
        return best(ranked, most)

    def nearness(self, vector: Vectors, ids: Sequence[int], collections: Collection[str]) -> dict[int, float]:
        check_asked(vector, self.dimensions)
        found: dict[int, float] = {}
        with self._looking() as run:
            for own in numbers(run, _names(collections)):
                rows = run(NEARNESS.format(own), asked=_written(vector), ids=list(ids))
                found |= {row[0]: row[1] for row in rows}
        return found

    def passages(self, ids: Sequence[int], collections: Collection[str]) -> list[Found]:
        found: dict[int, Found] = {}
        with self._looking() as run:
            for own, collection in numbers(run, _names(collections)).items():
                rows = run(PLACES.format(own), ids=list(ids))
                for number, document, title, place, text, headings, first, last in rows:
                    passage = Passage(text, tuple(json.loads(headings)), first, last)
                    found[number] = Found(number, collection, document, title, place, passage)
        return [found[one] for one in ids if one in found]

    @contextmanager
    def _looking(self) -> Iterator[Run]:
        with self._questions.turn() as run:
            look(run)
            yield run


def _scored(run: Run, own: int, terms: Sequence[str], counts: dict[str, int], most: int) -> list[Scored]:
    """By BM25, those passages that have one of the rarer words."""
    passages, tokens = run("SELECT passages, tokens FROM collections WHERE id = :own", own=own)[0]
    passages = max(passages, *counts.values())  # a document may have gone meanwhile
    tells = [max(LEAST, math.log((passages - counts[term] + 0.5) / (counts[term] + 0.5))) for term in terms]
    rows = run(
        BEST.format(own),
        up=K1 + 1, low=K1 * (1 - B), long=K1 * B * passages / max(1, tokens), heading=HEADING,
        terms=texts(terms), rare=texts(rarer(counts)), tells=tells, most=most,
    )  # fmt: skip
    return [(row[0], row[1]) for row in rows]


def _put(
    run: Run,
    collection: int,
    document: int,
    before: int,
    passages: Sequence[Passage],
    vectors: Vectors,
    terms: Sequence[Terms],
) -> None:
    """Passages of a document, ``before`` of which are there."""
    ids = [
        row[0]
        for row in run("SELECT nextval('passage_ids') FROM generate_series(1, :many)", many=len(passages))
    ]
    run(
        PASSAGES.format(collection),
        document=document, ids=ids, numbers=list(range(before + 1, before + 1 + len(passages))),
        headings=texts(json.dumps([_plain(line) for line in one.headings], ensure_ascii=False) for one in passages),
        firsts=[one.first_page for one in passages], lasts=[one.last_page for one in passages],
        texts=texts(_plain(one.text) for one in passages), tokens=[one.length for one in terms],
        vectors=texts(map(_written, vectors)),
    )  # fmt: skip
    words = [
        (term, own, *often) for own, one in zip(ids, terms, strict=True) for term, often in one.counts.items()
    ]
    run(
        WORDS.format(collection),
        terms=texts(_plain(one[0]) for one in words), ids=[one[1] for one in words],
        headings=[one[2] for one in words], texts=[one[3] for one in words],
    )  # fmt: skip


def _remove(run: Run, collection: str, name: str, *, last: bool) -> bool:
    """``last``: with its last document a collection ends."""
    rows = run(
        "SELECT d.id, c.id FROM documents d JOIN collections c ON c.id = d.collection "
        "WHERE c.name = ANY(CAST(:names AS text[])) AND d.key = :key",
        names=_names([collection]), key=_key(name),
    )  # fmt: skip
    if not rows:
        return False
    document, own = rows[0]
    gone = run(GONE.format(own), document=document)
    run(
        "UPDATE collections SET passages = passages - :passages, tokens = tokens - :tokens WHERE id = :own",
        passages=len(gone), tokens=sum(row[0] for row in gone), own=own,
    )  # fmt: skip
    run("DELETE FROM documents WHERE id = :document", document=document)
    if last and not run("SELECT 1 FROM documents WHERE collection = :own LIMIT 1", own=own):
        end_collection(run, own)
    return True


def _digest(run: Run, collection: str, name: str) -> bytes | None:
    rows = run(
        "SELECT d.digest FROM documents d JOIN collections c ON c.id = d.collection "
        "WHERE c.name = ANY(CAST(:names AS text[])) AND d.key = :key",
        names=_names([collection]), key=_key(name),
    )  # fmt: skip
    return bytes(rows[0][0]) if rows else None


def _names(collections: Collection[str]) -> str:
    """An array of those that a collection can have."""
    return texts(sorted(name for name in collections if name.isprintable()))


def _key(name: str) -> bytes:
    """What an index over names of any length has."""
    return hashlib.sha256(name.encode()).digest()


def _plain(text: str) -> str:
    """PostgreSQL's texts have no NUL."""
    return text.replace("\0", "\ufffd")


def _written(vector: Vectors) -> str:
    return "[" + ",".join(repr(float(number)) for number in vector) + "]"
