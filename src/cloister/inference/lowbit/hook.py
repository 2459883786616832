"""``cloister run --optimize``: an unmodified script's models are optimised when they first infer, if the script does
not train.

A model that ``from_pretrained`` returned is optimised at its first ``generate()``, or its first forward pass without
gradients, in evaluation mode and without labels. Never where the process made an optimiser or a ``Trainer`` before,
nor a model with adapters of ``peft``: training keeps full precision, and gets bfloat16 where the processor computes
in it (training.py). Refuses to train what was optimised already: a script that infers first and trains later is told
so, rather than trained wrongly.
"""

from __future__ import annotations

import contextlib
import sys
import threading
import weakref
from collections.abc import Callable, Iterable
from typing import Any, Final, Literal

from cloister.errors import UsageError
from cloister.workload.hooks.seams import Around, Seam, apply_when_imported

Asked = Literal["auto", "int8", "int4", "bf16"]
_ANSWER: Final = "run it without --optimize, or let it infer after it has trained"
_HANDLE: Final = "_cloister_first_use"
_lock: Final = threading.RLock()


class Script:
    """What one process does with its models."""

    def __init__(self, precision: Asked, say: Callable[[str], object]) -> None:
        self._precision = precision
        self._say = say
        self._trains = False
        self._optimised: weakref.WeakSet[Any] = weakref.WeakSet()

    def seams(self) -> tuple[Seam, ...]:
        """Where ``transformers`` and torch are changed."""
        return (
            Seam("transformers.modeling_utils", "PreTrainedModel.from_pretrained", self._loaded),
            Seam("transformers.generation.utils", "GenerationMixin.generate", self._generates),
            Seam("transformers.trainer", "Trainer.__init__", self._makes_trainer),
            Seam("transformers.trainer", "Trainer.compute_loss", _in_bfloat16),
            Seam("torch.optim.optimizer", "Optimizer.__init__", self._makes_optimiser),
        )

    def _loaded(self, wrapped: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        found = wrapped(*args, **kwargs)
        model = found[0] if isinstance(found, tuple) else found
        handle = model.register_forward_pre_hook(self._runs, with_kwargs=True)
        setattr(model, _HANDLE, handle)
        return found

    def _runs(self, model: Any, _args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        import torch  # noqa: PLC0415 -- the program has imported it

        if not model.training and not torch.is_grad_enabled() and kwargs.get("labels") is None:
            self._use(model)

    def _generates(self, wrapped: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        model = getattr(wrapped, "__self__", None)
        if model is not None and hasattr(model, _HANDLE) and not model.training:
            self._use(model)
        return wrapped(*args, **kwargs)

    def _makes_trainer(
        self, wrapped: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        for value in (*args, *kwargs.values()):
            if hasattr(value, "parameters") and callable(value.parameters):
                self._require_untouched(value.parameters())
        self._trains = True
        from cloister.inference.lowbit.training import settle_process  # noqa: PLC0415

        settle_process()
        return wrapped(*args, **kwargs)

    def _makes_optimiser(
        self, wrapped: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        parameters = list(_parameters(kwargs.get("params", args[0] if args else ())))
        self._require_untouched(parameters)
        self._trains = True
        return wrapped(
            parameters, *args[1:], **{name: one for name, one in kwargs.items() if name != "params"}
        )

    def _require_untouched(self, parameters: Iterable[Any]) -> None:
        found = {id(one) for one in _tensors(parameters)}
        with _lock:
            touched = any(id(one) in found for model in self._optimised for one in model.parameters())
        if touched:
            raise UsageError(
                "a model that was optimised when it first inferred is to be trained now", todo=_ANSWER
            )

    def _use(self, model: Any) -> None:
        """The model infers: now or never."""
        from cloister.inference.lowbit.layer import LowBitLinear  # noqa: PLC0415 -- needs torch
        from cloister.inference.lowbit.optimisation import optimise_model  # noqa: PLC0415
        from cloister.inference.lowbit.process import settle  # noqa: PLC0415

        with _lock:
            handle = model.__dict__.pop(_HANDLE, None)
            if handle is None:
                return
            handle.remove()
            name = type(model).__name__
            if self._trains or any(one.grad is not None for one in model.parameters()):
                self._say(f"{name} stays in full precision: this program trains")
                return
            if any(isinstance(module, LowBitLinear) for module in model.modules()):
                return
            try:
                settle(sum(one.numel() for one in model.parameters()))
                optimise_model(model, precision=self._precision)
            except UsageError as error:
                self._say(f"{name} stays in full precision: {error.what}")
                return
            self._optimised.add(model)
            self._say(f"{name} optimised; {str(model.cloister_report).splitlines()[0]}")


def install(precision: Asked) -> None:
    """Change the libraries when they are imported; called by the hooks of ``cloister run`` alone."""
    for seam in Script(precision, _say).seams():
        apply_when_imported(seam)


def _parameters(value: Any) -> Iterable[Any]:
    return value if isinstance(value, dict | list | tuple) else list(value)


def _tensors(parameters: Iterable[Any]) -> Iterable[Any]:
    """Out of every form in which optimisers take parameters: tensors, pairs of name and tensor, groups."""
    for one in parameters:
        if isinstance(one, dict):
            yield from _tensors(_listed(one.get("params", ())))
        elif isinstance(one, tuple):
            yield one[-1]
        else:
            yield one


def _listed(value: Any) -> Iterable[Any]:
    return value if isinstance(value, list | tuple) else [value]


def _in_bfloat16(wrapped: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    from cloister.inference.lowbit.training import autocast  # noqa: PLC0415 -- needs torch

    with autocast():
        return wrapped(*args, **kwargs)


def _say(text: str) -> None:
    with contextlib.suppress(OSError, ValueError):
        sys.stderr.write(f"cloister: {text}\n")
        sys.stderr.flush()


__all__ = ["Around", "Script", "install"]
