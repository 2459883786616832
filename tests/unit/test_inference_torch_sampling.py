"""Choosing tokens: every way to choose against its definition in a few lines of Python."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cloister.inference.engines.torch_sampling import Sampler, Sampling, log_probabilities

LOGITS = st.lists(st.floats(-8, 8, width=32), min_size=2, max_size=12)


def drawn(logits: list[float], count: int = 200, **settings: Any) -> set[int]:
    sampler = Sampler(Sampling(**settings), (), seed=1)
    return {sampler.choose(torch.tensor(logits)) for _ in range(count)}


def truncated(logits: list[float], *, top_k: int, top_p: float, min_p: float) -> set[int]:
    """The tokens that may be drawn: top_k, then min_p and top_p of what is left."""
    order = sorted(range(len(logits)), key=lambda token: -logits[token])[: top_k or None]
    whole = sum(math.exp(logits[token]) for token in order)
    shares = [math.exp(logits[token]) / whole for token in order]
    left, before = set(), 0.0
    for token, share in zip(order, shares, strict=True):
        if not left or (share >= min_p * shares[0] * (1 - 1e-5) and before < top_p + 1e-5):
            left.add(token)
        before += share
    return left


@given(LOGITS, st.integers(0, 12), st.floats(0.05, 1), st.floats(0, 0.9))
def test_nothing_is_drawn_that_truncation_leaves_out(
    logits: list[float], top_k: int, top_p: float, min_p: float
) -> None:
    found = drawn(logits, 20, top_k=top_k, top_p=top_p, min_p=min_p)
    ties = {value: logits.count(value) for value in logits}
    if max(ties.values()) == 1:
        assert found <= truncated(logits, top_k=top_k, top_p=top_p, min_p=min_p)


@given(LOGITS)
def test_a_temperature_of_zero_takes_the_likeliest(logits: list[float]) -> None:
    (token,) = drawn(logits, 1, temperature=0)
    assert logits[token] == max(logits)


def test_draws_follow_the_probabilities() -> None:
    sampler = Sampler(Sampling(temperature=0.5), (), seed=3)
    logits = torch.log(torch.tensor([0.5, 0.3, 0.2])) * 0.5
    counts = torch.zeros(3)
    for _ in range(4000):
        counts[sampler.choose(logits)] += 1
    assert (counts / 4000).tolist() == pytest.approx([0.5, 0.3, 0.2], abs=0.03)


def test_a_large_vocabulary_is_cut_where_a_small_one_would_be() -> None:
    draw = torch.Generator().manual_seed(2)
    logits = (torch.randn(5000, generator=draw) * 0.1).tolist()
    allowed = truncated(logits, top_k=0, top_p=0.7, min_p=0)
    assert drawn(logits, 300, top_p=0.7) <= allowed
    assert len(allowed) > 1024


def test_what_is_drawn_last_is_never_a_token_without_a_probability() -> None:
    logits = torch.tensor([0.0, 0.0, -math.inf])
    sampler = Sampler(Sampling(), (), seed=1)
    assert {sampler.choose(logits) for _ in range(500)} == {0, 1}


def test_a_bias_bans_and_prefers() -> None:
    logits = [5.0, 4.0, 0.0]
    assert drawn(logits, temperature=0, bias=((0, -100.0),)) == {1}
    assert drawn(logits, temperature=0, bias=((2, 100.0),)) == {2}


def test_penalties_count_what_was_said() -> None:
    sampler = Sampler(Sampling(temperature=0, frequency_penalty=1.0, presence_penalty=0.5), (), seed=1)
    logits = torch.tensor([3.0, 1.0])
    # After one: 3 - 1.5 = 1.5 is still over 1; after two: 3 - 2.5 = 0.5 is not.
    assert [sampler.choose(logits) for _ in range(3)] == [0, 0, 1]
    assert logits.tolist() == [3.0, 1.0]


def test_the_repeat_penalty_counts_the_prompt_too() -> None:
    sampler = Sampler(Sampling(temperature=0, repeat_penalty=2.0), [0], seed=1)
    assert sampler.choose(torch.tensor([3.0, 2.0, -9.0])) == 1


def test_only_what_a_grammar_allows_is_chosen() -> None:
    allowed = torch.tensor([False, True, True])
    for temperature in (0.0, 1.0):
        sampler = Sampler(Sampling(temperature=temperature), (), seed=1)
        assert sampler.choose(torch.tensor([9.0, 1.0, 0.0]), allowed) in (1, 2)


def test_log_probabilities_are_told_with_the_likeliest() -> None:
    probability, likeliest = log_probabilities(torch.log(torch.tensor([0.2, 0.5, 0.3])), 0, 2)
    assert probability == pytest.approx(math.log(0.2))
    assert [token for token, _ in likeliest] == [1, 2]
    assert [value for _, value in likeliest] == pytest.approx([math.log(0.5), math.log(0.3)])
