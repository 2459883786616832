"""Weights in few bits stand for what they were made of, to within their steps."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cloister.errors import FormatError
from cloister.inference.lowbit.quantisation import (
    int4_group,
    joined_int4,
    joined_int8,
    quantise_int4,
    quantise_int8,
)


def matrix(rows: int, columns: int, seed: int = 3) -> torch.Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed)) * 0.02


@given(
    rows=st.integers(1, 8), columns=st.integers(1, 8), scale=st.floats(1e-6, 1e6), seed=st.integers(0, 999)
)
def test_no_int8_weight_is_further_off_than_a_step(rows: int, columns: int, scale: float, seed: int) -> None:
    weight = matrix(rows, columns * 16, seed) * scale
    found = quantise_int8(weight)
    step = weight.abs().amax(1, keepdim=True) / 127
    assert bool(((found.dense() - weight).abs() <= step * 1.01).all())
    assert int(found.values.abs().max()) <= 127


@pytest.mark.parametrize("group", [32, 64, 128])
def test_int4_is_as_exact_as_four_bits_of_normal_numbers_can_be(group: int) -> None:
    weight = matrix(64, 512)
    found = quantise_int4(weight, group)
    assert found.group == group
    error = (found.dense() - weight).norm() / weight.norm()
    # The best uniform quantiser of 16 steps has 0.107 on a normal distribution (Max, 1960); groups do better.
    assert float(error) < 0.107
    assert int(found.values.max()) <= 15


def test_the_search_for_a_scale_beats_the_plain_one() -> None:
    weight = matrix(64, 512)
    groups = weight.view(64, -1, 128)
    low, step = (
        groups.amin(2, keepdim=True),
        (groups.amax(2, keepdim=True) - groups.amin(2, keepdim=True)) / 15,
    )
    plain = (torch.round((groups - low) / step) * step + low - groups).square().sum()
    found = (quantise_int4(weight, 128).dense() - weight).square().sum()
    assert float(found) < 0.95 * float(plain)


def test_a_constant_group_is_kept() -> None:
    for value in (0.0, 0.25, -3.0):
        found = quantise_int4(torch.full((16, 32), value), 32).dense()
        assert torch.allclose(found, torch.full((16, 32), value), rtol=0.01)
    assert not quantise_int8(torch.zeros(4, 8)).dense().any()


def test_rows_joined_are_the_rows_of_each() -> None:
    one, other = matrix(16, 64, 1), matrix(32, 64, 2)
    both = torch.cat([one, other])
    assert torch.equal(
        joined_int8([quantise_int8(one), quantise_int8(other)]).dense(), quantise_int8(both).dense()
    )
    assert torch.equal(
        joined_int4([quantise_int4(one, 32), quantise_int4(other, 32)]).dense(),
        quantise_int4(both, 32).dense(),
    )


@pytest.mark.parametrize(
    "weight",
    [
        pytest.param(torch.tensor([[1.0, float("nan")]]), id="not a number"),
        pytest.param(torch.tensor([[1.0, float("inf")]]), id="infinite"),
        pytest.param(torch.ones(4), id="a vector"),
        pytest.param(torch.ones(2, 2, dtype=torch.int32), id="integers"),
        pytest.param(torch.ones(0, 4), id="nothing"),
    ],
)
def test_what_is_no_finite_matrix_is_refused(weight: torch.Tensor) -> None:
    with pytest.raises(FormatError):
        quantise_int8(weight)


def test_a_group_that_does_not_divide_the_inputs_is_refused() -> None:
    assert int4_group(5632) == 128
    assert int4_group(96) == 32
    assert int4_group(172) is None
    with pytest.raises(FormatError, match="do not divide"):
        quantise_int4(torch.ones(16, 40), 32)
