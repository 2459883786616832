"""Muon for the weight matrices and AdamW for everything else.

Muon orthogonalises each matrix's momentum before applying it, which on small decoders reaches a given loss in far
fewer tokens than AdamW: the point when a training run has two CPU cores and two hours. PyTorch ships a Muon too, but
it computes in bfloat16, which is slow on processors without bfloat16 units; this one computes in float32 and treats
matrices of one shape as a batch.
"""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import torch
from torch import Tensor, nn


def orthogonalise(g: Tensor, steps: int = 5) -> Tensor:
    """Newton-Schulz iteration towards the nearest orthogonal matrix, for a batch of matrices (n, rows, columns)."""
    a, b, c = 3.4445, -4.7750, 2.0315
    tall = g.shape[-2] > g.shape[-1]
    x = g.mT if tall else g
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    out: Tensor = x.mT if tall else x
    return out


class Muon(torch.optim.Optimizer):
    """Momentum, orthogonalised, scaled so that an update has the size an AdamW update would have."""

    def __init__(
        self, params: list[nn.Parameter], lr: float, momentum: float = 0.95, weight_decay: float = 0.05
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            shapes: dict[tuple[int, ...], list[nn.Parameter]] = defaultdict(list)
            for p in group["params"]:
                if p.grad is not None:
                    shapes[tuple(p.shape)].append(p)
            for shape, params in shapes.items():
                updates = []
                for p in params:
                    state = self.state[p]
                    if "momentum" not in state:
                        state["momentum"] = torch.zeros_like(p)
                    buf = state["momentum"]
                    grad = p.grad
                    assert grad is not None
                    buf.lerp_(grad, 1 - group["momentum"])
                    updates.append(torch.lerp(grad, buf, group["momentum"]))
                scale = 0.2 * max(shape) ** 0.5
                for p, u in zip(params, orthogonalise(torch.stack(updates)), strict=True):
                    p.mul_(1 - group["lr"] * group["weight_decay"])
                    p.add_(u, alpha=-group["lr"] * scale)


def make_optimizers(model: nn.Module, lr: float, embed_lr: float) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside the layers, AdamW for the embedding and the norm gains."""
    matrices = [p for n, p in model.named_parameters() if p.ndim == 2 and "embed" not in n]
    embeddings = [p for n, p in model.named_parameters() if "embed" in n]
    gains = [p for p in model.parameters() if p.ndim == 1]
    groups: list[dict[str, Any]] = [
        {"params": embeddings, "weight_decay": 0.01},
        {"params": gains, "weight_decay": 0.0},
    ]
    optimizers = [Muon(matrices, lr=lr), torch.optim.AdamW(groups, lr=embed_lr, betas=(0.9, 0.95), eps=1e-10)]
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["peak_lr"] = group["lr"]
    return optimizers


def set_progress(optimizers: list[torch.optim.Optimizer], progress: float, hold: float = 0.4) -> float:
    """Set the learning rates for a run that is `progress` (0 to 1) done: short warm-up, plateau, linear decay to zero."""
    scale = min(1.0, (progress + 1e-3) / 0.01, max(0.0, 1 - progress) / (1 - hold))
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = group["peak_lr"] * scale
    return scale
