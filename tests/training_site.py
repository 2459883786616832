"""What training tests need besides ``run_site``: example workloads, a kill that leaves nobody time, looks at the disk."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from run_site import Site

PROJECT = Path(__file__).resolve().parents[1]
TRAINING = PROJECT / "examples" / "training"
WORKLOADS = PROJECT / "examples" / "workloads"
ISOLATION = '[isolation]\nlandlock = "where-possible"\nswap = "warn"\n'
"""Machines of any kind run these tests; what a machine must have is the matter of the isolation's own."""


def use_example(site: Site, name: str, script: str) -> Path:
    """The example's ``NAME.toml`` with this site's signer, broker and places, and the script beside it; where places are."""
    assert site.broker is not None
    text = (WORKLOADS / f"{name}.toml").read_text()
    text = re.sub(r"signers = \[.*\]", f'signers = ["{site.signer}"]', text)
    text = text.replace("http://127.0.0.1:8100", site.broker.url)
    text = text.replace('"/workload/', f'"{site.root}/workload/')
    (site.work / "workload.toml").write_text(f"{text}\n{ISOLATION}")
    shutil.copy(TRAINING / script, site.work)
    return site.root / "workload"


def seal_and_forget(site: Site, folder: Path, name: str) -> None:
    """``NAME.sealed`` under a new key of that name; the owner's plaintext goes."""
    site.key(name)
    site.seal(folder, f"{name}.sealed", name)
    shutil.rmtree(folder)


def kill_all(process: subprocess.Popen[str]) -> None:
    """SIGKILL for the process and everything below it, at once: nobody has time to tidy up."""
    below = [process.pid, *_descendants(process.pid)] if process.poll() is None else []
    for sign in (signal.SIGSTOP, signal.SIGKILL):
        for pid in below:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, sign)
    process.communicate(timeout=20)


def wait_for(process: subprocess.Popen[str], words: str, *, seconds: float = 90) -> str:
    """What the process printed until a line held ``words``."""
    said: list[str] = []
    end = time.monotonic() + seconds
    assert process.stdout is not None
    for line in process.stdout:
        said.append(line)
        if words in line:
            return "".join(said)
        assert time.monotonic() < end, "".join(said)
    errors = "" if process.stderr is None else process.stderr.read()
    raise AssertionError("".join(said) + errors)


def wait_for_commit(tree: Path, *, seconds: float = 60) -> None:
    """Until the tree has one more version than now on the disk. A mount commits by itself every few seconds."""

    def journals() -> set[tuple[str, int]]:
        return {
            (path.name, path.stat().st_size) for path in tree.glob("journal-*") if path.suffix != ".partial"
        }

    before, end = journals(), time.monotonic() + seconds
    while journals() == before:
        assert time.monotonic() < end, "nothing was committed"
        time.sleep(0.05)


def assert_nothing_plain(folder: Path, *words: bytes) -> None:
    """None of ``words`` in any file below ``folder``, nor in a name."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert files
    for path in files:
        content = path.read_bytes() + os.fsencode(path.relative_to(folder))
        for word in words:
            assert word not in content, f"{word!r} in {path}"


def _descendants(pid: int) -> Iterator[int]:
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):
            for child in task.read_text().split():
                yield int(child)
                yield from _descendants(int(child))
