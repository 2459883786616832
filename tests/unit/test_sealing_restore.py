"""A sealed directory in private memory: all of it or nothing, at its paths, whatever happens to it meanwhile."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import stat
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cloister.errors import IndexMismatch, SealingError, TamperedFile, TruncatedFile, UsageError, WrongKey
from cloister.sealing import restore_confirm
from cloister.sealing.envelope import HEADER_SIZE
from cloister.sealing.index import Index
from cloister.sealing.restore import restore_directory, restore_early, room_for
from cloister.sealing.restore_confirm import Restored
from cloister.sealing.segments import PREAMBLE_SIZE, SEGMENT_SIZE
from left_behind import children, left_open, open_descriptors
from sealing_samples import OTHER_KEK, URI, Keys, alter, patterned, sealed_folder

FIRST = SEGMENT_SIZE - PREAMBLE_SIZE - 16
OTHER = SEGMENT_SIZE - 16
FILES = {
    "empty": b"",
    "one byte": b"x",
    "exact/first segment": patterned(FIRST, 1),
    "exact/one more": patterned(FIRST + 1, 2),
    "exact/two segments": patterned(FIRST + OTHER, 3),
    "a/b/c/model.safetensors": patterned(5_500_000, 4),
    **{f"shards/{number:04}.json": b"{}" * number for number in range(60)},
}
Restore = Callable[..., Restored | None]
WAYS = [pytest.param(restore_directory, id="whole"), pytest.param(restore_early, id="early")]


@pytest.fixture
def target() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(dir="/dev/shm"))
    yield folder
    os.chmod(folder, 0o700)  # noqa: PTH101
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def sealed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Index]:
    return sealed_folder(tmp_path_factory.mktemp("sealed"), FILES)


@pytest.fixture
def own(sealed: tuple[Path, Index], tmp_path: Path) -> tuple[Path, Index]:
    """A copy that a test may damage."""
    shutil.copytree(sealed[0], tmp_path / "own")
    return tmp_path / "own", sealed[1]


def tree(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()
    }


def modes(folder: Path) -> dict[str, int]:
    return {path.name: stat.S_IMODE(path.stat().st_mode) for path in folder.rglob("*")}


@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize("restore", WAYS)
def test_every_file_is_at_its_path(
    sealed: tuple[Path, Index], target: Path, restore: Restore, workers: int
) -> None:
    keys = Keys()
    before = open_descriptors()
    made = restore(*sealed, keys, target, workers=workers)
    if made is not None:
        made.confirm(workers=workers)
    assert tree(target) == FILES
    assert keys.asked == [URI], "one key is asked for once, however many files it opens"
    assert not left_open(before)


@pytest.mark.parametrize(
    ("mode", "file", "folder"),
    [(0o400, 0o400, 0o500), (0o600, 0o600, 0o700), (0o444, 0o444, 0o555), (0o640, 0o640, 0o750)],
)
def test_files_and_folders_get_their_rights(
    sealed: tuple[Path, Index], target: Path, mode: int, file: int, folder: int
) -> None:
    restore_directory(*sealed, Keys(), target, paths=["a/b/c/model.safetensors"], mode=mode)
    assert modes(target) == {"a": folder, "b": folder, "c": folder, "model.safetensors": file}
    assert stat.S_IMODE(target.stat().st_mode) == 0o700, "the target keeps its own"


def test_files_and_folders_get_their_owner(sealed: tuple[Path, Index], target: Path) -> None:
    me = (os.geteuid(), os.getegid())
    given = (12345, 54321) if me[0] == 0 else me
    restore_directory(*sealed, Keys(), target, owner=given)
    owners = {(path.stat().st_uid, path.stat().st_gid) for path in target.rglob("*")}
    assert owners == {given}


def test_some_files_can_be_asked_for(sealed: tuple[Path, Index], target: Path) -> None:
    seen: list[tuple[int, int]] = []
    wanted = ["one byte", "exact/one more", "one byte"]
    restore_directory(*sealed, Keys(), target, paths=wanted, progress=lambda *step: seen.append(step))
    assert tree(target) == {path: FILES[path] for path in wanted}
    total = 1 + FIRST + 1
    assert seen[-1] == (total, total)


def test_no_file_at_all_leaves_the_target_empty(sealed: tuple[Path, Index], target: Path) -> None:
    restore_directory(*sealed, Keys(), target, paths=[])
    assert not list(target.iterdir())


@pytest.mark.parametrize("restore", WAYS)
def test_a_path_that_the_index_does_not_name_is_refused(
    sealed: tuple[Path, Index], target: Path, restore: Restore
) -> None:
    with pytest.raises(IndexMismatch, match="names no file"):
        restore(*sealed, Keys(), target, paths=["one byte", "../etc/passwd"])
    assert not list(target.iterdir())


def damage(kind: str, sealed: Path, index: Index) -> None:
    large = sealed / index.files["a/b/c/model.safetensors"].file_name
    other = sealed / index.files["exact/two segments"].file_name
    if kind == "a flipped bit in the last segment":
        alter(large, -1)
    elif kind == "a flipped bit in the middle":
        alter(large, HEADER_SIZE + 2 * SEGMENT_SIZE + 5)
    elif kind == "a flipped bit in the preamble":
        alter(large, HEADER_SIZE + 3)
    elif kind == "a header with another wrap":
        alter(large, 48 + len(URI) + 70)
    elif kind == "cut at a segment":
        os.truncate(large, HEADER_SIZE + 2 * SEGMENT_SIZE)
    elif kind == "extra bytes":
        with large.open("ab") as file:
            file.write(b"more")
    elif kind == "another file in its place":
        shutil.copy(other, large)
    elif kind == "gone":
        large.unlink()
    elif kind == "a link in its place":
        large.rename(sealed / "moved")
        large.symlink_to("moved")
    elif kind == "a pipe in its place":
        large.unlink()
        os.mkfifo(large)


@pytest.mark.parametrize("restore", WAYS)
@pytest.mark.parametrize(
    ("kind", "error"),
    [
        ("a flipped bit in the last segment", TamperedFile),
        ("a flipped bit in the middle", TamperedFile),
        ("a flipped bit in the preamble", TamperedFile),
        ("a header with another wrap", TamperedFile),
        ("cut at a segment", TruncatedFile),
        ("extra bytes", TamperedFile),
        ("another file in its place", SealingError),
        ("gone", IndexMismatch),
        ("a link in its place", IndexMismatch),
        ("a pipe in its place", IndexMismatch),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_one_bad_file_and_nothing_is_left_in_the_target(
    own: tuple[Path, Index], target: Path, kind: str, error: type[Exception], restore: Restore
) -> None:
    damage(kind, *own)
    before = open_descriptors()
    with pytest.raises(error):
        restore(*own, Keys(), target, workers=2)
    assert not list(target.iterdir())
    assert not left_open(before)


@pytest.mark.parametrize("restore", WAYS)
def test_the_wrong_key_leaves_nothing_in_the_target(
    sealed: tuple[Path, Index], target: Path, restore: Restore
) -> None:
    with pytest.raises(WrongKey):
        restore(*sealed, Keys({URI: OTHER_KEK}), target)
    assert not list(target.iterdir())


def test_what_was_opened_early_is_confirmed_without_its_sealed_files(
    own: tuple[Path, Index], target: Path
) -> None:
    made = restore_early(*own, Keys(), target)
    shutil.rmtree(own[0])
    made.confirm()
    assert tree(target) == FILES


def test_what_changed_after_it_was_opened_early_is_not_confirmed(
    sealed: tuple[Path, Index], target: Path
) -> None:
    made = restore_early(*sealed, Keys(), target, mode=0o600)
    alter(target / "a/b/c/model.safetensors", 4_000_000)
    with pytest.raises(IndexMismatch):
        made.confirm()
    assert not list(target.iterdir())


def test_what_was_opened_early_can_be_thrown_away(sealed: tuple[Path, Index], target: Path) -> None:
    before = open_descriptors()
    made = restore_early(*sealed, Keys(), target)
    made.discard()
    made.discard()
    assert not list(target.iterdir())
    assert not left_open(before)


@pytest.mark.parametrize("stop", [KeyboardInterrupt, UsageError("stop")], ids=["Ctrl-C", "an error"])
@pytest.mark.parametrize("restore", WAYS)
def test_an_interrupted_restore_leaves_nothing(
    sealed: tuple[Path, Index], target: Path, stop: Any, restore: Restore
) -> None:
    def interrupted(done: int, total: int) -> None:
        if done > total // 2:
            raise stop

    with pytest.raises(stop if isinstance(stop, type) else type(stop)):
        restore(*sealed, Keys(), target, progress=interrupted, workers=2)
    assert not list(target.iterdir())


@pytest.mark.parametrize("restore", WAYS)
def test_a_target_that_is_a_link_or_occupied_or_not_there_is_refused(
    sealed: tuple[Path, Index], target: Path, restore: Restore
) -> None:
    (target / "real").mkdir()
    (target / "link").symlink_to("real")
    (target / "file").write_bytes(b"")
    for name in ("link", "file", "absent"):
        with pytest.raises(UsageError, match="no folder to restore to"):
            restore(*sealed, Keys(), target / name)
    with pytest.raises(UsageError, match="not empty"):
        restore(*sealed, Keys(), target)
    assert {path.name for path in target.iterdir()} == {"real", "link", "file"}


def test_a_target_that_could_lie_on_a_disk_is_refused_unless_it_is_meant(
    sealed: tuple[Path, Index], tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match="does not lie in memory"):
        restore_directory(*sealed, Keys(), Path("/proc"))
    restore_directory(*sealed, Keys(), tmp_path, paths=["one byte"], anywhere=True)
    assert tree(tmp_path) == {"one byte": b"x"}


def test_a_mode_that_its_owner_could_not_read_is_refused(sealed: tuple[Path, Index], target: Path) -> None:
    for mode in (0, 0o200, 0o4400, 0o1777):
        with pytest.raises(UsageError, match="of no use"):
            restore_directory(*sealed, Keys(), target, mode=mode)


def test_a_tmpfs_of_the_named_size_holds_the_directory(sealed: tuple[Path, Index], target: Path) -> None:
    restore_directory(*sealed, Keys(), target)
    taken = sum(path.stat().st_blocks * 512 for path in target.rglob("*"))
    assert taken <= room_for(sealed[1])


def test_what_was_opened_early_can_be_confirmed_in_another_process(
    sealed: tuple[Path, Index], target: Path
) -> None:
    before, family = open_descriptors(), children()
    made = restore_early(*sealed, Keys(), target)
    made.begin(workers=2)
    made.confirm()
    assert tree(target) == FILES
    assert not left_open(before)
    assert not children() - family


@pytest.mark.parametrize("reason", ["the process was killed", "no process can be had", "it lies"])
def test_where_the_other_process_does_not_confirm_this_one_looks_itself(
    sealed: tuple[Path, Index], target: Path, monkeypatch: pytest.MonkeyPatch, reason: str
) -> None:
    made = restore_early(*sealed, Keys(), target)
    if reason == "no process can be had":

        def refused() -> int:
            raise OSError(errno.EAGAIN, "no more processes")

        monkeypatch.setattr(os, "fork", refused)
    elif reason == "it lies":
        monkeypatch.setattr(restore_confirm, "_CONFIRMED", b"nonsense!")
    made.begin()
    if reason == "the process was killed":
        assert made._apart is not None
        os.kill(made._apart._child, signal.SIGKILL)
    monkeypatch.undo()
    made.confirm()
    assert tree(target) == FILES


def test_another_process_that_still_looks_ends_when_the_files_are_thrown_away(
    sealed: tuple[Path, Index], target: Path
) -> None:
    before, family = open_descriptors(), children()
    made = restore_early(*sealed, Keys(), target)
    made.begin()
    made.discard()
    assert not list(target.iterdir())
    assert not left_open(before)
    assert not children() - family
