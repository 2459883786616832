"""What the operator did not say is decided by the machine; what does not fit is refused with what would."""

from __future__ import annotations

import contextlib
import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloister.errors import UsageError
from cloister.inference.demo_model import demo_model
from cloister.inference.engines import EngineSettings
from cloister.inference.machine import Machine, Node
from cloister.inference.machine_limits import Limits
from cloister.inference.model_files import ModelFiles
from cloister.inference.tuning import RESERVE, ModelShape, shape_of, tuned
from llama_models import write_llama

GB = 10**9
SEVEN_B = ModelShape(kv_numbers=2 * 32 * 4096, trained_context=4096)
"""LLaMA 7B: half a megabyte for a token."""


def machine(
    *, cores: int = 8, smt: int = 2, nodes: int = 1, available: int = 32 * GB, quota: float | None = None
) -> Machine:
    found = tuple(frozenset(core + cores * sibling for sibling in range(smt)) for core in range(cores))
    share = cores // nodes
    return Machine(
        architecture="x86_64",
        vendor="V",
        model="M",
        features=frozenset({"avx2"}),
        cores=found,
        nodes=tuple(
            Node(n, frozenset().union(*found[n * share : (n + 1) * share]), 2 * available // nodes)
            for n in range(nodes)
        ),
        limits=Limits(processors=quota, memory=2 * available, available=available),
        page_size=4096,
        huge_pages="madvise",
    )


def wishes(slots: int = 8, context: int = 512) -> EngineSettings:
    return EngineSettings(context_length=context, slots=slots)


def test_one_thread_computes_for_each_physical_core() -> None:
    found = tuned(machine(), GB, wishes())
    assert found.settings.threads == 8
    assert "physical core" in " ".join(found.reasons)
    assert found.cpus is None


def test_a_quota_limits_the_threads() -> None:
    found = tuned(machine(quota=2.5), GB, wishes())
    assert found.settings.threads == 2
    assert "quota" in " ".join(found.reasons)


def test_what_the_operator_said_stays() -> None:
    asked = replace(wishes(), threads=3)
    assert tuned(machine(), GB, asked).settings == asked


def test_a_model_that_fits_one_numa_node_stays_there() -> None:
    found = tuned(machine(cores=16, nodes=2), 4 * GB, wishes(), shape=SEVEN_B)
    assert found.node == 0
    assert found.settings.threads == 8
    assert found.cpus is not None
    assert len(found.cpus) == 16
    assert any("--membind=0" in reason for reason in found.reasons)


def test_a_model_that_fits_no_numa_node_gets_all_of_them() -> None:
    found = tuned(machine(cores=16, nodes=2, available=64 * GB), 62 * GB, wishes())
    assert (found.node, found.settings.threads) == (None, 16)


def test_huge_pages_that_are_off_are_told() -> None:
    off = replace(machine(), huge_pages="never")
    assert any("huge pages" in reason for reason in tuned(off, 4 * GB, wishes()).reasons)
    assert not any("huge pages" in reason for reason in tuned(off, 10**6, wishes()).reasons)


def test_slots_that_do_not_fit_are_refused_with_what_would() -> None:
    with pytest.raises(UsageError) as caught:
        tuned(machine(available=12 * GB), 4 * GB, wishes(slots=8, context=4096), shape=SEVEN_B)
    line = str(caught.value)
    assert "8 slots of 4096 tokens need 17.2 GB" in line
    assert "--slots 3 with that context" in line
    assert "--context 1776 with 8 slots" in line
    assert "\n" not in line
    for fitting in (wishes(3, 4096), wishes(8, 1776)):
        tuned(machine(available=12 * GB), 4 * GB, fitting, shape=SEVEN_B)


def test_a_model_that_does_not_fit_at_all_is_refused() -> None:
    with pytest.raises(UsageError, match=r"needs 13\.0 GB of memory, and 12\.0 GB are free"):
        tuned(machine(available=12 * GB), 13 * GB, wishes(), shape=SEVEN_B)


def test_quantised_keys_and_values_take_less() -> None:
    asked = wishes(slots=6, context=4096)
    with pytest.raises(UsageError, match="--kv-cache q8_0"):
        tuned(machine(available=12 * GB), 4 * GB, asked, shape=SEVEN_B)
    tuned(machine(available=12 * GB), 4 * GB, replace(asked, kv_cache="q8_0"), shape=SEVEN_B)


@given(
    slots=st.integers(1, 64),
    context=st.integers(64, 1 << 16),
    available=st.integers(10**8, 10**12),
    model=st.integers(1, 10**12),
    numbers=st.integers(1, 10**7),
)
def test_what_is_not_refused_fits(slots: int, context: int, available: int, model: int, numbers: int) -> None:
    with contextlib.suppress(UsageError):
        tuned(machine(available=available), model, wishes(slots, context), shape=ModelShape(numbers))
        assert model + RESERVE + slots * context * numbers * 2 <= available


def test_the_shape_of_a_gguf_model_is_that_of_its_projections() -> None:
    with ModelFiles.of_path(demo_model()) as model:
        shape = shape_of(model)
    assert shape is not None
    assert shape.kv_numbers > 0
    assert shape.trained_context


@pytest.mark.parametrize(
    ("config", "numbers"),
    [
        pytest.param(
            {"num_hidden_layers": 22, "num_attention_heads": 32, "num_key_value_heads": 4, "hidden_size": 2048},
            2 * 22 * 4 * 64,
            id="grouped queries",
        ),
        pytest.param(
            {"num_layers": 28, "num_attention_heads": 32, "multi_query_group_num": 2, "kv_channels": 128},
            2 * 28 * 2 * 128,
            id="ChatGLM",
        ),
        pytest.param({"hidden_size": 4096}, None, id="says nothing"),
        pytest.param({"num_hidden_layers": "22", "num_attention_heads": -1}, None, id="nonsense"),
    ],
)  # fmt: skip
def test_the_shape_of_a_hugging_face_model_is_that_of_its_configuration(
    tmp_path: Path, config: dict[str, object], numbers: int | None
) -> None:
    folder = write_llama(tmp_path / "model")
    (folder / "config.json").write_text(json.dumps(config))
    with ModelFiles.of_path(folder) as model:
        shape = shape_of(model)
    assert (shape.kv_numbers if shape else None) == numbers
