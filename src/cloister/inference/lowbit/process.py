"""How many threads this process computes with, and on which NUMA node: what tuning.py chooses for a model, set for PyTorch.

What the program's environment says (``OMP_NUM_THREADS``) is left alone. Threads that run already stay where they are.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from cloister.inference.engines import EngineSettings
from cloister.inference.machine import Machine, read_machine
from cloister.inference.tuning import tuned


@dataclass(frozen=True, slots=True)
class Placement:
    """Where a process computes."""

    threads: int
    cpus: frozenset[int] | None
    """The logical processors of one node; None for all that it has."""


def settle(
    needed: int, environment: Mapping[str, str] = os.environ, machine: Machine | None = None
) -> Placement:
    """Let this process compute on a model of ``needed`` bytes as this machine does it best."""
    if "OMP_NUM_THREADS" in environment:
        return Placement(torch.get_num_threads(), None)
    found = tuned(machine or read_machine(), needed, EngineSettings(context_length=1, slots=1))
    threads = found.settings.threads or 1
    if found.cpus is not None:
        os.sched_setaffinity(0, found.cpus)
    torch.set_num_threads(threads)
    return Placement(threads, found.cpus)
