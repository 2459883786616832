"""A host holds a sealed directory, and its owner types the real commands: each refuses, and no false byte comes out."""

from __future__ import annotations

import json
import os
import shutil
from copy import copy as copy_of
from pathlib import Path

import pytest

from cloister.encoding import encode_json, labelled_hash
from cloister.errors import EXIT_POLICY, EXIT_VERIFICATION
from cloister.sealing.envelope import HEADER_SIZE
from cloister.sealing.index import Index, signed_message
from cloister.sealing.segments import SEGMENT_SIZE
from sealing_samples import OWNER, URI, alter, patterned, sealed_folder
from sealing_shell import key_files, run

WEIGHTS = patterned(3_400_000)
FILES = {
    "model/weights": WEIGHTS,
    "model/other": patterned(3_400_000, seed=2),
    "config.json": b'{"temperature": 0}',
}
SIGNER = OWNER.public_key.hex()
SEGMENTS = 4


class Scene:
    """The owner's second version in ``sealed``, the first in ``old``, and the key files; the host holds both folders."""

    def __init__(self, place: Path) -> None:
        self.place = place
        key_files(place)
        (place / "work").mkdir()
        folder, self.old_index = sealed_folder(
            place / "work", {**FILES, "model/weights": patterned(3_400_000, seed=3)}
        )
        folder.rename(place / "old")
        folder, self.index = sealed_folder(place / "work", FILES, after=self.old_index)
        folder.rename(place / "sealed")
        shutil.rmtree(place / "work")

    @property
    def sealed(self) -> Path:
        return self.place / "sealed"

    @property
    def old(self) -> Path:
        return self.place / "old"

    def file(self, path: str = "model/weights", index: Index | None = None) -> Path:
        folder = self.sealed if index is None else self.old
        return folder / (index or self.index).files[path].file_name


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Scene:
    return Scene(tmp_path_factory.mktemp("made"))


@pytest.fixture
def scene(made: Scene, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Scene:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(made.place, tmp_path, dirs_exist_ok=True)
    copy = copy_of(made)
    copy.place = tmp_path
    return copy


def refused(
    scene: Scene, *, codes: tuple[int, ...] = (EXIT_VERIFICATION,), more: tuple[object, ...] = ()
) -> list[str]:
    """Unseal, verify and cat all refuse in one line, and give out nothing but what is genuine."""
    keys = ("--key-file", "k", "--signer", SIGNER, *more)
    said = []
    for command in (
        ("unseal", "sealed", "--out", "clear", *keys),
        ("verify", "sealed", *keys),
        ("cat", "sealed", "model/weights", *keys),
    ):
        outcome = run(*command)
        assert outcome.code in codes, (command, outcome)
        assert len(outcome.err.splitlines()) == 1
        assert outcome.out == b"" if command[0] != "cat" else WEIGHTS.startswith(outcome.out)
        said.append(outcome.err)
    assert not (scene.place / "clear").exists()
    return said


def segment_of(path: Path, number: int) -> bytes:
    start = HEADER_SIZE + number * SEGMENT_SIZE
    return path.read_bytes()[start : start + SEGMENT_SIZE]


def put_segment(path: Path, number: int, data: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(HEADER_SIZE + number * SEGMENT_SIZE)
        file.write(data)


def test_a_segment_swapped_inside_a_file_is_refused(scene: Scene) -> None:
    one, two = segment_of(scene.file(), 1), segment_of(scene.file(), 2)
    put_segment(scene.file(), 1, two)
    put_segment(scene.file(), 2, one)
    assert "segment 1 of model/weights does not authenticate" in refused(scene)[2]
    assert run("verify", "sealed").code == EXIT_VERIFICATION  # and without a key too


@pytest.mark.parametrize("number", range(SEGMENTS))
def test_a_segment_swapped_between_files_is_refused(scene: Scene, number: int) -> None:
    put_segment(scene.file(), number, segment_of(scene.file("model/other"), number))
    refused(scene)
    assert run("verify", "sealed").code == EXIT_VERIFICATION


@pytest.mark.parametrize("number", range(SEGMENTS))
def test_a_segment_swapped_between_versions_is_refused(scene: Scene, number: int) -> None:
    put_segment(scene.file(), number, segment_of(scene.file(index=scene.old_index), number))
    refused(scene)


@pytest.mark.parametrize("segments", range(SEGMENTS))
def test_a_file_truncated_at_a_segment_boundary_is_refused(scene: Scene, segments: int) -> None:
    os.truncate(scene.file(), HEADER_SIZE + segments * SEGMENT_SIZE)
    assert all("model/weights has" in line for line in refused(scene))


@pytest.mark.parametrize("segments", range(SEGMENTS))
def test_a_lone_file_truncated_at_a_segment_boundary_gives_out_no_byte(scene: Scene, segments: int) -> None:
    lone = scene.place / "lone"
    shutil.copy(scene.file(), lone)
    assert run("cat", lone, "--key-file", "k").out == WEIGHTS
    os.truncate(lone, HEADER_SIZE + segments * SEGMENT_SIZE)
    for command in (("cat", lone), ("verify", lone), ("unseal", lone, "--out", "clear")):
        outcome = run(*command, "--key-file", "k")
        assert (outcome.code, outcome.out) == (EXIT_VERIFICATION, b"")
    assert not (scene.place / "clear").exists()


def test_a_directory_rolled_back_is_refused_by_whoever_knows_its_version(scene: Scene) -> None:
    shutil.rmtree(scene.sealed)
    shutil.copytree(scene.old, scene.sealed)
    for line in refused(scene, more=("--minimum-version", 2)):
        assert "the index is version 1, and at least 2 is asked for" in line


def test_an_index_rolled_back_among_new_files_is_refused(scene: Scene) -> None:
    for name in ("index.json", "index.sig"):
        shutil.copy(scene.old / name, scene.sealed)
    refused(scene)


@pytest.mark.parametrize("name", ["extra.sealed", ".hidden", "reseal.journal.old", "index.json.bak", "tree"])
def test_a_file_added_is_refused(scene: Scene, name: str) -> None:
    (scene.sealed / name).write_bytes(b"x")
    assert all(repr(name) in line for line in refused(scene))


@pytest.mark.parametrize(
    "path", ["../../escaped", "/tmp/escaped", "a/../../../escaped", "a//b", "./a", "a\\..\\b", "a\0b", "..", ""]
)  # fmt: skip
def test_a_path_that_leads_elsewhere_is_refused_even_if_its_owner_signed_it(scene: Scene, path: str) -> None:
    document = json.loads((scene.sealed / "index.json").read_bytes())
    document["files"][path] = document["files"].pop("config.json")
    data = encode_json(document)
    (scene.sealed / "index.json").write_bytes(data)
    signature = OWNER.sign(signed_message(labelled_hash("cloister/index/v1", data)))
    (scene.sealed / "index.sig").write_bytes(signature)
    assert all("the path" in line for line in refused(scene))
    assert run("ls", "sealed").code == EXIT_VERIFICATION
    assert not list(scene.place.parent.glob("**/escaped"))


@pytest.mark.parametrize("name", ["model/weights", "index.json", "index.sig"])
def test_a_link_in_place_of_a_sealed_file_is_refused(scene: Scene, name: str) -> None:
    path = scene.file(name) if name in FILES else scene.sealed / name
    path.rename(scene.place / "moved")
    path.symlink_to(scene.place / "moved")
    refused(scene)


HEADER = {
    "magic": (0, b"CLOISTEL"), "version": (9, b"\2"), "suite": (11, b"\2"), "file id": (12, bytes(32)),
    "length of the key URI, longer": (45, bytes([len(URI) + 1])),
    "length of the key URI, shorter": (45, bytes([len(URI) - 1])),
    "length of the key URI, none": (45, b"\0"), "length of the wrap": (47, b"\x6f"), "key URI": (48 + 20, b"x"),
    "salt of the wrap": (48 + len(URI), bytes(32)), "commitment": (48 + len(URI) + 32, bytes(32)),
    "wrapped key": (48 + len(URI) + 64, bytes(32)), "tag of the wrap": (48 + len(URI) + 96, bytes(16)),
    "first byte of the padding": (48 + len(URI) + 112, b"\1"), "last byte of the padding": (HEADER_SIZE - 1, b"\1"),
}  # fmt: skip


@pytest.mark.parametrize("field", HEADER)
def test_an_edited_header_is_refused(scene: Scene, field: str) -> None:
    offset, data = HEADER[field]
    with scene.file().open("r+b") as file:
        file.seek(offset)
        assert file.read(len(data)) != data
        file.seek(offset)
        file.write(data)
    refused(scene)


def test_a_changed_key_id_is_refused_although_the_key_at_hand_would_fit(scene: Scene) -> None:
    changed = URI.replace("medquad", "another")[: len(URI)]
    path = scene.file()
    path.write_bytes(path.read_bytes().replace(URI.encode(), changed.encode(), 1))
    assert all("does not open" in line for line in refused(scene))
    refused(scene, codes=(EXIT_POLICY,), more=("--key", URI))


def test_a_flipped_bit_anywhere_in_a_body_is_found_without_a_key(scene: Scene) -> None:
    for offset in (HEADER_SIZE, HEADER_SIZE + 40, HEADER_SIZE + 2 * SEGMENT_SIZE, -1):
        alter(scene.file(), offset)
        assert run("verify", "sealed", "--signer", SIGNER).code == EXIT_VERIFICATION
        alter(scene.file(), offset)
    assert run("verify", "sealed", "--signer", SIGNER).code == 0


def test_a_planted_journal_changes_no_header(scene: Scene) -> None:
    """The host writes a journal of a rotation that its owner never began: headers of another file, under a key it has."""
    other = scene.file("model/other").read_bytes()[:HEADER_SIZE]
    start = 48 + len(URI)
    planted = {
        "format": "cloister/reseal/v1",
        "key": URI,
        "suite": 1,
        "files": {
            scene.file().name: {
                "id": scene.index.files["model/weights"].id,
                "old_key": URI,
                "old": scene.file().read_bytes()[start : start + 112],
                "new": other[start : start + 112],
            }
        },
    }
    journal = scene.sealed / "reseal.journal"
    before = scene.file().read_bytes()
    journal.write_bytes(encode_json(planted))
    keys = ("--key-file", "k", "--signer", SIGNER)
    assert run("cat", "sealed", "model/weights", *keys).out == WEIGHTS  # as its header is the old one
    rotation = ("--new-key", "kbs:///default/key/new", "--new-key-file", "k2")
    outcome = run("reseal", "sealed", *keys, *rotation)
    assert "was interrupted, and comes first" in outcome.err
    assert scene.file().read_bytes() == before
    journal.unlink()
    journal.symlink_to(scene.place / "k")
    refused(scene)
    assert run("reseal", "sealed", *keys, *rotation).code == EXIT_VERIFICATION
