"""What a store says to PostgreSQL about one collection, whose number takes the place of ``{0}``."""

from __future__ import annotations

from typing import Final

COUNTS: Final = "SELECT term, count(*) FROM words_{0} WHERE term = ANY(CAST(:terms AS text[])) GROUP BY term"
BEST: Final = (
    "SELECT w.passage, sum(asked.tells * w.often * CAST(:up AS float8) / "
    "(w.often + CAST(:low AS float8) + CAST(:long AS float8) * p.tokens)) AS score FROM "
    "(SELECT passage, term, CAST(:heading AS float8) * heading + text AS often FROM words_{0} "
    "WHERE term = ANY(CAST(:terms AS text[])) AND passage IN "
    "(SELECT passage FROM words_{0} WHERE term = ANY(CAST(:rare AS text[])))) w "
    "JOIN unnest(CAST(:terms AS text[]), CAST(:tells AS float8[])) AS asked (term, tells) ON asked.term = w.term "
    "JOIN passages_{0} p ON p.id = w.passage GROUP BY w.passage ORDER BY score DESC, w.passage LIMIT :most"
)
NEAREST: Final = (
    "SELECT id, 1 - (vector <=> CAST(:asked AS vector)) FROM passages_{0} ORDER BY vector <=> CAST(:asked AS vector) "
    "LIMIT :most"
)
NEARNESS: Final = (
    "SELECT id, 1 - (vector <=> CAST(:asked AS vector)) FROM passages_{0} "
    "WHERE id = ANY(CAST(:ids AS bigint[]))"
)
PLACES: Final = (
    "SELECT p.id, d.name, d.title, p.number, p.text, p.headings, p.first_page, p.last_page FROM passages_{0} p "
    "JOIN documents d ON d.id = p.document WHERE p.id = ANY(CAST(:ids AS bigint[]))"
)
PASSAGES: Final = (
    "INSERT INTO passages_{0} SELECT id, :document, number, headings, first, last, text, tokens, CAST(vector AS vector) "
    "FROM unnest(CAST(:ids AS bigint[]), CAST(:numbers AS bigint[]), CAST(:headings AS text[]), "
    "CAST(:firsts AS bigint[]), CAST(:lasts AS bigint[]), CAST(:texts AS text[]), CAST(:tokens AS bigint[]), "
    "CAST(:vectors AS text[])) AS sent (id, number, headings, first, last, text, tokens, vector)"
)
WORDS: Final = (
    "INSERT INTO words_{0} SELECT * FROM unnest(CAST(:terms AS text[]), CAST(:ids AS bigint[]), "
    "CAST(:headings AS bigint[]), CAST(:texts AS bigint[]))"
)
GONE: Final = "DELETE FROM passages_{0} WHERE document = :document RETURNING tokens"
