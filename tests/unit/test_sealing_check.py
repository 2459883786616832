"""Checking sealed files where they lie, renaming them in the index, streaming them out: what is found, what comes out."""

from __future__ import annotations

import contextlib
import io
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from cloister.errors import (
    CloisterError,
    IndexMismatch,
    KeyUnavailable,
    TamperedFile,
    TruncatedFile,
    UsageError,
    WrongKey,
)
from cloister.sealing.check import check_file, check_files
from cloister.sealing.envelope import HEADER_SIZE
from cloister.sealing.files import seal_file
from cloister.sealing.index import IndexEntry, claimed_signer, next_signature, open_index
from cloister.sealing.rename import rename_files
from cloister.sealing.segments import SEGMENT_SIZE
from cloister.sealing.stream import stream_file
from sealing_samples import KEK, OTHER_KEK, OWNER, STRANGER, URI, Keys, alter, patterned, sealed_folder

FILES = {"a": b"1", "b": patterned(2_500_000), "c/d": b""}
SIGNERS = [OWNER.public_key]


def test_a_genuine_directory_passes_with_a_key_and_without(tmp_path: Path) -> None:
    sealed, index = sealed_folder(tmp_path, FILES)
    seen: list[tuple[int, int]] = []
    for keys in (None, Keys()):
        check_files(
            sealed, index.files, keys=keys, workers=3, cold=True, progress=lambda *step: seen.append(step)
        )
        assert seen[-1] == (index.size, index.size)


def test_each_key_is_asked_for_once(tmp_path: Path) -> None:
    sealed, index = sealed_folder(tmp_path, {f"f{number}": b"x" for number in range(20)})
    keys = Keys()
    check_files(sealed, index.files, keys=keys, workers=4)
    assert keys.asked == [URI]


@pytest.mark.parametrize("offset", [HEADER_SIZE, HEADER_SIZE + 50, HEADER_SIZE + SEGMENT_SIZE, -1])
@pytest.mark.parametrize("keys", [None, Keys()], ids=["without a key", "with a key"])
def test_a_flipped_bit_of_a_body_is_found(tmp_path: Path, offset: int, keys: Keys | None) -> None:
    sealed, index = sealed_folder(tmp_path, FILES)
    alter(sealed / index.files["b"].file_name, offset)
    with pytest.raises((IndexMismatch, TamperedFile)):
        check_files(sealed, index.files, keys=keys)


def test_a_wrong_key_and_a_missing_one_are_told_apart(tmp_path: Path) -> None:
    sealed, index = sealed_folder(tmp_path, FILES)
    with pytest.raises(WrongKey):
        check_files(sealed, index.files, keys=Keys({URI: OTHER_KEK}))
    with pytest.raises(KeyUnavailable):
        check_files(sealed, index.files, keys=Keys({}))


def test_one_file_is_checked_on_its_own(tmp_path: Path) -> None:
    (tmp_path / "it").write_bytes(FILES["b"])
    entry = seal_file(tmp_path / "it", tmp_path / "s", key_uri=URI, kek=KEK)
    for keys in (None, Keys()):
        assert check_file(tmp_path / "s", name="it", expected=None, keys=keys) == entry
    os.truncate(tmp_path / "s", HEADER_SIZE + SEGMENT_SIZE)
    with pytest.raises(TruncatedFile):
        check_file(tmp_path / "s", name="it", expected=None, keys=Keys())
    with pytest.raises(TruncatedFile):
        check_file(tmp_path / "s", name="it", expected=entry, keys=None)
    os.truncate(tmp_path / "s", 17)
    with pytest.raises(TruncatedFile):
        check_file(tmp_path / "s", name="it", expected=None, keys=None)


def out_of(sealed: Path, expected: IndexEntry | None, **more: int) -> bytes:
    out = io.BytesIO()
    count = stream_file(sealed, out.write, Keys(), name="it", expected=expected, **more)
    assert count == len(out.getvalue())
    return out.getvalue()


@pytest.mark.parametrize("indexed", [True, False], ids=["of an index", "alone"])
@pytest.mark.parametrize(
    ("start", "end"),
    [
        (0, None),
        (0, 1),
        (1_048_519, 1_048_521),
        (1_048_520, 2_097_080),
        (2_000_000, 2_500_001),
        (2_500_000, None),
    ],
)
def test_a_range_of_a_stream_is_that_range(
    tmp_path: Path, indexed: bool, start: int, end: int | None
) -> None:
    content = patterned(2_500_000)
    (tmp_path / "it").write_bytes(content)
    entry = seal_file(tmp_path / "it", tmp_path / "s", key_uri=URI, kek=KEK)
    expected = entry if indexed else None
    found = out_of(tmp_path / "s", expected, start=start, **({} if end is None else {"end": end}))
    assert found == content[start:end]
    with pytest.raises(UsageError, match="none from 2500001 on"):
        out_of(tmp_path / "s", expected, start=2_500_001)


def test_a_stream_gives_out_nothing_of_a_segment_that_does_not_authenticate(tmp_path: Path) -> None:
    (tmp_path / "it").write_bytes(FILES["b"])
    entry = seal_file(tmp_path / "it", tmp_path / "s", key_uri=URI, kek=KEK)
    alter(tmp_path / "s", HEADER_SIZE + SEGMENT_SIZE + 5)
    out = io.BytesIO()
    with pytest.raises(TamperedFile):
        stream_file(tmp_path / "s", out.write, Keys(), name="it", expected=entry)
    assert out.getvalue() == FILES["b"][: SEGMENT_SIZE - 56]


def test_a_stream_of_another_content_under_the_same_key_ends_in_an_error(tmp_path: Path) -> None:
    sealed, index = sealed_folder(tmp_path, {"a": b"the owner's"})
    id_ = index.files["a"].id
    (tmp_path / "forged").write_bytes(b"the forger.")

    def entropy(length: int, draws: list[bytes] = [id_]) -> bytes:  # noqa: B006 -- the first draw is the id
        return draws.pop() if draws else os.urandom(length)

    place = sealed / index.files["a"].file_name
    place.unlink()
    seal_file(tmp_path / "forged", place, key_uri=URI, kek=KEK, entropy=entropy)
    for more in ({}, {"start": 0, "end": 2}):
        with pytest.raises(IndexMismatch, match="what was written is not its owner's"):
            out_of(place, index.files["a"], **more)


def test_a_file_has_another_path_and_the_same_body(tmp_path: Path) -> None:
    sealed, index = sealed_folder(tmp_path, FILES)
    bodies = {path.name: path.stat().st_ino for path in sealed.glob("*.sealed")}
    new = rename_files(sealed, index, {"a": "c/a", "b": "a"}, signing_key=OWNER)
    assert open_index(sealed, signers=SIGNERS, minimum_version=2) == new
    assert (new.version, new.tree) == (2, index.tree)
    assert new.files == {"c/a": index.files["a"], "a": index.files["b"], "c/d": index.files["c/d"]}
    assert {path.name: path.stat().st_ino for path in sealed.glob("*.sealed")} == bodies
    assert not next_signature(sealed).exists()


@pytest.mark.parametrize(
    ("paths", "error"),
    [
        ({"none": "x"}, IndexMismatch),
        ({"a": "b"}, UsageError),
        ({"a": "x", "b": "x"}, UsageError),
        ({"a": "../x"}, UsageError),
        ({"a": "/x"}, UsageError),
        ({"a": "c/d/e"}, UsageError),
        ({"a": "c"}, UsageError),
    ],
    ids=["not there", "taken", "two to one", "traversal", "absolute", "below a file", "a folder"],
)
def test_a_path_that_cannot_be_is_refused_and_nothing_changes(
    tmp_path: Path, paths: dict[str, str], error: type[CloisterError]
) -> None:
    sealed, index = sealed_folder(tmp_path, FILES)
    with pytest.raises(error):
        rename_files(sealed, index, paths, signing_key=OWNER)
    assert open_index(sealed, signers=SIGNERS) == index


class _Killed(BaseException):
    pass


@contextlib.contextmanager
def killed_before_write(monkeypatch: pytest.MonkeyPatch, number: int) -> Iterator[None]:
    """The process ends before its small write of that number: 0 next signature, 1 index, 2 signature."""
    from cloister.sealing.filesystem_local import LocalStore

    genuine, writes = LocalStore.write, iter(range(number))

    def write(self: LocalStore, path: str, data: bytes, *, directory: str) -> None:
        if next(writes, None) is None:
            raise _Killed
        genuine(self, path, data, directory=directory)

    with monkeypatch.context() as patch:
        patch.setattr(LocalStore, "write", write)
        yield


@pytest.mark.parametrize("number", range(3))
def test_a_rename_that_is_killed_happened_or_did_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    sealed, index = sealed_folder(tmp_path, FILES)
    with killed_before_write(monkeypatch, number), pytest.raises(_Killed):
        rename_files(sealed, index, {"a": "z"}, signing_key=OWNER)
    found = open_index(sealed, signers=SIGNERS)
    assert ("z" in found.files, found.version) == ((True, 2) if number == 2 else (False, 1))
    again = {} if "z" in found.files else {"a": "z"}
    rename_files(sealed, found, again, signing_key=OWNER)
    assert not next_signature(sealed).exists()
    assert open_index(sealed, signers=SIGNERS).version == 2


def test_a_first_index_whose_signature_is_not_in_place_yet_opens(tmp_path: Path) -> None:
    sealed, index = sealed_folder(tmp_path, FILES)
    (sealed / "index.sig").rename(next_signature(sealed))
    assert open_index(sealed, signers=SIGNERS) == index
    next_signature(sealed).unlink()
    with pytest.raises(IndexMismatch, match=r"has no index\.sig"):
        open_index(sealed, signers=SIGNERS)


def test_a_signature_laid_beside_the_directory_by_a_stranger_signs_nothing(tmp_path: Path) -> None:
    sealed, _ = sealed_folder(tmp_path, FILES)
    foreign, _ = sealed_folder(tmp_path, FILES, signing_key=STRANGER)
    shutil.copy(foreign / "index.json", sealed)
    shutil.copy(foreign / "index.sig", next_signature(sealed))
    with pytest.raises(IndexMismatch, match="not one of the accepted signers"):
        open_index(sealed, signers=SIGNERS)
    assert claimed_signer(sealed) == STRANGER.public_key
