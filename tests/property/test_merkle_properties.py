"""Trees that grow, against the recursion of RFC 6962 (section 2.1) word for word: every small size, random larger ones."""

from __future__ import annotations

import functools
import hashlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cloister import merkle
from cloister.errors import FormatError

SMALL = 130
LARGE = 3000
LEAVES = tuple(merkle.leaf_hash(number.to_bytes(4, "big")) for number in range(LARGE))


def split(count: int) -> int:
    k = 1
    while k * 2 < count:
        k *= 2
    return k


@functools.lru_cache(maxsize=1 << 18)
def defined_root(start: int, end: int) -> bytes:
    """MTH(D[start:end])."""
    if start == end:
        return hashlib.sha256(b"").digest()
    if end - start == 1:
        return LEAVES[start]
    middle = start + split(end - start)
    return hashlib.sha256(b"\1" + defined_root(start, middle) + defined_root(middle, end)).digest()


def defined_path(index: int, start: int, end: int) -> list[bytes]:
    """PATH(m, D[n])."""
    if end - start == 1:
        return []
    middle = start + split(end - start)
    if index < middle:
        return [*defined_path(index, start, middle), defined_root(middle, end)]
    return [*defined_path(index, middle, end), defined_root(start, middle)]


def defined_proof(old: int, start: int, end: int, whole: bool = True) -> list[bytes]:
    """SUBPROOF(m, D[n], b); ``old`` counts from the first leaf of all."""
    if old == end:
        return [] if whole else [defined_root(start, end)]
    middle = start + split(end - start)
    if old <= middle:
        return [*defined_proof(old, start, middle, whole), defined_root(middle, end)]
    return [*defined_proof(old, middle, end, False), defined_root(start, middle)]


@functools.cache
def tree(size: int = LARGE) -> merkle.Tree:
    """Not to be changed."""
    made = merkle.Tree()
    made.append_many(LEAVES[:size])
    return made


@pytest.mark.parametrize("size", range(SMALL + 1))
def test_roots_and_proofs_of_a_small_tree_are_what_the_rfc_defines(size: int) -> None:
    made = merkle.Tree()
    passing = merkle.Frontier()
    for leaf in LEAVES[:size]:
        made.append(leaf)
        passing.append(leaf)
    head = defined_root(0, size)
    assert made.root() == passing.root() == tree().root(size) == head
    for index in range(size):
        assert (
            list(made.inclusion(index)) == list(tree().inclusion(index, size)) == defined_path(index, 0, size)
        )
        merkle.verify_inclusion(index.to_bytes(4, "big"), index, size, made.inclusion(index), head)
    for old in range(1, size + 1):
        path = made.consistency(old)
        assert list(path) == list(tree().consistency(old, size)) == defined_proof(old, 0, size)
        merkle.verify_consistency(old, size, defined_root(0, old), head, path)


SIZES = st.integers(SMALL, LARGE)


@given(SIZES, st.data())
def test_roots_and_proofs_of_a_larger_tree_are_what_the_rfc_defines(size: int, data: st.DataObject) -> None:
    index, old = data.draw(st.integers(0, size - 1)), data.draw(st.integers(1, size))
    assert tree().root(size) == defined_root(0, size)
    assert list(tree().inclusion(index, size)) == defined_path(index, 0, size)
    assert list(tree().consistency(old, size)) == defined_proof(old, 0, size)
    merkle.verify_consistency(old, size, tree().root(old), tree().root(size), tree().consistency(old, size))


@given(st.lists(st.binary(min_size=32, max_size=32), max_size=80), st.data())
def test_exchanging_cutting_and_growing_ends_in_the_tree_built_anew(
    leaves: list[bytes], data: st.DataObject
) -> None:
    made, model = merkle.Tree(), list[bytes]()
    while leaves:
        step = data.draw(st.sampled_from(("append", "append many", "set", "truncate")))
        if step == "append":
            model.append(leaves.pop())
            made.append(model[-1])
        elif step == "append many":
            count = data.draw(st.integers(0, len(leaves)))
            model += leaves[:count]
            made.append_many(leaves[:count])
            leaves = leaves[count:]
        elif step == "set" and model:
            index = data.draw(st.integers(0, len(model) - 1))
            model[index] = leaves.pop()
            made.set(index, model[index])
        elif step == "truncate" and model:
            size = data.draw(st.integers(0, len(model)))
            made.truncate(size)
            del model[size:]
            leaves.pop()
    anew = merkle.Tree()
    anew.append_many(model)
    assert [made.root(size) for size in range(len(model) + 1)] == [
        anew.root(size) for size in range(len(model) + 1)
    ]


@given(st.integers(2, 300), st.data())
def test_a_proof_with_any_bit_flipped_cut_or_prolonged_is_refused(size: int, data: st.DataObject) -> None:
    old = data.draw(st.integers(1, size - 1))
    path, olds, news = list(tree().consistency(old, size)), tree().root(old), tree().root(size)
    where, bit = data.draw(st.integers(0, len(path) - 1)), data.draw(st.integers(0, 255))
    altered = (int.from_bytes(path[where], "big") ^ (1 << bit)).to_bytes(32, "big")
    attempts = [
        [*path[:where], altered, *path[where + 1 :]],
        path[:-1],
        path[1:],
        [*path, path[-1]],
        [*path[:where], path[where][:31], *path[where + 1 :]],
    ]
    for attempt in attempts:
        with pytest.raises(FormatError):
            merkle.verify_consistency(old, size, olds, news, attempt)


@given(st.integers(1, 300), st.integers(1, 300), st.data())
def test_a_rewritten_history_has_no_proof_that_it_extends_the_old_one(
    first: int, second: int, data: st.DataObject
) -> None:
    old, new = min(first, second), max(first, second)
    forked = merkle.Tree()
    forked.append_many(LEAVES[:new])
    forked.set(data.draw(st.integers(0, old - 1)), merkle.leaf_hash(b"another history"))
    for path in (forked.consistency(old, new), tree().consistency(old, new)):
        with pytest.raises(FormatError):
            merkle.verify_consistency(old, new, tree().root(old), forked.root(), path)


@settings(max_examples=200)
@given(
    st.integers(-2, 1 << 33),
    st.integers(-2, 1 << 33),
    st.binary(max_size=33),
    st.binary(max_size=33),
    st.lists(st.binary(min_size=31, max_size=33), max_size=40),
)
def test_any_consistency_proof_holds_or_gives_our_own_error(
    old: int, new: int, olds: bytes, news: bytes, path: list[bytes]
) -> None:
    try:
        merkle.verify_consistency(old, new, olds, news, path)
    except FormatError:
        return
    # What holds by chance is only what needs no hashing at all.
    assert old == new or olds == merkle.EMPTY_ROOT
