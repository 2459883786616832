"""One call sets a process up to train: products in bfloat16 where the processor has it, the rest as it was."""

from __future__ import annotations

import dataclasses
import os
from typing import Any

import pytest
import torch

from cloister.errors import UsageError
from cloister.inference import optimize, prepare_training
from cloister.inference.lowbit import process, training
from cloister.inference.machine import Node, read_machine
from lowbit_models import llama

TOKENS = torch.randint(3, 500, (2, 24), generator=torch.Generator().manual_seed(2))


@pytest.fixture(autouse=True)
def as_before() -> Any:
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)
    torch.set_flush_denormal(False)


def losses(model: Any, steps: int = 12) -> list[float]:
    model.train()
    optimiser = torch.optim.AdamW(model.parameters(), lr=2e-3)
    found = []
    for _ in range(steps):
        optimiser.zero_grad()
        loss = model(TOKENS, labels=TOKENS).loss
        loss.backward()
        optimiser.step()
        found.append(loss.item())
    return found


@pytest.mark.parametrize("bfloat16", [True, False])
def test_the_loss_falls_as_it_does_without(bfloat16: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "has_bfloat16", lambda: bfloat16)
    plain = losses(llama())
    model = prepare_training(llama())
    prepared = losses(model)
    assert plain[-1] < 0.8 * plain[0]
    assert max(abs(one - other) / one for one, other in zip(plain, prepared, strict=True)) < 0.03
    assert all(parameter.dtype == torch.float32 for parameter in model.parameters())
    assert model.cloister_training.bfloat16 == bfloat16


def test_twice_is_once() -> None:
    model = prepare_training(llama())
    forward = model.forward
    assert prepare_training(model).forward is forward


def test_a_program_that_chose_for_itself_keeps_its_choice() -> None:
    with torch.autocast("cpu", dtype=torch.float16), training.autocast():
        assert torch.get_autocast_dtype("cpu") == torch.float16


@pytest.mark.parametrize(
    ("make", "words"),
    [
        pytest.param(lambda: llama().half(), "float16 does not train", id="float16"),
        pytest.param(lambda: optimize(llama(), precision="int8"), "optimised to infer", id="low bit"),
    ],
)
def test_what_does_not_train_is_refused(make: Any, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        prepare_training(make())


def test_threads_follow_the_machine_unless_the_environment_says_how_many() -> None:
    machine = read_machine()
    assert process.settle(0, {}, machine).threads == torch.get_num_threads() == machine.processors
    torch.set_num_threads(1)
    assert process.settle(0, {"OMP_NUM_THREADS": "1"}, machine) == process.Placement(1, None)


def test_a_model_that_fits_one_numa_node_stays_on_it(monkeypatch: pytest.MonkeyPatch) -> None:
    pinned: list[frozenset[int]] = []
    monkeypatch.setattr(os, "sched_setaffinity", lambda _pid, cpus: pinned.append(frozenset(cpus)))
    cores = tuple(frozenset({cpu}) for cpu in range(8))
    nodes = tuple(Node(number, frozenset(range(4 * number, 4 * number + 4)), 64 << 30) for number in (0, 1))
    real = read_machine()
    machine = dataclasses.replace(
        real, cores=cores, nodes=nodes, limits=dataclasses.replace(real.limits, processors=None)
    )
    assert process.settle(8 << 30, {}, machine) == process.Placement(4, frozenset(range(4)))
    assert pinned == [frozenset(range(4))]
    assert process.settle(80 << 30, {}, machine) == process.Placement(8, None)
