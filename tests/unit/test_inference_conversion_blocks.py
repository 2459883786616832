"""Blocks of few bits: what is written is what ggml reads, and nearer to the model than plain rounding."""

from __future__ import annotations

import gguf
import numpy as np
import pytest
from gguf import GGMLQuantizationType, quants
from hypothesis import given
from hypothesis import strategies as st

from cloister.errors import InferenceError
from cloister.inference.conversion.blocks import BF16, F16, F32, Q4_0, Q8_0, BlockType, encoded
from cloister.inference.conversion.super_blocks import Q4_K, Q5_K, Q6_K

ALL = (F32, F16, BF16, Q8_0, Q4_0, Q4_K, Q5_K, Q6_K)
PACKED = {"F16": 1e-6, "BF16": 1e-5, "Q8_0": 3.5e-5, "Q4_0": 8e-3, "Q4_K": 6e-3, "Q5_K": 1.5e-3, "Q6_K": 4e-4}
"""Type → the most of a normal distribution's power that may be lost."""


def weights(count: int = 1 << 16, *, seed: int = 3) -> np.ndarray:
    return (np.random.default_rng(seed).normal(size=count) * 0.02).astype(np.float32)


def read(data: np.ndarray, kind: BlockType, elements: int) -> np.ndarray:
    row = data.reshape(1, -1)
    return np.asarray(quants.dequantize(row, GGMLQuantizationType[kind.name]), np.float32).reshape(elements)


def loss(data: np.ndarray, values: np.ndarray) -> float:
    return float(((data - values).astype(np.float64) ** 2).sum() / (values.astype(np.float64) ** 2).sum())


@pytest.mark.parametrize("kind", ALL, ids=lambda kind: kind.name)
def test_a_type_has_the_number_and_the_sizes_that_ggml_gives_it(kind: BlockType) -> None:
    known = GGMLQuantizationType[kind.name]
    assert kind.number == known.value
    assert (kind.length, kind.size) == gguf.GGML_QUANT_SIZES[known]


@pytest.mark.parametrize("kind", ALL[1:], ids=lambda kind: kind.name)
def test_what_is_written_is_read_back_within_the_error_of_its_format(kind: BlockType) -> None:
    values = weights()
    data = encoded(values, kind)
    assert data.size == kind.bytes_of(values.size)
    assert loss(read(data, kind, values.size), values) < PACKED[kind.name]


def test_floats_of_32_bits_stay_as_they_are() -> None:
    values = weights()
    assert encoded(values, F32).tobytes() == values.astype("<f4").tobytes()


def test_bfloat16_is_rounded_as_ggml_rounds_it() -> None:
    values = weights()
    expected = quants.quantize(values.reshape(1, -1), GGMLQuantizationType.BF16)
    assert encoded(values, BF16).tobytes() == expected.tobytes()


@pytest.mark.parametrize("freedom", [3, 6, 100], ids=["heavy tails", "some tails", "nearly normal"])
def test_q4_0_loses_at_least_six_hundredths_less_than_plain_rounding(freedom: int) -> None:
    values = (np.random.default_rng(5).standard_t(freedom, size=1 << 17) * 0.02).astype(np.float32)
    plain = quants.quantize(values.reshape(1, -1), GGMLQuantizationType.Q4_0)
    ours = loss(read(encoded(values, Q4_0), Q4_0, values.size), values)
    assert ours < 0.94 * loss(read(plain, Q4_0, values.size), values)


def test_q8_0_loses_no_more_than_plain_rounding() -> None:
    values = weights()
    plain = quants.quantize(values.reshape(1, -1), GGMLQuantizationType.Q8_0)
    assert loss(read(encoded(values, Q8_0), Q8_0, values.size), values) <= 1.001 * loss(
        read(plain, Q8_0, values.size), values
    )


@pytest.mark.parametrize("kind", ALL[3:], ids=lambda kind: kind.name)
def test_zeros_stay_zeros(kind: BlockType) -> None:
    values = np.zeros(512, np.float32)
    values[300] = 0.5
    found = read(encoded(values, kind), kind, values.size)
    assert not found[:256].any()
    assert abs(found[300] - 0.5) < 0.02


@pytest.mark.parametrize("kind", ALL[3:], ids=lambda kind: kind.name)
@pytest.mark.parametrize("value", [0.25, -0.25, 3.0], ids=["positive", "negative", "large"])
def test_a_block_of_one_value_is_that_value(kind: BlockType, value: float) -> None:
    values = np.full(256, value, np.float32)
    assert np.allclose(read(encoded(values, kind), kind, 256), value, rtol=0.04)


@pytest.mark.parametrize("kind", ALL, ids=lambda kind: kind.name)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf], ids=["not a number", "infinity", "minus infinity"])
def test_a_weight_that_is_no_finite_number_is_refused(kind: BlockType, bad: float) -> None:
    values = weights(512)
    values[77] = bad
    with pytest.raises(InferenceError, match="no finite numbers"):
        encoded(values, kind)


@pytest.mark.parametrize("kind", [F16, Q8_0, Q4_0, Q4_K, Q6_K], ids=lambda kind: kind.name)
def test_a_weight_beyond_the_reach_of_16_bits_is_refused_and_not_made_infinite(kind: BlockType) -> None:
    values = weights(512)
    values[77] = 3e38
    with pytest.raises(InferenceError, match="too large for 16-bit floats"):
        encoded(values, kind)


@given(
    st.sampled_from([Q8_0, Q4_0, Q4_K, Q5_K, Q6_K]),
    st.lists(st.floats(-60000, 60000, width=32), min_size=256, max_size=256),
    st.floats(1e-6, 1.0),
)
def test_no_number_is_further_off_than_a_step_of_its_block(
    kind: BlockType, numbers: list[float], scale: float
) -> None:
    values = np.array(numbers, np.float32) * np.float32(scale)
    found = read(encoded(values, kind), kind, 256)
    assert np.isfinite(found).all()
    # Of 16 levels over twice the largest number, cut short at one end by the search.
    largest = float(np.abs(values).max())
    assert float(np.abs(found - values).max()) <= 0.36 * largest + 1e-6
