"""Under ``cloister run --optimize`` a script that infers gets fast models, and a script that trains keeps its own.

Each case is a process: the libraries are changed for good when they are imported.
"""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from cloister.errors import UsageError
from cloister.workload import optimizers
from lowbit_models import llama, saved

BEGIN = """
import sys, torch
from cloister.workload.optimizers import install_optimizer
assert install_optimizer({"CLOISTER_OPTIMIZE": "int8"})
from transformers import AutoModelForCausalLM
tokens = torch.tensor([[1, 5, 9]])
model = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.float32)
fast = lambda: hasattr(model, "cloister_report")
assert not fast()
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(llama(), tmp_path_factory.mktemp("hook") / "model")


def script(code: str, folder: Path) -> str:
    """What the script writes to standard error."""
    done = subprocess.run(
        [sys.executable, "-c", BEGIN + code], capture_output=True, text=True, check=False, cwd=folder.parent,
        env={"PATH": "", "PYTHONPATH": "", "HOME": str(folder.parent)}, timeout=280,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stderr


@pytest.fixture(autouse=True)
def named(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    monkeypatch.setattr(sys.modules[__name__], "BEGIN", BEGIN.replace("sys.argv[1]", repr(str(folder))))


def test_a_model_that_generates_is_optimised(folder: Path) -> None:
    said = script("model.generate(tokens, max_new_tokens=3); assert fast()", folder)
    assert "LlamaForCausalLM optimised; precision int8" in said


def test_a_forward_pass_without_gradients_optimises_and_one_with_labels_does_not(folder: Path) -> None:
    script(
        """
with torch.no_grad():
    model(tokens, labels=tokens)
    assert not fast()
    model(tokens)
    assert fast()
""",
        folder,
    )


def test_a_script_that_trains_keeps_full_precision_even_when_it_generates(folder: Path) -> None:
    said = script(
        """
model.train()
optimiser = torch.optim.AdamW(model.parameters(), lr=1e-3)
first = None
for _ in range(3):
    optimiser.zero_grad()
    loss = model(tokens, labels=tokens).loss
    loss.backward()
    optimiser.step()
    first = first or loss.item()
assert loss.item() < first
model.eval()
model.generate(tokens, max_new_tokens=3)
assert not fast()
""",
        folder,
    )
    assert "stays in full precision: this program trains" in said


def test_a_model_with_adapters_is_not_touched(folder: Path) -> None:
    said = script(
        """
from peft import LoraConfig, get_peft_model
whole = get_peft_model(model, LoraConfig(target_modules=["q_proj"], task_type="CAUSAL_LM"))
whole.eval().generate(input_ids=tokens, max_new_tokens=3)
assert not fast()
""",
        folder,
    )
    assert "adapters of peft" in said


def test_training_what_was_optimised_already_is_refused_and_says_why(folder: Path) -> None:
    script(
        """
from cloister.errors import UsageError
model.generate(tokens, max_new_tokens=3)
for parameters in (model.parameters(), [{"params": list(model.parameters())}], model.named_parameters()):
    try:
        torch.optim.SGD(parameters, lr=0.1)
    except UsageError as error:
        assert "without --optimize" in error.todo
    else:
        raise AssertionError
""",
        folder,
    )


def test_a_trainer_trains_as_before(folder: Path) -> None:
    script(
        """
import sys, types
from transformers import Trainer, TrainingArguments
data = [{"input_ids": [1, 5, 9, 7], "labels": [1, 5, 9, 7]}] * 8
arguments = TrainingArguments(output_dir="out", max_steps=4, per_device_train_batch_size=4, learning_rate=1e-3,
                              report_to=[], save_strategy="no", disable_tqdm=True, use_cpu=True)
trainer = Trainer(model=model, args=arguments, train_dataset=data)
before = trainer.evaluate(data)["eval_loss"]
assert not fast()
trainer.train()
assert trainer.evaluate(data)["eval_loss"] < before
assert not fast()
assert all(parameter.dtype == torch.float32 for parameter in model.parameters())
""",
        folder,
    )


def test_without_the_variable_nothing_is_installed() -> None:
    assert not optimizers.install_optimizer({})


def test_a_precision_that_is_none_is_refused() -> None:
    with pytest.raises(UsageError, match="names no precision"):
        optimizers.install_optimizer({optimizers.VARIABLE: "int2"})


def test_a_plugin_cannot_take_the_place_of_the_built_in(monkeypatch: pytest.MonkeyPatch) -> None:
    evil = EntryPoint(name="lowbit", value="evil:install", group=optimizers.GROUP)
    monkeypatch.setattr(optimizers, "entry_points", lambda group: [evil])
    with pytest.raises(UsageError, match="a plugin wants to replace"):
        optimizers.install_optimizer({optimizers.VARIABLE: "int8"})
