"""Cloister: run LLM applications on machines you do not have to trust.

The public names, loaded when they are first used: importing this package loads neither the HTTP client nor the
quote verifier, and has no other effect.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cloister.appraisal.policy import Policy, load_policy, read_policy
    from cloister.appraisal.result import AttestationResult
    from cloister.channel.manifest_anchor import ManifestAnchor
    from cloister.channel.transport import AsyncSealedClient, SealedClient, connect, connect_async
    from cloister.errors import CloisterError
    from cloister.inference.lowbit.optimisation import optimize

__all__ = [
    "AsyncSealedClient",
    "AttestationResult",
    "CloisterError",
    "ManifestAnchor",
    "Policy",
    "SealedClient",
    "connect",
    "connect_async",
    "load_policy",
    "optimize",
    "read_policy",
]

_HOMES = {
    "AsyncSealedClient": "cloister.channel.transport",
    "AttestationResult": "cloister.appraisal.result",
    "CloisterError": "cloister.errors",
    "ManifestAnchor": "cloister.channel.manifest_anchor",
    "Policy": "cloister.appraisal.policy",
    "SealedClient": "cloister.channel.transport",
    "connect": "cloister.channel.transport",
    "connect_async": "cloister.channel.transport",
    "load_policy": "cloister.appraisal.policy",
    "optimize": "cloister.inference.lowbit.optimisation",
    "read_policy": "cloister.appraisal.policy",
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
