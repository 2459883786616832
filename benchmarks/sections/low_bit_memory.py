"""Memory that it takes to bring a 7 B model into a low precision: a process each, its memory read every 20 ms.

The model is a LLaMA-7B's Hugging Face folder in bfloat16 with random weights. What a process holds of its own (anonymous
memory) cannot be given back; pages of the file that it reads are the system's cache as well, and are in the most resident.
`from_pretrained` is `cloister.inference.AutoModelForCausalLM.from_pretrained(path, load_in_low_bit=...)`; the conversion is
the one of `cloister optimize`.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from benchmarks.random_models import hugging_face
from benchmarks.report import Aim, Result, Table, shown
from benchmarks.sections import Options, about
from benchmarks.sides import ROOT, SideFailedError

_OPEN: Final = (
    "import sys, time\n"
    "from cloister.inference import AutoModelForCausalLM\n"
    "began = time.monotonic()\n"
    "model = AutoModelForCausalLM.from_pretrained(sys.argv[1], load_in_low_bit=sys.argv[2])\n"
    "print(time.monotonic() - began)\n"
)
_CONVERT: Final = (
    "import sys, time; from pathlib import Path\n"
    "from cloister.inference.conversion.gguf import convert\n"
    "from cloister.inference.model_files import ModelFiles\n"
    "began = time.monotonic()\n"
    "with ModelFiles.of_path(Path(sys.argv[1])) as model:\n"
    "    convert(model, Path(sys.argv[3]), quantisation=sys.argv[2])\n"
    "print(time.monotonic() - began)\n"
)


@dataclass(frozen=True, slots=True)
class Peak:
    """What a process held at most."""

    anonymous: int
    resident: int
    seconds: float


def run(options: Options) -> Result:
    shape = "llama-1b" if options.quick else "llama-7b"
    folder = hugging_face(options.models, shape)
    size = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    made = options.models / "low-bit-memory.gguf"
    ways = {
        "from_pretrained, int4": (_OPEN, "int4"),
        "from_pretrained, int8": (_OPEN, "int8"),
        "conversion to Q4_0": (_CONVERT, "q4_0"),
        "conversion to Q8_0": (_CONVERT, "q8_0"),
    }
    rows: list[tuple[str, ...]] = []
    aims: list[Aim] = []
    figures: dict[str, object] = {"model_bytes": size}
    for name, (program, precision) in ways.items():
        try:
            peak = watched(program, folder, precision, made)
        finally:
            made.unlink(missing_ok=True)
        rows.append(
            (
                name, shown(peak.anonymous / 1e9, "GB"), shown(peak.anonymous / size, "×"),
                shown(peak.resident / 1e9, "GB"), shown(peak.seconds, "s"),
            )
        )  # fmt: skip
        figures[name] = {"anonymous": peak.anonymous, "resident": peak.resident, "seconds": peak.seconds}
        aims.append(Aim(f"{name}, of the model's own size", 1.0, "at most", peak.anonymous / size))
    head = ("way", "own memory at most", "of the model's size", "resident at most", "time")
    note = f"The model has {size / 1e9:.1f} GB of weights."
    return Result(
        title="Memory of a low precision",
        text=about(__doc__),
        tables=(Table(shape, head, tuple(rows), note),),
        aims=tuple(aims),
        figures=figures,
    )


def watched(program: str, folder: Path, precision: str, made: Path) -> Peak:
    """Run it and look at its memory until it ends. Raises :class:`SideFailedError`."""
    child = subprocess.Popen(
        [sys.executable, "-c", program, str(folder), precision, str(made)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT,
    )  # fmt: skip
    anonymous = resident = 0
    while child.poll() is None:
        held = memory_of(child.pid)
        anonymous, resident = max(anonymous, held[0]), max(resident, held[1])
        time.sleep(0.02)
    out, said = child.communicate()
    if child.returncode != 0:
        raise SideFailedError((said.strip().splitlines() or [f"exit code {child.returncode}"])[-1])
    return Peak(anonymous, resident, float(json.loads(out.split()[-1])))


def memory_of(process: int) -> tuple[int, int]:
    """Bytes of anonymous memory (shared anonymous, as a memfd's, with it) and of all that is resident."""
    try:
        lines = Path(f"/proc/{process}/status").read_text("ascii").splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return 0, 0
    found = {
        line.split(":")[0]: 1024 * int(line.split()[1]) for line in lines if line.startswith(("Rss", "VmRSS"))
    }
    return found.get("RssAnon", 0) + found.get("RssShmem", 0), found.get("VmRSS", 0)
