"""How a process ends that read sealed files with pyarrow, whose own threads still hold them then."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import threading
import time
from pathlib import Path

import pyarrow  # noqa: F401 -- what the end waits for
import pytest

from cloister.sealing.filesystem_pool import let_pyarrow_finish

READS_AND_ENDS = """
import sys

import pandas

from cloister.sealing.access import register
from sealed_urls import access

register(access())
url = f"sealed://{sys.argv[1]}/table.sealed/table.parquet"
pandas.DataFrame({"amount": [1, 20]}).to_parquet(url)
# Who waits for the GIL now waits until it is given up: at the end of the interpreter, of old, by one process in two.
sys.setswitchinterval(5)
frame = pandas.read_parquet(url)
"""


def test_a_process_that_read_sealed_parquet_ends_and_is_not_aborted(tmp_path: Path) -> None:
    for number in range(6):
        folder = tmp_path / str(number)
        folder.mkdir()
        done = subprocess.run(
            [sys.executable, "-c", READS_AND_ENDS, str(folder)],
            env={"PYTHONPATH": ":".join(sys.path)}, capture_output=True, text=True, timeout=100, check=False,
        )  # fmt: skip
        assert (done.returncode, done.stderr) == (0, "")


def test_the_end_waits_for_threads_that_work_without_the_gil() -> None:
    seconds = 0.4
    began = threading.Event()
    ended = threading.Event()

    def work() -> None:
        until = time.monotonic() + seconds
        began.set()
        while time.monotonic() < until:
            hashlib.pbkdf2_hmac("sha256", b"word", b"salt", 20_000)
        ended.set()

    thread = threading.Thread(target=work)
    thread.start()
    began.wait()
    let_pyarrow_finish(longest=60)
    assert ended.is_set()
    thread.join()


def test_the_end_is_not_put_off_for_good_by_a_thread_that_never_rests(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    slept: list[float] = []
    now = time.monotonic()
    monkeypatch.setattr(time, "sleep", slept.append)
    monkeypatch.setattr(time, "monotonic", lambda: now + sum(slept))
    monkeypatch.setattr("cloister.sealing.filesystem_pool._all_asleep", lambda: False)
    let_pyarrow_finish(longest=0.25)
    assert 0.25 <= sum(slept) < 0.26
