"""Mounts of the launcher's own: what is in them is not seen from outside, and they go when they are told to."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from cloister.errors import UsageError, WorkloadError
from cloister.workload import namespaces

BEGIN = """
import json, os, socket, stat, sys
from pathlib import Path
from cloister.workload import linux
from cloister.workload.namespaces import conceal, private_mounts, private_tmpfs, temporary_files
place = Path(sys.argv[1])
uid, gid = os.geteuid(), os.getegid()
if "unprivileged" in sys.argv:
    real = linux.unshare
    def unshare(flags):
        if not flags & linux.CLONE_NEWUSER:
            raise OSError(1, "Operation not permitted")
        real(flags)
    linux.unshare = unshare
taken = private_mounts()
"""
WAYS = pytest.mark.parametrize("way", ["as it is", "unprivileged"])


@contextmanager
def launcher(place: Path, way: str, then: str) -> Iterator[subprocess.Popen[str]]:
    """A process that makes its mounts private and does ``then``; it ends when its standard input does."""
    command = [sys.executable, "-c", BEGIN + then + "\nsys.stdin.read()", str(place), way]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


@WAYS
def test_what_is_written_in_a_private_tmpfs_is_not_seen_by_others(tmp_path: Path, way: str):
    then = """
made = private_tmpfs(str(place), size=1 << 20, uid=uid, gid=gid)
(place / "plaintext").write_text("secret words")
status = place.stat()
print(taken, oct(stat.S_IMODE(status.st_mode)), status.st_uid == uid, os.statvfs(place).f_blocks * 4096, flush=True)
"""
    with launcher(tmp_path, way, then) as process:
        namespace = "user and mount" if way == "unprivileged" or os.geteuid() else "mount"
        assert line(process) == f"{namespace} 0o700 True {1 << 20}"
        assert list(tmp_path.iterdir()) == []
        assert str(tmp_path) not in Path("/proc/self/mounts").read_text()
        assert str(tmp_path) in Path(f"/proc/{process.pid}/mounts").read_text()


def test_the_machines_root_can_look_through_proc_and_nobody_else(tmp_path: Path):
    then = """
private_tmpfs(str(place), size=1 << 20, uid=uid, gid=gid)
(place / "plaintext").write_text("secret words")
from cloister.workload.hardening import harden_launcher
harden_launcher(lock=False)
print("ready", flush=True)
"""
    with launcher(tmp_path, "as it is", then) as process:
        assert line(process) == "ready"
        through = Path(f"/proc/{process.pid}/root{tmp_path}/plaintext")
        if os.geteuid() == 0:
            assert through.read_text() == "secret words"  # docs/reference/isolation.md says so
        else:
            with pytest.raises(PermissionError):
                through.read_text()


@WAYS
def test_its_bounds_and_flags_hold(tmp_path: Path, way: str):
    then = """
made = private_tmpfs(str(place), size=1 << 20, uid=uid, gid=gid, mode=0o1777, huge="within_size")
try:
    (place / "large").write_bytes(bytes(2 << 20))
    print("written")
except OSError as error:
    print(error.strerror)
(row,) = [line for line in Path("/proc/self/mounts").read_text().splitlines() if f" {place} " in line]
options = set(row.split()[3].split(","))
weak = {finding.check for finding in made.findings}
print(options >= {"rw", "nosuid", "nodev", "size=1024k"}, ("noswap" in options) == (not weak), flush=True)
"""
    with launcher(tmp_path, way, then) as process:
        assert line(process) == "No space left on device"
        assert line(process) == "True True"


@WAYS
def test_unmounted_it_is_gone(tmp_path: Path, way: str):
    (tmp_path / "below").write_text("of the host")
    then = """
made = private_tmpfs(str(place), size=1 << 20, uid=uid, gid=gid)
(place / "plaintext").write_text("secret words")
made.unmount()
print(os.listdir(place), flush=True)
"""
    with launcher(tmp_path, way, then) as process:
        assert line(process) == "['below']"


@WAYS
def test_temporary_files_go_to_memory_of_its_own(tmp_path: Path, way: str):
    then = """
made = temporary_files(size=1 << 20, uid=uid, gid=gid)
for mounted in made:
    Path(mounted.path, "cloister-test-plaintext").write_text("secret words")
print(*(mounted.path for mounted in made), flush=True)
"""
    with launcher(tmp_path, way, then) as process:
        said = line(process).split()
        assert {"/tmp", "/dev/shm"} <= set(said) <= set(namespaces.TEMPORARY)
        assert not [path for path in said if Path(path, "cloister-test-plaintext").exists()]


@WAYS
def test_a_unix_socket_of_a_service_is_concealed(tmp_path: Path, way: str):
    with socket.socket(socket.AF_UNIX) as service:
        (tmp_path / "run").mkdir()
        service.bind(str(tmp_path / "run" / "docker.sock"))
        service.listen()
        lone = tmp_path / "lone.sock"
        with socket.socket(socket.AF_UNIX) as other:
            other.bind(str(lone))
            other.listen()
            then = """
def reach(path):
    try:
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(path))
        return "reached"
    except OSError as error:
        return error.strerror
places = [place / "run" / "docker.sock", place / "lone.sock"]
print([reach(path) for path in places])
print(len(conceal([str(place / "run"), str(place / "lone.sock"), str(place / "none")])))
print([reach(path) for path in places], os.listdir(place / "run"), flush=True)
"""
            with launcher(tmp_path, way, then) as process:
                assert line(process) == "['reached', 'reached']"
                assert line(process) == "2"
                assert line(process) == "['No such file or directory', 'Connection refused'] []"


def test_a_link_is_not_mounted_on(tmp_path: Path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    with pytest.raises(WorkloadError, match="no directory to mount on"):
        namespaces.private_tmpfs(str(tmp_path / "link"), size=4096, uid=0, gid=0)


@pytest.mark.parametrize(
    ("size", "mode"),
    [
        pytest.param(0, 0o700, id="of no size, which is without bound"),
        pytest.param(4096, 0o4700, id="set-user-id"),
    ],
)
def test_a_file_system_that_is_not_meant_is_refused(tmp_path: Path, size: int, mode: int):
    with pytest.raises(UsageError):
        namespaces.private_tmpfs(str(tmp_path), size=size, uid=0, gid=0, mode=mode)


def test_mounts_are_made_private_before_the_first_thread():
    done = threading.Event()
    thread = threading.Thread(target=done.wait)
    thread.start()
    try:
        with pytest.raises(WorkloadError, match="before the first thread"):
            namespaces.private_mounts()
    finally:
        done.set()
        thread.join()
