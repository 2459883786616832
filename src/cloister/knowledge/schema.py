"""The tables of an index (docs/spec/knowledge-index.md)."""

from __future__ import annotations

from typing import Any, Final

from cloister.errors import UsageError

FORMAT: Final = "cloister/knowledge-index/v3"
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
TOKENIZER: Final = "porter unicode61 remove_diacritics 2"
"""Of FTS5."""
_WORDS: Final = """
CREATE VIRTUAL TABLE words_{0} USING fts5 (heading, text, tokenize='{1}');
INSERT INTO words_{0} (words_{0}, rank) VALUES ('secure-delete', 1);
"""
"""Of one collection, by its number, and with the tokenizer."""


def prepare(turn: Any, *, model: str, dimensions: int) -> None:
    """Make the tables where there are none. Raises UsageError for an index of another kind."""
    facts = {"format": FORMAT, "model": model, "dimensions": str(dimensions)}
    if turn.execute("SELECT 1 FROM sqlite_master LIMIT 1").fetchone() is None:
        for statement in _SCHEMA.split(";\n"):
            turn.execute(statement)
        turn.executemany("INSERT INTO facts VALUES (?, ?)", sorted(facts.items()))
    found = dict(turn.execute("SELECT name, value FROM facts").fetchall())
    for name, value in facts.items():
        if found.get(name) != value:
            raise UsageError(
                f"this index was made with the {name} {found.get(name)!r}, and not {value!r}",
                todo="make another one, and add the documents again",
            )


def collection_number(turn: Any, name: str) -> int:
    """Of the collection, which is begun where there is none."""
    row = turn.execute("SELECT id FROM collections WHERE name = ?", (name,)).fetchone()
    if row is not None:
        return int(row[0])
    own = int(turn.execute("INSERT INTO collections (name) VALUES (?)", (name,)).lastrowid)
    for statement in _WORDS.format(own, TOKENIZER).split(";\n"):
        turn.execute(statement)
    return own
