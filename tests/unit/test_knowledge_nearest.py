"""Signs in memory: what they find is what comparing all of them finds, whatever came and went before."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloister.knowledge.nearest import Signs


def drawn(count: int, dimensions: int, seed: int) -> Any:
    return np.random.default_rng(seed).normal(size=(count, dimensions)).astype(np.float32)


def apart(one: Any, other: Any) -> int:
    return int(((one > 0) != (other > 0)).sum())


@pytest.mark.parametrize("dimensions", [1, 7, 64, 65, 384])
@given(changes=st.lists(st.tuples(st.booleans(), st.integers(0, 40)), max_size=30), seed=st.integers(0, 1000))
def test_the_nearest_are_those_whose_signs_differ_least(
    dimensions: int, changes: list[tuple[bool, int]], seed: int
) -> None:
    signs, held = Signs(dimensions), dict[int, Any]()
    for step, (come, number) in enumerate(changes):
        if come:
            fresh = [number * 1000 + step, number * 1000 + step + 500]
            own = drawn(2, dimensions, seed + step)
            signs.put(fresh, own)
            held |= dict(zip(fresh, own, strict=True))
        elif held:
            gone = sorted(held)[number % len(held)]
            signs.drop([gone])
            del held[gone]
    assert len(signs) == len(held)
    asked = drawn(1, dimensions, seed + 99)[0]
    assert sorted(signs.nearest(asked, 1000)) == sorted(held)
    for most in (1, 5):
        found = signs.nearest(asked, most)
        assert len(set(found)) == len(found) == min(most, len(held))
        least = sorted(apart(asked, one) for one in held.values())[:most]
        assert sorted(apart(asked, held[one]) for one in found) == least


def test_many_at_once_are_kept() -> None:
    signs, own = Signs(384), drawn(5000, 384, 1)
    signs.put(range(5000), own)
    assert signs.nearest(own[77], 1) == [77]
    signs.drop(range(4999))
    assert signs.nearest(own[77], 10) == [4999]
