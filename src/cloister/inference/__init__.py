"""Inference: the OpenAI API over an engine in this process, behind the sealed gateway; and models of one's own made fast.

The public names are loaded when they are first used: importing this package loads neither an engine nor torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cloister.inference.lowbit.auto import (
        AutoModel,
        AutoModelForCausalLM,
        AutoModelForMaskedLM,
        AutoModelForSeq2SeqLM,
        AutoModelForSequenceClassification,
        AutoModelForTokenClassification,
    )
    from cloister.inference.lowbit.optimisation import optimize
    from cloister.inference.lowbit.storage import save_low_bit
    from cloister.inference.lowbit.training import prepare_training

__all__ = [
    "AutoModel",
    "AutoModelForCausalLM",
    "AutoModelForMaskedLM",
    "AutoModelForSeq2SeqLM",
    "AutoModelForSequenceClassification",
    "AutoModelForTokenClassification",
    "optimize",
    "prepare_training",
    "save_low_bit",
]

_HOMES = {
    **dict.fromkeys((name for name in __all__ if name.startswith("Auto")), "cloister.inference.lowbit.auto"),
    "optimize": "cloister.inference.lowbit.optimisation",
    "prepare_training": "cloister.inference.lowbit.training",
    "save_low_bit": "cloister.inference.lowbit.storage",
}


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(home), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
