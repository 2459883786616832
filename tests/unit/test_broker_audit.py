"""Audit entries: one form, bounded, and no two facts or records look alike in a tree."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
from msgspec import structs

from broker_parts import NOW
from cloister.broker.audit import (
    MAX_ENTRY,
    MAX_REASON,
    AuditDamaged,
    Change,
    Entry,
    Fact,
    encode_entry,
    make_entry,
    parse_entry,
    state_leaf,
)
from cloister.encoding import encode_json

CHANGE = Change(kind="resource", name="models/key/demo", version=1, slot=0, digest="ab" * 32)
FACT = Fact("release", "accepted", resource="kbs:///models/key/demo", workload="inference")


def made(fact: Fact = FACT, **changes: Any) -> Entry:
    return structs.replace(make_entry(fact, number=7, now=NOW, changes=(CHANGE,), state=bytes(32)), **changes)


def test_an_entry_comes_back() -> None:
    assert parse_entry(encode_entry(made()), 7) == made()


def test_what_is_empty_is_left_out() -> None:
    entry = make_entry(Fact("start", "done"), number=0, now=NOW, changes=(), state=bytes(32))
    assert encode_entry(entry) == (
        b'{"event":"start","format":"cloister/audit-entry/v1","number":0,"outcome":"done","state":"'
        + b"00" * 32
        + b'","time":%d}' % NOW
    )


def test_a_reason_is_one_bounded_printable_line() -> None:
    entry = made(Fact("release", "refused", reason="a\nb\x1b[31m\u202e" + "é" * 10_000))
    assert entry.reason.startswith("a b [31m ")
    assert entry.reason.isprintable()
    assert len(entry.reason) == MAX_REASON
    assert len(encode_entry(entry)) < MAX_ENTRY


ALTERED: dict[str, bytes] = {
    "nothing": b"",
    "null": b"null",
    "a list": b"[]",
    "not text": b"\xff" * 9,
    "a space": encode_entry(made()).replace(b":", b": ", 1),
    "a newline behind": encode_entry(made()) + b"\n",
    "a field more": encode_entry(made()).replace(b'{"changes"', b'{"also":1,"changes"'),
    "a field twice": encode_entry(made()).replace(b'"number":7', b'"number":7,"number":7'),
    "an empty field said": encode_entry(made()).replace(b'"state"', b'"reason":"","state"'),
    "another order of fields": b'{"number":7,' + encode_entry(made()).replace(b'"number":7,', b"")[1:],
    "an event that is none": encode_json(made()).replace(b'"release"', b'"gift"'),
    "another format": encode_json(made()).replace(b"entry/v1", b"entry/v2"),
    "too long": encode_json(made(resource="x" * MAX_ENTRY)),
    "a state root that is none": encode_json(made(state="zz" * 32)),
    "a short state root": encode_json(made(state="00" * 31)),
    "a digest that is none": encode_json(made(changes=(structs.replace(CHANGE, digest="AB" * 32),))),
    "a version of nought": encode_json(made(changes=(structs.replace(CHANGE, version=0),))),
    "a slot below nought": encode_json(made(changes=(structs.replace(CHANGE, slot=-1),))),
    "too many changes": encode_json(made(changes=(CHANGE,) * 257)),
}


@pytest.mark.parametrize("data", ALTERED.values(), ids=ALTERED.keys())
def test_what_is_not_in_the_one_form_is_refused(data: bytes) -> None:
    with pytest.raises(AuditDamaged):
        parse_entry(data, 7)


def test_an_entry_in_another_place_is_refused() -> None:
    for number in (0, 6, 8):
        with pytest.raises(AuditDamaged, match="in its place"):
            parse_entry(encode_entry(made()), number)


def test_every_prefix_is_refused() -> None:
    data = encode_entry(made())
    for length in range(len(data)):
        with pytest.raises(AuditDamaged):
            parse_entry(data[:length], 7)


@pytest.mark.parametrize(
    "entry", [made(resource="x" * MAX_ENTRY), made(changes=(CHANGE,) * 257)], ids=["long", "many changes"]
)
def test_what_could_not_be_read_back_is_not_written(entry: Entry) -> None:
    with pytest.raises(AuditDamaged):
        encode_entry(entry)


def test_no_two_records_have_one_leaf() -> None:
    kinds, names, versions = ("rule", "resource"), ("a", "aa", "resourcea", ""), (1, 2, 256)
    digests = (bytes(32), b"\x01" * 32)
    leaves = {state_leaf(*one) for one in itertools.product(kinds, names, versions, digests)}
    assert len(leaves) == len(kinds) * len(names) * len(versions) * len(digests)


def test_the_documented_vector_is_what_is_written() -> None:
    spec = (Path(__file__).parents[2] / "docs/spec/audit-entry.md").read_text()
    change = structs.replace(
        CHANGE, slot=4, digest="c9d0036bed6744bcdf692fc980d8717d7e5f5a4f4e8266b4a84982602fb1cd09"
    )
    fact = Fact(
        "resource", "done", resource="kbs:///models/key/demo", signers=("alice",), reason="version 1 put"
    )
    entry = encode_entry(make_entry(fact, number=7, now=NOW, changes=(change,), state=bytes(32)))
    assert f"`{entry.decode()}`" in spec
