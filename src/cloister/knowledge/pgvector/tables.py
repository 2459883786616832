"""The tables of a store (docs/spec/knowledge-store.md), and the locks that keep changes apart.

A collection has tables of its own, so that nothing of others takes part in a question. Two locks, each of a transaction:
changes take the first one after another; whoever reads shares the second, which only the end of a collection takes alone.
"""

from __future__ import annotations

from typing import Final

from cloister.errors import UsageError
from cloister.knowledge.pgvector.link import Run

FORMAT: Final = "cloister/knowledge-store/v1"
OLDEST: Final = (0, 8)
"""Of pgvector, whose older ones find less where passages were removed."""
MAX_INDEXED: Final = 2000
"""Numbers of a vector that pgvector makes an index of; longer ones are compared one by one."""
_CHANGES: Final = 0x636C6F01
_READERS: Final = 0x636C6F02
_SCHEMA: Final = (
    "CREATE EXTENSION IF NOT EXISTS vector",
    "CREATE SCHEMA IF NOT EXISTS cloister",
    "CREATE TABLE facts (name text PRIMARY KEY, value text NOT NULL)",
    "CREATE SEQUENCE passage_ids",
    "CREATE TABLE collections (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, name text NOT NULL UNIQUE, "
    "passages bigint NOT NULL DEFAULT 0, tokens bigint NOT NULL DEFAULT 0)",
    "CREATE TABLE documents (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, collection bigint NOT NULL "
    "REFERENCES collections, key bytea NOT NULL, name text NOT NULL, title text NOT NULL, digest bytea NOT NULL, "
    "passages bigint NOT NULL, added bigint NOT NULL, UNIQUE (collection, key))",
)
_OWN: Final = (
    "CREATE TABLE passages_{0} (id bigint PRIMARY KEY, document bigint NOT NULL, "
    "number bigint NOT NULL, headings text NOT NULL, first_page bigint, last_page bigint, text text NOT NULL, "
    "tokens bigint NOT NULL, vector vector({1}) NOT NULL, UNIQUE (document, number))",
    "CREATE TABLE words_{0} (term text NOT NULL, passage bigint NOT NULL REFERENCES passages_{0} ON DELETE CASCADE, "
    "heading bigint NOT NULL, text bigint NOT NULL, PRIMARY KEY (term, passage))",
    "CREATE INDEX words_passage_{0} ON words_{0} (passage)",
)
_END: Final = "DROP TABLE words_{0}, passages_{0}"
_NEAR: Final = "CREATE INDEX near_{0} ON passages_{0} USING hnsw (vector vector_cosine_ops)"
"""Malkov and Yashunin, arXiv 1603.09320."""


def prepare(run: Run, *, model: str, dimensions: int) -> None:
    """Make the tables where there are none. Raises UsageError for a store of another kind."""
    change(run)
    facts = {"format": FORMAT, "model": model, "dimensions": str(dimensions)}
    if not run("SELECT 1 FROM pg_tables WHERE schemaname = 'cloister' AND tablename = 'facts'"):
        for statement in _SCHEMA:
            run(statement)
        for name, value in facts.items():
            run("INSERT INTO facts VALUES (:name, :value)", name=name, value=value)
    found = dict(run("SELECT name, value FROM facts"))
    (extension,) = run("SELECT extversion FROM pg_extension WHERE extname = 'vector'")
    if tuple(int(part) for part in extension[0].split(".")[:2]) < OLDEST:
        raise UsageError(
            f"the server's pgvector is {extension[0]}",
            todo="0.8 or newer is needed: say ALTER EXTENSION vector UPDATE",
        )
    for name, value in facts.items():
        if found.get(name) != value:
            raise UsageError(
                f"this database was made with the {name} {found.get(name)!r}, and not {value!r}",
                todo="make another one, and add the documents again",
            )


def change(run: Run) -> None:
    """Until the transaction ends, nobody else changes anything."""
    run("SELECT pg_advisory_xact_lock(:own)", own=_CHANGES)
    look(run)


def look(run: Run) -> None:
    """Until the transaction ends, no collection ends."""
    run("SELECT pg_advisory_xact_lock_shared(:own)", own=_READERS)


def collection_number(run: Run, name: str, dimensions: int) -> int:
    """Of the collection, which is begun where there is none."""
    rows = run("SELECT id FROM collections WHERE name = :name", name=name)
    if rows:
        return int(rows[0][0])
    own = int(run("INSERT INTO collections (name) VALUES (:name) RETURNING id", name=name)[0][0])
    near = [_NEAR] if dimensions <= MAX_INDEXED else []
    for statement in (*_OWN, *near):
        run(statement.format(own, dimensions))
    return own


def end_collection(run: Run, own: int) -> None:
    """Its tables go, once nobody reads."""
    run("SELECT pg_advisory_xact_lock(:own)", own=_READERS)
    run(_END.format(own))
    run("DELETE FROM collections WHERE id = :own", own=own)


def numbers(run: Run, names: str) -> dict[int, str]:
    """Of those of these collections (an array) that there are."""
    rows = run(
        "SELECT id, name FROM collections WHERE name = ANY(CAST(:names AS text[])) ORDER BY id", names=names
    )
    return dict(rows)
