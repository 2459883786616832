"""The index: documents, passages, their words and vectors in one encrypted database (docs/spec/knowledge-index.md).

SQLCipher encrypts and authenticates every page, FTS5 finds words; signs in memory say which vectors may be near, sqlite-vec
compares these. One connection, whose turns a lock gives; each change is one transaction: a document is there with all its
passages or not at all, and what is removed is overwritten. Every question names the collections that may answer it, and
nothing of others takes part in it: each collection has a table of words of its own, since how rare a word is decides
about the order.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self

from cloister.knowledge.database import Database
from cloister.knowledge.passages import Passage
from cloister.knowledge.schema import collection_number, prepare
from cloister.knowledge.store import Document, Found, Scored, best, bounded, check_added, check_asked
from cloister.knowledge.texts import HEADING, asked_words, set_apart, words_query

if TYPE_CHECKING:
    from cloister.knowledge.embedding import Vectors
    from cloister.knowledge.nearest import Signs

COARSE: Final = 8
"""Times as many candidates are taken by their signs as are ranked by their vectors, and :data:`CANDIDATES` at least."""
CANDIDATES: Final = 200


class Index:
    """One database. Threads may share it. Raises KnowledgeError for a database that is damaged, or under another key."""

    def __init__(self, database: Database, dimensions: int) -> None:
        self._database = database
        self.dimensions = dimensions
        self._signs: dict[int, Signs] = {}
        """By collection, of those that somebody asked."""

    @classmethod
    def open(cls, path: Path, key: bytes, *, model: str, dimensions: int) -> Self:
        """The index at ``path``, which is made where there is none; ``model`` is what its vectors were computed with."""
        database = Database.open(path, key)
        try:
            index = cls(database, dimensions)
            with database.turn() as turn:
                prepare(turn, model=model, dimensions=dimensions)
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
        check_added(document, passages, vectors, self.dimensions)
        with self._changing() as turn:
            if self._digest(turn, document.collection, document.name) == document.digest:
                return False
            self._remove(turn, document.collection, document.name)
            collection = collection_number(turn, document.collection)
            own = turn.execute(
                "INSERT INTO documents (collection, name, title, digest, passages, added) VALUES (?, ?, ?, ?, ?, ?)",
                (collection, document.name, document.title, document.digest, len(passages), document.added),
            ).lastrowid
            ids = [
                self._put(turn, collection, own, number, document.title, passage, vector)
                for number, (passage, vector) in enumerate(zip(passages, vectors, strict=True), 1)
            ]
            if collection in self._signs:
                self._signs[collection].put(ids, vectors)
        return True

    def remove(self, collection: str, name: str) -> bool:
        """Remove a document with all that was made of it. Whether it was there."""
        with self._changing() as turn:
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

    def by_words(self, question: str, collections: Collection[str], most: int) -> list[Scored]:
        """Passages with words of ``question``, by BM25, the best first; a word in title or headings counts four times."""
        words, ranked, most = asked_words(question), list[Scored](), bounded(most)
        with self._database.turn() as turn:
            for collection in self._known(turn, collections):
                own = f"words_{collection}"
                matching = f"FROM {own} WHERE {own} MATCH ?"
                counts = {
                    word: turn.execute(f"SELECT count(*) {matching}", (word,)).fetchone()[0] for word in words
                }
                if query := words_query(counts):
                    ranked += turn.execute(
                        f"SELECT rowid, -bm25({own}, {HEADING}, 1.0) AS score {matching} ORDER BY score DESC, rowid LIMIT ?",
                        (query, most),
                    ).fetchall()
        return best(ranked, most)

    def by_vector(self, vector: Vectors, collections: Collection[str], most: int) -> list[Scored]:
        """Passages whose vectors are nearest to ``vector`` (dimensions,), with their cosines, the nearest first.

        Their signs choose :data:`COARSE` times as many, their cosines rank these.
        """
        check_asked(vector, self.dimensions)
        blob, wide = vector.astype("<f4").tobytes(), min(4096, max(CANDIDATES, COARSE * bounded(most)))
        ranked: list[Scored] = []
        with self._database.turn() as turn:
            for collection in self._known(turn, collections):
                near = self._signs_of(turn, collection).nearest(vector, wide)
                ranked += turn.execute(
                    "SELECT passage, 1.0 - vec_distance_cosine(vector, ?) AS cosine FROM vectors "
                    "WHERE passage IN (SELECT value FROM json_each(?)) ORDER BY cosine DESC, passage LIMIT ?",
                    (blob, json.dumps(near), most),
                ).fetchall()
        return best(ranked, most)

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

    @contextmanager
    def _changing(self) -> Iterator[Any]:
        """A transaction; where it fails, what is known of signs may be of what is not there."""
        with self._database.turn() as turn:
            try:
                yield turn
            except BaseException:
                self._signs.clear()
                raise

    def _signs_of(self, turn: Any, collection: int) -> Signs:
        """Read from its vectors when it is asked first."""
        import numpy as np  # noqa: PLC0415 -- of the room alone

        from cloister.knowledge.nearest import Signs  # noqa: PLC0415 -- as above

        if collection not in self._signs:
            signs = Signs(self.dimensions)
            rows = turn.execute(
                "SELECT v.passage, v.vector FROM vectors v JOIN passages p ON p.id = v.passage "
                "JOIN documents d ON d.id = p.document WHERE d.collection = ?",
                (collection,),
            )
            while part := rows.fetchmany(10_000):
                stored = np.frombuffer(b"".join(row[1] for row in part), "<f4")
                signs.put([row[0] for row in part], stored.reshape(len(part), self.dimensions))
            self._signs[collection] = signs
        return self._signs[collection]

    def _put(
        self,
        turn: Any,
        collection: int,
        document: int,
        number: int,
        title: str,
        passage: Passage,
        vector: Vectors,
    ) -> int:
        own: int = turn.execute(
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
        turn.execute("INSERT INTO vectors VALUES (?, ?)", (own, vector.astype("<f4").tobytes()))
        return own

    def _remove(self, turn: Any, collection: str, name: str) -> bool:
        found = turn.execute(
            "SELECT d.id, c.id FROM documents d JOIN collections c ON c.id = d.collection WHERE c.name = ? AND d.name = ?",
            (collection, name),
        ).fetchone()
        if found is None:
            return False
        document, own = found
        passages = turn.execute("SELECT id FROM passages WHERE document = ?", (document,)).fetchall()
        if own in self._signs:
            self._signs[own].drop(passage[0] for passage in passages)
        for passage in passages:
            turn.execute(f"DELETE FROM words_{own} WHERE rowid = ?", passage)  # noqa: S608 -- as above
            turn.execute("DELETE FROM vectors WHERE passage = ?", passage)
        turn.execute("DELETE FROM passages WHERE document = ?", (document,))
        turn.execute("DELETE FROM documents WHERE id = ?", (document,))
        if turn.execute("SELECT 1 FROM documents WHERE collection = ? LIMIT 1", (own,)).fetchone() is None:
            turn.execute(f"DROP TABLE words_{own}")
            turn.execute("DELETE FROM collections WHERE id = ?", (own,))
            self._signs.pop(own, None)
        return True

    @staticmethod
    def _digest(turn: Any, collection: str, name: str) -> bytes | None:
        row = turn.execute(
            "SELECT d.digest FROM documents d JOIN collections c ON c.id = d.collection WHERE c.name = ? AND d.name = ?",
            (collection, name),
        ).fetchone()
        return None if row is None else bytes(row[0])

    @staticmethod
    def _known(turn: Any, collections: Collection[str]) -> list[int]:
        rows = turn.execute(
            "SELECT id FROM collections WHERE name IN (SELECT value FROM json_each(?)) ORDER BY id",
            (json.dumps(sorted(collections)),),
        ).fetchall()
        return [row[0] for row in rows]
