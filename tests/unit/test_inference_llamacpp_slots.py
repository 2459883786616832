"""Which slot a request goes to, and whether it may reuse what lies there: without an engine."""

from __future__ import annotations

import threading
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloister.inference.api_errors import RequestRefused
from cloister.inference.engines.llamacpp_slots import Place, Slots, common_length

ANNA, BERT = b"a" * 32, b"b" * 32


def ask(slots: Slots, tenant: bytes | None, text: str = "Once upon a time") -> tuple[int, bool]:
    """One request from its beginning to its end: its slot, and whether it was to reuse what lay there."""
    with slots.place(tenant, text) as place:
        reuse = slots.may_reuse(place)
        slots.begun(place)
        return place.slot, reuse


def test_a_tenant_comes_back_to_what_it_asked() -> None:
    slots = Slots(2, keeping=True)
    first = ask(slots, ANNA)
    assert first[1] is False
    assert ask(slots, ANNA, "Once upon a time there was") == (first[0], True)


def test_another_tenant_gets_another_slot_while_there_is_one_and_never_reuses() -> None:
    slots = Slots(2, keeping=True)
    first = ask(slots, ANNA)
    second = ask(slots, BERT)
    assert second == (1 - first[0], False)
    third = ask(slots, b"c" * 32)
    assert third == (first[0], False)
    assert ask(slots, ANNA)[1] is False


def test_nobody_reuses_what_nobody_asked() -> None:
    slots = Slots(1, keeping=True)
    assert [ask(slots, None)[1] for _ in range(3)] == [False] * 3


def test_nothing_is_kept_where_it_is_not_wanted() -> None:
    slots = Slots(1, keeping=False)
    assert [ask(slots, ANNA)[1] for _ in range(2)] == [False] * 2


def test_another_conversation_of_a_tenant_does_not_overwrite_the_first() -> None:
    slots = Slots(2, keeping=True)
    first, _ = ask(slots, ANNA, "x" * 50)
    second, _ = ask(slots, ANNA, "y" * 50)
    assert first != second
    assert ask(slots, ANNA, "x" * 60) == (first, True)
    assert ask(slots, ANNA, "y" * 60) == (second, True)


def test_a_request_that_failed_before_it_began_leaves_the_slot_to_nobody() -> None:
    slots = Slots(1, keeping=True)
    ask(slots, BERT)
    with suppress(ValueError), slots.place(ANNA, "Once upon a time") as place:
        slots.may_reuse(place)
        raise ValueError
    assert ask(slots, ANNA)[1] is False


def test_a_request_that_ended_without_having_begun_leaves_the_slot_to_nobody() -> None:
    slots = Slots(1, keeping=True)
    ask(slots, BERT)
    with slots.place(ANNA, "Once upon a time") as place:
        assert not slots.may_reuse(place)
    assert ask(slots, ANNA)[1] is False


def test_a_request_that_failed_in_its_midst_leaves_the_slot_to_nobody() -> None:
    slots = Slots(1, keeping=True)
    with suppress(ValueError), slots.place(ANNA, "Once upon a time") as place:
        slots.begun(place)
        raise ValueError
    assert ask(slots, ANNA)[1] is False


def test_in_another_frame_nothing_of_a_text_is_known_to_lie_there() -> None:
    slots = Slots(1, keeping=True)
    for frame, known in ((b"one", 0), (b"one", 6), (b"two", 0)):
        with slots.place(ANNA, "a text", frame) as place:
            assert place.known == known
            slots.begun(place)


@pytest.mark.parametrize("when", ["before", "beside", "after its beginning"])
def test_what_lay_in_a_slot_while_a_request_took_any_slot_belongs_to_nobody(when: str) -> None:
    slots = Slots(2, keeping=True)
    if when == "before":
        ask(slots, ANNA)
        with slots.roaming():
            pass
    elif when == "beside":
        with slots.roaming():
            ask(slots, ANNA)
    else:
        with slots.place(ANNA, "Once upon a time") as place:
            slots.may_reuse(place)
            slots.begun(place)
            with slots.roaming():
                pass
    assert ask(slots, ANNA)[1] is False


def test_between_two_pieces_of_a_prompt_a_request_that_took_any_slot_ends_the_reuse() -> None:
    slots = Slots(1, keeping=True)
    with slots.place(ANNA, "Once upon a time") as place:
        assert not slots.may_reuse(place)
        slots.begun(place)
        assert slots.may_reuse(place)
        slots.begun(place)
        with slots.roaming():
            assert not slots.may_reuse(place)
        assert not slots.may_reuse(place)
        slots.begun(place)
        assert slots.may_reuse(place)


def test_a_request_that_takes_any_slot_waits_for_those_that_were_promised_reuse() -> None:
    slots = Slots(2, keeping=True)
    ask(slots, ANNA)
    entered = threading.Event()

    def roam() -> None:
        with slots.roaming():
            entered.set()

    with slots.place(ANNA, "Once upon a time") as place:
        assert slots.may_reuse(place)
        thread = threading.Thread(target=roam)
        thread.start()
        assert not entered.wait(0.1)
        # And while it waits nobody else is promised anything.
        assert ask(slots, BERT)[1] is False
        slots.begun(place)
        assert entered.wait(10)
    thread.join(10)


def test_who_waits_for_a_slot_is_told_when_the_engine_shuts_down() -> None:
    slots = Slots(1, keeping=True)
    with slots.place(ANNA, "a"):
        told: list[int] = []

        def wait() -> None:
            try:
                with slots.place(BERT, "b"):
                    pass
            except RequestRefused as refused:
                told.append(refused.status)

        thread = threading.Thread(target=wait)
        thread.start()
        slots.close()
        thread.join(10)
    assert told == [503]


@given(
    st.lists(
        st.tuples(
            st.sampled_from([None, ANNA, BERT]),
            st.sampled_from(["ab", "abc", "b", "bcd"]),
            st.sampled_from(["whole", "unbegun", "failed", "roaming"]),
        ),
        max_size=30,
    )
)
def test_reuse_is_always_of_ones_own_last_words(asked: list[tuple[bytes | None, str, str]]) -> None:
    """Against a model of llama.cpp: what lies in each slot, and who wrote it."""
    slots, written = Slots(2, keeping=True), dict[int, bytes | None]()

    def begin(place: Place) -> None:
        if slots.may_reuse(place):
            assert place.tenant is not None
            assert written[place.slot] == place.tenant
        slots.begun(place)
        written[place.slot] = place.tenant

    for tenant, text, how in asked:
        if how == "roaming":
            with slots.roaming():
                written = {0: b"somebody", 1: b"somebody"}
            continue
        with suppress(ValueError), slots.place(tenant, text) as place:
            if how == "unbegun":
                continue
            begin(place)
            if how == "failed":
                raise ValueError


@given(st.text("ab"), st.text("ab"))
def test_the_common_beginning_is_common_and_no_longer(one: str, other: str) -> None:
    length = common_length(one, other)
    assert one[:length] == other[:length]
    assert one[length : length + 1] != other[length : length + 1] or length == min(len(one), len(other))


def test_characters_and_tokens_have_nothing_in_common() -> None:
    assert common_length("abc", (97, 98)) == 0
    assert common_length((1, 2, 3), (1, 2, 4)) == 2
