"""Documents are cut along their structure, within the bound, and nothing that was in them is lost."""

from __future__ import annotations

import itertools
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloister.errors import UsageError
from cloister.knowledge.passages import LEAST, Block, Passage, cut


def words(text: str) -> int:
    """A tokenizer that takes words of four letters and what is left of longer ones."""
    return sum(-(-len(word) // 4) for word in text.split())


def passages(*blocks: Block, most: int = 16, overlap: int = 0) -> list[Passage]:
    return list(cut(blocks, most=most, count=words, overlap=overlap))


def heading(text: str, level: int, page: int | None = None) -> Block:
    return Block(text, "heading", level, page)


def test_a_passage_stands_under_its_headings_and_never_in_two_sections() -> None:
    found = passages(
        heading("Guide", 1), Block("Read this."), heading("Lungs", 2), heading("Asthma", 3), Block("It is one."),
        heading("Heart", 2), Block("Another one."),
    )  # fmt: skip
    assert found == [
        Passage("Read this.", ("Guide",)),
        Passage("It is one.", ("Guide", "Lungs", "Asthma")),
        Passage("Another one.", ("Guide", "Heart")),
    ]


def test_a_level_that_is_left_out_counts_as_the_next() -> None:
    assert passages(heading("A", 1), heading("B", 4), heading("C", 2), Block("x"))[0].headings == ("A", "C")
    assert passages(heading("B", 5), Block("x"))[0].headings == ("B",)
    assert passages(heading(" \n ", 1), Block("x"))[0].headings == ()


def test_what_fits_is_one_passage_and_keeps_its_paragraphs() -> None:
    found = passages(Block("One is it. Two is it."), Block("Three."), Block("a", "item"), Block("b", "item"))
    assert [one.text for one in found] == ["One is it. Two is it.\n\nThree.\na\nb"]


def test_what_does_not_fit_is_cut_between_sentences_then_words_then_letters() -> None:
    found = passages(Block("aaaa bbbb cccc dddd. eeee ffff gggg hhhh iiii jjjj. " + "kkkk " * 20 + "l" * 80))
    assert found[0].text == "aaaa bbbb cccc dddd. eeee ffff gggg hhhh iiii jjjj."
    assert all(words(one.text) <= 16 for one in found)
    assert "".join(one.text for one in found).count("l") == 80


def test_sentences_of_scripts_without_spaces_end_where_they_end() -> None:
    found = passages(Block("糖尿病是一种疾病糖尿病是一种疾病糖尿病是一种疾病糖尿病是一种疾病。" * 3), most=16)
    assert [one.text[-1] for one in found] == ["。"] * len(found)


def test_the_next_passage_begins_with_the_sentences_that_the_one_before_ended_with() -> None:
    text = " ".join(f"aaa{number} bbbb cccc." for number in range(9))
    found = passages(Block(text), overlap=6)
    for before, after in itertools.pairwise(found):
        shared = after.text[: after.text.index(".") + 1]
        assert before.text.endswith(shared)
    assert all(words(one.text) <= 16 for one in found)


def test_rows_come_with_their_tables_head() -> None:
    rows = [
        Block("name | dose", "row", head="name | dose"),
        *(Block(f"drug{n} | {n} mg", "row", head="name | dose") for n in range(9)),
    ]
    found = passages(*rows)
    assert all(one.text.startswith("name | dose\n") for one in found)
    assert sum(one.text.count("drug") for one in found) == 9
    assert all(words(one.text) <= 16 for one in found)


def test_code_keeps_its_lines() -> None:
    assert passages(Block("def f():\n    return 1\n", "code"))[0].text == "def f():\n    return 1"


def test_pages_are_from_the_first_to_the_last_that_a_passage_is_on() -> None:
    found = passages(
        Block("a", page=3), Block("b", page=4), heading("H", 1, 4), Block("c", page=5), Block("d")
    )
    assert [(one.first_page, one.last_page) for one in found] == [(3, 4), (5, 5)]
    assert passages(Block("a"))[0].first_page is None


@pytest.mark.parametrize(
    "blocks", [(), (Block(""),), (Block(" \n\t"),), (heading("H", 1),), (heading("H", 1), Block("  "))]
)
def test_a_document_without_text_has_no_passages(blocks: tuple[Block, ...]) -> None:
    assert passages(*blocks) == []


@pytest.mark.parametrize("bounds", [{"most": LEAST - 1}, {"overlap": -1}, {"most": 20, "overlap": 11}])
def test_bounds_that_leave_no_room_are_refused(bounds: dict[str, int]) -> None:
    with pytest.raises(UsageError, match="cannot be cut"):
        passages(Block("x"), **bounds)


TEXTS = st.text("ab c.\n!。é字", max_size=120)


@given(
    blocks=st.lists(
        st.one_of(
            st.builds(
                Block,
                TEXTS,
                st.sampled_from(["paragraph", "item", "row", "code"]),
                head=st.sampled_from(["", "a | b"]),
            ),
            st.builds(heading, TEXTS, st.integers(1, 6)),
        ),
        max_size=8,
    ),
    most=st.integers(LEAST, 40),
    overlap=st.integers(0, 8),
)
def test_no_passage_is_over_the_bound_and_no_letter_is_lost(
    blocks: list[Block], most: int, overlap: int
) -> None:
    found = list(cut(blocks, most=most, count=words, overlap=overlap))
    assert all(0 < words(one.text) <= most for one in found)
    told = "".join("".join(one.text.split()) for one in found)
    # Overlaps and heads may come twice; what is there comes in order.
    place = 0
    for char in re.sub(r"\s", "", "".join(block.text for block in blocks if block.kind != "heading")):
        place = told.index(char, place) + 1


def test_the_same_blocks_give_the_same_passages() -> None:
    blocks: list[Any] = [heading("A", 1), Block("one. two. three. " * 20), Block("x | y", "row", head="h")]
    assert passages(*blocks, overlap=4) == passages(*blocks, overlap=4)
