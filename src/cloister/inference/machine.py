"""What this machine is to an engine: its processors, cores, NUMA nodes and memory, as far as this process may use them.

Read from /proc and /sys, never asked of the processor itself: under Gramine and in a container these files say what the
process has, not what the host has. What a file does not say stays unknown, and unknown never means more: a missing topology
makes every processor a core, a missing limit leaves the memory that the kernel has. Nothing here refuses a machine.
"""

from __future__ import annotations

import contextlib
import os
import platform
import threading
import time
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cloister.encoding import encode_json, labelled_hash
from cloister.inference.machine_limits import Limits, number_list, read_limits, read_text

FINGERPRINT_LABEL: Final = "cloister/machine/v1"
FEATURES: Final = (
    "avx2",
    "fma",
    "f16c",
    "avx512f",
    "avx512_vnni",
    "avx_vnni",
    "avx512_bf16",
    "amx_int8",
    "amx_bf16",
    "asimd",
    "asimddp",
    "i8mm",
    "bf16",
    "sve",
)
"""Names in /proc/cpuinfo of what engines compute with; the last five are ARM's."""
MAX_NODES: Final = 1024
_ROOT: Final = Path("/")
_PROBE: Final = 64 << 20
_PROBE_SECONDS: Final = 0.4


@dataclass(frozen=True, slots=True)
class Node:
    """A NUMA node, as far as this process computes there."""

    number: int
    cpus: frozenset[int]
    """Logical processors in this process's set."""
    memory: int
    """Bytes it has in all; 0 where nothing says so."""


@dataclass(frozen=True, slots=True)
class Machine:
    """What this process may use of the machine."""

    architecture: str
    vendor: str
    model: str
    features: frozenset[str]
    """Those of :data:`FEATURES` that every processor has."""
    cores: tuple[frozenset[int], ...]
    """Physical cores: of each the logical processors (SMT siblings) that are in this process's set."""
    nodes: tuple[Node, ...]
    """At least one."""
    limits: Limits
    page_size: int
    huge_pages: str
    """Transparent huge pages: ``always``, ``madvise``, ``never``, or "" where the kernel has none."""

    @property
    def cpus(self) -> frozenset[int]:
        return frozenset().union(*self.cores)

    @property
    def processors(self) -> int:
        """How many threads can compute at once: physical cores, fewer under a cgroup's quota, at least one."""
        quota = self.limits.processors
        return max(1, len(self.cores) if quota is None else min(len(self.cores), int(quota)))

    @property
    def fingerprint(self) -> bytes:
        """32 bytes over what decides speed. Two machines that share it share their tuning."""
        quota = self.limits.processors
        facts = {
            "architecture": self.architecture,
            "vendor": self.vendor,
            "model": self.model,
            "features": sorted(self.features),
            "cores": [len(core) for core in sorted(self.cores, key=min)],
            "nodes": [len(node.cpus) for node in self.nodes],
            "quota_percent": None if quota is None else round(quota * 100),
            "huge_pages": self.huge_pages,
        }
        return labelled_hash(FINGERPRINT_LABEL, encode_json(facts))

    @property
    def words(self) -> str:
        """One line for a person."""
        nodes = f", {len(self.nodes)} NUMA nodes" if len(self.nodes) > 1 else ""
        quota = self.limits.processors
        limited = "" if quota is None else f", quota of {quota:g}"
        cores = "1 core" if len(self.cores) == 1 else f"{len(self.cores)} cores"
        smt = f" ({len(self.cpus)} threads)" if len(self.cpus) > len(self.cores) else ""
        shown = " ".join(name for name in FEATURES if name in self.features)
        memory = f"{self.limits.memory / (1 << 30):.1f} GiB"
        found = f"{cores}{smt}{nodes}{limited}, {memory}; {shown or 'no vector extensions'}"
        return f"{self.model or self.architecture}: {found}"


def read_machine(
    root: Path = _ROOT, *, affinity: Collection[int] | None = None, architecture: str | None = None
) -> Machine:
    """The machine below ``root``. ``affinity`` are the processors of this process, the kernel's answer by default."""
    cpus = frozenset(os.sched_getaffinity(0) if affinity is None else affinity)
    blocks = _cpuinfo(root)
    first = next(iter(blocks.values()), {})
    flags = [set(block.get("flags", block.get("Features", "")).split()) for block in blocks.values()]
    features = set(FEATURES).intersection(*flags) if flags else set[str]()
    architecture = architecture or platform.machine()
    if architecture != "aarch64":
        features -= {"asimd", "asimddp", "i8mm", "bf16", "sve"}
    return Machine(
        architecture=architecture,
        vendor=_shown(first.get("vendor_id", first.get("CPU implementer", ""))),
        model=_shown(first.get("model name", first.get("CPU part", ""))),
        features=frozenset(features),
        cores=_cores(root, cpus, blocks),
        nodes=_nodes(root, cpus),
        limits=read_limits(root),
        page_size=os.sysconf("SC_PAGE_SIZE"),
        huge_pages=_chosen(read_text(root / "sys/kernel/mm/transparent_hugepage/enabled")),
    )


def read_bandwidth(machine: Machine) -> float | None:
    """Bytes a second that the cores read from memory together, measured in half a second; None without numpy.

    A decoded token reads every weight once, so this over the weights' bytes bounds the tokens a second.
    """
    try:
        import numpy as np  # noqa: PLC0415 -- optional, and 30 MB
    except ImportError:
        return None
    count = min(machine.processors, 64)
    best, ended = 0.0, time.perf_counter() + _PROBE_SECONDS
    parts = [np.ones(_PROBE // 4, dtype=np.float32) for _ in range(count)]
    while True:
        # The reduction reads with the widest registers and lets go of Python's lock.
        threads = [threading.Thread(target=np.maximum.reduce, args=(part,)) for part in parts]
        begun = time.perf_counter()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        now = time.perf_counter()
        best = max(best, count * _PROBE / (now - begun))
        if now >= ended:
            return best


def _cpuinfo(root: Path) -> dict[int, dict[str, str]]:
    """Processor → what /proc/cpuinfo says of it."""
    found: dict[int, dict[str, str]] = {}
    for block in read_text(root / "proc/cpuinfo", limit=16 << 20).split("\n\n"):
        pairs = (line.partition(":") for line in block.splitlines())
        table = {name.strip(): value.strip() for name, _, value in pairs}
        with contextlib.suppress(KeyError, ValueError):
            found[int(table["processor"])] = table
    return found


def _cores(root: Path, cpus: frozenset[int], blocks: dict[int, dict[str, str]]) -> tuple[frozenset[int], ...]:
    cores: dict[object, set[int]] = {}
    for cpu in sorted(cpus):
        topology = root / f"sys/devices/system/cpu/cpu{cpu}/topology"
        siblings = number_list(read_text(topology / "thread_siblings_list"))
        block = blocks.get(cpu, {})
        core: object = cpu
        if siblings:
            core = frozenset(siblings)
        elif "core id" in block:
            core = (block.get("physical id", "0"), block["core id"])
        cores.setdefault(core, set()).add(cpu)
    return tuple(frozenset(core) for core in cores.values())


def _nodes(root: Path, cpus: frozenset[int]) -> tuple[Node, ...]:
    folder = root / "sys/devices/system/node"
    found = []
    for number in sorted(number_list(read_text(folder / "online")))[:MAX_NODES]:
        inside = number_list(read_text(folder / f"node{number}/cpulist")) & cpus
        if inside:
            memory = read_text(folder / f"node{number}/meminfo").partition("MemTotal:")[2].split()
            known = int(memory[0]) << 10 if memory and memory[0].isdecimal() else 0
            found.append(Node(number, frozenset(inside), known))
    return tuple(found) or (Node(0, cpus, 0),)


def _chosen(text: str) -> str:
    """``madvise`` of ``always [madvise] never``."""
    chosen = text.partition("[")[2].partition("]")[0]
    return chosen if chosen in ("always", "madvise", "never") else ""


def _shown(text: str) -> str:
    return "".join(char for char in text[:100] if char.isprintable())
