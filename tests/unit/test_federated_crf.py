"""The CRF against counting: every sequence of tags of a short sentence, scored one by one."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cloister.errors import UsageError
from cloister.federated.training.corpus import TagSet
from cloister.federated.training.crf import Crf

TAGS = TagSet(("A", "B"))
COUNT = len(TAGS.tags)


def crf_of(seed: int) -> tuple[Crf, torch.Generator]:
    draw = torch.Generator().manual_seed(seed)
    crf = Crf(COUNT, TAGS.follows)
    with torch.no_grad():
        for parameter in crf.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=draw))
    return crf, draw


def score(crf: Crf, emissions: torch.Tensor, tags: tuple[int, ...]) -> float:
    total = crf.start[tags[0]] + crf.end[tags[-1]]
    for word, tag in enumerate(tags):
        total = total + emissions[word, tag]
    for before, after in itertools.pairwise(tags):
        total = total + crf.transitions[before, after]
    return float(total.detach())


def may_be(tags: tuple[int, ...]) -> bool:
    pairs = itertools.pairwise((None, *tags))
    return all(TAGS.follows(before, after) for before, after in pairs if after is not None)


@given(
    seed=st.integers(0, 2**32 - 1),
    lengths=st.lists(st.integers(1, 4), min_size=1, max_size=3),
    data=st.data(),
)
def test_the_loss_is_that_of_counting_every_sequence_whatever_stands_beside_it(
    seed: int, lengths: list[int], data: st.DataObject
) -> None:
    crf, draw = crf_of(seed)
    emissions = torch.randn(len(lengths), max(lengths), COUNT, generator=draw)
    tags = [data.draw(st.tuples(*[st.integers(0, COUNT - 1)] * length)) for length in lengths]
    filled = torch.tensor([[*one, *[0] * (max(lengths) - len(one))] for one in tags])
    found = crf.loss(emissions, filled, torch.tensor(lengths))
    for row, (one, length) in enumerate(zip(tags, lengths, strict=True)):
        every = [
            score(crf, emissions[row], other) for other in itertools.product(range(COUNT), repeat=length)
        ]
        expected = math.log(sum(map(math.exp, every))) - score(crf, emissions[row], one)
        assert float(found[row].detach()) == pytest.approx(expected, abs=1e-3)


@given(seed=st.integers(0, 2**32 - 1), lengths=st.lists(st.integers(1, 4), min_size=1, max_size=3))
def test_the_likeliest_tags_that_may_be_are_found_whatever_stands_beside_them(
    seed: int, lengths: list[int]
) -> None:
    crf, draw = crf_of(seed)
    emissions = torch.randn(len(lengths), max(lengths), COUNT, generator=draw)
    found = crf.decode(emissions, torch.tensor(lengths))
    for row, length in enumerate(lengths):
        every = [tags for tags in itertools.product(range(COUNT), repeat=length) if may_be(tags)]
        assert may_be(tuple(found[row]))
        best = max(score(crf, emissions[row], tags) for tags in every)
        assert score(crf, emissions[row], tuple(found[row])) == pytest.approx(best, abs=1e-4)


def test_gradients_are_those_of_small_changes() -> None:
    crf, draw = crf_of(3)
    crf = crf.double()
    emissions = torch.randn(2, 3, COUNT, generator=draw, dtype=torch.double, requires_grad=True)
    tags, lengths = torch.tensor([[1, 2, 0], [3, 0, 0]]), torch.tensor([3, 1])
    assert torch.autograd.gradcheck(lambda given: crf.loss(given, tags, lengths), (emissions,))


def test_no_update_can_make_a_tag_follow_one_that_it_may_not() -> None:
    crf, _ = crf_of(4)
    assert set(dict(crf.named_parameters())) == set(crf.state_dict()) == {"start", "end", "transitions"}
    with torch.no_grad():
        for parameter in crf.parameters():
            parameter.fill_(1000.0)
    emissions = torch.zeros(1, 2, COUNT)
    emissions[0, 0, 0] = emissions[0, 1, 2] = 50.0  # O, then an I- that continues nothing
    assert may_be(tuple(crf.decode(emissions, torch.tensor([2]))[0]))


@pytest.mark.parametrize(
    ("shape", "lengths"),
    [
        pytest.param((2, 3, COUNT), [3, 0], id="no word"),
        pytest.param((2, 3, COUNT), [3, 4], id="more words than emissions"),
        pytest.param((2, 3, COUNT), [3], id="fewer lengths than sentences"),
        pytest.param((3, COUNT), [3, 3, 3], id="no dimension of words"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(shape: tuple[int, ...], lengths: list[int]) -> None:
    with pytest.raises(UsageError):
        Crf(COUNT, TAGS.follows).decode(torch.zeros(shape), torch.tensor(lengths))
