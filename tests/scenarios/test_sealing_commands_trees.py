"""`ls`, `cat`, `verify`, `unseal` and `reseal` of a sealed tree that programs wrote in place."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from cloister.errors import EXIT_USAGE, EXIT_VERIFICATION
from cloister.sealing.tree import create_tree, open_tree
from sealing_samples import KEK, OTHER_KEK, OWNER, URI, Keys, alter, patterned
from sealing_shell import key_files, run

FILES = {
    "run.sh": b"#!/bin/sh\n",
    "checkpoints/1/weights": patterned(1_500_000),
    "log": b"",
    "data/a b": b"x",
}
NEW_URI = "kbs:///default/key/rotated"
KEY = ("--key-file", "k")
ROTATION = ("--new-key", NEW_URI, "--new-key-file", "k2")


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    key_files(tmp_path)
    create_tree(tmp_path / "t", key_uri=URI, kek=KEK)
    tree = open_tree(tmp_path / "t", Keys(), writable=True)
    for path, content in FILES.items():
        parents = path.split("/")[:-1]
        for depth in range(1, len(parents) + 1):
            tree.make_directory("/".join(parents[:depth]), 0o755)
        file = tree.create(path, 0o755 if path.endswith(".sh") else 0o644)
        file.write(0, content)
        file.close()
    tree.link("checkpoints/latest", "1")
    tree.close()
    return tmp_path


def test_a_tree_is_listed_read_verified_and_copied_out(place: Path) -> None:
    listed = json.loads(run("ls", "t", *KEY, "--json").text)
    assert listed["kind"] == "tree"
    assert {path: file["size"] for path, file in listed["files"].items() if file["kind"] == "file"} == {
        path: len(content) for path, content in FILES.items()
    }
    assert "1,500,000  checkpoints/1/weights" in run("ls", "t", *KEY).text
    for path, content in FILES.items():
        assert run("cat", "t", path, *KEY).out == content
    weights = FILES["checkpoints/1/weights"]
    assert (
        run("cat", "t", "checkpoints/1/weights", *KEY, "--range", "70000-1400000").out
        == weights[70000:1400001]
    )
    said = json.loads(run("verify", "t", *KEY, "--json").text)
    assert (said["files"], said["bytes"], said["version"]) == (4, 1_500_011, listed["version"])
    said = json.loads(run("unseal", "t", *KEY, "--out", "clear", "--json").text)
    assert (said["files"], said["bytes"], said["head"]) == (4, 1_500_011, listed["head"])
    assert {path: (place / "clear" / path).read_bytes() for path in FILES} == FILES
    assert (place / "clear" / "checkpoints" / "latest").readlink() == Path("1")
    assert os.access(place / "clear" / "run.sh", os.X_OK)


def test_the_key_of_a_tree_is_rotated_by_its_header_alone(place: Path) -> None:
    before = {path.name: path.read_bytes() for path in (place / "t").iterdir()}
    assert f"1 file put under {NEW_URI}" in run("reseal", "t", *KEY, *ROTATION).text
    after = {path.name: path.read_bytes() for path in (place / "t").iterdir()}
    assert [name for name in before if before[name] != after[name]] == ["tree"]
    assert after.keys() == before.keys()
    assert run("cat", "t", "data/a b", "--key-file", "k2").out == b"x"
    assert run("cat", "t", "data/a b", *KEY).code == EXIT_VERIFICATION
    open_tree(place / "t", Keys({NEW_URI: OTHER_KEK}), writable=True).close()


def test_the_key_of_a_tree_that_is_in_use_is_not_rotated(place: Path) -> None:
    tree = open_tree(place / "t", Keys(), writable=True)
    try:
        outcome = run("reseal", "t", *KEY, *ROTATION)
        assert (outcome.code, "another process has" in outcome.err) == (EXIT_USAGE, True)
    finally:
        tree.close()
    assert run("verify", "t", *KEY).code == 0


def damage_a_file(place: Path) -> None:
    alter(max((place / "t").glob("*.*"), key=lambda path: path.stat().st_size), 70_000)


def edit_the_header(place: Path) -> None:
    alter(place / "t" / "tree", 200)


def add_a_file(place: Path) -> None:
    (place / "t" / "extra").write_bytes(b"x")


def put_a_link_in_place_of_the_header(place: Path) -> None:
    (place / "t" / "tree").rename(place / "moved")
    (place / "t" / "tree").symlink_to(place / "moved")


def put_a_sealed_file_in_place_of_the_header(place: Path) -> None:
    (place / "in").mkdir()
    (place / "in" / "x").write_bytes(b"x")
    run("seal", "in", "--key", URI, *KEY, "--sign-key", "s", "--out", "other")
    shutil.copy(next((place / "other").glob("*.sealed")), place / "t" / "tree")


@pytest.mark.parametrize(
    "attack",
    [
        damage_a_file,
        edit_the_header,
        add_a_file,
        put_a_link_in_place_of_the_header,
        put_a_sealed_file_in_place_of_the_header,
    ],
)
def test_an_altered_tree_is_neither_verified_nor_copied_out(
    place: Path, attack: Callable[[Path], None]
) -> None:
    attack(place)
    for command in (("verify", "t"), ("unseal", "t", "--out", "clear")):
        outcome = run(*command, *KEY)
        assert outcome.code == EXIT_VERIFICATION, outcome
        assert len(outcome.err.splitlines()) == 1
    assert not (place / "clear").exists()


def test_an_older_tree_is_refused_by_whoever_knows_its_version(place: Path) -> None:
    version = json.loads(run("ls", "t", *KEY, "--json").text)["version"]
    for command in (("verify", "t"), ("ls", "t"), ("cat", "t", "log"), ("unseal", "t", "--out", "clear")):
        outcome = run(*command, *KEY, "--minimum-version", version + 1)
        assert (outcome.code, "is asked for" in outcome.err) == (EXIT_VERIFICATION, True)
        outcome = run(*command, *KEY, "--signer", OWNER.public_key.hex())
        assert (outcome.code, "is signed by nobody" in outcome.err) == (EXIT_USAGE, True)
    assert run("ls", "t").code == EXIT_USAGE  # without a key
    assert run("cat", "t", "none", *KEY).err == "usage: cannot read 'none': No such file or directory\n"
    assert run("cat", "t", "data", *KEY).code == EXIT_USAGE
