"""Words in windows: every word counts once, where most is around it."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloister.errors import UsageError
from cloister.federated.training.pieces import MAX_SUBWORDS, Marks, pieces

MARKS = Marks(before=(101,), after=(102,), unknown=100)


def spelled(words: Sequence[str]) -> list[list[int]]:
    """A sub-word for each character."""
    return [[ord(character) for character in word] for word in words]


@given(
    words=st.lists(st.text("abc", min_size=0, max_size=40), min_size=1, max_size=120),
    length=st.integers(MAX_SUBWORDS + 2, 80),
    data=st.data(),
)
def test_every_word_counts_once_and_what_is_read_there_is_its_first_sub_word(
    words: list[str], length: int, data: st.DataObject
) -> None:
    stride = data.draw(st.integers(1, length - 2 - MAX_SUBWORDS + 1))
    found = pieces(words, spelled, MARKS, length=length, stride=stride)
    counted = [piece.start + place for piece in found for place in range(len(piece.heads))]
    assert counted == list(range(len(words)))
    for piece in found:
        assert len(piece.tokens) <= length
        assert (piece.tokens[0], piece.tokens[-1]) == (101, 102)
        for place, head in enumerate(piece.heads):
            word = words[piece.start + place]
            assert piece.tokens[head] == (ord(word[0]) if word else MARKS.unknown)


def test_a_word_counts_where_the_lesser_of_its_contexts_is_greatest() -> None:
    words = [chr(ord("a") + place % 26) for place in range(60)]
    found = pieces(words, spelled, MARKS, length=42, stride=5)
    first = found[0]
    # Forty words fit. The next window begins at the sixth: up to the middle of both the first has more to the right.
    assert (first.start, len(first.heads)) == (0, 23)
    assert found[1].start == 23


def test_a_sentence_that_fits_is_read_in_one_piece() -> None:
    (piece,) = pieces(["ab", "c"], spelled, MARKS, length=64, stride=8)
    assert piece.tokens == (101, 97, 98, 99, 102)
    assert piece.heads == (1, 3)


@pytest.mark.parametrize(("length", "stride"), [(MAX_SUBWORDS + 1, 1), (64, 0), (64, 32)])
def test_windows_that_could_lose_a_word_are_refused(length: int, stride: int) -> None:
    with pytest.raises(UsageError, match="do not hold words"):
        pieces(["a"], spelled, MARKS, length=length, stride=stride)
