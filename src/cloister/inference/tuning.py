"""What the operator did not say: threads and the NUMA node, from the machine and the model's size. Pure.

Nothing that changes an answer is decided here, and nothing that is measured: slots and context stay as they were asked.
Where their keys and values do not fit the memory that is left they are refused, with the numbers that would fit: a smaller
service than the one that was measured would be another one. How a long prompt is cut into pieces is each engine's own
matter, which measures its pace as it goes.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

from cloister.encoding import parse_json
from cloister.errors import FormatError, UsageError
from cloister.inference.engines import EngineSettings
from cloister.inference.gguf_header import GgufHeader, read_gguf_header
from cloister.inference.machine import Machine, Node
from cloister.inference.model_files import ModelFiles

RESERVE: Final = 512 << 20
"""Bytes that stay free: the program, a batch's intermediate results, requests."""
NODE_SHARE: Final = 0.9
"""Of a NUMA node's memory, what the model and its keys and values may take for all of it to stay there."""
LARGE: Final = 256 << 20
"""From this size on huge pages show: below it the translations of 4 KiB pages fit the processor's own tables."""
_KV_BYTES: Final[Mapping[str, float]] = {"f16": 2.0, "q8_0": 34 / 32, "q4_0": 18 / 32}
_LAYER: Final = re.compile(r"^blk\.\d+\.(attn_k|attn_v)\.weight$")


@dataclass(frozen=True, slots=True)
class ModelShape:
    """What decides the size of keys and values."""

    kv_numbers: int
    """Numbers kept for one token, of all layers, keys and values."""
    trained_context: int | None = None

    def token_bytes(self, kv_cache: str) -> float:
        """Bytes that one token takes in the cache."""
        return self.kv_numbers * _KV_BYTES[kv_cache]


@dataclass(frozen=True, slots=True)
class Tuned:
    """Settings for :func:`cloister.inference.engines.open_engine`, and why."""

    settings: EngineSettings
    reasons: tuple[str, ...]
    """One line each, for the operator."""
    cpus: frozenset[int] | None = None
    """Processors to stay on (``sched_setaffinity``), where one NUMA node is enough; None for all of them."""
    node: int | None = None
    """That node: its memory is the nearest (``numactl --membind``)."""


def tuned(
    machine: Machine,
    model_bytes: int,
    settings: EngineSettings,
    *,
    shape: ModelShape | None = None,
    mapped: bool = False,
) -> Tuned:
    """``settings`` with what suits ``machine`` where they say nothing, for weights of ``model_bytes``, not loaded yet.

    ``mapped``: the engine computes on the files where they lie, and they lie in memory already.
    Raises :class:`UsageError` where slots and context do not fit the memory; only where ``shape`` says what they take.
    """
    reasons: list[str] = []
    needed = model_bytes
    if shape is not None:
        needed += _cache_bytes(machine, 0 if mapped else model_bytes, settings, shape, reasons)
    node = _node(machine, needed)
    cores = machine.cores if node is None else [core for core in machine.cores if core & node.cpus]
    if node is not None:
        reasons.append(
            f"NUMA node {node.number} alone: the model fits its memory, and {len(cores)} cores read it without the link "
            f"between sockets; `numactl --cpunodebind={node.number} --membind={node.number}` binds memory too"
        )
    threads = settings.threads
    if threads is None:
        threads = max(1, min(len(cores), machine.processors))
        reasons.append(_why_threads(machine, threads))
    if model_bytes >= LARGE and machine.huge_pages == "never":
        reasons.append(
            "huge pages are off: `echo madvise > /sys/kernel/mm/transparent_hugepage/enabled` lets weights lie in them"
        )
    return Tuned(
        settings=replace(settings, threads=threads),
        reasons=tuple(reasons),
        cpus=None if node is None else node.cpus,
        node=None if node is None else node.number,
    )


def shape_of(model: ModelFiles) -> ModelShape | None:
    """The shape that ``model``'s own files tell; None where they do not. Raises FormatError or InferenceError."""
    if model.kind == "gguf":
        return _gguf_shape(read_gguf_header(model.main, what=model.main_name))
    if "config.json" not in model.descriptors:
        return None
    config = parse_json(model.read("config.json"), what="config.json")
    if not isinstance(config, dict):
        raise FormatError("config.json is not an object")
    return _config_shape(config)


def _cache_bytes(
    machine: Machine, model_bytes: int, settings: EngineSettings, shape: ModelShape, reasons: list[str]
) -> int:
    context = min(settings.context_length, shape.trained_context or settings.context_length)
    token = shape.token_bytes(settings.kv_cache)
    wanted = int(settings.slots * context * token)
    left = machine.limits.available - model_bytes - RESERVE
    if wanted <= left:
        reasons.append(
            f"keys and values of {settings.slots} slots take {_gb(wanted)} of the {_gb(left)} that are left"
        )
        return wanted
    if left < 16 * token:
        raise UsageError(
            f"the model needs {_gb(model_bytes)} of memory, and {_gb(machine.limits.available)} are free",
            todo="give the TEE more memory, or serve a smaller form: `cloister optimize --for memory` finds one",
        )
    slots, length = int(left / (context * token)), int(left / (settings.slots * token)) // 16 * 16
    fitting = [f"--slots {slots} with that context"] if slots else []
    fitting += [f"--context {length} with {settings.slots} slots"] if length >= 64 else []
    fitting += ["--kv-cache q8_0 halves it"] if settings.kv_cache == "f16" else []
    raise UsageError(
        f"{settings.slots} slots of {context} tokens need {_gb(wanted)} for keys and values, and {_gb(left)} are left "
        "beside the model",
        todo=f"what fits: {', or '.join(fitting)}" if fitting else "give the TEE more memory",
    )


def _node(machine: Machine, needed: int) -> Node | None:
    """The node with the most cores that holds all of it; None where there is one node only, or none does."""
    if len(machine.nodes) < 2:
        return None
    fitting = [node for node in machine.nodes if needed <= node.memory * NODE_SHARE]
    most = max(fitting, key=lambda node: (len(node.cpus), -node.number), default=None)
    # A node that has a small share of the cores costs more than the link between sockets.
    return most if most is not None and 2 * len(most.cpus) * len(machine.nodes) > len(machine.cpus) else None


def _why_threads(machine: Machine, threads: int) -> str:
    words = "1 thread" if threads == 1 else f"{threads} threads"
    quota = machine.limits.processors
    if quota is not None and threads == max(1, int(quota)):
        return f"{words}: the cgroup's quota is {quota:g} processors"
    if len(machine.cpus) > len(machine.cores):
        return f"{words}: one for each physical core; its second hardware thread reads no memory faster"
    return f"{words}: one for each core of this process's set"


def _gguf_shape(header: GgufHeader) -> ModelShape | None:
    # The projections' rows are what is kept of a token, whatever the architecture calls its heads.
    numbers = sum(sides[1] for name, sides in header.shapes.items() if _LAYER.match(name) and len(sides) == 2)
    if numbers == 0 and header.heads and header.embedding_length:
        layers = sum(1 for name in header.shapes if name.endswith(".attn_qkv.weight"))
        head = header.embedding_length // header.heads
        numbers = 2 * layers * head * (header.kv_heads or header.heads)
    return ModelShape(numbers, header.trained_context) if numbers else None


def _config_shape(config: Mapping[str, Any]) -> ModelShape | None:
    def number(*names: str) -> int:
        found = next((config[name] for name in names if config.get(name)), 0)
        return found if isinstance(found, int) and 0 < found < 1 << 24 else 0

    layers, heads = (
        number("num_hidden_layers", "num_layers", "n_layer"),
        number("num_attention_heads", "n_head"),
    )
    kv_heads = number("num_key_value_heads", "multi_query_group_num") or heads
    width = number("hidden_size", "n_embd")
    head = number("head_dim", "kv_channels") or (width // heads if heads else 0)
    numbers = 2 * layers * kv_heads * head
    context = number("max_position_embeddings", "seq_length", "n_positions") or None
    return ModelShape(numbers, context) if numbers else None


def _gb(size: float) -> str:
    return f"{size / 1e9:.1f} GB"
