"""Places of a run: the sockets of the machine's services are not among them."""

from __future__ import annotations

import fcntl
import json
import os
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest

from cloister.errors import WorkloadError
from cloister.workload.private_places import make_folder

COVERED = """
import json, os, sys
from contextlib import ExitStack
from pathlib import Path
from cloister.workload import namespaces
from cloister.workload.private_places import NAMES, cover_services
place = Path(sys.argv[1])
namespaces.private_mounts()
with ExitStack() as undo:
    cover_services(place, 1 << 20, undo, kept=NAMES)
    found = sorted(str(path.relative_to(place)) for path in place.rglob("*"))
    stub = (place / "systemd" / "resolve" / "stub-resolv.conf").read_text()
    try:
        (place / "systemd" / "resolve" / "planted").write_text("x")
        kept = "writable"
    except OSError as error:
        kept = error.strerror
print(json.dumps({"found": found, "stub": stub, "kept": kept, "after": (place / "docker.sock").exists()}))
"""


def test_of_services_nothing_is_left_but_what_names_are_resolved_with(tmp_path: Path) -> None:
    place = tmp_path.resolve() / "run"
    resolve = place / "systemd" / "resolve"
    resolve.mkdir(parents=True)
    (resolve / "stub-resolv.conf").write_text("nameserver 127.0.0.53\n")
    (place / "systemd" / "private").touch()
    (place / "nscd").symlink_to("/etc")
    listeners = []
    for name in ("docker.sock", "snapd.socket", "systemd/io.systemd.Any"):
        listeners.append(socket.socket(socket.AF_UNIX))
        listeners[-1].bind(str(place / name))
    done = subprocess.run(
        [sys.executable, "-c", COVERED, place], capture_output=True, text=True, timeout=30, check=False
    )
    for listener in listeners:
        listener.close()
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert said["found"] == ["systemd", "systemd/resolve", "systemd/resolve/stub-resolv.conf"]
    assert said["stub"] == "nameserver 127.0.0.53\n"
    assert said["kept"] == "Read-only file system"
    assert said["after"] is True


def test_a_folder_that_another_run_mounts_on_is_not_removed_by_who_made_it(tmp_path: Path) -> None:
    """The kernel lets it be removed in another namespace, and takes the mount away with it."""
    place = tmp_path / "models" / "bert"
    with ExitStack() as first, ExitStack() as second:
        make_folder(place, first)
        make_folder(place, second)
        first.close()
        assert place.is_dir()
        second.close()
        assert place.is_dir()  # it did not make it
    with ExitStack() as undo:
        make_folder(place / "more", undo)
        assert (place / "more").is_dir()
    assert not (place / "more").exists()
    assert place.is_dir()


def test_runs_that_make_and_remove_one_folder_all_the_time_get_it_each_time(tmp_path: Path) -> None:
    place = tmp_path / "models" / "bert"

    def run() -> None:
        for _ in range(200):
            with ExitStack() as undo:
                make_folder(place, undo)
                assert place.is_dir()

    with ThreadPoolExecutor(4) as pool:
        for work in [pool.submit(run) for _ in range(4)]:
            work.result(60)


def test_a_folder_that_is_being_removed_is_not_taken_for_held(tmp_path: Path) -> None:
    place = tmp_path / "models"
    place.mkdir()
    descriptor = os.open(place, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        with ExitStack() as undo, pytest.raises(WorkloadError, match="no folder to mount on"):
            make_folder(place, undo)
        fcntl.flock(descriptor, fcntl.LOCK_UN)
        with ExitStack() as undo:
            make_folder(place, undo)
    finally:
        os.close(descriptor)


def test_what_is_no_folder_is_not_mounted_on(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with ExitStack() as undo, pytest.raises(WorkloadError, match="no folder to mount on"):
        make_folder(tmp_path / "file", undo)
    with ExitStack() as undo, pytest.raises(WorkloadError, match="cannot be made"):
        make_folder(tmp_path / "file" / "below", undo)
