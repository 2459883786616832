"""The ``sealed://`` filesystem: what is read is verified, what is written is sealed and signed, nothing goes back."""

from __future__ import annotations

import copy
import json
import os
import pickle
import random
import shutil
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cloister.errors import (
    CloisterError,
    IndexMismatch,
    RolledBack,
    TamperedFile,
    TruncatedFile,
    UsageError,
)
from cloister.sealing import access as registry
from cloister.sealing.access import Access
from cloister.sealing.directory import seal_directory
from cloister.sealing.files import seal_file
from cloister.sealing.filesystem import SealedFileSystem
from cloister.sealing.filesystem_directory import SealedDirectory
from sealed_urls import BIG, FILES, SMALL, WORKLOAD, access, nothing_registered, opened
from sealing_samples import KEK, OWNER, STRANGER, URI, Keys, alter, patterned, sealed_folder

__all__ = ["nothing_registered"]  # a fixture of every test here


@pytest.fixture(scope="module")
def sealed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return sealed_folder(tmp_path_factory.mktemp("sealed"), FILES)[0]


def test_a_sealed_directory_looks_like_the_folder_it_was(sealed: Path) -> None:
    files = opened()
    assert sorted(files.find(str(sealed))) == sorted(f"{sealed}/{name}" for name in FILES)
    assert files.ls(str(sealed), detail=False) == [f"{sealed}/big.bin", f"{sealed}/empty", f"{sealed}/sub"]
    assert files.ls(f"{sealed}/sub", detail=False) == [f"{sealed}/sub/a.txt", f"{sealed}/sub/deep"]
    assert files.ls(f"{sealed}/sub/a.txt") == [files.info(f"{sealed}/sub/a.txt")]
    assert files.info(f"sealed://{sealed}/big.bin")["size"] == len(BIG)
    assert files.isdir(str(sealed))
    assert files.isdir(f"{sealed}/sub/deep")
    assert files.isfile(f"{sealed}/empty")
    assert not files.exists(f"{sealed}/absent")
    assert not files.exists(f"{sealed}/sub/a")
    assert files.glob(f"{sealed}/**/*.txt") == [f"{sealed}/sub/a.txt", f"{sealed}/sub/deep/b.txt"]
    assert files.glob(f"{sealed}/*/*.txt") == [f"{sealed}/sub/a.txt"]
    assert files.find(str(sealed), maxdepth=1) == [f"{sealed}/big.bin", f"{sealed}/empty"]
    assert next(files.walk(str(sealed)))[:2] == (str(sealed), ["sub"])
    assert files.du(str(sealed)) == sum(map(len, FILES.values()))


def test_folders_outside_of_sealed_directories_lead_to_them(sealed: Path) -> None:
    files = opened()
    assert str(sealed) in files.ls(str(sealed.parent), detail=False)
    assert files.glob(f"{sealed.parent}/seal*/big.*") == [f"{sealed}/big.bin"]
    with pytest.raises(FileNotFoundError):
        files.ls(f"{sealed.parent}/nowhere")
    with pytest.raises(FileNotFoundError):
        files.open(f"{sealed.parent}/plain-0/big.bin")


@pytest.mark.parametrize("verify", ["whole", "segments"])
def test_any_range_is_read_as_it_was(sealed: Path, verify: str) -> None:
    draw = random.Random(verify)
    with opened(verify=verify).open(f"{sealed}/big.bin") as file:
        for _ in range(80):
            offset = draw.randrange(len(BIG) + 100)
            length = draw.choice([0, 1, 100, 131_072, 1_048_536, 3_000_000, 15_000_000])
            file.seek(offset)
            assert file.read(length) == BIG[offset : offset + length]
        file.seek(-5, os.SEEK_END)
        assert file.read() == BIG[-5:]
        file.seek(0)
        assert b"".join(iter(lambda: file.read(70_000), b"")) == BIG
        file.seek(0)
        assert file.read() == BIG


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.tuples(st.integers(0, len(BIG) + 10), st.integers(0, 3_000_000)), max_size=8), st.booleans()
)
def test_any_sequence_of_reads_gives_the_bytes_that_were_sealed(
    sealed: Path, reads: list[tuple[int, int]], whole: bool
) -> None:
    with opened(verify="whole" if whole else "segments").open(f"{sealed}/big.bin") as file:
        for offset, length in reads:
            file.seek(offset)
            assert file.read(length) == BIG[offset : offset + length]


def test_whole_files_and_ranges_are_read_at_once(sealed: Path) -> None:
    files = opened()
    assert files.cat(f"{sealed}/big.bin") == BIG
    assert files.cat_file(f"{sealed}/big.bin", 5, 2_000_000) == BIG[5:2_000_000]
    assert files.cat_file(f"{sealed}/big.bin", -9, -2) == BIG[-9:-2]
    assert files.cat(files.find(f"{sealed}/sub")) == {
        f"{sealed}/sub/a.txt": b"alpha",
        f"{sealed}/sub/deep/b.txt": b"beta",
    }
    assert files.read_text(f"{sealed}/sub/a.txt") == "alpha"
    assert files.cat(f"{sealed}/empty") == b""


def test_several_threads_read_one_file_and_one_filesystem(sealed: Path) -> None:
    given = access()

    def read(seed: int) -> bool:
        draw = random.Random(seed)
        offsets = [draw.randrange(len(BIG)) for _ in range(10)]
        with opened(given).open(f"{sealed}/big.bin") as file:
            return all(
                (file.seek(offset), file.read(200_000))[1] == BIG[offset : offset + 200_000]
                for offset in offsets
            )

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(read, range(8)))
    assert given.keys.asked == [URI], "one key is asked for once, whatever the threads"  # type: ignore[attr-defined]


def test_an_index_that_nobody_trusted_signed_is_refused(tmp_path: Path) -> None:
    folder, _ = sealed_folder(tmp_path, SMALL)
    files = opened(access(signers=frozenset([bytes(32)]), signing_key=None))
    for look in (files.ls, files.exists, files.isfile, files.find, files.cat, files.open):
        with pytest.raises(IndexMismatch, match="not one of the accepted signers"):
            look(str(folder))


def test_without_any_signer_nothing_is_believed(tmp_path: Path) -> None:
    folder, _ = sealed_folder(tmp_path, SMALL)
    with pytest.raises(UsageError, match="no signer is named"):
        opened(access(signers=frozenset(), signing_key=None)).ls(str(folder))


@pytest.mark.parametrize("verify", ["whole", "segments"])
@pytest.mark.parametrize("offset", [4096 + 10, 4096 + 41, 4096 + (1 << 20) + 5, -1])
def test_a_flipped_bit_anywhere_in_a_body_is_refused(tmp_path: Path, verify: str, offset: int) -> None:
    folder, index = sealed_folder(tmp_path, {"x": patterned(2_500_000)})
    alter(folder / index.files["x"].file_name, offset)
    with pytest.raises(CloisterError), opened(verify=verify).open(f"{folder}/x") as file:
        file.read()


def test_only_the_whole_check_sees_what_a_reader_with_the_key_replaced(tmp_path: Path) -> None:
    # Who was given the data key can make segments that authenticate. Only the owner's digest tells.
    folder, index = sealed_folder(tmp_path, {"x": bytes(3_000_000)})
    path = folder / index.files["x"].file_name
    forge_segment(path, 2, b"\1")
    with opened(verify="segments").open(f"{folder}/x") as file:
        file.seek(2_500_000)
        assert file.read(1) == b"\1"
    with opened().open(f"{folder}/x") as file, pytest.raises(IndexMismatch, match="another content"):
        file.read(1)
    with pytest.raises(IndexMismatch, match="another content"):
        opened().cat(f"{folder}/x")


def test_a_body_that_changes_after_it_was_checked_is_refused(tmp_path: Path) -> None:
    folder, index = sealed_folder(tmp_path, {"x": bytes(30_000_000)})
    path = folder / index.files["x"].file_name
    given = access()
    with opened(given).open(f"{folder}/x") as file:
        assert file.read(1) == b"\0"
        forge_segment(path, 20, b"\1")
        file.seek(20 << 20)
        with pytest.raises(IndexMismatch, match="changed while it was read"):
            file.read(10)
    with opened(given).open(f"{folder}/x") as file:
        file.seek(20 << 20)
        with pytest.raises(IndexMismatch, match="changed while it was read"):
            file.read(10)


def forge_segment(path: Path, segment: int, content: bytes) -> None:
    """Seal a segment anew under the file's own data key."""
    from cloister.sealing.envelope import HEADER_SIZE, parse_header, unwrap
    from cloister.sealing.segments import PREAMBLE_SIZE, SegmentCipher, layout_of_body

    data = bytearray(path.read_bytes())
    header = parse_header(bytes(data[:HEADER_SIZE]), name="x")
    preamble = data[HEADER_SIZE : HEADER_SIZE + PREAMBLE_SIZE]
    cipher = SegmentCipher(unwrap(header, KEK, name="x"), preamble, header.associated_data, name="x")
    layout = layout_of_body(len(data) - HEADER_SIZE, name="x")
    block = layout.block(segment)
    out = memoryview(data)[HEADER_SIZE + block.start :][: block.length]
    cipher.seal_into(segment, segment == layout.segments - 1, content * layout.plain(segment).length, out)
    out.release()
    path.write_bytes(data)


def test_a_truncated_body_and_a_body_of_another_file_are_refused(tmp_path: Path) -> None:
    folder, index = sealed_folder(tmp_path, SMALL | {"c.txt": b"gamma!!!!!"})
    first, second = (folder / index.files[name].file_name for name in ("a.txt", "b.txt"))
    third = folder / index.files["c.txt"].file_name
    os.truncate(third, third.stat().st_size - 1)
    with pytest.raises(TruncatedFile):
        opened().cat(f"{folder}/c.txt")
    first.unlink()
    with pytest.raises(FileNotFoundError):
        opened().cat(f"{folder}/a.txt")
    second.rename(first)
    with pytest.raises((IndexMismatch, TamperedFile, TruncatedFile)):
        opened().cat(f"{folder}/a.txt")


def test_a_file_that_was_added_is_not_there(tmp_path: Path) -> None:
    folder, _ = sealed_folder(tmp_path, SMALL)
    other, index = sealed_folder(tmp_path, {"c.txt": b"genuine, and of another directory"})
    shutil.copy(other / index.files["c.txt"].file_name, folder)
    (folder / "c.txt").write_bytes(b"in the clear")
    files = opened()
    assert files.find(str(folder)) == [f"{folder}/a.txt", f"{folder}/b.txt"]
    for name in ("c.txt", index.files["c.txt"].file_name):
        with pytest.raises(FileNotFoundError):
            files.cat(f"{folder}/{name}")


def test_a_link_in_the_place_of_a_body_is_refused(tmp_path: Path) -> None:
    folder, index = sealed_folder(tmp_path, SMALL)
    body = folder / index.files["a.txt"].file_name
    body.rename(tmp_path / "elsewhere")
    body.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(IndexMismatch):
        opened().cat(f"{folder}/a.txt")


def test_an_older_index_is_refused_once_a_newer_was_seen(tmp_path: Path) -> None:
    folder, _ = sealed_folder(tmp_path, SMALL)
    shutil.copytree(folder, tmp_path / "old")
    given = access()
    files = opened(given)
    files.pipe(f"{folder}/a.txt", b"newer")
    assert files.cat(f"{folder}/a.txt") == b"newer"
    shutil.rmtree(folder)
    shutil.copytree(tmp_path / "old", folder)
    with pytest.raises(RolledBack, match="is version 1, this process has seen 2"):
        files.cat(f"{folder}/a.txt")
    with pytest.raises(RolledBack):
        opened(given, verify="segments").ls(str(folder))
    with pytest.raises(RolledBack):
        files.exists(f"{folder}/a.txt")
    with pytest.raises(RolledBack):
        opened(access(), minimum_version=2).ls(str(folder))
    assert opened(access()).cat(f"{folder}/a.txt") == b"alpha", "another process cannot know"


def test_another_directory_in_the_place_of_one_in_use_is_refused(tmp_path: Path) -> None:
    folder, _ = sealed_folder(tmp_path, SMALL)
    other, index = sealed_folder(tmp_path, SMALL)
    files = opened()
    files.ls(str(folder))
    shutil.rmtree(folder)
    other.rename(folder)
    with pytest.raises(IndexMismatch, match="another sealed directory while it was in use"):
        files.ls(str(folder))
    with pytest.raises(IndexMismatch, match="than the one asked for"):
        opened(tree="00" * 32).ls(str(folder))
    assert opened(tree=index.tree.hex()).ls(str(folder))


def test_an_index_that_vanishes_is_no_empty_folder(tmp_path: Path) -> None:
    folder, _ = sealed_folder(tmp_path, SMALL)
    files = opened()
    files.ls(str(folder))
    (folder / "index.sig").unlink()
    with pytest.raises(RolledBack, match="had an index"):
        files.exists(f"{folder}/a.txt")
    with pytest.raises(UsageError, match="is no sealed directory"):
        opened().pipe(f"{folder}/a.txt", b"new")


def test_an_index_that_turns_up_inside_a_sealed_directory_is_nobodys(tmp_path: Path) -> None:
    folder, _ = sealed_folder(tmp_path, {"sub/a.txt": b"alpha"})
    foreign, _ = sealed_folder(tmp_path, {"a.txt": b"forged"})
    files = opened()
    assert files.cat(f"{folder}/sub/a.txt") == b"alpha"
    foreign.rename(folder / "sub")
    assert files.cat(f"{folder}/sub/a.txt") == b"alpha"


def test_access_is_never_pickled_or_written_as_json(sealed: Path) -> None:
    given = access()
    files = opened(given, verify="segments")
    text = files.to_json()
    assert set(json.loads(text)) == {"cls", "protocol", "args", "verify"}
    data = pickle.dumps(files)
    assert WORKLOAD.public_key not in data
    assert KEK not in data
    with pytest.raises(UsageError, match="no access to sealed files"):
        pickle.loads(data)  # noqa: S301 -- our own bytes
    registry.register(given)
    again = pickle.loads(data)  # noqa: S301
    assert again == files
    assert again.cat(f"{sealed}/sub/a.txt") == b"alpha"
    for carried in (given, files._memory):
        assert copy.deepcopy({"access": carried})["access"] is carried
        with pytest.raises(UsageError, match="never pickled"):
            pickle.dumps(carried)


def test_two_accesses_never_share_an_instance(sealed: Path) -> None:
    keys, signers = Keys(), frozenset([OWNER.public_key])
    first, second = (Access(keys=keys, signers=signers, signing_key=key) for key in (OWNER, STRANGER))
    assert opened(first) is opened(first)
    assert opened(first) is not opened(second)
    with pytest.raises(UsageError, match="no access to sealed files"):
        SealedFileSystem()  # type: ignore[call-arg]
    with pytest.raises(UsageError, match=r"is no cloister\.sealing\.access\.Access"):
        opened("kbs:///default/key/x")  # type: ignore[arg-type]


def test_a_key_is_asked_for_again_when_caches_are_dropped(sealed: Path) -> None:
    given = access()
    files = opened(given)
    for _ in range(2):
        files.cat(f"{sealed}/sub/a.txt")
    files.invalidate_cache()
    files.cat(f"{sealed}/sub/a.txt")
    assert given.keys.asked == [URI, URI]  # type: ignore[attr-defined]


def test_a_sealed_file_alone_opens_if_its_name_says_so(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_bytes(b"a,b\n")
    for name in ("x.csv.sealed", "renamed.csv"):
        seal_file(tmp_path / "x.csv", tmp_path / name, key_uri=URI, kek=KEK)
    (tmp_path / "other.sealed").write_bytes(b"not sealed at all")
    files = opened()
    assert files.cat(f"{tmp_path}/x.csv.sealed") == b"a,b\n"
    assert files.info(f"{tmp_path}/x.csv.sealed")["size"] == 4
    assert files.ls(str(tmp_path), detail=False) == [f"{tmp_path}/x.csv.sealed"]
    for name in ("renamed.csv", "other.sealed", "x.csv"):
        with pytest.raises(FileNotFoundError):
            files.cat(f"{tmp_path}/{name}")


def test_a_lone_sealed_file_in_place_of_a_directorys_file_is_refused(tmp_path: Path) -> None:
    folder, index = sealed_folder(tmp_path, SMALL)
    body = (folder / index.files["b.txt"].file_name).read_bytes()
    shutil.rmtree(folder)
    folder.mkdir()
    (folder / "a.txt").write_bytes(body)
    with pytest.raises(FileNotFoundError):
        opened().cat(f"{folder}/a.txt")


@pytest.mark.parametrize("url", ["sealed://memory://set.sealed", "sealed::memory://set.sealed"])
def test_other_filesystems_hold_sealed_directories_too(sealed: Path, url: str) -> None:
    memory = fsspec.filesystem("memory")
    memory.put(str(sealed), "/set.sealed", recursive=True)
    given = access()
    with fsspec.open(f"{url}/big.bin", access=given) as file:
        file.seek(5_000_000)
        assert file.read(3_000_000) == BIG[5_000_000:8_000_000]
    with fsspec.open(f"{url}/new.txt", "wt", access=given) as file:
        file.write("written")
    files, path = fsspec.url_to_fs(url, access=given)
    assert len(files.find(path)) == 5
    assert files.cat(f"{path}/new.txt") == b"written"
    files.rm(f"{path}/new.txt")
    files.rm(f"{path}/sub", recursive=True)
    assert sorted(name.rsplit("/", 1)[1] for name in files.find(path)) == ["big.bin", "empty"]
    assert len(memory.find("/")) == 4, "index, signature and two bodies"
    with pytest.raises(UsageError):
        fsspec.open("sealed://memory://x", "wb", access=given).open()


def test_the_last_writer_to_an_object_store_wins_and_the_other_learns_it(tmp_path: Path) -> None:
    first, second = opened(access()), opened(access())
    first.pipe("memory://race.sealed/a", b"1")
    # Both read version 1; then each writes a version 2 without seeing the other's.
    second.ls("memory://race.sealed")
    saved = {path: file for path, file in MemoryFileSystem.store.items() if "race" in path}
    first.pipe("memory://race.sealed/b", b"first")
    MemoryFileSystem.store.clear()
    MemoryFileSystem.store.update(saved)
    second.pipe("memory://race.sealed/b", b"second")
    first.invalidate_cache()
    with pytest.raises(IndexMismatch, match="two indexes of version 2"):
        first.cat("memory://race.sealed/b")
    assert opened(access()).cat("memory://race.sealed/b") == b"second"


def test_a_remote_index_is_read_again_after_a_while(tmp_path: Path) -> None:
    from cloister.sealing.filesystem_directory import Pins
    from cloister.sealing.filesystem_memory import memory_of
    from cloister.sealing.filesystem_remote import RemoteStore

    opened(access()).pipe("memory://set.sealed/a", b"1")
    now = [0.0]
    reads = []

    class Counting(RemoteStore):
        def read(self, path: str, limit: int) -> bytes:
            reads.append(path)
            return super().read(path, limit)

    store = Counting(fsspec.filesystem("memory"))
    directory = SealedDirectory(
        store, "counting", "/set.sealed", memory_of(access()), pins=Pins(), clock=lambda: now[0]
    )
    for _ in range(3):
        directory.index()
    assert len(reads) == 2
    now[0] = 6.0
    directory.index()
    assert len(reads) == 4


def test_sealed_over_sealed_is_refused() -> None:
    with pytest.raises(UsageError, match="over sealed"):
        fsspec.open("sealed::sealed:///x.sealed/y", access=access())


def test_an_archive_in_a_sealed_directory_opens_through_a_chain(tmp_path: Path) -> None:
    given = access()
    with (
        opened(given).open(f"{tmp_path}/x.sealed/a.zip", "wb") as file,
        zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive,
    ):
        archive.writestr("inner.txt", "inside")
    with fsspec.open(
        f"zip://inner.txt::sealed://{tmp_path}/x.sealed/a.zip", sealed={"access": given}
    ) as inner:
        assert inner.read() == b"inside"


@pytest.mark.parametrize("options", [{"verify": "none"}, {"tree": "xyz"}])
def test_options_that_cannot_be_meant_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        opened(**options)


def test_sealing_again_in_place_is_seen_as_the_newer_version(tmp_path: Path) -> None:
    folder, before = sealed_folder(tmp_path, SMALL)
    files = opened()
    assert files.cat(f"{folder}/a.txt") == b"alpha"
    (tmp_path / "next").mkdir()
    (tmp_path / "next/a.txt").write_bytes(b"next")
    seal_directory(
        tmp_path / "next", tmp_path / "made", key_uri=URI, kek=KEK, signing_key=OWNER, after=before, workers=1
    )
    shutil.rmtree(folder)
    (tmp_path / "made").rename(folder)
    assert files.cat(f"{folder}/a.txt") == b"next"
    assert files.find(str(folder)) == [f"{folder}/a.txt"]
