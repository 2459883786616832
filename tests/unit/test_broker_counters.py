"""Counters of rules, and the newest index of a writable tree."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec import structs

from cloister.broker.counters import (
    Counter,
    TreeAdvance,
    TreeVersion,
    advance,
    counted,
    parse_tree_advance,
    parse_tree_version,
)
from cloister.broker.transaction import Stored
from cloister.encoding import encode_json
from cloister.errors import FormatError, ManifestError, Superseded

ONE, OTHER = "1" * 64, "2" * 64
TREE = TreeVersion(tree="a" * 64, version=5, digest="b" * 64)


def stored(counter: Counter) -> Stored:
    return Stored(1, encode_json(counter), b"")


def test_what_was_never_counted_is_nought() -> None:
    assert counted(None, ONE) == Counter(rule=ONE, released=0)


def test_a_count_is_of_one_version_of_the_rule() -> None:
    kept = stored(Counter(rule=ONE, released=7))
    assert counted(kept, ONE).released == 7
    assert counted(kept, OTHER) == Counter(rule=OTHER, released=0)


def test_a_tree_that_was_never_recorded_may_begin_anywhere() -> None:
    advance(None, TreeAdvance(newest=TREE, after=None))


def test_the_same_version_again_and_later_ones_are_accepted() -> None:
    advance(TREE, TreeAdvance(newest=TREE, after=None))
    for version in (6, 60_000):
        advance(TREE, TreeAdvance(newest=structs.replace(TREE, version=version, digest="c" * 64), after=TREE))


@pytest.mark.parametrize(
    "after",
    [
        pytest.param(None, id="from nothing, although something is recorded"),
        pytest.param(structs.replace(TREE, version=4), id="from an older version"),
        pytest.param(structs.replace(TREE, digest="d" * 64), id="from another copy of this version"),
    ],
)
def test_who_writes_a_copy_of_a_tree_learns_that_there_is_another(after: TreeVersion | None) -> None:
    newest = structs.replace(TREE, version=9, digest="c" * 64)
    with pytest.raises(Superseded):
        advance(TREE, TreeAdvance(newest=newest, after=after))


def test_a_tree_of_which_nothing_is_recorded_follows_nothing() -> None:
    with pytest.raises(Superseded):
        advance(None, TreeAdvance(newest=structs.replace(TREE, version=6), after=TREE))


BACKWARDS: dict[str, tuple[dict[str, Any], type[Exception]]] = {
    "an older index": ({"version": 4}, Superseded),
    "an index far ahead, after which nobody could record any": ({"version": 2**53 - 1}, Superseded),
    "the same version with another digest": ({"digest": "c" * 64}, Superseded),
    "another tree": ({"tree": "c" * 64, "version": 6}, ManifestError),
}


@pytest.mark.parametrize(("change", "error"), BACKWARDS.values(), ids=BACKWARDS.keys())
def test_a_tree_never_goes_back(change: dict[str, Any], error: type[Exception]) -> None:
    with pytest.raises(error):
        advance(TREE, TreeAdvance(newest=structs.replace(TREE, **change), after=TREE))


MALFORMED: dict[str, Any] = {
    "a short tree": {"tree": "a" * 63},
    "capitals": {"tree": "A" * 64},
    "a digest that is none": {"digest": "g" * 64},
    "version nought": {"version": 0},
    "version negative": {"version": -1},
    "a version too large": {"version": 1 << 53},
}


@pytest.mark.parametrize("change", MALFORMED.values(), ids=MALFORMED.keys())
def test_a_malformed_tree_version_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(FormatError):
        parse_tree_version(encode_json({"tree": "a" * 64, "version": 5, "digest": "b" * 64, **change}))


@pytest.mark.parametrize("data", [b"", b"{}", b"[]", b"\xff", b'{"tree":1}', b" " * 5000])
def test_what_is_no_tree_version_is_refused(data: bytes) -> None:
    with pytest.raises(FormatError):
        parse_tree_version(data)


def test_a_tree_version_comes_back() -> None:
    assert parse_tree_version(encode_json(TREE)) == TREE
    said = TreeAdvance(newest=structs.replace(TREE, version=6), after=TREE)
    assert parse_tree_advance(encode_json(said)) == said


@pytest.mark.parametrize("field", ["newest", "after"])
def test_a_malformed_version_in_an_advance_is_refused(field: str) -> None:
    good = {"tree": "a" * 64, "version": 5, "digest": "b" * 64}
    said = {"newest": good, "after": good, field: {**good, "digest": "b"}}
    with pytest.raises(FormatError):
        parse_tree_advance(encode_json(said))
