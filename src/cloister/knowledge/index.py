"""The index: documents, passages, their words and vectors in one encrypted database (docs/spec/knowledge-index.md).

SQLCipher encrypts and authenticates every page, FTS5 finds words, sqlite-vec vectors. One connection, whose turns a lock
gives; each change is one transaction: a document is there with all its passages or not at all, and what is removed is
overwritten. Every question names the collections that may answer it, and nothing of others takes part in it: each collection
has a table of words of its own, since how rare a word is decides about the order.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self

from cloister.errors import UsageError
from cloister.knowledge.database import Database
from cloister.knowledge.passages import Passage
from cloister.knowledge.texts import set_apart, words_query

if TYPE_CHECKING:
    from cloister.knowledge.embedding import Vectors

FORMAT: Final = "cloister/knowledge-index/v2"
COARSE: Final = 8
"""Times as many candidates are taken by their signs as are ranked by their vectors, and :data:`CANDIDATES` at least."""
CANDIDATES: Final = 200
MAX_FOUND: Final = 1000
MAX_NAME: Final = 1024
_SCHEMA: Final = """
CREATE TABLE facts (name TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT;
CREATE TABLE collections (id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE) STRICT;
CREATE TABLE documents (
    id INTEGER PRIMARY KEY, collection INTEGER NOT NULL REFERENCES collections, name TEXT NOT NULL, title TEXT NOT NULL,
    digest BLOB NOT NULL, passages INTEGER NOT NULL, added INTEGER NOT NULL, UNIQUE (collection, name)
) STRICT;
CREATE TABLE passages (
    id INTEGER PRIMARY KEY, document INTEGER NOT NULL REFERENCES documents, number INTEGER NOT NULL, headings TEXT NOT NULL,
    first_page INTEGER, last_page INTEGER, text TEXT NOT NULL, UNIQUE (document, number)
) STRICT;
CREATE TABLE vectors (passage INTEGER PRIMARY KEY, vector BLOB NOT NULL) STRICT;
"""
_WORDS: Final = """
CREATE VIRTUAL TABLE words_{0} USING fts5 (heading, text, tokenize='porter unicode61 remove_diacritics 2');
INSERT INTO words_{0} (words_{0}, rank) VALUES ('secure-delete', 1);
"""
"""Of one collection, by its number."""


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


class Index:
    """One database. Threads may share it. Raises KnowledgeError for a database that is damaged, or under another key."""

    def __init__(self, database: Database, dimensions: int) -> None:
        self._database = database
        self.dimensions = dimensions

    @classmethod
    def open(cls, path: Path, key: bytes, *, model: str, dimensions: int) -> Self:
        """The index at ``path``, which is made where there is none; ``model`` is what its vectors were computed with."""
        database = Database.open(path, key)
        try:
            index = cls(database, dimensions)
            with database.turn() as turn:
                index._prepare(turn, {"format": FORMAT, "model": model, "dimensions": str(dimensions)})
        except BaseException:
            database.close()
            raise
        return index

    def close(self) -> None:
        self._database.close()

    @contextmanager
    def still(self) -> Iterator[None]:
        """While this lasts nothing changes: its file is what was last committed."""
        with self._database.turn():
            yield

    def add(self, document: Document, passages: Sequence[Passage], vectors: Vectors) -> bool:
        """Put a document in place of the one of its name. Whether anything changed: its digest may be there already.

        ``vectors`` is (passages, dimensions).
        """
        import numpy as np  # noqa: PLC0415 -- of the room alone

        _check_name(document.collection)
        _check_name(document.name)
        if vectors.shape != (len(passages), self.dimensions) or not np.isfinite(vectors).all():
            raise UsageError(f"{len(passages)} passages came with vectors of the shape {vectors.shape}")
        with self._database.turn() as turn:
            if self._digest(turn, document.collection, document.name) == document.digest:
                return False
            self._remove(turn, document.collection, document.name)
            collection = self._collection(turn, document.collection)
            own = turn.execute(
                "INSERT INTO documents (collection, name, title, digest, passages, added) VALUES (?, ?, ?, ?, ?, ?)",
                (collection, document.name, document.title, document.digest, len(passages), document.added),
            ).lastrowid
            for number, (passage, vector) in enumerate(zip(passages, vectors, strict=True), 1):
                self._put(turn, collection, own, number, document.title, passage, vector)
        return True

    def remove(self, collection: str, name: str) -> bool:
        """Remove a document with all that was made of it. Whether it was there."""
        with self._database.turn() as turn:
            return self._remove(turn, collection, name)

    def digest(self, collection: str, name: str) -> bytes | None:
        """Of the document of this name, if there is one."""
        with self._database.turn() as turn:
            return self._digest(turn, collection, name)

    def documents(self, collections: Collection[str]) -> list[Document]:
        """All of these collections, by name."""
        with self._database.turn() as turn:
            rows = turn.execute(
                "SELECT c.name, d.name, d.title, d.digest, d.passages, d.added FROM documents d JOIN collections c "
                "ON c.id = d.collection WHERE c.name IN (SELECT value FROM json_each(?)) ORDER BY c.name, d.name",
                (json.dumps(sorted(collections)),),
            ).fetchall()
        return [Document(*row) for row in rows]

    def by_words(self, question: str, collections: Collection[str], most: int) -> list[int]:
        """Passages with words of ``question``, the best first (BM25; a word in title or heading counts twice)."""
        query = words_query(question)
        if not query:
            return []
        ranked: list[tuple[float, int]] = []
        with self._database.turn() as turn:
            for collection in self._known(turn, collections):
                words = f"words_{collection}"
                ranked += turn.execute(
                    f"SELECT bm25({words}, 2.0, 1.0) AS score, rowid FROM {words} WHERE {words} MATCH ? "  # noqa: S608 -- a number
                    "ORDER BY score, rowid LIMIT ?",
                    (query, _bounded(most)),
                ).fetchall()
        return [passage for _, passage in sorted(ranked)[:most]]

    def by_vector(self, vector: Vectors, collections: Collection[str], most: int) -> list[int]:
        """Passages whose vectors are nearest to ``vector`` (dimensions,), the nearest first.

        Their signs choose :data:`COARSE` times as many, their cosines rank these.
        """
        if vector.shape != (self.dimensions,):
            raise UsageError(f"a vector of this index has {self.dimensions} numbers, and not {vector.shape}")
        blob, wide = vector.astype("<f4").tobytes(), min(4096, max(CANDIDATES, COARSE * _bounded(most)))
        ranked: list[tuple[float, int]] = []
        with self._database.turn() as turn:
            for collection in self._known(turn, collections):
                ranked += turn.execute(
                    "SELECT vec_distance_cosine(v.vector, ?) AS distance, s.passage FROM signs s JOIN vectors v "
                    "ON v.passage = s.passage WHERE s.signs MATCH vec_quantize_binary(?) AND k = ? AND s.collection = ? "
                    "ORDER BY distance LIMIT ?",
                    (blob, blob, wide, collection, most),
                ).fetchall()
        return [passage for _, passage in sorted(ranked)[:most]]

    def nearness(self, vector: Vectors, ids: Sequence[int], collections: Collection[str]) -> dict[int, float]:
        """The cosine between ``vector`` (dimensions,) and each of ``ids`` that is in ``collections``."""
        blob = vector.astype("<f4").tobytes()
        found: dict[int, float] = {}
        with self._database.turn() as turn:
            known = frozenset(self._known(turn, collections))
            for own in ids:
                row = turn.execute(
                    "SELECT d.collection, vec_distance_cosine(v.vector, ?) FROM vectors v JOIN passages p "
                    "ON p.id = v.passage JOIN documents d ON d.id = p.document WHERE v.passage = ?",
                    (blob, own),
                ).fetchone()
                if row is not None and row[0] in known:
                    found[own] = 1.0 - row[1]
        return found

    def passages(self, ids: Sequence[int], collections: Collection[str]) -> list[Found]:
        """Those of ``ids`` that are in ``collections``, in this order."""
        with self._database.turn() as turn:
            rows = turn.execute(
                "SELECT p.id, c.name, d.name, d.title, p.number, p.text, p.headings, p.first_page, p.last_page "
                "FROM passages p JOIN documents d ON d.id = p.document JOIN collections c ON c.id = d.collection "
                "WHERE p.id IN (SELECT value FROM json_each(?)) AND c.name IN (SELECT value FROM json_each(?))",
                (json.dumps(list(ids)), json.dumps(sorted(collections))),
            ).fetchall()
        found = {}
        for own, collection, document, title, number, text, headings, first, last in rows:
            passage = Passage(text, tuple(json.loads(headings)), first, last)
            found[own] = Found(own, collection, document, title, number, passage)
        return [found[one] for one in ids if one in found]

    def _prepare(self, turn: Any, facts: dict[str, str]) -> None:
        if turn.execute("SELECT 1 FROM sqlite_master LIMIT 1").fetchone() is None:
            for statement in _SCHEMA.split(";\n"):
                turn.execute(statement)
            turn.execute(
                "CREATE VIRTUAL TABLE signs USING vec0 (passage INTEGER PRIMARY KEY, collection INTEGER PARTITION KEY, "
                f"signs BIT[{self.dimensions}])"
            )
            turn.executemany("INSERT INTO facts VALUES (?, ?)", sorted(facts.items()))
        found = dict(turn.execute("SELECT name, value FROM facts").fetchall())
        for name, value in facts.items():
            if found.get(name) != value:
                raise UsageError(
                    f"this index was made with the {name} {found.get(name)!r}, and not {value!r}",
                    todo="make another one, and add the documents again",
                )

    def _put(
        self,
        turn: Any,
        collection: int,
        document: int,
        number: int,
        title: str,
        passage: Passage,
        vector: Vectors,
    ) -> None:
        own = turn.execute(
            "INSERT INTO passages (document, number, headings, first_page, last_page, text) VALUES (?, ?, ?, ?, ?, ?)",
            (
                document, number, json.dumps(passage.headings, ensure_ascii=False), passage.first_page, passage.last_page,
                passage.text,
            ),
        ).lastrowid  # fmt: skip
        heading = set_apart(" ".join((title, *passage.headings)))
        turn.execute(
            f"INSERT INTO words_{collection} (rowid, heading, text) VALUES (?, ?, ?)",  # noqa: S608 -- as above
            (own, heading, set_apart(passage.text)),
        )
        blob = vector.astype("<f4").tobytes()
        turn.execute("INSERT INTO vectors VALUES (?, ?)", (own, blob))
        turn.execute(
            "INSERT INTO signs (passage, collection, signs) VALUES (?, ?, vec_quantize_binary(?))",
            (own, collection, blob),
        )

    def _remove(self, turn: Any, collection: str, name: str) -> bool:
        found = turn.execute(
            "SELECT d.id, c.id FROM documents d JOIN collections c ON c.id = d.collection WHERE c.name = ? AND d.name = ?",
            (collection, name),
        ).fetchone()
        if found is None:
            return False
        document, own = found
        for passage in turn.execute("SELECT id FROM passages WHERE document = ?", (document,)).fetchall():
            turn.execute(f"DELETE FROM words_{own} WHERE rowid = ?", passage)  # noqa: S608 -- as above
            turn.execute("DELETE FROM vectors WHERE passage = ?", passage)
            turn.execute("DELETE FROM signs WHERE passage = ?", passage)
        turn.execute("DELETE FROM passages WHERE document = ?", (document,))
        turn.execute("DELETE FROM documents WHERE id = ?", (document,))
        if turn.execute("SELECT 1 FROM documents WHERE collection = ? LIMIT 1", (own,)).fetchone() is None:
            turn.execute(f"DROP TABLE words_{own}")
            turn.execute("DELETE FROM collections WHERE id = ?", (own,))
        return True

    @staticmethod
    def _digest(turn: Any, collection: str, name: str) -> bytes | None:
        row = turn.execute(
            "SELECT d.digest FROM documents d JOIN collections c ON c.id = d.collection WHERE c.name = ? AND d.name = ?",
            (collection, name),
        ).fetchone()
        return None if row is None else bytes(row[0])

    @staticmethod
    def _collection(turn: Any, name: str) -> int:
        """The number of the collection, which is begun where there is none."""
        row = turn.execute("SELECT id FROM collections WHERE name = ?", (name,)).fetchone()
        if row is not None:
            return int(row[0])
        own = int(turn.execute("INSERT INTO collections (name) VALUES (?)", (name,)).lastrowid)
        for statement in _WORDS.format(own).split(";\n"):
            turn.execute(statement)
        return own

    @staticmethod
    def _known(turn: Any, collections: Collection[str]) -> list[int]:
        rows = turn.execute(
            "SELECT id FROM collections WHERE name IN (SELECT value FROM json_each(?)) ORDER BY id",
            (json.dumps(sorted(collections)),),
        ).fetchall()
        return [row[0] for row in rows]


def _check_name(name: str) -> None:
    if not 0 < len(name) <= MAX_NAME or not name.isprintable():
        raise UsageError(f"a name has 1 to {MAX_NAME} characters that print")


def _bounded(most: int) -> int:
    if not 1 <= most <= MAX_FOUND:
        raise UsageError(f"1 to {MAX_FOUND} passages can be asked for, and not {most}")
    return most
