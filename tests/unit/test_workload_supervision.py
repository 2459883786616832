"""The launcher passes signals on, returns the program's end, and leaves none of its processes behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

# Signals are blocked and orphans adopted in a process of their own: a test's own process would keep it.
LAUNCHER = """
import subprocess, sys
from cloister.workload.supervision import adopt_orphans, block_signals, end_leftovers, supervise, unblock_signals
block_signals()
adopt_orphans()
program = subprocess.Popen(sys.argv[1:], preexec_fn=unblock_signals)
print("ready", program.pid, flush=True)
code = supervise(program, lambda: None)
print("left", end_leftovers(()), flush=True)
sys.exit(code)
"""


def _launch(*argv: str) -> subprocess.Popen[str]:
    launcher = subprocess.Popen(
        [sys.executable, "-c", LAUNCHER, *argv], stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    assert launcher.stdout is not None
    while not (line := launcher.stdout.readline()).startswith("ready"):
        assert line
    return launcher


def _end(launcher: subprocess.Popen[str]) -> tuple[int, str]:
    said, _ = launcher.communicate(timeout=30)
    return launcher.returncode, said


def test_the_exit_code_is_the_program_s() -> None:
    assert _end(_launch("sh", "-c", "exit 42"))[0] == 42


def test_a_program_that_a_signal_ended_is_reported_as_a_shell_does() -> None:
    assert _end(_launch("sh", "-c", "kill -SEGV $$"))[0] == 128 + signal.SIGSEGV


@pytest.mark.parametrize("name", ["TERM", "INT", "HUP", "QUIT", "USR1", "USR2"])
def test_a_signal_sent_to_the_launcher_reaches_the_program(name: str, tmp_path: Path) -> None:
    trapped = tmp_path / "trapped"
    launcher = _launch("bash", "-c", f"trap 'exit 77' {name}; touch {trapped}; while :; do sleep 0.05; done")
    deadline = time.monotonic() + 30
    while not trapped.exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    launcher.send_signal(getattr(signal, f"SIG{name}"))
    assert _end(launcher)[0] == 77


def test_what_the_program_left_running_is_ended(tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    left = f"(trap '' TERM; echo $BASHPID > {pid}; while :; do sleep 0.1; done) & "
    script = left + f"until [ -s {pid} ]; do sleep 0.05; done; exit 3"
    code, said = _end(_launch("bash", "-c", script))
    assert code == 3
    assert "left" in said
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid.read_text()), 0)


def test_orphans_that_end_while_the_program_runs_are_not_left_as_zombies() -> None:
    script = (
        "for n in $(seq 30); do (sleep 0.01 &); done; sleep 1; for again in $(seq 100); do "
        "zombies=$(ps -o stat= --ppid $PPID | grep -c Z); [ $zombies = 0 ] && break; sleep 0.1; done; echo $zombies; exit 5"
    )
    code, said = _end(_launch("sh", "-c", script))
    assert code == 5
    assert said.splitlines()[0] == "0"


def test_a_program_whose_mount_broke_is_ended() -> None:
    script = LAUNCHER.replace("lambda: None", "lambda: 'the mount at /out is gone'")
    done = subprocess.run(
        [sys.executable, "-c", script, "sleep", "60"], capture_output=True, text=True, timeout=30, check=False
    )
    assert done.returncode == 1
    assert "the mount at /out is gone" in done.stderr


@pytest.mark.parametrize("name", ["INT", "TERM", "HUP"])
def test_who_is_asked_to_end_before_there_is_a_program_ends(name: str) -> None:
    script = f"""
import os, signal
from cloister.workload.supervision import block_signals, require_unasked
block_signals()
require_unasked()
os.kill(os.getpid(), signal.SIG{name})
try:
    require_unasked()
except KeyboardInterrupt:
    print("ends", flush=True)
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=30, check=False
    )
    assert done.stdout == "ends\n", done.stderr
