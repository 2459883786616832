"""The ways to compute the 1.1 B model that are compared: engine, weights, settings. Weights are made once and kept.

GGUF files are converted from the Hugging Face folder by the project's own conversion, so that every engine has the same
weights but for its quantisation. What ``auto`` is was chosen by `cloister optimize` on this machine, once, and lies beside
them.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from benchmarks.random_models import hugging_face
from benchmarks.sides import CLOISTER, ROOT, SideFailedError
from cloister.inference.machine import read_machine

SHAPE: Final = "llama-1b"


@dataclass(frozen=True, slots=True)
class Configuration:
    """One way to compute the model."""

    name: str
    engine: str
    form: str = ""
    """Type of the GGUF file; empty for the Hugging Face folder; "auto latency" and the like for what was optimised."""
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def file_name(self) -> str:
        return self.name.replace(",", "").replace(" ", "-")


PLAIN: Final = (
    Configuration("transformers fp32", "transformers", settings={"precision": "fp32"}),
    Configuration("transformers bf16", "transformers", settings={"precision": "bf16"}),
)
TORCH_UNOPTIMISED: Final = (
    Configuration("torch fp32", "torch", settings={"precision": "fp32"}),
    Configuration("torch bf16", "torch", settings={"precision": "bf16"}),
)
CANDIDATES: Final = (
    Configuration("llamacpp Q4_0", "llamacpp", "Q4_0"),
    Configuration("llamacpp Q4_K_M", "llamacpp", "Q4_K_M"),
    Configuration("llamacpp Q8_0", "llamacpp", "Q8_0"),
    Configuration("openvino Q4_0", "openvino", "Q4_0"),
    Configuration("openvino Q8_0", "openvino", "Q8_0"),
    Configuration("torch int8", "torch", settings={"precision": "int8"}),
    Configuration("torch int4", "torch", settings={"precision": "int4"}),
)
MODES: Final = ("latency", "throughput")
_CONVERT: Final = (
    "import sys; from pathlib import Path\n"
    "from cloister.inference.conversion.gguf import convert\n"
    "from cloister.inference.model_files import ModelFiles\n"
    "with ModelFiles.of_path(Path(sys.argv[1])) as model:\n"
    "    convert(model, Path(sys.argv[2]), quantisation=sys.argv[3])\n"
)
AUTO: Final = tuple(Configuration(f"auto, {mode}", "auto", f"auto {mode}") for mode in MODES)
ALL: Final = (*PLAIN, *TORCH_UNOPTIMISED, *CANDIDATES, *AUTO)


def weights(models: Path, configuration: Configuration, *, quick: bool = False) -> Path:
    """The path to give to the engine. Raises :class:`SideFailedError` where it cannot be made."""
    folder = hugging_face(models, SHAPE)
    if not configuration.form:
        return folder
    if configuration.form.startswith("auto "):
        return optimised(models, configuration.form.removeprefix("auto "), quick=quick)
    # Not the name of those whose weights are drawn in their blocks (random_models.py): these are the folder's.
    path = models / f"{SHAPE}-converted-{configuration.form}.gguf"
    if not path.exists():
        convert(folder, path, configuration.form)
    return path


def convert(folder: Path, path: Path, form: str) -> None:
    """In a process of its own, which gives its memory back."""
    _run(sys.executable, "-c", _CONVERT, folder, path, form.lower())


def optimised(models: Path, mode: str, *, quick: bool) -> Path:
    """What `cloister optimize --for MODE` made of the model; made again where the machine is another one."""
    machine = read_machine().fingerprint.hex()[:12]
    out = models / f"{SHAPE}-{mode}-{machine}"
    if not (out / "optimized.json").exists():
        budget = "3m" if quick else "10m"
        _run(
            CLOISTER, "optimize", hugging_face(models, SHAPE), "--for", mode, "--budget", budget, "--out", out
        )
    return out


def _run(*words: object) -> None:
    done = subprocess.run([*map(str, words)], cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        said = done.stderr.strip().splitlines()
        raise SideFailedError(said[-1] if said else f"exit code {done.returncode}")
