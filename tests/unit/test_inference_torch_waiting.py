"""How the threads that compute wait for each other: who is crowded sleeps, who is alone spins."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from cloister.inference.engines.torch_waiting import (
    ALONE,
    CALM_WINDOWS,
    CROWDED,
    WINDOW_SECONDS,
    Contention,
    Waiting,
    waited_of,
)

THREADS = 2


def teams() -> int:
    return sum(thread.name == "cloister-torch-idle" for thread in threading.enumerate())


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(THREADS)
    yield
    torch.set_num_threads(before)


def test_who_has_waited_for_a_processor_is_crowded_and_stays_so_until_it_was_calm_for_long() -> None:
    contention = Contention()
    assert not contention.saw(1.0, 0.0)
    assert not contention.saw(1.0, CROWDED - 0.01)
    assert contention.saw(1.0, CROWDED)
    for _ in range(CALM_WINDOWS - 1):
        assert contention.saw(1.0, ALONE / 2)
    assert not contention.saw(1.0, ALONE / 2)


def test_a_moment_of_others_begins_the_calm_anew() -> None:
    contention = Contention()
    contention.saw(1.0, 1.0)
    for _ in range(CALM_WINDOWS - 1):
        contention.saw(1.0, 0.0)
    assert contention.saw(1.0, (ALONE + CROWDED) / 2)
    for _ in range(CALM_WINDOWS - 1):
        assert contention.saw(1.0, 0.0)
    assert not contention.saw(1.0, 0.0)


def test_who_cannot_know_sleeps() -> None:
    assert Contention().saw(1.0, None)


def test_idle_teams_exist_exactly_while_others_want_a_processor(two_threads: None) -> None:
    waited = [0.0]
    waiting = Waiting(THREADS, THREADS, waited=lambda: waited[0])
    waiting.computed(WINDOW_SECONDS)
    assert teams() == 0
    waited[0] += WINDOW_SECONDS
    waiting.computed(WINDOW_SECONDS / 2)
    assert teams() == 0  # half a window says nothing
    waiting.computed(WINDOW_SECONDS / 2)
    assert teams() == 1
    for _ in range(CALM_WINDOWS):
        waiting.computed(WINDOW_SECONDS)
    assert teams() == 0
    waited[0] += 1
    waiting.computed(WINDOW_SECONDS)
    waiting.close()
    waiting.close()
    assert teams() == 0


@pytest.mark.parametrize(
    ("threads", "processors", "needed"), [(1, 2, 0), (2, 2, 1), (4, 8, 2), (8, 8, 1), (2, 8, 7)]
)
def test_all_teams_together_have_more_threads_than_there_are_processors(
    threads: int, processors: int, needed: int
) -> None:
    waiting = Waiting(threads, processors, waited=lambda: None)
    assert len(waiting._idle) == needed
    if needed:
        assert threads + needed * (threads - 1) > processors


def test_a_kernel_that_does_not_tell_is_no_error(tmp_path: Path) -> None:
    (tmp_path / "1").mkdir()
    assert waited_of(tmp_path, 1) is None
    assert waited_of(tmp_path / "none", 1) is None
    (tmp_path / "1" / "schedstat").write_text("what\n")
    assert waited_of(tmp_path, 1) is None
    (tmp_path / "1" / "schedstat").write_text("7 2000000000 3\n")
    assert waited_of(tmp_path, 1) == 2.0


def test_threads_of_python_that_do_not_compute_are_not_counted(tmp_path: Path) -> None:
    (tmp_path / str(threading.get_native_id())).mkdir()
    (tmp_path / str(threading.get_native_id()) / "schedstat").write_text("7 2000000000 3\n")
    assert waited_of(tmp_path, 1) is None


def test_linux_tells_of_a_neighbour_who_takes_the_processor() -> None:
    """One processor, and a process that wants it as well: half of the time is spent waiting."""
    program = (
        "import time, threading; from pathlib import Path\n"
        "from cloister.inference.engines.torch_waiting import waited_of\n"
        "own = threading.get_native_id(); tasks = Path('/proc/self/task')\n"
        "began = time.monotonic(); before = waited_of(tasks, own)\n"
        "while time.monotonic() < began + 1.0: pass\n"
        "waited = waited_of(tasks, own) - before\n"
        "print(waited / (time.monotonic() - began))\n"
    )
    there = f"import os; os.sched_setaffinity(0, {{{min(os.sched_getaffinity(0))}}})\n"
    neighbour = subprocess.Popen([sys.executable, "-c", there + "while True: pass"])
    try:
        time.sleep(0.2)
        told = subprocess.run(
            [sys.executable, "-c", there + program], capture_output=True, text=True, check=True
        ).stdout
    finally:
        neighbour.kill()
        neighbour.wait()
    assert 0.2 < float(told) < 1.0
