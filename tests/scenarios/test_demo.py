"""`make demo` as a newcomer runs it: the whole way, three attacks refused, and nothing left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parents[2]
DEMO = [sys.executable, PROJECT / "examples" / "sealed_question.py"]


def _processes_of(folder: Path) -> list[str]:
    """Command lines of live processes that name ``folder``."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                line = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            except OSError:
                continue
            if str(folder) in line:
                found.append(line)
    return found


def _environment() -> dict[str, str]:
    return {**os.environ, "COLUMNS": "150", "PYTHONUNBUFFERED": "1"}


def test_the_demonstration_shows_the_whole_way_and_refuses_three_attacks(tmp_path: Path) -> None:
    done = subprocess.run(
        [*DEMO, "--folder", tmp_path, "--question", "What is asthma?"],
        capture_output=True, text=True, timeout=200, check=False, env=_environment(),
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    for wanted in (
        "SIMULATED TEE",
        "key released kbs:///default/key/demo-model",
        "launch events",
        "> What is asthma?",
        "is not there",
    ):
        assert wanted in done.stdout
    assert done.stdout.count("refused:") == 3
    assert "sealing: segment" in done.stdout
    assert "broker: the broker refused" in done.stdout
    assert "409 Replayed request" in done.stdout
    assert _processes_of(tmp_path) == []


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_a_demonstration_that_is_interrupted_leaves_no_process_behind(
    tmp_path: Path, how: signal.Signals
) -> None:
    with subprocess.Popen(
        [*DEMO, "--folder", tmp_path],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=_environment(),
    ) as demo:
        assert demo.stdout is not None
        for line in demo.stdout:
            if "inference  http" in line:
                break
        assert _processes_of(tmp_path)
        demo.send_signal(how)
        assert demo.wait(30) in (130, 143)
    end = time.monotonic() + 60
    while _processes_of(tmp_path) and time.monotonic() < end:
        time.sleep(0.1)
    assert _processes_of(tmp_path) == []
