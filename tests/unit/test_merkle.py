"""RFC 6962 trees: known answers of the RFC's own example, and proofs that hold for one leaf of one tree."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloister import merkle
from cloister.errors import FormatError

# The eight leaves and tree heads that certificate-transparency implementations share as test data
# (google/certificate-transparency, merkle_tree_test.cc; Apache-2.0): numbers facts, not code.
LEAVES = [
    bytes.fromhex(text)
    for text in (
        "",
        "00",
        "10",
        "2021",
        "3031",
        "40414243",
        "5051525354555657",
        "606162636465666768696a6b6c6d6e6f",
    )
]
HEADS = [
    "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
    "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
    "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
    "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
]
PATHS = {
    # (leaf, size): the audit path of the same test data
    (0, 1): [],
    (0, 8): [
        "96a296d224f285c67bee93c30f8a309157f0daa35dc5b87e410b78630a09cfc7",
        "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e",
        "6b47aaf29ee3c2af9af889bc1fb9254dabd31177f16232dd6aab035ca39bf6e4",
    ],
    (5, 8): [
        "bc1a0643b12e4d2d7c77918f44e0f4f79a838b6cf9ec5b5c283e1f4d88599e6b",
        "ca854ea128ed050b41b35ffc1b87b8eb2bde461e9e3b5596ece6b9d5975a0ae0",
        "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    ],
    (2, 3): ["fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125"],
    (1, 5): [
        "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
        "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e",
        "bc1a0643b12e4d2d7c77918f44e0f4f79a838b6cf9ec5b5c283e1f4d88599e6b",
    ],
}


@pytest.mark.parametrize("size", range(1, 9))
def test_tree_heads_are_the_known_ones(size: int) -> None:
    assert merkle.root(LEAVES[:size]).hex() == HEADS[size - 1]


@pytest.mark.parametrize(("index", "size"), PATHS)
def test_audit_paths_are_the_known_ones(index: int, size: int) -> None:
    path = merkle.inclusion_proof(LEAVES[:size], index)
    assert [digest.hex() for digest in path] == PATHS[index, size]
    merkle.verify_inclusion(LEAVES[index], index, size, path, bytes.fromhex(HEADS[size - 1]))


def defined_root(leaves: Sequence[bytes]) -> bytes:
    """RFC 6962, section 2.1, word for word."""
    if len(leaves) == 1:
        return hashlib.sha256(b"\0" + leaves[0]).digest()
    k = 1
    while k * 2 < len(leaves):
        k *= 2
    return hashlib.sha256(b"\1" + defined_root(leaves[:k]) + defined_root(leaves[k:])).digest()


TREES = st.lists(st.binary(max_size=40), min_size=1, max_size=40)


@given(TREES)
def test_a_root_is_what_the_rfc_defines(leaves: list[bytes]) -> None:
    assert merkle.root(leaves) == defined_root(leaves)


@given(TREES)
def test_all_proofs_of_a_window_lead_to_its_head(leaves: list[bytes]) -> None:
    head, paths = merkle.inclusion_proofs(leaves)
    assert head == defined_root(leaves)
    assert len(paths) == len(leaves)
    for index, (leaf, path) in enumerate(zip(leaves, paths, strict=True)):
        merkle.verify_inclusion(leaf, index, len(leaves), path, head)


@given(TREES, st.data())
def test_every_leaf_is_proved_and_nothing_else_is(leaves: list[bytes], data: st.DataObject) -> None:
    size = len(leaves)
    index = data.draw(st.integers(0, size - 1))
    head, path = merkle.root(leaves), merkle.inclusion_proof(leaves, index)
    merkle.verify_inclusion(leaves[index], index, size, path, head)
    with pytest.raises(FormatError):
        merkle.verify_inclusion(leaves[index] + b"x", index, size, path, head)
    with pytest.raises(FormatError):
        merkle.verify_inclusion(leaves[index], index, size, [*path, bytes(32)], head)
    with pytest.raises(FormatError):
        merkle.verify_inclusion(leaves[index], size, size, path, head)
    with pytest.raises(FormatError):
        merkle.verify_inclusion(leaves[index], index, size, path, bytes(32))
    if path:
        with pytest.raises(FormatError):
            merkle.verify_inclusion(leaves[index], index, size, path[:-1], head)
        place = data.draw(st.integers(0, len(path) - 1))
        altered = bytearray(path[place])
        altered[data.draw(st.integers(0, 31))] ^= 1 << data.draw(st.integers(0, 7))
        with pytest.raises(FormatError):
            merkle.verify_inclusion(
                leaves[index], index, size, [*path[:place], bytes(altered), *path[place + 1 :]], head
            )
        with pytest.raises(FormatError):
            merkle.verify_inclusion(
                leaves[index], index, size, [*path[:place], path[place][:31], *path[place + 1 :]], head
            )


@given(st.lists(st.binary(min_size=1, max_size=8), min_size=2, max_size=20, unique=True), st.data())
def test_a_proof_is_for_its_place_only(leaves: list[bytes], data: st.DataObject) -> None:
    index, other = data.draw(st.lists(st.integers(0, len(leaves) - 1), min_size=2, max_size=2, unique=True))
    with pytest.raises(FormatError):
        merkle.verify_inclusion(
            leaves[index], other, len(leaves), merkle.inclusion_proof(leaves, index), merkle.root(leaves)
        )


@given(
    st.binary(max_size=8),
    st.integers(-2, 1 << 70),
    st.integers(-2, 1 << 70),
    st.lists(st.binary(min_size=31, max_size=33), max_size=24),
)
def test_any_proof_gives_a_head_or_our_own_error(
    leaf: bytes, index: int, size: int, path: list[bytes]
) -> None:
    try:
        head = merkle.root_of_inclusion(leaf, index, size, path)
    except FormatError:
        return
    assert len(head) == merkle.DIGEST_SIZE


def test_a_node_cannot_pass_as_a_leaf() -> None:
    left, right = merkle.leaf_hash(b"a"), merkle.leaf_hash(b"b")
    assert merkle.root([b"a", b"b"]) != merkle.leaf_hash(left + right)
    assert merkle.root([left + right]) != merkle.root([b"a", b"b"])


@pytest.mark.parametrize("index", [-1, 3])
def test_a_leaf_outside_of_its_tree_has_no_proof(index: int) -> None:
    with pytest.raises(FormatError, match="no leaf"):
        merkle.inclusion_proof([b"a", b"b", b"c"], index)


def test_there_is_no_empty_tree() -> None:
    with pytest.raises(FormatError):
        merkle.root([])


def test_a_tree_is_bounded() -> None:
    class Endless(Sequence[bytes]):
        def __len__(self) -> int:
            return merkle.MAX_LEAVES + 1

        def __getitem__(self, index: object) -> bytes:  # type: ignore[override]
            raise AssertionError("an over-long tree is refused before it is read")

    with pytest.raises(FormatError, match="leaves"):
        merkle.root(Endless())
    with pytest.raises(FormatError):
        merkle.inclusion_proof(Endless(), 0)


# -- the tree that grows ------------------------------------------------------------------------------------------------

HASHES = [merkle.leaf_hash(leaf) for leaf in LEAVES]
CONSISTENCY = {
    # (old size, new size): the proofs of the same test data
    (1, 1): [],
    (1, 8): [
        "96a296d224f285c67bee93c30f8a309157f0daa35dc5b87e410b78630a09cfc7",
        "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e",
        "6b47aaf29ee3c2af9af889bc1fb9254dabd31177f16232dd6aab035ca39bf6e4",
    ],
    (6, 8): [
        "0ebc5d3437fbe2db158b9f126a1d118e308181031d0a949f8dededebc558ef6a",
        "ca854ea128ed050b41b35ffc1b87b8eb2bde461e9e3b5596ece6b9d5975a0ae0",
        "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    ],
    (2, 5): [
        "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e",
        "bc1a0643b12e4d2d7c77918f44e0f4f79a838b6cf9ec5b5c283e1f4d88599e6b",
    ],
}


def grown(hashes: Sequence[bytes]) -> merkle.Tree:
    tree = merkle.Tree()
    for number, digest in enumerate(hashes):
        assert tree.append(digest) == number
    return tree


def test_a_growing_tree_has_the_known_heads_at_every_size() -> None:
    tree = grown(HASHES)
    assert tree.size == 8
    assert [tree.root(size).hex() for size in range(9)] == [hashlib.sha256(b"").hexdigest(), *HEADS]
    assert tree.root().hex() == HEADS[-1]


@pytest.mark.parametrize(("index", "size"), PATHS)
def test_a_growing_tree_has_the_known_audit_paths(index: int, size: int) -> None:
    assert [digest.hex() for digest in grown(HASHES).inclusion(index, size)] == PATHS[index, size]


@pytest.mark.parametrize(("old", "new"), CONSISTENCY)
def test_consistency_proofs_are_the_known_ones(old: int, new: int) -> None:
    path = grown(HASHES).consistency(old, new)
    assert [digest.hex() for digest in path] == CONSISTENCY[old, new]
    merkle.verify_consistency(old, new, bytes.fromhex(HEADS[old - 1]), bytes.fromhex(HEADS[new - 1]), path)


def test_many_leaves_at_once_are_the_same_leaves() -> None:
    for first in range(9):
        tree = grown(HASHES[:first])
        tree.append_many(HASHES[first:])
        assert [tree.root(size) for size in range(9)] == [grown(HASHES).root(size) for size in range(9)]
    tree.append_many([])
    assert tree.size == 8


def test_leaves_that_pass_by_have_the_known_heads() -> None:
    frontier = merkle.Frontier()
    heads = [frontier.root().hex()]
    for digest in HASHES:
        frontier.append(digest)
        heads.append(frontier.root().hex())
    assert heads == [hashlib.sha256(b"").hexdigest(), *HEADS]


def test_an_exchanged_leaf_gives_the_head_of_a_tree_built_anew() -> None:
    for size in range(1, 9):
        for index in range(size):
            tree, other = grown(HASHES[:size]), merkle.leaf_hash(b"other")
            tree.set(index, other)
            assert tree.root() == grown([*HASHES[:index], other, *HASHES[index + 1 : size]]).root()
            assert tree.leaf(index) == other


def test_a_cut_tree_grows_on_as_if_it_had_never_been_longer() -> None:
    for cut in range(9):
        tree = grown(HASHES)
        tree.truncate(cut)
        assert (tree.size, tree.root()) == (cut, grown(HASHES[:cut]).root())
        tree.append_many(HASHES[cut:7])
        tree.append(merkle.leaf_hash(b"other"))
        assert tree.root() == grown([*HASHES[: max(cut, 7)], merkle.leaf_hash(b"other")]).root()


REFUSED: dict[str, Callable[[merkle.Tree], object]] = {
    "a leaf that is no digest": lambda tree: tree.append(b"short"),
    "one of many that is no digest": lambda tree: tree.append_many([bytes(32), bytes(33)]),
    "exchanging a leaf that is not there": lambda tree: tree.set(8, bytes(32)),
    "exchanging the leaf before the first": lambda tree: tree.set(-1, bytes(32)),
    "exchanging for no digest": lambda tree: tree.set(0, b""),
    "a leaf behind the last": lambda tree: tree.leaf(8),
    "a leaf before the first": lambda tree: tree.leaf(-1),
    "cutting to more than there is": lambda tree: tree.truncate(9),
    "cutting to less than nothing": lambda tree: tree.truncate(-1),
    "a root of the future": lambda tree: tree.root(9),
    "a root of less than nothing": lambda tree: tree.root(-1),
    "a proof for a leaf of the future": lambda tree: tree.inclusion(8),
    "a proof in a tree before the leaf": lambda tree: tree.inclusion(5, 5),
    "a proof in a tree of the future": lambda tree: tree.inclusion(5, 9),
    "consistency with the future": lambda tree: tree.consistency(3, 9),
    "consistency backwards": lambda tree: tree.consistency(5, 4),
    "consistency of less than nothing": lambda tree: tree.consistency(-1, 4),
}


@pytest.mark.parametrize("attempt", REFUSED)
def test_a_tree_refuses_and_stays_as_it_was(attempt: str) -> None:
    tree = grown(HASHES)
    with pytest.raises(FormatError):
        REFUSED[attempt](tree)
    assert (tree.size, tree.root().hex()) == (8, HEADS[-1])


def test_a_passing_leaf_that_is_no_digest_is_refused() -> None:
    with pytest.raises(FormatError):
        merkle.Frontier().append(b"short")


def test_any_tree_extends_the_empty_one_and_no_other_passes_for_it() -> None:
    head = bytes.fromhex(HEADS[4])
    merkle.verify_consistency(0, 5, merkle.EMPTY_ROOT, head, ())
    with pytest.raises(FormatError):
        merkle.verify_consistency(0, 5, bytes(32), head, ())
    with pytest.raises(FormatError):
        merkle.verify_consistency(0, 5, merkle.EMPTY_ROOT, head, (head,))


def test_an_inclusion_far_beyond_a_window_of_nonces_is_checked() -> None:
    # A tree of 2^31 + 1 leaves, all but the last in one subtree whose root is known here only by its name.
    rest, leaf = hashlib.sha256(b"2^31 leaves").digest(), b"the last"
    head = hashlib.sha256(b"\x01" + rest + merkle.leaf_hash(leaf)).digest()
    merkle.verify_inclusion(leaf, 1 << 31, (1 << 31) + 1, [rest], head)
    with pytest.raises(FormatError, match="cannot be in a tree"):
        merkle.root_of_inclusion(leaf, 1 << 31, (1 << 32) + 1, [rest])
