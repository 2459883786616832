"""A sealed tree of version 1, as the first release made it. It opens in every later version: file formats are for ever.

Its journal begins with a checkpoint that has files, links, a hole and heads in it, and goes on with records of every kind.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from cloister.errors import RolledBack
from cloister.sealing.tree import Head, is_tree
from sealed_trees import get, put, reading, writing

PLACE = Path(__file__).parent / "sealed-tree-1"
TREE = "8044c8c2c3b7ca1427b4e1036b7a5cd8096665071e7fac5142086d8b28f4dd0d"
DIGESTS = (
    "c38e1e059aca15fe6597edd39b26db39a13d30937063a45f5eaabbccc6c8ef05",
    "efc0b1654e3c95f4aa3e689e7515de329079c99ee4d40d9fed8b56b91225cfe7",
    "995178a69275c3a06a8c90abe895dac834ccf81eab7a6c5e0c275a04eed9ade7",
    "fdb5a56912ca6752cf987609755cfafcf6005e05d1df8c9bdbcb78c12e744906",
    "37345c2e991ef5004831021ba4efd770ea3d22dd22c19c550421c5711f967546",
    "466ea2f8e8bc46869056106e5ec087efde9cb998a7407c9060d01c9092c5883c",
)
HEADS = [Head(TREE, version, digest) for version, digest in enumerate(DIGESTS, 1)]
LONG = bytearray(bytes(range(256)) * 56)
LONG[4090:4097] = b"changed"
FILES = {
    "data/three segments and a half": bytes(LONG),
    "data/deep/Grüße 日本語.txt": "Grüße".encode(),
    "data/renamed": b"x" * 5000,
    "sparse": bytes(10 * 4096 + 100) + b"end",
    "empty": b"",
    "log": b"one\ntwo\n",
}
NAMES = {
    "": ("data", "empty", "log", "shortcut", "sparse"),
    "data": ("deep", "renamed", "three segments and a half"),
    "data/deep": ("Grüße 日本語.txt", "link"),
}
SECOND = 1_000_000_000
START = 1_800_000_000


@pytest.mark.parametrize("minimum", [None, *HEADS])
def test_a_tree_of_version_1_opens_and_holds_what_it_held(minimum: Head | None) -> None:
    assert is_tree(PLACE)
    with reading(PLACE, minimum=minimum) as tree:
        tree.verify()
        assert tree.head == HEADS[-1]
        assert {path: tree.names(path) for path in NAMES} == NAMES
        assert {path: get(tree, path) for path in FILES} == FILES
        assert tree.read_link("shortcut") == "data/renamed"
        assert tree.read_link("data/deep/link") == "../three segments and a half"


def test_modes_times_numbers_and_holes_are_what_they_were() -> None:
    with reading(PLACE) as tree:
        empty, sparse, renamed = (tree.status(path) for path in ("empty", "sparse", "data/renamed"))
        assert (empty.mode, empty.modified_ns, empty.changed_ns) == (
            0o4711,
            -1_000_000_001,
            (START + 16) * SECOND,
        )
        assert (sparse.number, sparse.size, sparse.stored) == (6, 41063, 4096)
        assert (renamed.mode, renamed.modified_ns, renamed.changed_ns) == (
            0o640,
            (START + 19) * SECOND,
            (START + 20) * SECOND,
        )
        assert tree.status("data/deep").mode == 0o700


def test_a_tree_of_version_1_is_written_on(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(PLACE, tmp_path / "tree"))
    with writing(folder, minimum=HEADS[-1]) as tree:
        put(tree, "data/three segments and a half", b"again", offset=9000)
        head = tree.commit()
        assert head.version == len(HEADS) + 1
        tree._ledger.compact(over=0)
    with reading(folder, minimum=HEADS[2]) as tree:
        assert get(tree, "data/three segments and a half") == bytes(LONG[:9000] + b"again" + LONG[9005:])
        assert tree.head == head
    with pytest.raises(RolledBack), reading(PLACE, minimum=head):
        pass
