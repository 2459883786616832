"""What multiplies with low-bit weights on a CPU: PyTorch's own kernels, each behind the same small Protocol.

``fbgemm`` and ``onednn`` take int8 weights and turn each row of the input to 8 bits on the way; ``int4`` takes int4
weights and bfloat16 inputs, and ``dense`` nothing but the numbers as they are. A kernel is offered where a trial on
this processor computes what it should: without VNNI the sums of 8-bit products can overflow, and then inputs get 7
bits. Every row is quantised by itself, so that what one request computes never depends on another in the same batch.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Mapping
from typing import Any, Final, Literal, Protocol

import torch
from torch import Tensor
from torch.nn import functional

from cloister.errors import FormatError
from cloister.inference.lowbit.quantisation import (
    Int4Weights,
    Int8Weights,
    int4_group,
    quantise_int4,
    quantise_int8,
)

KernelName = Literal["fbgemm", "onednn", "int4", "dense"]
_SMALLEST: Final = 1e-30
_INT4_OUTPUTS: Final = 16
"""The int4 kernel takes multiples of so many outputs."""


class Kernel(Protocol):
    """Weights (outputs, inputs), packed."""

    @property
    def size(self) -> int:
        """Bytes of the packed weights."""
        ...

    def multiply(self, rows: Tensor) -> Tensor:
        """float32 (rows, inputs) → float32 (rows, outputs)."""
        ...

    def weights(self) -> Int8Weights | Int4Weights | Tensor:
        """What was packed, bit for bit."""
        ...


class Fbgemm:
    """FBGEMM's int8. It takes one range for all rows: several rows are brought to a common one first, which is fixed."""

    def __init__(self, weights: Int8Weights) -> None:
        self._reduced = narrow("fbgemm")
        self._step, self._zero = (1 / 63, 64) if self._reduced else (1 / 127, 128)
        self._packed = _fbgemm_pack(weights)
        self.size = weights.values.numel() + 4 * weights.scales.numel()

    def multiply(self, rows: Tensor) -> Tensor:
        if rows.shape[0] == 1:
            return torch.ops.quantized.linear_dynamic(rows, self._packed, self._reduced)  # type: ignore[no-any-return]
        largest = rows.abs().amax(1, keepdim=True).clamp_(min=_SMALLEST)
        multiply = torch.ops.quantized.linear_with_input_q_dq_qweight_dq_output_fp32
        return multiply(rows / largest, self._step, self._zero, self._packed).mul_(largest)  # type: ignore[no-any-return]

    def weights(self) -> Int8Weights:
        packed, _ = torch.ops.quantized.linear_unpack(self._packed)
        return Int8Weights(packed.int_repr(), packed.q_per_channel_scales().float())


class OneDnn:
    """oneDNN's int8 with inputs of 8 bits without sign, row by row."""

    def __init__(self, weights: Int8Weights) -> None:
        self._steps, self._zero = (63, 64) if narrow("onednn") else (127, 128)
        self._shift = (self._zero + 128) % 256 - 128
        self._packed = torch.ops.onednn.qlinear_prepack(weights.values, None)
        self._scales = weights.scales
        self._zeros = torch.zeros(1, dtype=torch.int32)
        self.size = weights.values.numel() + 4 * weights.scales.numel()

    def multiply(self, rows: Tensor) -> Tensor:
        scales = rows.abs().amax(1, keepdim=True).clamp_(min=_SMALLEST).div_(self._steps)
        # By way of numbers with a sign, to which torch converts eight times as fast; adding to them wraps around.
        short = torch.mul(rows, scales.reciprocal()).round_().to(torch.int8).add_(self._shift)
        return self._integer(short.view(torch.uint8)).mul_(scales)

    def weights(self) -> Int8Weights:
        inputs = (
            self._packed.shape[0] if self._packed.shape[1] == len(self._scales) else self._packed.shape[1]
        )
        unit = torch.eye(inputs, dtype=torch.uint8) + self._zero
        whole = (
            torch.cat([self._integer(part) for part in torch.split(unit, 512)]).t() / self._scales[:, None]
        )
        return Int8Weights(whole.round().to(torch.int8), self._scales)

    def _integer(self, short: Tensor) -> Tensor:
        return torch.ops.onednn.qlinear_pointwise(  # type: ignore[no-any-return]
            short, 1.0, self._zero, self._packed, self._scales, self._zeros, None,
            1.0, 0, torch.float32, "none", [], "",
        )  # fmt: skip


class Int4:
    """PyTorch's int4 for CPUs: few rows, in bfloat16."""

    def __init__(self, weights: Int4Weights) -> None:
        self._shape, self._group = weights.values.shape, weights.group
        self._packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(weights.values.int(), 2)
        self._lines = torch.stack([weights.scales, weights.offsets], 2).transpose(0, 1).contiguous()
        self.size = weights.values.numel() // 2 + 2 * self._lines.numel()

    def multiply(self, rows: Tensor) -> Tensor:
        return self._multiply(rows.bfloat16()).float()

    def weights(self) -> Int4Weights:
        lines = self._lines.transpose(0, 1)
        scales, offsets = lines[..., 0].contiguous(), lines[..., 1].contiguous()
        unit = torch.eye(self._shape[1], dtype=torch.bfloat16)
        dense = torch.cat([self._multiply(part) for part in torch.split(unit, 512)]).t().float()
        grouped = dense.reshape(*scales.shape, self._group) - offsets.float()[..., None]
        whole = (grouped / scales.float()[..., None]).round_().add_(8).clamp_(0, 15)
        return Int4Weights(whole.view(self._shape).to(torch.uint8), scales, offsets)

    def _multiply(self, rows: Tensor) -> Tensor:
        return torch.ops.aten._weight_int4pack_mm_for_cpu(  # type: ignore[no-any-return]
            rows, self._packed, self._group, self._lines
        )


class Dense:
    """The numbers as they are, for what no other kernel takes."""

    def __init__(self, weights: Tensor) -> None:
        self._weights = weights
        self.size = weights.numel() * weights.element_size()

    def multiply(self, rows: Tensor) -> Tensor:
        return functional.linear(rows.to(self._weights.dtype), self._weights).float()

    def weights(self) -> Tensor:
        return self._weights


_PACKS: Final[Mapping[str, Callable[[Any], Kernel]]] = {
    "fbgemm": Fbgemm,
    "onednn": OneDnn,
    "int4": Int4,
    "dense": Dense,
}


def pack(name: KernelName, weights: Int8Weights | Int4Weights | Tensor) -> Kernel:
    """The kernel ``name`` with these weights, of the kind that it takes."""
    return _PACKS[name](weights)


def takes_int4(outputs: int, inputs: int) -> bool:
    """Whether the int4 kernel takes a layer of this shape."""
    return int4_group(inputs) is not None and outputs % _INT4_OUTPUTS == 0


@functools.cache
def usable() -> frozenset[KernelName]:
    """The kernels that compute what they should on this processor; found by a trial, once."""
    found: set[KernelName] = {"dense"}
    draw = torch.Generator().manual_seed(1)
    weight, rows = torch.randn(64, 128, generator=draw), torch.randn(3, 128, generator=draw)
    trials: tuple[tuple[KernelName, Callable[[], Any]], ...] = (
        ("fbgemm", lambda: quantise_int8(weight)),
        ("onednn", lambda: quantise_int8(weight)),
        ("int4", lambda: quantise_int4(weight, 32)),
    )
    for name, quantised in trials:
        try:
            whole = quantised()
            expected = rows @ whole.dense().t()
            error = (pack(name, whole).multiply(rows) - expected).norm() / expected.norm()
        except (RuntimeError, AttributeError, FormatError):
            continue  # this build of torch, or this processor, does not have it
        if float(error) < 0.05:
            found.add(name)
    return frozenset(found)


@functools.cache
def narrow(name: Literal["fbgemm", "onednn"]) -> bool:
    """Whether the largest 8-bit products overflow in this kernel on this processor, so that inputs get 7 bits."""
    weights = Int8Weights(torch.full((64, 128), 127, dtype=torch.int8), torch.ones(64))
    rows = torch.ones(1, 128)
    rows[0, 0] = -1
    if name == "fbgemm":
        found = torch.ops.quantized.linear_dynamic(rows, _fbgemm_pack(weights), False)
    else:
        packed = torch.ops.onednn.qlinear_prepack(weights.values, None)
        found = torch.ops.onednn.qlinear_pointwise(
            (rows * 127 + 128).to(torch.uint8), 1 / 127, 128, packed, weights.scales,
            torch.zeros(1, dtype=torch.int32), None, 1.0, 0, torch.float32, "none", [], "",
        )  # fmt: skip
    expected = 127.0 * 126
    return bool((found - expected).abs().max() > 0.02 * expected)


def _fbgemm_pack(weights: Int8Weights) -> Any:
    zeros = torch.zeros(len(weights.scales), dtype=torch.long)
    with warnings.catch_warnings():
        # Quantised tensors are to leave torch; what packs the weights still wants one.
        warnings.simplefilter("ignore")
        whole = torch._make_per_channel_quantized_tensor(weights.values, weights.scales.double(), zeros, 0)
        return torch.ops.quantized.linear_prepack(whole, None)
