from __future__ import annotations

import json
from typing import Any

import pytest

from cloister.encoding import encode_json
from cloister.errors import CloisterError, FormatError, UsageError
from cloister.knowledge.rules import Rights, Rules, parse_rules, read_rules, with_user, without_user

ALICE, BOB = b"a" * 32, b"b" * 32
EMPTY = Rules(users={}, collections={})


def clinic() -> Rules:
    first = with_user(EMPTY, "alice", ALICE, reads=frozenset(), writes=frozenset({"clinic"}))
    return with_user(first, "bob", BOB, reads=frozenset({"clinic", "law"}), writes=frozenset())


def test_a_user_sees_what_the_rules_name_and_nothing_else() -> None:
    rules = clinic()
    assert rules.user_of(ALICE) == "alice"
    assert rules.user_of(b"c" * 32) is None
    assert rules.user_of(None) is None
    assert rules.readable("alice") == {"clinic"}
    assert rules.writable("alice") == {"clinic"}
    assert rules.readable("bob") == {"clinic", "law"}
    assert rules.writable("bob") == frozenset()
    assert rules.readable(None) == rules.writable(None) == frozenset()


def test_rules_come_back_from_their_canonical_form_with_the_same_digest() -> None:
    rules = clinic()
    assert parse_rules(encode_json(rules)) == rules
    assert parse_rules(encode_json(rules)).digest == rules.digest


def test_every_change_of_who_may_what_is_another_digest() -> None:
    rules = clinic()
    changed = [
        with_user(rules, "bob", None, reads=frozenset(), writes=frozenset({"law"})),
        with_user(rules, "alice", b"x" * 32, reads=frozenset(), writes=frozenset()),
        with_user(rules, "eve", b"e" * 32, reads=frozenset(), writes=frozenset()),
        without_user(rules, "bob"),
    ]
    assert len({rules.digest, *(one.digest for one in changed)}) == 5


def test_a_user_who_is_taken_out_is_in_no_collection() -> None:
    rules = without_user(clinic(), "bob")
    assert rules.user_of(BOB) is None
    assert rules.collections["law"] == Rights()
    with pytest.raises(UsageError, match="bob is no user"):
        without_user(rules, "bob")


def test_a_new_user_needs_a_key() -> None:
    with pytest.raises(UsageError, match="carol is no user yet"):
        with_user(clinic(), "carol", None, reads=frozenset({"clinic"}), writes=frozenset())


SERVER = {"application": "clinic", "workload": "vectors", "own": "assistant"}


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"format": "cloister/knowledge-rules/v2"}, "format"),
        ({"more": 1}, "unknown field"),
        ({"users": {"alice": "00"}}, "64 lower-case"),
        ({"users": {"alice": "AA" * 32}}, "64 lower-case"),
        ({"users": {"alice": "00" * 32, "bob": "00" * 32}}, "the same API key"),
        ({"users": {"Alice": "00" * 32}}, "cannot name a user"),
        ({"users": {"../alice": "00" * 32}}, "cannot name a user"),
        ({"users": {"alice\n": "00" * 32}}, "cannot name a user"),
        ({"collections": {"a/b": {}}}, "cannot name a collection"),
        ({"collections": {"clinic": {"readers": ["eve"]}}}, "eve, who is no user"),
        ({"collections": {"clinic": {"owners": []}}}, "unknown field"),
        ({"users": {"alice": "00" * 32}, "collections": {"c": {"readers": ["alice", "alice"]}}}, "twice"),
        ({"index_key": "file:///etc/passwd"}, "kbs"),
        ({"least_nearness": 101}, "least_nearness"),
        ({"least_nearness": 0.5}, "least_nearness"),
        ({"server": {}}, "application"),
        ({"server": SERVER | {"address": "10.0.0.1"}}, "unknown field"),
        ({"server": SERVER | {"workload": "Vectors"}}, "cannot have a name in the mesh"),
        ({"server": SERVER | {"own": "a/b"}}, "cannot have a name in the mesh"),
        ({"server": SERVER | {"application": "a..b"}}, "cannot have a name in the mesh"),
        ({"server": SERVER | {"kind": "os:system"}}, "cannot name a kind of server"),
        ({"server": SERVER | {"database": "a b"}}, "cannot name a database"),
    ],
)
def test_rules_that_cannot_be_meant_are_refused(change: dict[str, Any], told: str) -> None:
    base: dict[str, Any] = {"format": "cloister/knowledge-rules/v1", "users": {}, "collections": {}}
    with pytest.raises(CloisterError, match=told):
        parse_rules(json.dumps(base | change).encode())


def test_a_key_that_is_there_twice_is_refused() -> None:
    with pytest.raises(FormatError):
        parse_rules(b'{"format":"cloister/knowledge-rules/v1","users":{},"users":{},"collections":{}}')


def test_a_file_that_is_no_rules_is_a_wrong_argument() -> None:
    with pytest.raises(UsageError, match=r"clinic\.json"):
        read_rules(b"{", name="clinic.json")
