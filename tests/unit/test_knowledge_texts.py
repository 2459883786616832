"""Questions become queries of quoted words, and letters of scripts without spaces are found one by one."""

from __future__ import annotations

import sqlite3

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloister.knowledge.texts import MAX_WORDS, set_apart, words_query


@pytest.mark.parametrize(
    ("question", "query"),
    [
        ("What is asthma?", '"asthma"'),
        ("asthma asthma", '"asthma"'),
        ("糖尿病", '"糖 尿" OR "尿 病"'),
        ("病", '"病"'),
        ("用aspirin吗", '"用" OR "aspirin" OR "吗"'),
        ("ｆｕｌｌ ﬁt", '"full" OR "fit"'),
        ("", ""),
        ("?!… — _", ""),
        ('" OR 1=1 --', '"OR" OR "1"'),
        ("NEAR(a b) NOT c*", '"NEAR" OR "a" OR "b" OR "NOT" OR "c"'),
    ],
)
def test_a_question_asks_for_any_of_its_words(question: str, query: str) -> None:
    assert words_query(question) == query


def test_a_long_question_is_cut() -> None:
    assert words_query(" ".join(f"word{n}" for n in range(500))).count('"') == 2 * MAX_WORDS


@given(st.text(max_size=60))
def test_no_text_is_an_error_or_an_operator_of_the_index(text: str) -> None:
    database = sqlite3.connect(":memory:")
    database.execute("CREATE VIRTUAL TABLE t USING fts5 (text)")
    database.execute("INSERT INTO t VALUES (?)", (set_apart(text),))
    query = words_query(text)
    if query:
        database.execute("SELECT count(*) FROM t WHERE t MATCH ?", (query,)).fetchone()
    database.close()


def test_letters_of_scripts_without_spaces_stand_alone() -> None:
    assert set_apart("有糖 and sugar").split() == ["有", "糖", "and", "sugar"]


def test_words_that_every_passage_has_are_asked_for_only_where_there_are_no_others() -> None:
    assert words_query("What are the symptoms of asthma?") == '"symptoms" OR "asthma"'
    assert words_query("Who are you?") == '"Who" OR "are" OR "you"'
