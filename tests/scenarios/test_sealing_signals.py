"""A command that is stopped while plaintext lies half written leaves none of it."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

CLOISTER = (sys.executable, "-c", "from cloister.cli import main; main()")
# Below nohup every process ignores SIGHUP, and the command then leaves it so.
AS_USUAL = "import signal; signal.signal(signal.SIGHUP, signal.SIG_DFL); "
STOPPABLE = (sys.executable, "-c", AS_USUAL + CLOISTER[-1])
SIZE = 192 << 20


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP], ids=lambda stop: stop.name)
def test_an_unseal_that_is_stopped_by_a_signal_leaves_no_plaintext(tmp_path: Path, stop: signal.Signals):
    (tmp_path / "source").mkdir()
    with (tmp_path / "source" / "large").open("wb") as file:
        file.truncate(SIZE)
    keys = ("--key-file", str(tmp_path / "kek"))
    signing = ("--sign-key", str(tmp_path / "sign"), "--create-keys")
    source, sealed, clear = (str(tmp_path / name) for name in ("source", "sealed", "clear"))
    seal = ("seal", source, "--key", "kbs:///a/key/b", *keys, *signing, "--out", sealed, "--json")
    made = subprocess.run((*CLOISTER, *seal), check=True, capture_output=True)
    signer = json.loads(made.stdout)["signer"]
    unseal = ("unseal", sealed, *keys, "--signer", signer, "--out", clear, "--workers", "1", "--json")
    quiet = subprocess.DEVNULL
    unsealing = subprocess.Popen((*STOPPABLE, *unseal), stdout=quiet, stderr=quiet)
    deadline = time.monotonic() + 60
    while not list(Path(clear).glob(".*/large")) and time.monotonic() < deadline:
        time.sleep(0.001)
    unsealing.send_signal(stop)
    assert unsealing.wait(60) == 130
    assert not Path(clear).exists()
