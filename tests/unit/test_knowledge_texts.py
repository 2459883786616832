"""Questions become queries of quoted words, and letters of scripts without spaces are found one by one."""

from __future__ import annotations

import random
import sqlite3

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloister.knowledge.texts import MAX_WORDS, asked_words, set_apart, words_query


@pytest.mark.parametrize(
    ("question", "words"),
    [
        ("What is asthma?", ['"asthma"']),
        ("asthma asthma", ['"asthma"']),
        ("糖尿病", ['"糖 尿"', '"尿 病"']),
        ("病", ['"病"']),
        ("用aspirin吗", ['"用"', '"aspirin"', '"吗"']),
        ("ｆｕｌｌ ﬁt", ['"full"', '"fit"']),
        ("", []),
        ("?!… — _", []),
        ('" OR 1=1 --', ['"1"']),
        ("NEAR(b AND) NOT c*", ['"NEAR"', '"b"', '"c"']),
        ("NOT OR AND", ['"NOT"', '"OR"', '"AND"']),
    ],
)
def test_a_question_asks_for_its_words(question: str, words: list[str]) -> None:
    assert asked_words(question) == words


def test_a_long_question_is_cut() -> None:
    assert len(asked_words(" ".join(f"word{n}" for n in range(500)))) == MAX_WORDS


@pytest.mark.parametrize(
    ("counts", "query"),
    [
        ({}, ""),
        ({'"a"': 0}, ""),
        ({'"a"': 3, '"b"': 2, '"c"': 0}, '"b" OR "a"'),
        ({'"a"': 30, '"b"': 2}, '("b") AND ("b" OR "a" OR "a")'),
        ({'"a"': 30}, '"a"'),
        ({'"a"': 30, '"b"': 40}, '("a") AND ("a" OR "b" OR "b")'),
    ],
    ids=["no words", "none is there", "all are rare", "one is common", "only a common one", "all are common"],
)
def test_only_passages_with_rarer_words_are_scored(counts: dict[str, int], query: str) -> None:
    assert words_query(counts, scored=10) == query


def test_common_words_decide_between_passages_as_if_all_had_been_scored() -> None:
    database = sqlite3.connect(":memory:")
    database.execute("CREATE VIRTUAL TABLE t USING fts5 (text)")
    draw = random.Random(1)
    for number in range(400):
        text = draw.choices(["of", "the", "lungs", "heart", "skin"], k=20) + ["rare"] * (number % 40 == 0)
        database.execute("INSERT INTO t VALUES (?)", (" ".join(text),))
    counts = {'"rare"': 10, '"lungs"': 390, '"heart"': 390}
    few, every = words_query(counts, scored=20), words_query(counts, scored=1000)
    assert few != every
    ranked = "SELECT rowid, bm25(t) FROM t WHERE t MATCH ? ORDER BY bm25(t), rowid LIMIT 10"
    some, whole = (database.execute(ranked, (query,)).fetchall() for query in (few, every))
    assert [one for one, _ in some] == [one for one, _ in whole]
    assert [score for _, score in some] == pytest.approx([2 * score for _, score in whole], rel=0.2)
    database.close()


@given(st.text(max_size=60))
def test_no_text_is_an_error_or_an_operator_of_the_index(text: str) -> None:
    database = sqlite3.connect(":memory:")
    database.execute("CREATE VIRTUAL TABLE t USING fts5 (text)")
    database.execute("INSERT INTO t VALUES (?)", (set_apart(text),))
    for scored in (0, 100):
        query = words_query(dict.fromkeys(asked_words(text), 1), scored=scored)
        if query:
            database.execute("SELECT count(*) FROM t WHERE t MATCH ?", (query,)).fetchone()
    database.close()


def test_letters_of_scripts_without_spaces_stand_alone() -> None:
    assert set_apart("有糖 and sugar").split() == ["有", "糖", "and", "sugar"]


def test_words_that_every_passage_has_are_asked_for_only_where_there_are_no_others() -> None:
    assert asked_words("What are the symptoms of asthma?") == ['"symptoms"', '"asthma"']
    assert asked_words("Who are you?") == ['"Who"', '"are"', '"you"']
