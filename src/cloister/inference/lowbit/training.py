"""Training on CPUs, set up by one call: ``prepare_training(model)``. bfloat16 where the processor multiplies in it,
one thread a core.

Weights, gradients and the optimiser stay in float32; only the products are computed in bfloat16 (autocast), which is
what the accelerators' mixed precision does. Nothing is changed on a processor without AVX512_BF16 or AMX, where
bfloat16 is slower.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import nn

from cloister.errors import UsageError
from cloister.inference.lowbit.process import settle

M = TypeVar("M", bound=nn.Module)


@dataclass(frozen=True, slots=True)
class TrainingReport:
    """What was set."""

    bfloat16: bool
    threads: int


def has_bfloat16() -> bool:
    """Whether this processor multiplies bfloat16 itself (AVX512_BF16 or AMX)."""
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def autocast() -> AbstractContextManager[object]:
    """Products in bfloat16 while it lasts, where that is faster, and where the program has not chosen by itself."""
    if not has_bfloat16() or torch.is_autocast_enabled("cpu"):
        return contextlib.nullcontext()
    return torch.autocast("cpu", dtype=torch.bfloat16)


def prepare_training(model: M) -> M:
    """Let ``model`` (in float32) train fast on this machine; the same object, with ``model.cloister_training``.

    Its forward pass runs under :func:`autocast`; the loss that it returns is float32, and `backward` is called as
    ever. Raises :class:`~cloister.errors.UsageError` for a model that is not in full precision.
    """
    if any(parameter.dtype in (torch.float16, torch.int8) for parameter in model.parameters()):
        raise UsageError(
            "a model in float16 does not train on a CPU", todo="load it with dtype=torch.float32"
        )
    if hasattr(model, "cloister_report"):
        raise UsageError("the model was optimised to infer", todo="load it anew to train it")
    if not hasattr(model, "cloister_training"):
        object.__setattr__(model, "forward", _under_autocast(model.forward))
    # Weights, their gradients, and two moments of the optimiser.
    needed = 4 * sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
    object.__setattr__(model, "cloister_training", settle_process(needed))
    return model


def settle_process(needed: int = 0) -> TrainingReport:
    """What concerns the whole process: threads and their place, and no numbers too small to matter. ``needed``: bytes."""
    settle(needed)
    torch.set_flush_denormal(True)
    return TrainingReport(bfloat16=has_bfloat16(), threads=torch.get_num_threads())


def _under_autocast(forward: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(forward)
    def run(*args: Any, **kwargs: Any) -> Any:
        with autocast():
            return forward(*args, **kwargs)

    return run
