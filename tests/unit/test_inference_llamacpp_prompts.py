"""How a long prompt is cut, and when it is no longer: without an engine."""

from __future__ import annotations

import threading
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloister.inference.engines.llamacpp_prompts import Reading, Turns, beginning, frame, prompt_text

CHAT = {
    "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello there"}],
    "temperature": 0,
}


def usage(tokens: int, cached: int) -> dict[str, Any]:
    return {"prompt_tokens": tokens, "prompt_tokens_details": {"cached_tokens": cached}}


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        pytest.param("text", {"prompt": ["one", "two"]}, id="several prompts"),
        pytest.param("text", {"prompt": [[1, 2], [3]]}, id="several prompts of tokens"),
        pytest.param("text", {"prompt": [1, "two"]}, id="tokens and texts"),
        pytest.param("text", {}, id="no prompt"),
        pytest.param("chat", {"messages": "Hello"}, id="no messages"),
        pytest.param("chat", {"messages": [{"content": [{"type": "text"}]}]}, id="parts"),
        pytest.param("chat", {"messages": ["Hello"]}, id="no turn"),
    ],
)
def test_what_is_not_one_prompt_is_not_cut(kind: Any, body: dict[str, Any]) -> None:
    assert prompt_text(kind, body) is None


def test_prompts_are_cut_by_characters_or_tokens() -> None:
    assert prompt_text("text", {"prompt": "Hello"}) == "Hello"
    assert beginning("text", {"prompt": "Hello", "n": 1}, 2) == {"prompt": "He", "n": 1}
    assert prompt_text("text", {"prompt": [5, 6, 7]}) == (5, 6, 7)
    assert beginning("text", {"prompt": [5, 6, 7]}, 2) == {"prompt": [5, 6]}


@given(st.integers(0, 30))
def test_a_beginning_of_a_chat_is_the_beginning_of_its_text(length: int) -> None:
    cut = beginning("chat", CHAT, length)
    whole, part = prompt_text("chat", CHAT), prompt_text("chat", cut)
    assert isinstance(whole, str)
    assert isinstance(part, str)
    assert whole.startswith(part[:-1])  # but for the end of its last turn
    assert abs(len(part) - length) <= 2 or length > len(whole)
    assert cut["messages"]
    assert CHAT["messages"][1]["content"] == "Hello there"  # type: ignore[index]


@pytest.mark.parametrize(
    "other",
    [
        pytest.param(("text", CHAT), id="another kind"),
        pytest.param(("chat", CHAT | {"tools": [{"type": "function"}]}), id="tools"),
        pytest.param(("chat", {"messages": [CHAT["messages"][0] | {"tool_calls": []}]}), id="a call"),  # type: ignore[index]
    ],
)
def test_what_changes_the_tokens_beside_the_text_is_another_frame(other: tuple[Any, Any]) -> None:
    assert frame("chat", CHAT) != frame(*other)
    longer = CHAT | {"messages": [*CHAT["messages"], {"role": "user", "content": "More"}]}  # type: ignore[misc]
    assert frame("chat", CHAT) == frame("chat", longer)


def test_who_speaks_is_part_of_the_text() -> None:
    turn = {"role": "user", "content": "Hello"}
    texts = [
        prompt_text("chat", {"messages": [turn | {"role": role}]}) for role in ("user", "assistant", "system")
    ]
    assert len(set(texts)) == 3


def test_a_short_prompt_is_read_at_once() -> None:
    assert Reading("x" * 90, known=0, context_length=512).next(32) is None


def test_pieces_have_the_asked_number_of_tokens_once_the_first_has_told_how_long_they_are() -> None:
    reading = Reading("x" * 1000, known=0, context_length=512)
    end = reading.next(32)
    assert end == 96
    reading.read(end, usage(48, 0))
    assert reading.next(32) == 96 + 64
    assert reading.cached == 0


def test_what_lay_in_the_slot_is_not_read_again_and_told_once() -> None:
    reading = Reading(tuple(range(1000)), known=900, context_length=2000)
    assert reading.next(32) == 932
    reading.read(932, usage(932, 890))
    reading.read(964, usage(964, 932))
    assert reading.cached == 890
    assert reading.next(36) is None


def test_a_template_that_does_not_keep_beginnings_is_noticed() -> None:
    reading = Reading("x" * 2000, known=0, context_length=4000)
    reading.read(600, usage(200, 0))
    reading.read(1200, usage(400, 12))
    assert reading.useless
    assert reading.next(32) is None


def test_a_prompt_that_is_too_long_goes_to_the_engine_at_once_which_refuses_it() -> None:
    assert Reading("x" * 100_000, known=0, context_length=512).next(32) is None
    assert Reading(tuple(range(600)), known=0, context_length=512).next(32) is None
    reading = Reading("x" * 4000, known=0, context_length=512)
    assert reading.next(32) is not None
    reading.read(96, usage(32, 0))
    assert reading.next(32) is None


def test_a_refused_piece_is_passed_over() -> None:
    reading = Reading("x" * 1000, known=0, context_length=512)
    reading.read(96, None)
    assert reading.next(32) == 192
    assert reading.cached is None


def test_turns_are_taken_one_at_a_time_in_the_order_of_coming() -> None:
    turns, order = Turns(), list[int]()
    threads = []

    def take(number: int) -> None:
        with turns.turn():
            order.append(number)

    with turns.turn():
        for number in range(4):
            threads.append(threading.Thread(target=take, args=(number,)))
            threads[-1].start()
            while len(turns) < number + 2:
                pass
    for thread in threads:
        thread.join(10)
    assert order == [0, 1, 2, 3]
