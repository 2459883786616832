"""The training script trains, stops, goes on where it stopped, and exports what the engine loads."""

from __future__ import annotations

import gzip
import re
import subprocess
import sys
from pathlib import Path

import pytest

from opened_engine import engine_on
from shared_data import SHARED, data

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "train_demo_model.py"


def _script(work: Path, *arguments: str, shared: Path = SHARED) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, SCRIPT, "--work", work, "--gguf", work / "model.gguf", *arguments],
        capture_output=True, text=True, timeout=280, check=False,
        env={"CLOISTER_SHARED": str(shared), "PATH": "/usr/bin:/bin", "HOME": str(work), "COLUMNS": "120"},
    )  # fmt: skip


def _few_answers(folder: Path) -> Path:
    """Every tenth passage of the real corpus: enough to train on for seconds, and quick to prepare."""
    few = folder / "shared" / "data" / "medquad" / "corpus.jsonl.gz"
    few.parent.mkdir(parents=True)
    with (
        gzip.open(data("medquad/corpus.jsonl.gz"), "rb") as whole,
        gzip.open(few, "wb", compresslevel=1) as out,
    ):
        out.writelines(line for number, line in enumerate(whole) if number % 10 == 0)
    return folder / "shared"


@pytest.mark.timeout(600)
def test_training_goes_on_where_it_stopped_and_exports_a_model_that_answers(tmp_path: Path) -> None:
    shared = _few_answers(tmp_path)
    common = ("--threads", "2", "--batch", "1", "--save-every", "1", "--evaluate-every", "1000")
    first = _script(tmp_path, "train", "--budget", "4", *common, shared=shared)
    assert first.returncode == 0, first.stderr
    before = (tmp_path / "checkpoint.pt").stat().st_mtime_ns
    again = _script(tmp_path, "train", "--budget", "8", *common, shared=shared)
    assert again.returncode == 0, again.stderr
    assert re.search(r"resum|going on|step \d+", again.stdout)
    assert (tmp_path / "checkpoint.pt").stat().st_mtime_ns > before
    exported = _script(tmp_path, "export", shared=shared)
    assert exported.returncode == 0, exported.stderr
    engine = engine_on(tmp_path / "model.gguf", context_length=128)
    chunks: list[object] = []
    request = {"messages": [{"role": "user", "content": "What is asthma?"}], "max_tokens": 4}
    engine.generate("chat", request, lambda chunk: bool(chunks.append(chunk)))
    engine.close()
    assert chunks


def test_without_the_corpus_the_script_says_so_in_one_line(tmp_path: Path) -> None:
    done = _script(tmp_path, "train", "--budget", "1", shared=tmp_path / "nowhere")
    assert done.returncode != 0
    assert "Traceback" not in done.stderr
    assert "corpus.jsonl.gz" in done.stderr + done.stdout
    assert not (tmp_path / "checkpoint.pt").exists()
