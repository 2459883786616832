"""Whoever dies or alters the disk: what fsync acknowledged is there afterwards, and nothing unauthenticated is read."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from cloister.errors import IndexMismatch, RolledBack, WorkloadError, WrongKey
from cloister.sealing.envelope import HEADER_SIZE
from cloister.sealing.segments import SEGMENT_SIZE
from mount_parts import TreePlace, directory_mounted, need_fuse
from real_parts import absent
from sealing_samples import OTHER_KEK, URI, alter, patterned

need_fuse()

RECORD = 5000
WRITE = """
import hashlib, os, sys
RECORD = int(sys.argv[1])
log = os.open("log", os.O_RDWR | os.O_CREAT, 0o600)
number = os.fstat(log).st_size // RECORD
while True:
    os.pwrite(log, hashlib.shake_256(str(number).encode()).digest(RECORD), number * RECORD)
    os.fsync(log)
    with open("beside", "w") as beside:
        beside.write(str(number))
        beside.flush()
        os.fsync(beside.fileno())
    os.rename("beside", "newest")
    folder = os.open(".", os.O_RDONLY)
    os.fsync(folder)
    os.close(folder)
    number += 1
    print(number, flush=True)
"""


@pytest.fixture
def tree(tmp_path: Path) -> TreePlace:
    return TreePlace(tmp_path)


def expected(number: int) -> bytes:
    return hashlib.shake_256(str(number).encode()).digest(RECORD)


def writer(here: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", WRITE, str(RECORD)]
    quiet = subprocess.DEVNULL
    return subprocess.Popen(command, cwd=here, stdout=subprocess.PIPE, stderr=quiet, text=True)


def acknowledged(process: subprocess.Popen[str], before: int) -> int:
    """The last number it printed before it ended."""
    assert process.stdout is not None
    lines = [line for line in process.stdout.read().splitlines(keepends=True) if line.endswith("\n")]
    process.stdout.close()
    process.wait(60)
    return int(lines[-1]) if lines else before


def content_of(path: Path) -> bytes:
    """Closing may tell, once, that the write-back of a program that was killed was cut short: Linux keeps that with the
    file until somebody closes it. What is read has to be right all the same."""
    file = os.open(path, os.O_RDONLY)
    try:
        return os.pread(file, os.fstat(file).st_size, 0)
    finally:
        try:
            os.close(file)
        except OSError as error:
            if error.errno != errno.EIO:
                raise


def check(here: Path, count: int) -> None:
    """``count`` records are there, and what follows is of the next one or not written."""
    content = content_of(here / "log") if count else b""
    for number in range(count):
        assert content[number * RECORD : (number + 1) * RECORD] == expected(number), number
    rest = content[count * RECORD :]
    following = expected(count) + expected(count + 1)
    assert len(rest) <= len(following)
    assert all(byte in (0, following[place]) for place, byte in enumerate(rest))
    if count:
        assert int(content_of(here / "newest")) >= count - 1


@pytest.mark.parametrize("killed", ["the writing program", "the mount"])
def test_what_fsync_acknowledged_outlives_a_kill_at_any_moment(tree: TreePlace, killed: str):
    draw = random.Random(killed)
    count = 0
    for _ in range(5):
        mount = tree.start()
        check(tree.at, count)
        writing = writer(tree.at)
        time.sleep(0.25 + draw.random() / 2)
        if killed == "the mount":
            os.kill(mount.pid, signal.SIGKILL)
            count = acknowledged(writing, count)
            with pytest.raises(WorkloadError, match="died"):
                mount.stop()
        else:
            writing.kill()
            count = acknowledged(writing, count)
            check(tree.at, count)
            mount.stop()
    assert count > 0
    with tree.mounted() as here:
        check(here, count)


LAUNCHER = """
import pathlib, sys, time
from mount_parts import spec
from cloister.workload.mount_client import MountProcess
source, at = map(pathlib.Path, sys.argv[1:])
mount = MountProcess.start(spec(source, at, kind="tree", writable=True), record=lambda head: None)
(at / "file").write_text("written, never synced")
print(mount.pid, flush=True)
time.sleep(60)
"""


def test_a_mount_whose_launcher_is_killed_commits_unmounts_and_ends(tree: TreePlace):
    tests = Path(__file__).resolve().parents[1]
    launcher = subprocess.Popen(
        [sys.executable, "-c", LAUNCHER, str(tree.source), str(tree.at)],
        stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": str(tests)},
    )  # fmt: skip
    assert launcher.stdout is not None
    pid = int(launcher.stdout.readline())
    launcher.kill()
    launcher.wait(60)
    launcher.stdout.close()
    deadline = time.monotonic() + 20
    while Path(f"/proc/{pid}").exists() and time.monotonic() < deadline:
        with contextlib.suppress(ChildProcessError):
            os.waitpid(pid, os.WNOHANG)
        time.sleep(0.02)
    assert not tree.at.is_mount()
    with tree.mounted() as here:
        assert (here / "file").read_text() == "written, never synced"


def test_a_terminals_signals_do_not_end_a_mount(tree: TreePlace):
    mount = tree.start()
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM, signal.SIGQUIT):
        os.kill(mount.pid, number)
    (tree.at / "file").write_text("content")
    assert mount.alive
    mount.stop()
    assert not mount.alive
    with tree.mounted() as here:
        assert (here / "file").read_text() == "content"


def test_a_mount_that_is_in_use_is_detached_with_everything_written_committed(tree: TreePlace):
    mount = tree.start()
    descriptor = os.open(tree.at / "file", os.O_WRONLY | os.O_CREAT)
    os.write(descriptor, b"content")
    mount.stop()
    assert not tree.at.is_mount()
    with pytest.raises(OSError, match=os.strerror(errno.ENOTCONN)):
        os.close(descriptor)
    with tree.mounted() as here:
        assert (here / "file").read_text() == "content"


def test_a_mounts_process_shows_no_key_and_dumps_no_core(tree: TreePlace):
    mount = tree.start()
    process = Path(f"/proc/{mount.pid}")
    limits = (process / "limits").read_text().splitlines()
    assert [line.split()[4:6] for line in limits if line.startswith("Max core")] == [
        ["1", "1"]
    ]  # fs/coredump.c: neither a file nor a pipe
    shown = (process / "cmdline").read_bytes() + (process / "environ").read_bytes()
    assert URI.encode() not in shown
    assert b"CLOISTER" not in shown
    mount.stop()


# Recording


def test_with_no_delay_a_head_is_recorded_before_fsync_returns(tree: TreePlace):
    mount = tree.start(record_seconds=0)
    for number in range(3):
        known = len(tree.recorded)
        with (tree.at / "file").open("w") as file:
            file.write(str(number))
            file.flush()
            os.fsync(file.fileno())
        assert len(tree.recorded) > known
    newest = mount.stop()
    assert newest is not None
    assert tree.recorded[-1] == newest
    versions = [head.version for head in tree.recorded]
    assert versions == sorted(versions)


def test_an_fsync_whose_head_cannot_be_recorded_fails(tree: TreePlace):
    def refuse(_: object) -> None:
        raise RolledBack("the broker knows a newer one")

    mount = tree.start(record=refuse, record_seconds=0)
    with (tree.at / "file").open("w") as file:
        file.write("content")
        file.flush()
        with pytest.raises(OSError, match=os.strerror(errno.EIO)):
            os.fsync(file.fileno())
    with contextlib.suppress(WorkloadError):
        mount.stop()


def test_the_last_head_is_recorded_when_a_mount_stops(tree: TreePlace):
    mount = tree.start(record_seconds=3600)
    (tree.at / "file").write_text("content")
    newest = mount.stop()
    assert [head == newest for head in tree.recorded] == [True]


def test_an_old_copy_of_a_whole_tree_is_not_mounted(tree: TreePlace, tmp_path: Path):
    with tree.mounted() as here:
        (here / "file").write_text("old")
    shutil.copytree(tree.source, tmp_path / "copy", symlinks=True)
    mount = tree.start()
    (tree.at / "file").write_text("new")
    newest = mount.stop()
    assert newest is not None
    shutil.rmtree(tree.source)
    shutil.copytree(tmp_path / "copy", tree.source, symlinks=True)
    with pytest.raises(RolledBack):
        tree.start(minimum=newest)
    assert not tree.at.is_mount()


@pytest.mark.parametrize(
    ("fields", "error"),
    [
        pytest.param({"keys": {URI: OTHER_KEK}}, WrongKey, id="another key"),
        pytest.param(
            {"kind": "directory", "writable": False, "signers": ("00" * 32,)}, IndexMismatch, id="no index"
        ),
        pytest.param({"mountpoint": "/nowhere"}, WorkloadError, id="no mount point"),
    ],
)
def test_what_keeps_a_mount_from_starting_is_raised_by_its_class(tree: TreePlace, fields, error):
    with pytest.raises(error):
        tree.start(**fields)
    assert not tree.at.is_mount()


# The disk


@contextlib.contextmanager
def small_disk(place: Path) -> Iterator[Path]:
    if os.geteuid() != 0:
        absent("only root can mount a small tmpfs")
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(place)], check=True)
    try:
        yield place
    finally:
        subprocess.run(["umount", str(place)], check=True)


def until_refused(path: Path, piece: bytes) -> tuple[int, int]:
    """How many pieces were written and synced, and the errno of the one that was not."""
    kept = 0
    try:
        with path.open("wb", buffering=0) as file:
            for _ in range(100):
                file.write(piece)
                os.fsync(file.fileno())
                kept += 1
    except OSError as error:
        return kept, error.errno or 0
    return kept, 0


def test_a_disk_that_fills_up_in_the_middle_of_a_write_loses_nothing_acknowledged(tmp_path: Path):
    with small_disk(tmp_path / "disk") as disk:
        tree = TreePlace(disk)
        mount = tree.start()
        piece = patterned(300_000)
        kept, number = until_refused(tree.at / "file", piece)
        assert number == errno.ENOSPC
        assert kept > 3
        with contextlib.suppress(WorkloadError):
            mount.stop()
        with tree.mounted() as here:
            content = (here / "file").read_bytes()
            assert content[: kept * len(piece)] == piece * kept
            (here / "file").unlink()
            folder = os.open(here, os.O_RDONLY)
            os.fsync(folder)
            os.close(folder)
            (here / "small").write_text("there is room again")
        with tree.mounted() as here:
            assert (here / "small").read_text() == "there is room again"


def test_a_flipped_bit_under_a_mounted_directory_is_an_io_error_and_nothing_else(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
):
    content = patterned(3 * SEGMENT_SIZE)
    with directory_mounted(tmp_path, {"file": content}) as (here, source), (here / "file").open("rb") as file:
        (sealed,) = source.glob("*.sealed")
        alter(sealed, HEADER_SIZE + 2 * SEGMENT_SIZE + 500_000)
        assert os.pread(file.fileno(), 4096, 0) == content[:4096]
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_RANDOM)
        for _ in range(2):
            with pytest.raises(OSError, match=os.strerror(errno.EIO)):
                os.pread(file.fileno(), 4096, 2 * SEGMENT_SIZE + 4096)
        middle = SEGMENT_SIZE + 4096
        assert os.pread(file.fileno(), 4096, middle) == content[middle : middle + 4096]
    said = [line for line in capfd.readouterr().err.splitlines() if "cloister mount" in line]
    assert len(said) == 1
    assert "'file'" in said[0]


def test_a_directory_altered_before_it_is_mounted_does_not_open_its_file(tmp_path: Path):
    with directory_mounted(tmp_path, {"good": b"good", "bad": patterned(5000)}) as (here, source):
        largest = max(source.glob("*.sealed"), key=lambda path: path.stat().st_size)
        alter(largest, -20)
        with pytest.raises(OSError, match=os.strerror(errno.EIO)):
            (here / "bad").open("rb")
        assert (here / "good").read_bytes() == b"good"


def block_at(descriptor: int, offset: int) -> bytes | None:
    """4 KiB; None where they do not authenticate."""
    try:
        return os.pread(descriptor, 4096, offset)
    except OSError as error:
        if error.errno != errno.EIO:
            raise
        return None


def test_a_flipped_bit_under_a_mounted_tree_is_an_io_error_and_nothing_else(
    tree: TreePlace, capfd: pytest.CaptureFixture[str]
):
    content = patterned(1_000_000)
    with tree.mounted() as here:
        (here / "file").write_bytes(content)
        (here / "other").write_bytes(b"other")
    largest = max(
        (path for path in tree.source.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size
    )
    alter(largest, largest.stat().st_size // 2)
    read, refused = bytearray(len(content)), 0
    with tree.mounted() as here:
        with (here / "file").open("rb", buffering=0) as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_RANDOM)
            for offset in range(0, len(content), 4096):
                found = block_at(file.fileno(), offset)
                refused += found is None
                read[offset : offset + 4096] = content[offset : offset + 4096] if found is None else found
        assert (here / "other").read_bytes() == b"other"
    assert read == content
    assert 1 <= refused <= 64
    assert "'file'" in capfd.readouterr().err
