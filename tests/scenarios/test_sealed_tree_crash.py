"""A real process that writes into a sealed tree is killed at random, again and again; and a real disk that is full."""

from __future__ import annotations

import errno
import os
import random
import resource
import signal
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import pytest

import sealed_tree_writer
from sealed_trees import SEGMENT, errno_of, get, journal, make, opened, put, reading, writing

TESTS = Path(__file__).parent.parent


def acknowledged_until_killed(folder: Path, seconds: float) -> int:
    """Let the writer run for so long, kill it; the last round that it was told is safe."""
    command = [sys.executable, str(TESTS / "sealed_tree_writer.py"), str(folder)]
    environment = os.environ | {"PYTHONPATH": str(TESTS)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment) as process:
        assert process.stdout is not None
        last = process.stdout.read(8)
        assert last, "the writer died by itself"
        time.sleep(seconds)
        process.send_signal(signal.SIGKILL)
        rest = process.stdout.read()
        assert process.wait() == -signal.SIGKILL
    told = last + rest
    return int.from_bytes(told[len(told) // 8 * 8 - 8 : len(told) // 8 * 8], "big")


def test_whatever_was_acknowledged_is_there_after_a_kill_at_a_random_moment(tmp_path: Path) -> None:
    folder = make(tmp_path / "tree")
    chance = random.Random(5)
    before = 0
    head = None
    for round_ in range(6):
        acknowledged = acknowledged_until_killed(folder, chance.random() * 0.7)
        assert acknowledged > before
        with closing(opened(folder, writable=round_ % 2 == 0, minimum=head)) as tree:
            tree.verify()
            done = tree.status("log").size // 8
            # The round that was under way is there as a whole or not at all.
            assert done in (acknowledged, acknowledged + 1)
            files, log = sealed_tree_writer.expected(done)
            found = {name: get(tree, name) for name in tree.names("")}
            assert found == files | {"log": log}
            head = tree.head
        before = acknowledged


def test_a_full_disk_in_the_middle_of_a_write_is_the_programs_to_see_and_loses_nothing(
    tmp_path: Path,
) -> None:
    folder = make(tmp_path / "tree")
    tree = opened(folder)
    put(tree, "safe", b"safe" * SEGMENT)
    tree.sync()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8 * SEGMENT, hard))
    try:
        file = tree.create("large", 0o600)
        assert errno_of(lambda: file.write(0, b"x" * 32 * SEGMENT)) == errno.EFBIG
        assert file.status.size == 0
        file.write(0, b"y" * 7 * SEGMENT)
        tree.sync()
        # The journal is at its bound soon, too.
        for number in range(400):
            try:
                tree.make_directory(f"folder{number:0200}", 0o700)
                tree.sync()
            except OSError:
                break
        else:
            pytest.fail("the journal is never full")
        assert errno_of(tree.sync) == errno.EFBIG
        assert get(tree, "large") == b"y" * 7 * SEGMENT
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, ignored)
    tree.sync()
    count = len(tree.names(""))
    tree.close()
    with reading(folder) as again:
        again.verify()
        assert len(again.names("")) == count
        assert get(again, "safe") == b"safe" * SEGMENT


@pytest.mark.parametrize("kept", ["nothing", "its head", "half", "all but a byte", "other bytes"])
def test_a_record_that_the_power_tore_was_never_acknowledged(tmp_path: Path, kept: str) -> None:
    folder = make(tmp_path / "tree")
    with writing(folder) as tree:
        put(tree, "file", b"safe")
        tree.sync()
        end = journal(folder).stat().st_size
        put(tree, "file", b"lost")
        tree.sync()
        data = journal(folder).read_bytes()[end:]
    torn = {
        "nothing": b"",
        "its head": data[:52],
        "half": data[: len(data) // 2],
        "all but a byte": data[:-1],
        "other bytes": bytes(len(data)),
    }[kept]
    whole = journal(folder).read_bytes()[:end]
    journal(folder).write_bytes(whole + torn)
    with reading(folder) as tree:
        assert get(tree, "file") == b"safe"
    assert journal(folder).read_bytes() == whole + torn
    with writing(folder) as tree:
        assert get(tree, "file") == b"safe"
        put(tree, "file", b"next")
        tree.sync()
        assert get(tree, "file") == b"next"
    with reading(folder) as tree:
        assert get(tree, "file") == b"next"
