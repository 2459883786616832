"""``cloister.optimize(model)``: a loaded model of ``transformers`` computes in few bits from then on, through the
same API.

The model is changed in place and returned: linear layers are replaced, the rest computes in float32. Refused: models
that are already quantised, that carry adapters of ``peft``, that are not on the CPU, or that are in training; each
with what to do instead.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final, Literal, TypeVar, cast, overload

import torch
from torch import nn

from cloister.errors import UsageError
from cloister.inference.lowbit.builder import Builder, Memory
from cloister.inference.lowbit.huge_pages import gather
from cloister.inference.lowbit.layer import LowBitLinear, StoredEmbedding
from cloister.inference.lowbit.norms import fuse_norms
from cloister.inference.lowbit.report import OptimisationReport, Precision
from cloister.inference.lowbit.structure import Linear, is_adapted, linears, siblings
from cloister.inference.machine_limits import read_limits

Asked = Literal["auto", "int8", "int4", "bf16", "fp32"]
PRECISIONS: Final = ("auto", "int8", "int4", "bf16", "fp32")
REPORT: Final = "cloister_report"
_LARGE_TABLE: Final = 1 << 22
"""Numbers of an embedding from which on it stays in the type it is stored in."""
_ROOM: Final = 0.6
"""Of the available memory, what further packings may take."""
M = TypeVar("M", bound=nn.Module)


@overload
def optimize(model: str | os.PathLike[str], **settings: Any) -> Any: ...
@overload
def optimize(model: M, *, precision: Asked = "auto", memory: Memory = "auto") -> M: ...
def optimize(model: Any, **settings: Any) -> Any:
    """Make ``model`` fast on this machine, and return it.

    A model of ``transformers`` is changed in place; what was done is at ``model.cloister_report``. ``precision``
    "auto" is int8, or int4 where the memory does not hold int8. A path does what ``cloister optimize`` does with it,
    with the same settings. Raises :class:`~cloister.errors.UsageError` for a model that cannot be optimised.
    """
    if isinstance(model, str | os.PathLike):
        from cloister.inference.optimizer import optimize_directory  # noqa: PLC0415 -- needs every engine

        return optimize_directory(Path(model), **settings)
    return optimise_model(model, **settings)


def optimise_model(model: M, *, precision: Asked = "auto", memory: Memory = "auto") -> M:
    """As :func:`optimize`, of a model alone."""
    begun = time.perf_counter()
    check(model, precision)
    layers, kept = linears(model)
    chosen = resolve(precision, layers)
    before = weight_bytes(model)
    model.eval()
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    builder = Builder(chosen, memory, room=room(memory))
    if chosen in ("int8", "int4"):
        crossing = bool(getattr(getattr(model, "config", None), "is_encoder_decoder", False))
        for group in siblings(layers, crossing=crossing):
            builder.replace(
                model, group, builder.build(group, [builder.quantise(group, one.weight) for one in group])
            )
    else:
        kept = {}
    norms = settle(model, torch.bfloat16 if chosen == "bf16" else torch.float32)
    finish(model, builder, kept=kept, norms=norms, before=before, begun=begun)
    return model


def check(model: object, precision: str) -> None:
    """Raise :class:`~cloister.errors.UsageError` for what cannot be optimised."""
    if precision not in PRECISIONS:
        raise UsageError(
            f"there is no precision {precision!r}", todo=f"choose one of: {', '.join(PRECISIONS)}"
        )
    if not isinstance(model, nn.Module):
        raise UsageError(
            f"a {type(model).__name__} is no model of torch", todo="load it with transformers first"
        )
    if hasattr(model, REPORT):
        raise UsageError("the model is optimised already", todo="load it anew for another precision")
    if is_adapted(model):
        raise UsageError(
            "the model carries adapters of peft, whose layers would be lost",
            todo="model = model.merge_and_unload(), and optimise what that returns",
        )
    if getattr(model, "is_quantized", False) or getattr(model, "hf_quantizer", None) is not None:
        raise UsageError("the model is quantised already", todo="load it without quantization_config")
    kinds = {parameter.device.type for parameter in model.parameters()}
    if kinds - {"cpu"}:
        raise UsageError(
            f"the model is on {', '.join(sorted(kinds))}, not on the CPU", todo='model.to("cpu") first'
        )


def settle(model: nn.Module, dtype: torch.dtype) -> int:
    """What is no low-bit layer computes in ``dtype``, but for large embeddings; how many norms were fused."""
    if dtype == torch.float32:
        tables = [(name, module) for name, module in model.named_modules() if type(module) is nn.Embedding]
        for name, table in tables:
            # `nn.Embedding` with a bound on its norms writes into its table.
            if (
                name
                and table.weight.dtype != dtype
                and table.weight.numel() >= _LARGE_TABLE
                and table.max_norm is None
            ):
                model.set_submodule(name, StoredEmbedding(table.weight, table.padding_idx))
    for tensor in model.parameters():
        if tensor.is_floating_point() and tensor.dtype != dtype:
            tensor.data = tensor.data.to(dtype)
    kept = {id(module.weight) for module in model.modules() if isinstance(module, StoredEmbedding)}
    for buffer in model.buffers():
        if buffer.dtype in (torch.float16, torch.bfloat16, torch.float64) and id(buffer) not in kept:
            buffer.data = buffer.data.to(dtype)
    config = getattr(model, "config", None)
    if getattr(config, "dtype", None) is not None:
        cast(Any, config).dtype = dtype
    return fuse_norms(model) if dtype == torch.float32 else 0


def finish(
    model: nn.Module, builder: Builder, *, kept: Mapping[str, str], norms: int, before: int, begun: float
) -> None:
    """Put the report on the model, and refuse from now on what would save or train it wrongly."""
    gather()
    report = OptimisationReport(
        precision=builder.precision,
        layers=tuple(builder.reports),
        kept=dict(kept),
        norms=norms,
        size_before=before,
        size=weight_bytes(model),
        seconds=time.perf_counter() - begun,
        times=dict(builder.times),
    )
    setattr(model, REPORT, report)
    if builder.reports:
        for name in ("save_pretrained", "push_to_hub", "resize_token_embeddings", "tie_weights"):
            if hasattr(model, name):
                object.__setattr__(model, name, _refusing(name))


def _refusing(name: str) -> Callable[..., Any]:
    def refuse(*_args: Any, **_kwargs: Any) -> Any:
        if name == "tie_weights":
            return None  # the logits' layer has its own copy by now
        raise UsageError(
            f"{name} is for models in full precision",
            todo="save_low_bit(model, folder) keeps what was optimised",
        )

    return refuse


def resolve(precision: Asked, layers: list[Linear]) -> Precision:
    if precision != "auto":
        return precision
    numbers = sum(outputs * inputs for outputs, inputs in (layer.shape for layer in layers))
    return "int8" if numbers < _available() else "int4"


def room(memory: Memory) -> int:
    return 1 << 62 if memory == "fast" else int(_available() * _ROOM)


def _available() -> int:
    return read_limits(Path("/")).available


def weight_bytes(model: nn.Module) -> int:
    """Of parameters, buffers and packings, each once."""
    tensors = {tensor.data_ptr(): tensor for tensor in (*model.parameters(), *model.buffers())}
    plain = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    return plain + sum(module.size for module in model.modules() if isinstance(module, LowBitLinear))
