"""The scoreboard's arithmetic: medians, intervals, ratios within a round, and who is measured when."""

from __future__ import annotations

import math
import random
import statistics

import pytest
from benchmarks.measurement import (
    difference,
    estimate,
    interleaved,
    order,
    percentile,
    ratio,
    slope,
    t_95,
)


def test_one_round_has_a_median_and_no_interval() -> None:
    found = estimate([3.0])
    assert (found.median, found.low, found.high, found.count) == (3.0, None, None, 1)


def test_the_interval_is_students() -> None:
    values = [-1.0, 0.0, 1.0, 2.0]
    found = estimate(values)
    half = 3.182 * statistics.stdev(values) / 2
    assert found.median == 0.5
    assert found.low == pytest.approx(0.5 - half)
    assert found.high == pytest.approx(0.5 + half)


def test_the_interval_of_rates_is_of_their_logarithms_and_stays_positive() -> None:
    found = estimate([1.0, 100.0])
    assert found.low is not None
    assert found.high is not None
    assert 0 < found.low < 1
    assert found.high > 100
    assert found.low * found.high == pytest.approx(100)


def test_the_interval_holds_the_median_of_lopsided_rounds() -> None:
    found = estimate([1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 100.0])
    assert found.low is not None
    assert found.high is not None
    assert found.low <= found.median <= found.high


def test_the_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    source, hits = random.Random(3), 0
    for _ in range(400):
        found = estimate([source.gauss(10, 2) for _ in range(6)])
        assert found.low is not None
        assert found.high is not None
        hits += found.low <= 10 <= found.high
    assert 0.92 <= hits / 400 <= 0.99


@pytest.mark.parametrize(
    "values", [pytest.param([], id="none"), pytest.param([1.0, math.nan], id="not a number")]
)
def test_no_estimate_without_finite_values(values: list[float]) -> None:
    with pytest.raises(ValueError, match="at least one value"):
        estimate(values)


def test_a_ratio_is_formed_round_by_round() -> None:
    # The machine was half as fast in the second round, for both.
    assert ratio([20.0, 10.0, 20.0], [10.0, 5.0, 10.0]).median == 2.0
    assert difference([20.0, 10.0], [19.0, 9.0]).median == 1.0


def test_rounds_of_different_number_are_refused() -> None:
    with pytest.raises(ValueError, match="shorter"):
        ratio([1.0, 2.0], [1.0])


def test_students_quantile_falls_to_the_normal_one() -> None:
    assert t_95(1) == 12.706
    assert t_95(30) == 2.042
    assert t_95(1000) == 1.96


def test_percentiles_are_those_of_the_standard_library() -> None:
    values = [float(number) for number in range(1, 101)]
    cuts = statistics.quantiles(values, n=100, method="inclusive")
    assert percentile(values, 95) == pytest.approx(cuts[94])
    assert percentile([7.0], 99) == 7.0


def test_a_slope_is_found_and_is_zero_for_one_point() -> None:
    assert slope([0, 60, 120], [100, 101, 102]) == pytest.approx(1 / 60)
    assert slope([0], [100]) == 0


def test_everybody_is_first_and_last_now_and_then() -> None:
    rounds = [order(("a", "b", "c"), number) for number in range(6)]
    assert {one[0] for one in rounds} == {one[-1] for one in rounds} == {"a", "b", "c"}
    assert all(sorted(one) == ["a", "b", "c"] for one in rounds)


def test_rounds_are_interleaved_and_the_first_does_not_count() -> None:
    asked: list[str] = []
    steps: list[None] = []

    def side(name: str) -> int:
        asked.append(name)
        return len(asked)

    found = interleaved({"a": lambda: side("a"), "b": lambda: side("b")}, 2, done=lambda: steps.append(None))
    assert len(steps) == 6
    assert sorted(asked[:2]) == sorted(asked[2:4]) == sorted(asked[4:]) == ["a", "b"]
    assert asked[2:4] != asked[4:]
    assert sorted(found["a"] + found["b"]) == [3, 4, 5, 6]
