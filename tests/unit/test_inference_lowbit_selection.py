"""Which kernel takes how many rows follows from the measured times, and a further packing has to be worth its memory."""

from __future__ import annotations

import itertools

import torch

from cloister.inference.lowbit.kernels import pack
from cloister.inference.lowbit.quantisation import quantise_int8
from cloister.inference.lowbit.selection import ROWS, Choice, choose, measure

FLAT = dict.fromkeys(ROWS, 1.0)


def test_the_fastest_at_one_row_is_the_first() -> None:
    times = {"fbgemm": FLAT, "onednn": {**FLAT, 1: 0.5}}
    assert choose(times, ["fbgemm", "onednn"], further=False) == Choice((), ("onednn",))


def test_another_kernel_takes_over_between_the_counts_at_which_it_was_measured() -> None:
    times = {
        "int4": {1: 1.0, 4: 2.0, 16: 8.0, 64: 32.0, 256: 128.0},
        "fbgemm": {1: 1.2, 4: 1.4, 16: 2.0, 64: 4.0, 256: 16.0},
    }
    choice = choose(times, ["int4"], further=True)
    assert choice == Choice((2,), ("int4", "fbgemm"))
    assert [choice.kernel(rows) for rows in (1, 2, 3, 500)] == ["int4", "int4", "fbgemm", "fbgemm"]


def test_without_memory_for_more_there_is_one_packing() -> None:
    times = {"int4": {**FLAT, 256: 9.0}, "onednn": FLAT}
    assert choose(times, ["int4"], further=False) == Choice((), ("int4",))


def test_a_little_faster_is_not_worth_a_packing() -> None:
    times = {"fbgemm": FLAT, "onednn": {**FLAT, 256: 0.93}}
    assert choose(times, ["fbgemm"], further=True) == Choice((), ("fbgemm",))


def test_noise_does_not_change_kernels_back_and_forth() -> None:
    times = {
        "fbgemm": {1: 1.0, 4: 1.0, 16: 1.0, 64: 2.0, 256: 2.0},
        "onednn": {1: 1.3, 4: 0.99, 16: 1.01, 64: 0.98, 256: 1.0},
    }
    assert choose(times, ["fbgemm"], further=True) == Choice((32,), ("fbgemm", "onednn"))


def test_every_kernel_is_measured_at_every_count() -> None:
    ticks = itertools.count()
    weights = quantise_int8(torch.randn(64, 128))
    times = measure({"fbgemm": pack("fbgemm", weights)}, 128, clock=lambda: float(next(ticks)))
    assert times == {"fbgemm": FLAT}
