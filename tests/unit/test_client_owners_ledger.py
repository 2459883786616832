"""A ledger takes exactly the entries of the head that was signed, in whatever batches they come, or none of them."""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloister import merkle
from cloister.broker.audit import AuditDamaged, Change, Fact, encode_entry, make_entry
from cloister.broker.tree_head import TreeHead
from cloister.client.owners_ledger import MAX_NAMES, NOTHING, Ledger, Wanted, newest

URI = "kbs:///models/key/demo"


def root_at(number: int) -> bytes:
    return hashlib.sha256(b"%d" % number).digest()


def fact(number: int) -> Fact:
    if number % 3 == 2:
        return Fact("release", "refused", resource=URI)
    return Fact("release", "accepted", resource=URI, workload=f"w{number % 2}", rule="ab" * 32)


def log(size: int) -> list[bytes]:
    change = Change(kind="resource", name="models/key/demo", version=1, slot=0, digest=NOTHING)
    return [
        encode_entry(
            make_entry(
                fact(number),
                number=number,
                now=number,
                changes=(change,) if number == 0 else (),
                state=root_at(number),
            )
        )
        for number in range(size)
    ]


def head(bodies: list[bytes], size: int) -> TreeHead:
    tree = merkle.Frontier()
    for body in bodies[:size]:
        tree.append(merkle.leaf_hash(body))
    return TreeHead(log="00" * 32, size=size, root=tree.root().hex(), state=root_at(size - 1).hex(), time=0)


BODIES = log(40)


@given(st.lists(st.integers(1, 40), unique=True).map(sorted), st.integers(1, 40))
def test_batches_make_no_difference(stops: list[int], kept: int) -> None:
    ledger, whole = Ledger(), Ledger()
    for stop in [*stops, 40]:
        passing = [head(BODIES, kept)]
        ledger.extend(BODIES[ledger.size : stop], head(BODIES, stop), passing=passing)
    whole.extend(BODIES, head(BODIES, 40))
    assert list(ledger.held) == list(whole.held)
    assert (ledger.counted, ledger.refused, ledger.changes) == (whole.counted, whole.refused, whole.changes)
    assert ledger.received("models/key/demo") == whole.received("models/key/demo")
    assert ledger.counted["ab" * 32] == 27
    assert ledger.refused[URI] == 13


@given(st.integers(0, 39), st.data())
def test_any_flipped_bit_refuses_the_whole_batch(number: int, data: st.DataObject) -> None:
    bit = data.draw(st.integers(0, 8 * len(BODIES[number]) - 1))
    bent = bytearray(BODIES[number])
    bent[bit // 8] ^= 1 << bit % 8
    ledger = Ledger()
    with pytest.raises(AuditDamaged):
        ledger.extend([*BODIES[:number], bytes(bent), *BODIES[number + 1 :]], head(BODIES, 40))
    assert ledger.size == 0
    assert not ledger.held
    assert not ledger.changes


@given(st.integers(0, 39))
def test_any_prefix_refuses_the_whole_batch(size: int) -> None:
    ledger = Ledger()
    with pytest.raises(AuditDamaged):
        ledger.extend(BODIES[:size], head(BODIES, 40))
    assert ledger.size == 0


ATTACKS = {
    "two entries changed places": [*BODIES[:5], BODIES[6], BODIES[5], *BODIES[7:]],
    "an entry twice": [*BODIES[:5], BODIES[4], *BODIES[5:39]],
    "an entry too many": [*BODIES, BODIES[39]],
    "white space": [BODIES[0] + b" ", *BODIES[1:]],
}


@pytest.mark.parametrize("bodies", ATTACKS.values(), ids=ATTACKS)
def test_other_entries_than_the_heads_are_refused(bodies: list[bytes]) -> None:
    ledger = Ledger()
    with pytest.raises(AuditDamaged):
        ledger.extend(bodies, head(BODIES, 40))
    assert ledger.size == 0


def test_a_head_of_another_past_is_refused_wherever_it_lies() -> None:
    ledger = Ledger()
    other = TreeHead(log="00" * 32, size=7, root="11" * 32, state="22" * 32, time=0)
    with pytest.raises(AuditDamaged, match="its first 7 entries are not what they were"):
        ledger.extend(BODIES, head(BODIES, 40), passing=[other])
    ledger.extend(BODIES[:7], head(BODIES, 7))
    with pytest.raises(AuditDamaged, match="its first 7 entries"):
        ledger.extend(BODIES[7:], head(BODIES, 40), passing=[other])
    assert ledger.size == 7


def test_a_head_that_vouches_for_another_state_is_refused() -> None:
    right = head(BODIES, 40)
    wrong = TreeHead(log=right.log, size=40, root=right.root, state="22" * 32, time=0)
    with pytest.raises(AuditDamaged, match="another state"):
        Ledger().extend(BODIES, wrong)


def test_names_that_strangers_choose_take_bounded_room() -> None:
    ledger = Ledger()
    bodies = [
        encode_entry(
            make_entry(
                Fact("release", "refused", resource=f"kbs:///a/b/{number}"),
                number=number,
                now=0,
                changes=(),
                state=root_at(number),
            )
        )
        for number in range(MAX_NAMES + 10)
    ]
    ledger.extend(bodies, head(bodies, len(bodies)))
    assert len(ledger.refused) == MAX_NAMES


@given(st.integers(1, 7), st.sampled_from(["", "w0", "w1"]))
def test_pages_show_every_wanted_entry_once(limit: int, workload: str) -> None:
    ledger = Ledger()
    ledger.extend(BODIES, head(BODIES, 40))
    wanted = Wanted(workload=workload)
    found, before = [], 10**9
    while True:
        page, following = newest(ledger, wanted, before=before, limit=limit)
        assert len(page) <= limit
        found += page
        if following is None:
            break
        before = following
    assert [entry.number for entry in found] == [
        one.number for one in reversed(ledger.held) if wanted.meets(one)
    ]
