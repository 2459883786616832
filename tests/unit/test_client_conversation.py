"""A conversation: what is asked with what was said before, pieces as they come, and every way an answer is none."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from typing import Any

import httpx2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloister.client.api_answers import MAX_EVENT, plain
from cloister.client.conversation import Conversation
from cloister.errors import CloisterError, FormatError, InferenceError, NetworkError, UsageError

Answer = Callable[[httpx2.Request], httpx2.Response]


def event(text: str) -> bytes:
    chunk = {"choices": [{"index": 0, "delta": {"content": text}}]}
    return f"data: {json.dumps(chunk)}\n\n".encode()


DONE = b"data: [DONE]\n\n"


def talk(
    *parts: bytes, status: int = 200, headers: dict[str, str] | None = None, **settings: Any
) -> tuple[Conversation, Any]:
    """With a service that answers so, and what it was asked."""
    asked: list[dict[str, Any]] = []

    def answer(request: httpx2.Request) -> httpx2.Response:
        asked.append(json.loads(request.content) if request.content else {})
        return httpx2.Response(status, headers=headers, stream=Pieces(parts))

    client = httpx2.Client(transport=httpx2.MockTransport(answer), base_url="http://service")
    return Conversation(client, **({"model": "one"} | settings)), asked


class Pieces(httpx2.SyncByteStream):
    def __init__(self, parts: tuple[bytes, ...]) -> None:
        self._parts = parts

    def __iter__(self) -> Any:
        return iter(self._parts)


def test_pieces_come_as_they_are_and_what_was_said_is_said_again() -> None:
    it, asked = talk(event("Hel"), event("lo"), DONE, system="Be brief.")
    assert list(it.ask("Who?")) == ["Hel", "lo"]
    assert list(it.ask("And?")) == ["Hel", "lo"]
    assert [one["role"] for one in asked[1]["messages"]] == ["system", "user", "assistant", "user"]
    assert asked[1]["messages"][2]["content"] == "Hello"
    assert it.turns == 2
    it.begin_anew()
    list(it.ask("Again?"))
    assert [one["content"] for one in asked[2]["messages"]] == ["Be brief.", "Again?"]


@given(text=st.text(min_size=1, max_size=40), cuts=st.lists(st.integers(0, 200), max_size=6))
def test_where_the_network_cuts_changes_nothing(text: str, cuts: list[int]) -> None:
    whole = event(text) + b": a comment\n\n" + event("end") + DONE
    places = sorted({0, len(whole), *(cut % len(whole) for cut in cuts)})
    it, _ = talk(*(whole[start:end] for start, end in itertools.pairwise(places)))
    assert "".join(it.ask("?")) == text + "end"


def test_who_stops_an_answer_goes_on_from_what_came() -> None:
    it, asked = talk(event("one "), event("two"), DONE)
    answer = it.ask("Count.")
    assert next(answer) == "one "
    answer.close()
    list(it.ask("Go on."))
    assert [one["content"] for one in asked[1]["messages"]] == ["Count.", "one ", "Go on."]


def test_ctrl_c_while_a_piece_is_waited_for_keeps_what_came() -> None:
    class Interrupted(Pieces):
        def __iter__(self) -> Any:
            yield event("one ")
            raise KeyboardInterrupt

    asked: list[Any] = []

    def answer(request: httpx2.Request) -> httpx2.Response:
        asked.append(json.loads(request.content))
        return httpx2.Response(
            200, stream=Interrupted(()) if len(asked) == 1 else Pieces((event("two"), DONE))
        )

    it = Conversation(
        httpx2.Client(transport=httpx2.MockTransport(answer), base_url="http://service"), model="one"
    )
    with pytest.raises(KeyboardInterrupt):
        list(it.ask("Count."))
    list(it.ask("Go on."))
    assert [one["content"] for one in asked[1]["messages"]] == ["Count.", "one ", "Go on."]


def test_an_answer_in_single_bytes_is_read_in_time() -> None:
    long = event("x" * 200_000) + DONE
    it, _ = talk(*(long[place : place + 1] for place in range(len(long))))
    assert "".join(it.ask("?")) == "x" * 200_000


def test_a_squeezed_answer_is_refused() -> None:
    it, _ = talk(b"not gzip at all", headers={"content-encoding": "gzip"})
    with pytest.raises(FormatError, match="compressed"):
        list(it.ask("?"))


@pytest.mark.parametrize(
    ("parts", "kind", "said"),
    [
        pytest.param((event("a"),), NetworkError, "broken off", id="an answer without its end"),
        pytest.param((event("a"), b"data: {"), NetworkError, "broken off", id="one cut in a piece"),
        pytest.param((), NetworkError, "broken off", id="no answer"),
        pytest.param((b"data: {]\n\n", DONE), FormatError, "a piece of the answer", id="a piece that is no JSON"),
        pytest.param((b"data: []\n\n", DONE), FormatError, "is none", id="a piece that is a list"),
        pytest.param((b'data: {"choices":[{"delta":7}]}\n\n', DONE), FormatError, "is none", id="a piece of another shape"),
        pytest.param((b'data: {"choices":7}\n\n', DONE), FormatError, "is none", id="choices that are none"),
        pytest.param((b'data: {"error":{"message":"no\\nmemory"}}\n\n',), InferenceError, "no memory", id="an error inside"),
        pytest.param((b"x" * (MAX_EVENT + 1),), FormatError, "longer", id="an event without end"),
    ],
)  # fmt: skip
def test_an_answer_that_is_none_is_not_taken_for_one(
    parts: tuple[bytes, ...], kind: type[CloisterError], said: str
) -> None:
    it, asked = talk(*parts)
    with pytest.raises(kind, match=said):
        list(it.ask("?"))
    assert it.turns == 0
    with pytest.raises(kind):
        list(it.ask("again"))
    assert [one["content"] for one in asked[1]["messages"]] == ["again"]


@pytest.mark.parametrize(
    ("status", "body", "headers", "kind", "said"),
    [
        (401, {"error": {"message": "no such key"}}, {}, UsageError, "refuses this key: no such key"),
        (400, {"error": {"message": "too\x1b[2Jlong"}}, {}, UsageError, r"too\\u001b"),
        (404, {"error": "gone"}, {}, UsageError, "status 404.*gone"),
        (429, {"error": {"message": "busy"}}, {"retry-after": "7"}, NetworkError, "busy; again in 7 s"),
        (503, {}, {"retry-after": "x; rm"}, NetworkError, "again in a moment"),
        (500, {"error": {"message": None}}, {}, InferenceError, "status 500"),
        (502, None, {}, InferenceError, "no reason was given"),
    ],
)
def test_a_refusal_says_what_it_means(
    status: int, body: Any, headers: dict[str, str], kind: type[CloisterError], said: str
) -> None:
    content = b"<html>" if body is None else json.dumps(body).encode()
    it, _ = talk(content, status=status, headers=headers)
    with pytest.raises(kind, match=said) as raised:
        list(it.ask("?"))
    assert len(str(raised.value).splitlines()) == 1


def test_a_refusal_without_end_is_not_read_to_it() -> None:
    it, _ = talk(*([b"x" * 4096] * 64), status=500)
    with pytest.raises(InferenceError, match="no reason"):
        list(it.ask("?"))


def test_without_a_name_the_first_model_is_asked() -> None:
    assert talk(b'{"data":[{"id":"first"},{"id":"second"}]}', model="")[0].model == "first"
    with pytest.raises(InferenceError, match="names no model"):
        talk(b'{"data":[]}', model="")


def test_where_nobody_answers_it_is_the_network() -> None:
    def refuse(_request: httpx2.Request) -> httpx2.Response:
        raise httpx2.ConnectError("refused")

    client = httpx2.Client(transport=httpx2.MockTransport(refuse), base_url="http://service")
    with pytest.raises(NetworkError, match="ConnectError"):
        list(Conversation(client, model="one").ask("?"))


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("two\nlines\tand more", "two\nlines\tand more"),
        ("家庭 👩‍👩‍👧 नमस्ते", "家庭 👩‍👩‍👧 नमस्ते"),
        ("\x1b]0;title\x07", "\\u001b]0;title\\u0007"),
        ("over\rwritten", "over\\u000dwritten"),
        ("a\u202eb", "a\\u202eb"),
        ("\x9b31m", "\\u009b31m"),
    ],
)
def test_what_a_model_writes_steers_no_terminal(text: str, shown: str) -> None:
    assert plain(text) == shown
