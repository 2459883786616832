"""Programs that know nothing of sealing work in a mounted sealed tree, and read a mounted sealed directory."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import hashlib
import mmap
import os
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from cloister.sealing.segments import SEGMENT_SIZE
from mount_parts import TreePlace, directory_mounted, need_fuse, python, shell
from real_parts import absent
from sealing_samples import patterned

need_fuse()


@pytest.fixture
def tree(tmp_path: Path) -> TreePlace:
    return TreePlace(tmp_path)


@pytest.fixture
def here(tree: TreePlace) -> Iterator[Path]:
    with tree.mounted() as folder:
        yield folder


def need(program: str) -> None:
    if shutil.which(program) is None:
        absent(f"{program} is not installed")


# Databases, logs, tools

WRITE_ROWS = """
import sqlite3, sys
base = sqlite3.connect("rows.db", timeout=30)
for number in range(50):
    with base:
        base.execute("insert into rows values (?, ?)", (sys.argv[1], number))
"""


@pytest.mark.parametrize("journal", ["DELETE", "WAL"])
def test_two_processes_write_one_sqlite_database(tree: TreePlace, journal: str):
    with tree.mounted() as here:
        made = f"pragma journal_mode={journal}; create table rows (writer, number)"
        python(f"import sqlite3; sqlite3.connect('rows.db').executescript('{made}')", folder=here)
        writers = [
            subprocess.Popen([sys.executable, "-c", WRITE_ROWS, str(number)], cwd=here) for number in range(2)
        ]
        assert [writer.wait(60) for writer in writers] == [0, 0]
    with tree.mounted() as here:
        base = sqlite3.connect(here / "rows.db")
        assert base.execute("pragma integrity_check").fetchone() == ("ok",)
        assert base.execute("pragma journal_mode").fetchone() == (journal.lower(),)
        counted = base.execute("select writer, count(*), sum(number) from rows group by writer").fetchall()
        assert counted == [("0", 50, 1225), ("1", 50, 1225)]
        base.close()


APPEND = """
import os, sys
log = os.open("log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
for number in range(300):
    os.write(log, f"{sys.argv[1]} {number}\\n".encode())
"""


def test_a_log_that_two_processes_append_to_has_every_line_whole(tree: TreePlace):
    with tree.mounted() as here:
        writers = [subprocess.Popen([sys.executable, "-c", APPEND, str(who)], cwd=here) for who in range(2)]
        assert [writer.wait(60) for writer in writers] == [0, 0]
    with tree.mounted() as here:
        lines = (here / "log").read_text().splitlines()
    assert sorted(lines) == sorted(f"{who} {number}" for who in range(2) for number in range(300))


def test_git_works_in_a_sealed_tree(here: Path):
    need("git")
    (here / "home").mkdir()
    settings = "export HOME=$PWD/home; git config --global user.name a; git config --global user.email a@b;"
    done = shell(
        f"{settings} git init -q work; cd work; seq 1 5000 > file; git add file; git commit -qm one; seq 2 9 > file;"
        " git commit -qam two; git gc -q; git fsck --strict; git checkout -q HEAD~1; sha256sum file",
        here,
    )
    assert done.split()[0] == hashlib.sha256("".join(f"{n}\n" for n in range(1, 5001)).encode()).hexdigest()


def test_files_copied_packed_and_unpacked_are_the_same(tree: TreePlace, tmp_path: Path):
    source = tmp_path / "source"
    (source / "folder/deep").mkdir(parents=True)
    (source / "folder/deep/large").write_bytes(patterned(3_000_000))
    (source / "folder/empty").touch()
    (source / "program").write_text("#!/bin/sh\necho ran\n")
    (source / "program").chmod(0o755)
    (source / "folder/link").symlink_to("deep/large")
    with tree.mounted() as here:
        shell(
            f"cp -r {source} copied; cp -a {source} kept; tar cf packed.tar copied; mkdir un; tar xf packed.tar -C un",
            here,
        )
    with tree.mounted() as here:
        for copy in ("copied", "kept", "un/copied"):
            shell(f"diff -r {source} {copy}", here)
        assert shell("copied/program", here) == "ran\n"
        assert (here / "kept/folder/deep/large").stat().st_mtime == (
            source / "folder/deep/large"
        ).stat().st_mtime


def test_dd_writes_syncs_and_reads_back(here: Path, tmp_path: Path):
    plain = tmp_path / "plain"
    plain.write_bytes(patterned(2_345_678))
    shell(
        f"dd if={plain} of=file bs=64k conv=fsync; dd if=file of=direct bs=128k oflag=direct; cmp {plain} file",
        here,
    )
    assert (here / "direct").read_bytes() == plain.read_bytes()


# What POSIX promises


def test_a_file_opened_before_a_rename_over_it_stays_the_old_one(here: Path):
    (here / "file").write_text("old")
    with (here / "file").open("r+") as old:
        (here / "beside").write_text("new")
        (here / "beside").rename(here / "file")
        assert (here / "file").read_text() == "new"
        assert old.read() == "old"
        old.write(" still")
        old.flush()
        assert os.fstat(old.fileno()).st_nlink == 0
    assert (here / "file").read_text() == "new"


def test_a_file_removed_while_open_is_used_to_its_end_and_leaves_nothing(tree: TreePlace):
    with tree.mounted() as here:
        with (here / "file").open("w+b") as file:
            (here / "file").unlink()
            file.write(patterned(100_000))
            file.flush()
            os.fsync(file.fileno())
            os.ftruncate(file.fileno(), 70_000)
            file.seek(0)
            assert file.read() == patterned(100_000)[:70_000]
            assert os.fstat(file.fileno()).st_size == 70_000
        assert list(here.iterdir()) == []
    with tree.mounted() as here:
        assert list(here.iterdir()) == []


def test_renameat2_keeps_to_its_flags(here: Path):
    def renameat2(old: str, new: str, flags: int) -> int:
        libc = ctypes.CDLL(None, use_errno=True)
        result = libc.renameat2(-100, os.fsencode(here / old), -100, os.fsencode(here / new), flags)
        return ctypes.get_errno() if result else 0

    (here / "one").write_text("1")
    (here / "two").write_text("2")
    assert renameat2("one", "two", 1) == errno.EEXIST
    assert renameat2("one", "two", 2) == errno.EINVAL
    assert [(here / name).read_text() for name in ("one", "two")] == ["1", "2"]
    assert renameat2("one", "three", 1) == 0
    assert (here / "three").read_text() == "1"


def test_a_hole_is_zeros_and_takes_no_room(tree: TreePlace):
    with tree.mounted() as here:
        with (here / "sparse").open("wb") as file:
            file.seek(50 << 20)
            file.write(b"end")
        assert (here / "sparse").stat().st_size == (50 << 20) + 3
    with tree.mounted() as here, (here / "sparse").open("rb") as file:
        assert file.read(100_000) == bytes(100_000)
        file.seek((50 << 20) - 10)
        assert file.read() == bytes(10) + b"end"
        assert os.fstat(file.fileno()).st_blocks < 1000
    assert sum(path.stat().st_size for path in tree.source.rglob("*") if path.is_file()) < 10 << 20


@pytest.mark.parametrize("size", [0, 1, 4095, 4096, 5000, 65536, 70_000])
def test_bytes_cut_off_do_not_come_back(tree: TreePlace, size: int):
    with tree.mounted() as here:
        (here / "file").write_bytes(b"\xff" * 100_000)
        with (here / "file").open("r+b") as file:
            os.ftruncate(file.fileno(), size)
            os.ftruncate(file.fileno(), 200_000)
    with tree.mounted() as here:
        assert (here / "file").read_bytes() == b"\xff" * size + bytes(200_000 - size)


def test_creating_and_opening_keep_to_their_flags(here: Path):
    (here / "file").write_text("content")
    with pytest.raises(FileExistsError):
        os.open(here / "file", os.O_CREAT | os.O_EXCL | os.O_WRONLY)
    with (here / "file").open("a") as file:
        file.write(" more")
    assert (here / "file").read_text() == "content more"
    os.close(os.open(here / "file", os.O_WRONLY | os.O_TRUNC))
    assert (here / "file").stat().st_size == 0


def test_a_shared_mapping_is_seen_by_other_processes_and_after_a_remount(tree: TreePlace):
    with tree.mounted() as here:
        (here / "file").write_bytes(bytes(100_000))
        with (here / "file").open("r+b") as file, mmap.mmap(file.fileno(), 0) as mapped:
            mapped[50_000:50_007] = b"written"
            seen = python(
                "import mmap; f = open('file', 'r+b'); m = mmap.mmap(f.fileno(), 0); print(m[50_000:50_007]); m[0] = 65",
                folder=here,
            )
            assert seen == "b'written'\n"
            assert mapped[0] == 65
    with tree.mounted() as here:
        content = (here / "file").read_bytes()
        assert (content[50_000:50_007], content[:2]) == (b"written", b"A\0")


HOLD = """
import fcntl, sys, time
file = open("file", "r+b")
(fcntl.flock if sys.argv[1] == "flock" else fcntl.lockf)(file, fcntl.LOCK_EX)
print("held", flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize("kind", ["flock", "lockf"])
def test_a_lock_that_one_process_holds_keeps_another_out_until_it_dies(here: Path, kind: str):
    (here / "file").touch()
    lock = fcntl.flock if kind == "flock" else fcntl.lockf
    command = [sys.executable, "-c", HOLD, kind]
    with (
        subprocess.Popen(
            command, cwd=here, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as holder,
        (here / "file").open("r+b") as file,
    ):
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(BlockingIOError):
            lock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        holder.kill()
        holder.wait(60)
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            try:
                lock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                time.sleep(0.01)
        else:
            pytest.fail("the lock outlived its holder")


def test_modes_times_and_links_are_kept(tree: TreePlace):
    with tree.mounted() as here:
        (here / "file").write_text("content")
        (here / "file").chmod(0o640)
        os.utime(here / "file", ns=(0, 1_234_567_890_123_456_789))
        (here / "folder").mkdir(mode=0o710)
        (here / "folder/link").symlink_to("../file")
    with tree.mounted() as here:
        status = (here / "file").stat()
        assert (status.st_mode & 0o777, status.st_mtime_ns) == (0o640, 1_234_567_890_123_456_789)
        assert (here / "folder").stat().st_mode & 0o777 == 0o710
        assert (here / "folder/link").read_text() == "content"


@pytest.mark.parametrize(
    ("act", "number"),
    [
        pytest.param(lambda here: os.link(here / "file", here / "other"), errno.EPERM, id="hard link"),
        pytest.param(lambda here: os.mkfifo(here / "pipe"), errno.EPERM, id="pipe"),
        pytest.param(
            lambda here: (here / "out").symlink_to("/etc/passwd"), errno.EPERM, id="link to the outside"
        ),
        pytest.param(lambda here: (here / "up").symlink_to("../../x"), errno.EPERM, id="link upwards"),
        pytest.param(lambda here: os.chown(here / "file", 12345, -1), errno.EPERM, id="another owner"),
        pytest.param(
            lambda here: (here / "folder").rmdir(), errno.ENOTEMPTY, id="a folder that is not empty"
        ),
        pytest.param(
            lambda here: (here / "folder").rename(here / "folder/x"), errno.EINVAL, id="into itself"
        ),
        pytest.param(lambda here: (here / "folder").unlink(), errno.EISDIR, id="unlinking a folder"),
        pytest.param(lambda here: (here / "file").mkdir(), errno.EEXIST, id="a name that is taken"),
    ],
)
def test_what_is_not_offered_fails_as_posix_says(here: Path, act, number: int):
    (here / "file").touch()
    (here / "folder").mkdir()
    (here / "folder/inside").touch()
    with pytest.raises(OSError, match=os.strerror(number)):
        act(here)


# Who may

UNPRIVILEGED = """
import os, sys, time
from pathlib import Path
from cloister.workload.mount import Mounted
from cloister.workload.mount_device import Session
from cloister.workload.mount_kernel import Owner
from memory_files import MemoryFiles
at, user = Path(sys.argv[1]), int(sys.argv[2])
os.setgroups([])
os.setgid(user)
os.setuid(user)
owner = Owner(user, user)
session = Session(at, Mounted(MemoryFiles(), owner, clock=time.time_ns), owner=owner, writable=True)
(at / "file").write_text("content")
print((at / "file").read_text(), at.is_mount())
print(session.unmount(patience=5), at.is_mount())
"""
SOMEBODY, SOMEBODY_ELSE = 65534, 12345


@pytest.fixture
def open_place() -> Iterator[Path]:
    """A folder that other users can reach."""
    if os.geteuid() != 0:
        absent("only root can act for several users")
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


def test_a_user_without_privileges_mounts_through_fusermount3(open_place: Path):
    need("fusermount3")
    at = open_place / "at"
    at.mkdir()
    os.chown(at, SOMEBODY, SOMEBODY)
    tests = Path(__file__).resolve().parents[1]
    done = subprocess.run(
        [sys.executable, "-c", UNPRIVILEGED, str(at), str(SOMEBODY)],
        capture_output=True, text=True, timeout=60, check=False, env={**os.environ, "PYTHONPATH": str(tests)},
    )  # fmt: skip
    assert done.stdout == "content True\nTrue False\n", done.stderr


def run_as(user: int, *command: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, user=user, group=user, extra_groups=[], cwd="/", capture_output=True, text=True, check=False
    )


def test_root_mounts_for_a_user_and_nobody_else_looks_in(open_place: Path):
    tree = TreePlace(open_place)
    with tree.mounted(uid=SOMEBODY, gid=SOMEBODY) as here:
        made = run_as(SOMEBODY, "touch", here / "file")
        assert made.returncode == 0, made.stderr
        assert (here / "file").stat().st_uid == SOMEBODY
        (here / "file").chmod(0o666)
        for command in (("ls", here), ("cat", here / "file"), ("touch", here / "other")):
            done = run_as(SOMEBODY_ELSE, *command)
            assert "Permission denied" in done.stderr


def test_a_mount_in_a_namespace_of_its_own_is_seen_nowhere_else(tmp_path: Path):
    need("unshare")
    if os.geteuid() != 0:
        absent("only root can make a mount namespace")
    tree = TreePlace(tmp_path)
    tests = Path(__file__).resolve().parents[1]
    code = (
        "import pathlib, sys; from mount_parts import spec; from cloister.workload.mount_client import MountProcess;"
        "source, at = map(pathlib.Path, sys.argv[1:]);"
        "mount = MountProcess.start(spec(source, at, kind='tree', writable=True), record=lambda head: None);"
        "(at / 'file').write_text('content'); print('written', flush=True); sys.stdin.read(); mount.stop()"
    )
    command = ["unshare", "-m", sys.executable, "-c", code, str(tree.source), str(tree.at)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": str(tests)}
    ) as inside:
        assert inside.stdout is not None
        assert inside.stdout.readline() == b"written\n"
        assert list(tree.at.iterdir()) == []
        inside.communicate()
    assert inside.returncode == 0
    with tree.mounted() as here:
        assert (here / "file").read_text() == "content"


# A sealed directory, to read

CONTENT = patterned(2 * SEGMENT_SIZE + 12345)


def test_a_sealed_directory_is_read_like_any_other_folder(tmp_path: Path):
    with directory_mounted(tmp_path, {"data/large": CONTENT, "data/small": b"small"}) as (here, _):
        assert shell("sha256sum data/large", here).split()[0] == hashlib.sha256(CONTENT).hexdigest()
        shell(f"cp -r data {tmp_path}/copy; tar cf {tmp_path}/packed.tar data", here)
        assert (tmp_path / "copy/large").read_bytes() == CONTENT
        with (
            (here / "data/large").open("rb") as file,
            mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as mapped,
        ):
            assert (
                mapped[SEGMENT_SIZE - 50 : SEGMENT_SIZE + 50]
                == CONTENT[SEGMENT_SIZE - 50 : SEGMENT_SIZE + 50]
            )
        assert sorted(path.name for path in here.rglob("*")) == ["data", "large", "small"]


@pytest.mark.parametrize(
    "act",
    [
        pytest.param(lambda here: (here / "file").write_text("x"), id="write"),
        pytest.param(lambda here: (here / "new").touch(), id="create"),
        pytest.param(lambda here: (here / "file").unlink(), id="remove"),
        pytest.param(lambda here: (here / "file").rename(here / "other"), id="rename"),
        pytest.param(lambda here: (here / "new").mkdir(), id="make a folder"),
        pytest.param(lambda here: (here / "file").chmod(0o777), id="change a mode"),
        pytest.param(lambda here: os.truncate(here / "file", 0), id="truncate"),
    ],
)
def test_a_mounted_sealed_directory_refuses_every_change(tmp_path: Path, act):
    with directory_mounted(tmp_path, {"file": b"content"}) as (here, _):
        with pytest.raises(OSError, match=os.strerror(errno.EROFS)):
            act(here)
        assert (here / "file").read_bytes() == b"content"
