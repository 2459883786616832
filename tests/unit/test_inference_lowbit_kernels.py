"""Every kernel multiplies as its weights say, whatever the number of rows, and gives back what was packed."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from cloister.inference.lowbit import kernels
from cloister.inference.lowbit.kernels import KernelName, narrow, pack, takes_int4, usable
from cloister.inference.lowbit.quantisation import quantise_int4, quantise_int8

OUTPUTS, INPUTS = 96, 256
DRAW = torch.Generator().manual_seed(5)
WEIGHT = torch.randn(OUTPUTS, INPUTS, generator=DRAW) * 0.05
FORMS: dict[str, Any] = {
    "fbgemm": quantise_int8(WEIGHT),
    "onednn": quantise_int8(WEIGHT),
    "int4": quantise_int4(WEIGHT, 64),
    "dense": WEIGHT,
}
# Without the processor's own sums of four products (VNNI) inputs are rounded to 7 bits, so that no sum overflows.
LARGEST_ERROR = {
    "fbgemm": 0.02 if narrow("fbgemm") else 0.012,
    "onednn": 0.02 if narrow("onednn") else 0.012,
    "int4": 0.006,
    "dense": 1e-6,
}
"""Of a product against the same weights in float32: what rounding the inputs (8 bits, bfloat16) may cost."""
NAMES = sorted(usable() & set(FORMS))


def exact(name: str, rows: torch.Tensor) -> torch.Tensor:
    form = FORMS[name]
    return rows @ (form if isinstance(form, torch.Tensor) else form.dense()).t()


def test_a_processor_of_today_has_them_all() -> None:
    assert usable() >= {"fbgemm", "onednn", "dense"}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("count", [1, 2, 7, 33, 130])
def test_a_product_is_off_by_the_rounding_of_its_inputs_alone(name: KernelName, count: int) -> None:
    rows = torch.randn(count, INPUTS, generator=torch.Generator().manual_seed(count))
    found, expected = pack(name, FORMS[name]).multiply(rows), exact(name, rows)
    assert found.dtype == torch.float32
    assert float((found - expected).norm() / expected.norm()) < LARGEST_ERROR[name]


@pytest.mark.parametrize("name", NAMES)
def test_a_row_is_computed_by_itself_whatever_else_is_in_the_batch(name: KernelName) -> None:
    kernel = pack(name, FORMS[name])
    row = torch.randn(1, INPUTS, generator=torch.Generator().manual_seed(1))
    loud = torch.randn(1, INPUTS, generator=torch.Generator().manual_seed(2)) * 1000
    found = kernel.multiply(torch.cat([row, loud]))[:1]
    # To the bit: nothing of what another user asks shows in one's own numbers.
    for other in (loud, row * 0.3, loud.abs()):
        assert torch.equal(kernel.multiply(torch.cat([row, other]))[:1], found)
    assert float((found - exact(name, row)).norm() / exact(name, row).norm()) < LARGEST_ERROR[name]


@pytest.mark.parametrize("name", NAMES)
def test_rows_of_zeros_give_zeros(name: KernelName) -> None:
    if name == "int4":
        return
    assert float(pack(name, FORMS[name]).multiply(torch.zeros(3, INPUTS)).abs().max()) < 1e-6


@pytest.mark.parametrize("name", NAMES)
def test_what_was_packed_comes_back_bit_for_bit(name: KernelName) -> None:
    form, found = FORMS[name], pack(name, FORMS[name]).weights()
    if isinstance(form, torch.Tensor):
        assert torch.equal(found, form)
        return
    assert torch.equal(found.values, form.values)
    assert torch.equal(found.scales, form.scales)


@pytest.mark.parametrize("name", sorted({"fbgemm", "onednn"} & set(NAMES)))
def test_the_largest_products_do_not_overflow(name: KernelName) -> None:
    weight = torch.ones(64, 512)
    rows = torch.ones(2, 512)
    rows[0, ::7] = -1
    found = pack(name, quantise_int8(weight)).multiply(rows)
    assert float((found - rows @ weight.t()).abs().max()) < 0.02 * 512


def test_a_processor_whose_products_overflow_gets_inputs_of_seven_bits(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(kernels, "narrow", lambda _name: True)
    rows = torch.randn(4, INPUTS, generator=torch.Generator().manual_seed(9))
    for name in sorted({"fbgemm", "onednn"} & set(NAMES)):
        expected = exact(name, rows)
        found = pack(name, FORMS[name]).multiply(rows)
        assert float((found - expected).norm() / expected.norm()) < 2 * LARGEST_ERROR[name]


def test_int4_takes_what_its_kernel_takes() -> None:
    assert takes_int4(96, 256)
    assert not takes_int4(100, 256)
    assert not takes_int4(96, 172)
