"""Whole directories: all or nothing, in parallel, to a folder and to memory."""

from __future__ import annotations

import fcntl
import os
import stat
from pathlib import Path

import pytest

from cloister.errors import IndexMismatch, TamperedFile, UsageError, WrongKey
from cloister.sealing.directory import seal_directory, unseal_directory, unseal_to_memory
from cloister.sealing.index import open_index
from left_behind import left_open, open_descriptors
from sealing_samples import KEK, OTHER_KEK, OWNER, STRANGER, URI, Keys, alter, patterned, sealed_folder

FILES = {
    "model.gguf": patterned(5_500_000, 1),
    "config.json": b'{"a": 1}',
    "sub/empty": b"",
    "sub/deeper/Größe.txt": b"x",
    "README.sealed": b"a name like ours",
    "index.json": b"a name like the index",
}
SIGNERS = [OWNER.public_key]


def tree(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()
    }


def test_a_directory_comes_back(tmp_path: Path) -> None:
    sealed, made = sealed_folder(tmp_path, FILES)
    index = open_index(sealed, signers=SIGNERS)
    assert index == made
    assert set(index.files) == set(FILES)
    keys = Keys()
    unseal_directory(sealed, index, keys, tmp_path / "out", workers=3)
    assert tree(tmp_path / "out") == FILES
    assert keys.asked == [URI], "one key is asked for once, however many files it opens"


def test_what_is_unsealed_is_for_its_owner_alone(tmp_path: Path) -> None:
    sealed, index = sealed_folder(tmp_path, FILES)
    unseal_directory(sealed, index, Keys(), tmp_path / "out")
    for path in [tmp_path / "out", *(tmp_path / "out").rglob("*")]:
        assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0, path


def test_the_sealed_directory_shows_neither_names_nor_contents_of_files(tmp_path: Path) -> None:
    sealed, index = sealed_folder(tmp_path, FILES)
    expected = {"index.json", "index.sig", *(f"{entry.id.hex()}.sealed" for entry in index.files.values())}
    assert {path.name for path in sealed.iterdir()} == expected


def test_a_file_is_unsealed_into_memory_that_nobody_can_change(tmp_path: Path) -> None:
    sealed, index = sealed_folder(tmp_path, FILES)
    for path, content in FILES.items():
        descriptor = unseal_to_memory(sealed, index, path, Keys(), workers=2)
        try:
            assert os.pread(descriptor, len(content) + 1, 0) == content
            assert "memfd:" in str(Path(f"/proc/self/fd/{descriptor}").readlink())
            assert not os.get_inheritable(descriptor)
            wanted = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
            assert fcntl.fcntl(descriptor, fcntl.F_GET_SEALS) == wanted
            with pytest.raises(PermissionError):
                os.pwrite(descriptor, b"x", 0)
        finally:
            os.close(descriptor)


def test_a_refused_file_leaves_no_descriptor_behind(tmp_path: Path) -> None:
    sealed, index = sealed_folder(tmp_path, FILES)
    alter(sealed / index.files["model.gguf"].file_name, -1)
    before = open_descriptors()
    with pytest.raises(TamperedFile, match=r"model\.gguf"):
        unseal_to_memory(sealed, index, "model.gguf", Keys(), workers=2)
    assert not left_open(before)
    with pytest.raises(IndexMismatch, match="names no file"):
        unseal_to_memory(sealed, index, "absent", Keys())


@pytest.mark.parametrize("made", [True, False], ids=["into an empty folder", "into a new folder"])
def test_one_bad_file_and_nothing_is_unsealed(tmp_path: Path, made: bool) -> None:
    sealed, index = sealed_folder(tmp_path, FILES)
    alter(sealed / index.files["model.gguf"].file_name, -1)
    out = tmp_path / "out"
    if made:
        out.mkdir()
    with pytest.raises(TamperedFile):
        unseal_directory(sealed, index, Keys(), out)
    assert out.exists() == made
    assert not made or list(out.iterdir()) == []
    with pytest.raises(WrongKey):
        unseal_directory(sealed, index, Keys({URI: OTHER_KEK}), out)
    assert out.exists() == made


@pytest.mark.parametrize("stop", [KeyboardInterrupt, UsageError("stop")], ids=["Ctrl-C", "an error"])
def test_an_interrupted_seal_or_unseal_leaves_nothing(tmp_path: Path, stop: BaseException) -> None:
    def interrupted(done: int, total: int) -> None:
        if done > total // 2:
            raise stop

    sealed, index = sealed_folder(tmp_path, FILES)
    before = {path.name for path in tmp_path.iterdir()}
    kind = stop if isinstance(stop, type) else type(stop)
    with pytest.raises(kind):
        unseal_directory(sealed, index, Keys(), tmp_path / "out", progress=interrupted, workers=2)
    with pytest.raises(kind):
        sealed_folder(tmp_path / "plain-0", {"again": patterned(3_000_000)}, progress=interrupted)
    with pytest.raises(kind):
        unseal_to_memory(sealed, index, "model.gguf", Keys(), progress=interrupted, workers=2)
    assert {path.name for path in tmp_path.iterdir()} == before
    assert not list(tmp_path.rglob("*.partial"))


@pytest.mark.parametrize("occupied", ["file", "folder with something in it", "link"])
def test_a_place_that_is_taken_is_refused(tmp_path: Path, occupied: str) -> None:
    sealed, index = sealed_folder(tmp_path, {"a": b"x"})
    out = tmp_path / "out"
    if occupied == "file":
        out.write_bytes(b"mine")
    elif occupied == "link":
        (tmp_path / "target").mkdir()
        out.symlink_to(tmp_path / "target")
    else:
        out.mkdir()
        (out / "mine").write_bytes(b"mine")
    with pytest.raises(UsageError, match="not an empty directory"):
        unseal_directory(sealed, index, Keys(), out)
    with pytest.raises(UsageError, match="not an empty directory"):
        seal_directory(tmp_path / "plain-0", out, key_uri=URI, kek=KEK, signing_key=OWNER)


def test_an_empty_folder_is_taken_as_the_place(tmp_path: Path) -> None:
    sealed, _ = sealed_folder(tmp_path, {"a": b"x"})
    (tmp_path / "out").mkdir()
    index = seal_directory(tmp_path / "plain-0", tmp_path / "out", key_uri=URI, kek=KEK, signing_key=OWNER)
    assert open_index(tmp_path / "out", signers=SIGNERS) == index
    assert index.tree != open_index(sealed, signers=SIGNERS).tree


def test_progress_rises_to_the_total(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    sealed, index = sealed_folder(tmp_path, FILES, progress=lambda *step: seen.append(step))
    total = sum(map(len, FILES.values()))
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    assert seen[-1] == (total, total)
    seen.clear()
    unseal_directory(sealed, index, Keys(), tmp_path / "out", progress=lambda *step: seen.append(step))
    assert seen[-1] == (total, total)


def test_links_and_special_files_are_not_sealed(tmp_path: Path) -> None:
    source = tmp_path / "in"
    source.mkdir()
    (source / "file").write_bytes(b"x")
    for make in (
        lambda path: path.symlink_to("file"),
        lambda path: path.symlink_to(tmp_path),
        os.mkfifo,
    ):
        make(source / "odd")
        with pytest.raises(UsageError, match="only plain files"):
            seal_directory(source, tmp_path / "out", key_uri=URI, kek=KEK, signing_key=OWNER)
        (source / "odd").unlink()
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", [b"bad\xffname", b"line\nbreak", "e\u0301".encode()])
def test_a_name_that_no_index_can_hold_is_refused_when_sealing(tmp_path: Path, name: bytes) -> None:
    source = tmp_path / "in"
    source.mkdir()
    Path(os.fsdecode(os.fsencode(source) + b"/" + name)).write_bytes(b"x")
    with pytest.raises(UsageError):
        seal_directory(source, tmp_path / "out", key_uri=URI, kek=KEK, signing_key=OWNER)


def test_nothing_to_seal_and_places_that_cannot_be_are_refused(tmp_path: Path) -> None:
    settings = {"key_uri": URI, "kek": KEK, "signing_key": OWNER}
    source = tmp_path / "in"
    with pytest.raises(UsageError, match="no directory"):
        seal_directory(source, tmp_path / "out", **settings)  # type: ignore[arg-type]
    (source / "empty").mkdir(parents=True)
    with pytest.raises(UsageError, match="holds no file"):
        seal_directory(source, tmp_path / "out", **settings)  # type: ignore[arg-type]
    (source / "file").write_bytes(b"x")
    with pytest.raises(UsageError, match="lies inside"):
        seal_directory(source, source / "out", **settings)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="is not a key URI"):
        seal_directory(source, tmp_path / "out", **{**settings, "key_uri": "kbs:///x"})  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="cannot create"):
        seal_directory(source, tmp_path / "no" / "out", **settings)  # type: ignore[arg-type]


def test_a_new_version_keeps_the_tree_and_counts_on(tmp_path: Path) -> None:
    _, first = sealed_folder(tmp_path, {"a": b"1"})
    second_place, second = sealed_folder(tmp_path, {"a": b"2"}, after=first)
    assert (second.tree, second.version) == (first.tree, 2)
    assert open_index(second_place, signers=SIGNERS, minimum_version=2) == second


def test_what_is_no_sealed_directory_is_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no sealed directory"):
        open_index(tmp_path / "absent", signers=SIGNERS)
    with pytest.raises(IndexMismatch, match="not a sealed directory"):
        open_index(tmp_path, signers=SIGNERS)
    sealed, _ = sealed_folder(tmp_path, {"a": b"x"})
    with pytest.raises(IndexMismatch, match="not one of the accepted"):
        open_index(sealed, signers=[STRANGER.public_key])
    with pytest.raises(UsageError, match="no signer"):
        open_index(sealed, signers=[])
