"""Swap areas are read strictly, and a policy that refuses them does."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloister.errors import IsolationRefused
from cloister.workload.swap import Swap, judge_swap, parse_swaps

HEADER = "Filename\t\t\t\tType\t\tSize\t\tUsed\t\tPriority\n"
ZRAM = "/dev/zram0                              partition\t8388604\t\t1024\t\t100\n"
FILE = "/swap\\040file                           file\t\t2097148\t\t0\t\t-2\n"


def test_areas_are_read_with_their_sizes_in_bytes():
    assert parse_swaps(HEADER + ZRAM + FILE) == (
        Swap("/dev/zram0", "partition", 8388604 << 10, 1024 << 10),
        Swap("/swap\\040file", "file", 2097148 << 10, 0),
    )


@pytest.mark.parametrize("text", [HEADER, ""], ids=["no areas", "a kernel without swap"])
def test_no_area_is_no_swap(text: str):
    assert parse_swaps(text) == ()
    assert judge_swap((), "refuse") == ""


@pytest.mark.parametrize(
    "text",
    [
        pytest.param(ZRAM, id="no header"),
        pytest.param(HEADER + "/dev/sda2 partition 12\n", id="columns missing"),
        pytest.param(HEADER + "/dev/sda2 partition some 0 -2\n", id="a size that is no number"),
        pytest.param(HEADER + ZRAM * 65, id="more areas than a kernel has"),
        pytest.param("\n", id="an empty line"),
    ],
)
def test_what_is_not_understood_is_not_taken_for_no_swap(text: str):
    with pytest.raises(IsolationRefused, match="does not have the form"):
        parse_swaps(text)


@given(st.text(max_size=200))
def test_any_text_is_read_or_refused_by_our_own_error(text: str):
    with contextlib.suppress(IsolationRefused):
        parse_swaps(HEADER + text)


def test_swap_is_refused_or_told_as_the_policy_says():
    areas = parse_swaps(HEADER + ZRAM)
    with pytest.raises(IsolationRefused, match="/dev/zram0"):
        judge_swap(areas, "refuse")
    assert "/dev/zram0" in judge_swap(areas, "warn")
