"""Writing through ``sealed://``: sealed, signed, whole or not at all, one writer after another."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from cloister.errors import (
    CloisterError,
    FormatError,
    KeyUnavailable,
    RolledBack,
    UsageError,
)
from cloister.sealing.filesystem_local import LocalStore, _lock
from cloister.sealing.index import open_index
from sealed_urls import BIG, FILES, SIGNERS, SMALL, WORKLOAD, access, nothing_registered, opened
from sealing_samples import Keys, sealed_folder

__all__ = ["nothing_registered"]  # a fixture of every test here


def test_what_is_written_is_sealed_and_signed_and_opens_strictly(tmp_path: Path) -> None:
    files = opened()
    with files.open(f"{tmp_path}/out/new.sealed/deep/x.bin", "wb") as file:
        for start in range(0, len(BIG), 777_777):
            file.write(BIG[start : start + 777_777])
        assert file.tell() == len(BIG)
        assert not files.exists(f"{tmp_path}/out/new.sealed/deep/x.bin"), "it shows when it is closed"
    files.write_text(f"{tmp_path}/out/new.sealed/y.txt", "üñí")
    index = open_index(tmp_path / "out/new.sealed", signers=[WORKLOAD.public_key])
    assert (set(index.files), index.version) == ({"deep/x.bin", "y.txt"}, 2)
    assert files.cat(f"{tmp_path}/out/new.sealed/deep/x.bin") == BIG
    assert files.read_text(f"{tmp_path}/out/new.sealed/y.txt") == "üñí"
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["new.sealed"], "nothing is left beside it"


def test_a_file_is_replaced_by_a_new_one_and_its_old_body_goes(tmp_path: Path) -> None:
    folder, before = sealed_folder(tmp_path, SMALL)
    files = opened()
    with files.open(f"{folder}/a.txt") as reading:
        files.pipe(f"{folder}/a.txt", b"second")
        assert reading.read() == b"alpha", "who has it open goes on"
    after = open_index(folder, signers=SIGNERS)
    assert (after.tree, after.version, after.signer) == (before.tree, 2, WORKLOAD.public_key)
    assert after.files["a.txt"].id != before.files["a.txt"].id
    assert after.files["b.txt"] == before.files["b.txt"]
    assert not (folder / before.files["a.txt"].file_name).exists()
    assert files.cat(f"{folder}/a.txt") == b"second"


def test_moving_touches_the_index_alone(tmp_path: Path) -> None:
    folder, before = sealed_folder(tmp_path, {"sub/a.txt": b"alpha", "sub/b.txt": b"beta", "c": b"gamma"})
    files = opened()
    files.mv(f"{folder}/sub/a.txt", f"{folder}/moved.txt")
    files.mv(f"{folder}/c", f"{folder}/sub")
    files.mv(f"{folder}/sub", f"{folder}/other", recursive=True)
    after = open_index(folder, signers=SIGNERS)
    assert after.files == {
        "moved.txt": before.files["sub/a.txt"],
        "other/b.txt": before.files["sub/b.txt"],
        "other/c": before.files["c"],
    }
    with pytest.raises(FileNotFoundError):
        files.mv(f"{folder}/absent", f"{folder}/there")


def test_files_are_moved_and_copied_between_sealed_directories(tmp_path: Path) -> None:
    folder, _ = sealed_folder(tmp_path, SMALL)
    files = opened()
    files.cp(f"{folder}/a.txt", f"{tmp_path}/second.sealed/a.txt")
    files.mv(f"{folder}/b.txt", f"{tmp_path}/second.sealed/b.txt")
    assert set(open_index(tmp_path / "second.sealed", signers=SIGNERS).files) == {"a.txt", "b.txt"}
    assert set(open_index(folder, signers=SIGNERS).files) == {"a.txt"}
    assert files.cat(f"{tmp_path}/second.sealed/b.txt") == b"beta"


def test_removing_takes_index_and_bodies_and_at_last_the_directory(tmp_path: Path) -> None:
    folder, _ = sealed_folder(tmp_path, FILES | {"big.bin": b"small"})
    files = opened()
    files.rm(f"{folder}/sub", recursive=True)
    assert (open_index(folder, signers=SIGNERS).version, sorted(files.find(str(folder)))) == (
        2,
        [f"{folder}/big.bin", f"{folder}/empty"],
    )
    with pytest.raises(FileNotFoundError):
        files.rm(f"{folder}/absent")
    with pytest.raises(IsADirectoryError):
        files.rm(str(folder))
    shutil.copytree(folder, tmp_path / "old")
    files.rm(str(folder), recursive=True)
    assert not folder.exists()
    assert not files.exists(f"{folder}/empty")
    shutil.copytree(tmp_path / "old", folder)
    with pytest.raises(RolledBack, match="an old copy of it has come back"):
        files.ls(str(folder))


def test_a_directory_made_anew_by_the_same_process_goes_on_counting(tmp_path: Path) -> None:
    files = opened()
    place = tmp_path / "x.sealed"
    files.pipe(f"{place}/a", b"1")
    tree = open_index(place, signers=SIGNERS).tree
    files.rm(f"{place}/a")
    files.pipe(f"{place}/a", b"2")
    index = open_index(place, signers=SIGNERS)
    assert (index.tree, index.version) == (tree, 2)


@pytest.mark.parametrize("mode", ["ab", "r+b", "a", "r+"])
def test_changes_in_place_are_refused_and_the_mount_is_named(tmp_path: Path, mode: str) -> None:
    folder, _ = sealed_folder(tmp_path, SMALL)
    with pytest.raises(UsageError, match="cloister mount"):
        opened().open(f"{folder}/a.txt", mode)


def test_exclusive_creation_refuses_what_is_there(tmp_path: Path) -> None:
    folder, _ = sealed_folder(tmp_path, SMALL)
    files = opened()
    with pytest.raises(FileExistsError):
        files.open(f"{folder}/a.txt", "xb")
    with files.open(f"{folder}/new", "xb") as file:
        file.write(b"x")
    assert files.cat(f"{folder}/new") == b"x"


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        pytest.param({"signing_key": None}, "no key to sign", id="no signing key"),
        pytest.param({"output_key": None}, "no key is named", id="no output key"),
    ],
)
def test_writing_without_what_it_takes_is_refused(tmp_path: Path, changes: dict[str, Any], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        opened(access(**changes)).open(f"{tmp_path}/out.sealed/x", "wb")
    assert not list(tmp_path.iterdir())


def test_the_key_of_new_files_can_be_named(tmp_path: Path) -> None:
    other = "kbs:///default/key/other"
    given = access(keys=Keys({other: bytes(32)}))
    opened(given, output_key=other).pipe(f"{tmp_path}/out.sealed/x", b"1")
    assert opened(given).cat(f"{tmp_path}/out.sealed/x") == b"1"
    with pytest.raises(KeyUnavailable):
        opened(given).pipe(f"{tmp_path}/out.sealed/y", b"1")


def test_a_folder_of_other_files_does_not_become_a_sealed_directory(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UsageError, match="holds other files"):
        opened().pipe(f"{tmp_path}/x.csv", b"1")
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_a_new_directory_is_the_parent_named_sealed_or_else_the_folder(tmp_path: Path) -> None:
    files = opened()
    files.pipe(f"{tmp_path}/one/two.sealed/three/x", b"1")
    files.pipe(f"{tmp_path}/one/four/x", b"1")
    assert open_index(tmp_path / "one/two.sealed", signers=SIGNERS).files.keys() == {"three/x"}
    assert open_index(tmp_path / "one/four", signers=SIGNERS).files.keys() == {"x"}


@pytest.mark.parametrize("name", ["a\nb", "a\\b", "e\u0301"])
def test_a_path_that_cannot_be_in_an_index_is_refused_before_anything_is_written(
    tmp_path: Path, name: str
) -> None:
    with pytest.raises(FormatError):
        opened().open(f"{tmp_path}/x.sealed/{name}", "wb")
    assert not list(tmp_path.iterdir())


def test_a_path_below_a_file_is_refused_and_nothing_changes(tmp_path: Path) -> None:
    folder, before = sealed_folder(tmp_path, SMALL)
    with pytest.raises(FormatError, match="is a file and a folder"):
        opened().pipe(f"{folder}/a.txt/b", b"1")
    assert open_index(folder, signers=SIGNERS) == before
    assert not list(tmp_path.glob(".*"))


def test_a_path_that_climbs_stays_inside(tmp_path: Path) -> None:
    folder, _ = sealed_folder(tmp_path, SMALL)
    (tmp_path / "secret").write_text("outside")
    with pytest.raises((FileNotFoundError, CloisterError)):
        opened().cat(f"{folder}/../secret")


def test_an_error_inside_with_leaves_the_directory_as_it_was(tmp_path: Path) -> None:
    folder, before = sealed_folder(tmp_path, SMALL)

    def interrupted() -> None:
        with opened().open(f"{folder}/a.txt", "wb") as file:
            file.write(BIG)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        interrupted()
    assert open_index(folder, signers=SIGNERS) == before
    assert not list(tmp_path.glob(".*"))


def test_a_file_that_is_forgotten_open_is_not_written(tmp_path: Path) -> None:
    folder, before = sealed_folder(tmp_path, SMALL)
    file = opened().open(f"{folder}/a.txt", "wb")
    file.write(b"half of")
    with pytest.warns(ResourceWarning, match="nothing was written"):
        del file
    assert open_index(folder, signers=SIGNERS) == before


def test_a_transaction_shows_its_files_at_its_end_or_not_at_all(tmp_path: Path) -> None:
    folder, before = sealed_folder(tmp_path, SMALL)
    files = opened()
    with files.transaction:
        files.pipe(f"{folder}/c", b"1")
        files.pipe(f"{folder}/d", b"2")
        assert open_index(folder, signers=SIGNERS) == before
    assert files.cat(f"{folder}/c") + files.cat(f"{folder}/d") == b"12"
    assert open_index(folder, signers=SIGNERS).version == 2, "one version for all of it"
    with pytest.raises(ZeroDivisionError), files.transaction:
        files.pipe({f"{folder}/e": b"1", f"{folder}/f": 1 // 0})
    assert not files.exists(f"{folder}/e")
    assert not list(tmp_path.glob(".*"))


def test_a_file_that_is_written_cannot_be_read_or_sought(tmp_path: Path) -> None:
    with opened().open(f"{tmp_path}/x.sealed/x", "wb") as file:
        assert (file.readable(), file.writable(), file.seekable()) == (False, True, False)
        with pytest.raises(OSError, match="cloister mount"):
            file.seek(0)
        file.write(bytearray(b"1"))
        file.write(memoryview(b"2"))
    with pytest.raises(ValueError, match="closed"):
        file.write(b"3")


def test_writers_of_several_processes_and_threads_lose_nothing(tmp_path: Path) -> None:
    folder, _ = sealed_folder(tmp_path, SMALL)
    script = """
import sys; sys.path.insert(0, sys.argv[3])
from sealed_urls import opened
files = opened()
for number in range(5):
    files.pipe(f"{sys.argv[1]}/{sys.argv[2]}-{number}", sys.argv[2].encode())
"""
    here = Path(__file__).parent
    environment = {**os.environ, "PYTHONPATH": str(here.parent)}
    running = [
        subprocess.Popen([sys.executable, "-c", script, str(folder), name, str(here)], env=environment)
        for name in ("one", "two")
    ]
    files = opened()
    threads = [
        threading.Thread(target=files.pipe, args=(f"{folder}/thread-{number}", b"x")) for number in range(5)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [process.wait(60) for process in running] == [0, 0]
    index = open_index(folder, signers=SIGNERS)
    assert len(index.files) == 2 + 10 + 5
    assert index.version == 1 + 10 + 5


def test_a_lock_on_a_directory_that_was_removed_keeps_nobody_out(tmp_path: Path) -> None:
    store, place, entered = LocalStore(), tmp_path / "x.sealed", threading.Event()
    held: list[bool] = []

    def wait() -> None:
        entered.set()
        with store.locked(str(place)):
            held.append(_lock(str(place)) is None)

    with store.locked(str(place)):
        waiting = threading.Thread(target=wait)
        waiting.start()
        entered.wait()
        place.rmdir()
        place.mkdir()
    waiting.join()
    assert held == [True], "the directory that is there now is the one that is locked"


def test_a_directory_that_is_removed_while_it_is_made_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place, make, looks = tmp_path / "x.sealed", Path.mkdir, iter([FileExistsError(17, "File exists")])

    def mkdir(self: Path, *words: Any, **named: Any) -> None:
        for error in looks:  # once, as pathlib raises it between its two looks
            raise error
        make(self, *words, **named)

    monkeypatch.setattr(Path, "mkdir", mkdir)
    with LocalStore().locked(str(place)):
        assert place.is_dir()


def test_a_file_in_the_place_of_a_directory_is_not_waited_for(tmp_path: Path) -> None:
    (tmp_path / "x.sealed").write_bytes(b"")
    with pytest.raises(FileExistsError), LocalStore().locked(str(tmp_path / "x.sealed")):
        pass


@pytest.mark.parametrize("stage", ["index.json", "index.sig"])
def test_a_writer_that_dies_between_index_and_signature_is_finished_by_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: str
) -> None:
    folder, before = sealed_folder(tmp_path, SMALL)
    write, remove = LocalStore.write, LocalStore.remove

    class Killed(BaseException):
        pass

    def dying(self: LocalStore, path: str, data: bytes, *, directory: str) -> None:
        if path.endswith(f"/{stage}"):
            raise Killed
        write(self, path, data, directory=directory)

    monkeypatch.setattr(LocalStore, "write", dying)
    monkeypatch.setattr(LocalStore, "remove", lambda *_: None)  # who is killed removes nothing
    with pytest.raises(Killed):
        opened().pipe(f"{folder}/a.txt", b"newer")
    monkeypatch.setattr(LocalStore, "write", write)
    monkeypatch.setattr(LocalStore, "remove", remove)
    expected = b"newer" if stage == "index.sig" else b"alpha"
    assert opened().cat(f"{folder}/a.txt") == expected, "the change is there or it is not"
    opened().pipe(f"{folder}/c.txt", b"gamma")
    after = open_index(folder, signers=SIGNERS)
    assert after.version == before.version + (2 if stage == "index.sig" else 1)
    assert opened().cat(f"{folder}/a.txt") == expected
    assert not list(tmp_path.glob(".*.next"))


def test_a_full_disk_leaves_the_directory_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, before = sealed_folder(tmp_path, SMALL)

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(LocalStore, "write", full)
        with pytest.raises(OSError, match="No space"):
            opened().pipe(f"{folder}/a.txt", b"newer")
    assert open_index(folder, signers=SIGNERS) == before
    assert not list(tmp_path.glob(".*"))
