"""The modules that stand in a model in place of linear layers. For inference: what would be trained through them is
refused.

A layer holds one packing of its weights or more, and takes by the number of rows the one that was measured to be
fastest. Layers that read the same input can share one multiplication (:class:`Merged`): the first to be called
computes for all, and each takes its part; called with anything else they compute for themselves.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import cast

import torch
from torch import Tensor, nn

from cloister.errors import UsageError
from cloister.inference.lowbit.kernels import Kernel, KernelName
from cloister.inference.lowbit.selection import Choice


class LowBitLinear(nn.Module):
    """y = x Wᵀ + b with W in few bits. Inputs of any floating type and shape (…, inputs); outputs of the same type."""

    def __init__(
        self,
        kernels: Mapping[KernelName, Kernel],
        choice: Choice,
        shape: tuple[int, int],
        bias: Tensor | None = None,
    ) -> None:
        super().__init__()
        self.out_features, self.in_features = shape
        self.kernels = dict(kernels)
        self.choice = choice
        self.bias: Tensor | None
        self.register_buffer("bias", None if bias is None else bias.detach().float(), persistent=False)
        self._weight: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        if x.requires_grad and torch.is_grad_enabled():
            raise UsageError(
                "a model in low precision is not trained",
                todo="train first, then optimise; or use torch.no_grad()",
            )
        rows = x.reshape(-1, self.in_features)
        if rows.dtype != torch.float32:
            rows = rows.float()
        count = rows.shape[0]
        y = (
            self.kernels[self.choice.kernel(count)].multiply(rows)
            if count
            else rows.new_empty(0, self.out_features)
        )
        if self.bias is not None:
            y = y + self.bias
        return y.to(x.dtype).view(*x.shape[:-1], self.out_features)

    @property
    def weight(self) -> Tensor:
        """The numbers that the layer multiplies with, float32 (outputs, inputs). Kept once asked for: some models ask at
        every step, and that costs what full precision would."""
        if self._weight is None:
            weights = self.kernels[self.choice.kernels[0]].weights()
            self._weight = weights.float() if isinstance(weights, Tensor) else weights.dense()
        return self._weight

    @property
    def size(self) -> int:
        """Bytes of all packings."""
        return sum(kernel.size for kernel in self.kernels.values())

    def extra_repr(self) -> str:
        names = ", ".join(self.kernels)
        return f"in_features={self.in_features}, out_features={self.out_features}, kernels={names}"


@contextmanager
def one_kernel(model: nn.Module, *, rows: int | None = None) -> Iterator[None]:
    """While this lasts each layer computes with one of its kernels, however many the rows are: with the one that it has
    for ``rows``, or with its last. Then answers differ by nothing that quantising the input leaves."""
    layers = [(module, module.choice) for module in model.modules() if isinstance(module, LowBitLinear)]
    for layer, choice in layers:
        layer.choice = Choice((), choice.kernels[-1:] if rows is None else (choice.kernel(rows),))
    try:
        yield
    finally:
        for layer, choice in layers:
            layer.choice = choice


class Merged(nn.Module):
    """One multiplication for several layers that read the same input."""

    def __init__(self, whole: LowBitLinear, sizes: Sequence[int]) -> None:
        super().__init__()
        self.whole = whole
        self.sizes = list(sizes)
        self._held: tuple[weakref.ref[Tensor], int, tuple[Tensor, ...], list[int]] | None = None

    def part(self, x: Tensor, index: int) -> Tensor:
        """What the layer ``index`` makes of ``x``."""
        # Read once: another thread may put its own there at any time.
        held = self._held
        version = -1 if x.is_inference() else x._version
        if held is not None and held[0]() is x and held[1] == version and index not in held[3]:
            held[3].append(index)
            if len(held[3]) == len(self.sizes):
                self._held = None
            return held[2][index]
        parts = torch.split(self.whole(x), self.sizes, dim=-1)
        self._held = (weakref.ref(x), version, parts, [index])
        return parts[index]


class Part(nn.Module):
    """One of the layers of a :class:`Merged`."""

    def __init__(self, merged: Merged, index: int) -> None:
        super().__init__()
        self.merged = merged
        self.index = index
        self.in_features = merged.whole.in_features
        self.out_features = merged.sizes[index]

    def forward(self, x: Tensor) -> Tensor:
        return self.merged.part(x, self.index)

    @property
    def weight(self) -> Tensor:
        """As :attr:`LowBitLinear.weight`."""
        return torch.split(self.merged.whole.weight, self.merged.sizes)[self.index]

    @property
    def bias(self) -> Tensor | None:
        bias = self.merged.whole.bias
        return None if bias is None else torch.split(bias, self.merged.sizes)[self.index]


class StoredEmbedding(nn.Module):
    """A large table of embeddings that stays in the type it is stored in; what it answers is float32."""

    def __init__(self, table: Tensor, padding_idx: int | None) -> None:
        super().__init__()
        # No parameter: `model.dtype` is the type of the first of those, and this model computes in float32.
        self.register_buffer("weight", table.detach(), persistent=False)
        self.num_embeddings, self.embedding_dim = table.shape
        self.padding_idx = padding_idx

    def forward(self, indices: Tensor) -> Tensor:
        return nn.functional.embedding(indices, cast(Tensor, self.weight)).float()


class FusedRmsNorm(nn.Module):
    """Root mean square normalisation in float32, in few passes."""

    def __init__(self, weight: Tensor, epsilon: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight.detach(), requires_grad=False)
        self.variance_epsilon = epsilon

    def forward(self, hidden_states: Tensor) -> Tensor:
        # Quicker than torch's own rms_norm, which on CPUs is put together out of slower parts.
        norm = torch.linalg.vector_norm(hidden_states, 2, -1, keepdim=True)
        scale = norm.square_().mul_(1 / self.weight.numel()).add_(self.variance_epsilon).rsqrt_()
        return hidden_states.mul(scale).mul_(self.weight)
