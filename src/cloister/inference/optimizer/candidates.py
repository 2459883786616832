"""What can be tried: engine, form of the weights, settings; and why something cannot.

A candidate is listed only where its engine is installed and its weights fit the memory; what is left out is listed too, with
its reason. The order is that of promise for the goal, so that a small budget tries the likeliest first. Promise is a guess
from figures on other machines: it decides who is tried first, never who is chosen.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Final, Literal

from cloister.inference.engines import BUILT_IN, KvCache, Precision, engine_entry_points
from cloister.inference.machine import Machine
from cloister.inference.model_files import ModelKind
from cloister.inference.optimized import Goal

Form = Literal["as it is", "f16", "q8_0", "q4_k_m", "q4_0"]

BITS: Final[Mapping[str, float]] = {"fp32": 32, "f16": 16, "bf16": 16, "int8": 8.5, "q8_0": 8.5} | {
    "q4_k_m": 4.85,
    "q4_0": 4.5,
    "int4": 4.5,
}
"""Bits of a weight, with its share of the scales."""
RESERVE: Final = 512 << 20
"""Bytes beside the weights: the program, its libraries, what a batch computes with."""
_NEEDED: Final[Mapping[str, tuple[str, ...]]] = {
    "llamacpp": ("xllamacpp",),
    "openvino": ("openvino_genai",),
    "torch": ("torch", "transformers"),
}
_SPEED: Final[Mapping[str, Mapping[str, float]]] = {
    # Promise relative to the best: (engine, weights) → guess. Measured on two cores with AVX2, 1.1 B.
    "latency": {
        "llamacpp q4_0": 1.0, "llamacpp q4_k_m": 0.98, "llamacpp as it is": 0.8, "llamacpp q8_0": 0.72,
        "openvino as it is": 0.7, "openvino q4_0": 0.7, "torch int8": 0.66, "openvino q8_0": 0.65, "torch int4": 0.6,
        "llamacpp f16": 0.5, "torch bf16": 0.25, "torch fp32": 0.15,
    },
    "throughput": {
        "torch int8": 1.0, "llamacpp q4_0": 0.62, "llamacpp q8_0": 0.6, "llamacpp as it is": 0.6,
        "openvino as it is": 0.5, "torch int4": 0.5, "llamacpp q4_k_m": 0.48, "openvino q4_0": 0.45,
        "openvino q8_0": 0.4, "llamacpp f16": 0.35, "torch bf16": 0.25, "torch fp32": 0.14,
    },
}  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """One way to compute the model."""

    engine: str
    form: Form = "as it is"
    """The GGUF type that the weights are converted to first, or the files as they are."""
    precision: Precision | None = None
    kv_cache: KvCache = "f16"
    threads: int | None = None
    bits: float = 16.0
    """Of a weight while it computes."""
    promise: float = 0.0
    weight_bytes: int = 0
    """About what the weights need in memory."""

    @property
    def name(self) -> str:
        parts = [self.engine, self.precision or self.form]
        if self.kv_cache != "f16":
            parts.append(f"kv {self.kv_cache}")
        if self.threads is not None:
            parts.append("1 thread" if self.threads == 1 else f"{self.threads} threads")
        return ", ".join((" ".join(parts[:2]), *parts[2:]))


@dataclass(frozen=True, slots=True)
class LeftOut:
    """What was not tried."""

    name: str
    engine: str
    reason: str


@dataclass(frozen=True, slots=True)
class Source:
    """The model as it was given."""

    kind: ModelKind
    weights: int
    """Bytes of its weights on the disk."""
    bits: float
    """Of one weight there, 16 where nothing says."""


def list_candidates(
    source: Source,
    machine: Machine,
    goal: Goal,
    *,
    short: bool = False,
    installed: Callable[[str], bool] = lambda package: importlib.util.find_spec(package) is not None,
) -> tuple[list[Candidate], list[LeftOut]]:
    """What to try, the most promising first, and what not; in a ``short`` search what opens at once goes first."""
    found: list[Candidate] = []
    out: list[LeftOut] = []
    for one in (*_built_in(source, machine), *_plugins(source)):
        weight_bytes = int(source.weights * one.bits / source.bits)
        candidate = replace(
            one, weight_bytes=weight_bytes, promise=_promise(one, goal, 1.0 if short else _wider(machine))
        )
        reason = _missing(candidate, installed)
        needed = _loading(candidate, source) + RESERVE
        if not reason and needed > machine.limits.available:
            reason = f"needs about {_gb(needed)} of memory, and {_gb(machine.limits.available)} are free"
        if reason:
            out.append(LeftOut(candidate.name, candidate.engine, reason))
        else:
            found.append(candidate)
    return sorted(found, key=lambda one: -one.promise), out


def variants(best: Candidate, machine: Machine) -> list[Candidate]:
    """Other settings of the candidate that leads: smaller keys and values, other numbers of threads."""
    found: list[Candidate] = []
    if best.engine == "llamacpp" and best.kv_cache == "f16":
        found.append(replace(best, kv_cache="q8_0"))
    if best.threads is None:
        cores = machine.processors
        # What an engine chooses itself needs no variant: all processors, and OpenVINO one fewer.
        known = {"llamacpp": (cores - 1,), "torch": (cores - 1,), "openvino": (cores,)}
        counts = known.get(best.engine, (cores, cores - 1))
        found += [replace(best, threads=count) for count in counts if count >= 1]
    return found


def _built_in(source: Source, machine: Machine) -> list[Candidate]:
    forms = {
        "f16": Candidate(engine="llamacpp", form="f16", bits=BITS["f16"]),
        "q8_0": Candidate(engine="llamacpp", form="q8_0", bits=BITS["q8_0"]),
        "q4_k_m": Candidate(engine="llamacpp", form="q4_k_m", bits=BITS["q4_k_m"]),
        "q4_0": Candidate(engine="llamacpp", form="q4_0", bits=BITS["q4_0"]),
    }
    if source.kind == "openvino":
        return [Candidate(engine="openvino", bits=source.bits)]
    if source.kind == "gguf":
        return [Candidate(engine=name, bits=source.bits) for name in ("llamacpp", "openvino")]
    llama = list(forms.values())
    torch: list[Precision] = ["fp32", "bf16", "int8", "int4"]
    return [
        *llama,
        *(replace(one, engine="openvino") for one in llama if one.form in ("q8_0", "q4_0")),
        *(Candidate(engine="torch", precision=one, bits=BITS[one]) for one in torch),
    ]


def _plugins(source: Source) -> list[Candidate]:
    own = {point.name for point in BUILT_IN}
    return [Candidate(engine=name, bits=source.bits) for name in engine_entry_points() if name not in own]


def _missing(candidate: Candidate, installed: Callable[[str], bool]) -> str:
    for package in _NEEDED.get(candidate.engine, ()):
        if not installed(package):
            return f"{package} is not installed"
    if candidate.engine in _NEEDED and not installed(f"cloister.inference.engines.{candidate.engine}"):
        return "this installation lacks the engine"
    if candidate.form != "as it is" and not installed("numpy"):
        return "weights are converted with numpy, which is not installed"
    return ""


def _loading(candidate: Candidate, source: Source) -> int:
    """Bytes while it is loaded: low-bit layers of torch are made from the whole weights."""
    if candidate.engine == "torch":
        return max(candidate.weight_bytes, source.weights) + candidate.weight_bytes // 4
    return candidate.weight_bytes


def _promise(candidate: Candidate, goal: Goal, wider: float) -> float:
    if goal == "memory":
        return 1 / candidate.bits + (0.01 if candidate.engine == "llamacpp" else 0.0)
    found = _SPEED[goal].get(f"{candidate.engine} {candidate.precision or candidate.form}", 0.3)
    # llama.cpp's wheel stops at AVX2.
    return found if candidate.engine == "llamacpp" else found * wider


def _wider(machine: Machine) -> float:
    """What instructions beyond AVX2 promise engines that have them."""
    if "amx_int8" in machine.features:
        return 2.0
    return 1.3 if "avx512_vnni" in machine.features else 1.0


def _gb(size: int) -> str:
    return f"{size / 1e9:.1f} GB"
