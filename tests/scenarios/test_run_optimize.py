"""``cloister run --optimize``: an unmodified transformers script, its model sealed, computes in few bits; and only then."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from lowbit_models import llama, saved
from run_site import Site, site
from training_site import ISOLATION

SCRIPT = """
import json
import os
import sys

import torch
from transformers import AutoModelForCausalLM

tokens = torch.tensor([[1, 5, 9, 7]])
model = AutoModelForCausalLM.from_pretrained("/models/sealed", dtype=torch.float32)
answer = model.generate(tokens, max_new_tokens=6, do_sample=False)
layer = type(model.model.layers[0].mlp.down_proj).__name__
asked = os.environ.get("CLOISTER_OPTIMIZE")
print(json.dumps({"answer": answer.tolist(), "layer": layer, "asked": asked}))
"""
CONFIGURATION = f"""
[[restore]]
source = "model.sealed"
path = "/models/sealed"
{ISOLATION}
"""
COMMAND = ["python", "answer.py"]


@pytest.fixture(scope="module")
def deployed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A sealed model whose owner releases it to the script as it is, and with --optimize to int8."""
    root = tmp_path_factory.mktemp("optimize")
    with site(root) as made:
        made.key("model")
        folder = saved(llama(), root / "plain")
        made.seal(folder, "model.sealed", "model")
        shutil.rmtree(folder)
        made.serve()
        (made.work / "answer.py").write_text(SCRIPT)
        made.configure(CONFIGURATION)
        made.allow(COMMAND)
        policy = root / "optimised-policy.toml"
        made.cloister(
            "measure", "run", "--optimize", "--precision", "int8",
            "--simulated-tee", str(made.tee), "--out", str(policy), "--", *COMMAND,
        )  # fmt: skip
        made.policies.append(policy)
        made.release()
        yield made


def test_the_unmodified_script_gets_a_model_in_few_bits(deployed: Site) -> None:
    done = deployed.run(COMMAND, "--optimize", "--precision", "int8")
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout.splitlines()[-1])
    assert said["asked"] == "int8"
    assert said["layer"] == "LowBitLinear"
    assert len(said["answer"][0]) > 4
    assert "LlamaForCausalLM optimised; precision int8" in done.stderr


def test_without_the_option_nothing_is_changed(deployed: Site) -> None:
    done = deployed.run(COMMAND)
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout.splitlines()[-1])
    assert said["asked"] is None
    assert said["layer"] == "Linear"
    assert "optimised" not in done.stderr


def test_another_precision_than_the_owner_allowed_gets_no_model(deployed: Site) -> None:
    done = deployed.run(COMMAND, "--optimize", "--precision", "int4")
    assert done.returncode != 0
    assert "optimised" not in done.stderr
    assert not done.stdout


def test_whoever_starts_the_program_cannot_switch_it_on_by_a_variable(
    deployed: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CLOISTER_OPTIMIZE", "int4")
    done = deployed.run(COMMAND)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1])["asked"] is None


def test_the_plan_says_that_models_are_optimised(deployed: Site) -> None:
    said = deployed.cloister("run", "--optimize", "--explain", "--json", "--", *COMMAND)
    assert ["optimised", "models of transformers that it does not train compute in auto"] in json.loads(said)[
        "steps"
    ]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        pytest.param(["--precision", "int8"], "says how to optimise", id="a precision without --optimize"),
        pytest.param(["--optimize", "--precision", "int2"], "no precision", id="an unknown precision"),
    ],
)
def test_options_that_say_nothing_are_refused(deployed: Site, options: list[str], words: str) -> None:
    done = deployed.command("run", *options, "--explain", "--", *COMMAND)
    assert done.returncode != 0
    assert words in done.stderr


def test_optimising_without_hooks_is_refused(deployed: Site, tmp_path: Path) -> None:
    text = (deployed.work / "workload.toml").read_text()
    config = deployed.work / "without-hooks.toml"
    config.write_text(f'{text}\n[program]\nhooks = false\noptimize = "int8"\n')
    done = deployed.command("run", "--config", str(config), "--explain", "--", *COMMAND)
    assert done.returncode != 0
    assert "turns off" in done.stderr
