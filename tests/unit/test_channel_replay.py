"""The replay table: remembers all, forgets nothing, asks no clock."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloister.channel.replay import ReplayTable
from cloister.errors import ReplayedRequest, UnknownKey


@given(st.lists(st.binary(min_size=1, max_size=40), max_size=40))
def test_each_encapsulated_key_is_admitted_exactly_once(encs: list[bytes]):
    table = ReplayTable(64)
    admitted: set[bytes] = set()
    for enc in encs:
        if enc in admitted:
            with pytest.raises(ReplayedRequest):
                table.admit(enc)
        else:
            table.admit(enc)
            admitted.add(enc)


def test_a_full_table_still_knows_what_it_saw_and_takes_nothing_new():
    table = ReplayTable(3)
    for number in range(3):
        table.admit(bytes([number]))
    assert table.full
    with pytest.raises(ReplayedRequest):
        table.admit(b"\x00")
    with pytest.raises(UnknownKey):
        table.admit(b"\x09")


def test_three_quarters_call_for_another_key():
    table = ReplayTable(4)
    seen = []
    for number in range(4):
        table.admit(bytes([number]))
        seen.append((table.nearly_full, table.full))
    assert seen == [(False, False), (False, False), (True, False), (True, True)]


def test_a_table_for_nothing_is_refused():
    with pytest.raises(ValueError, match="at least one"):
        ReplayTable(0)
