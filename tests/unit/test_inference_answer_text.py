"""Tokens as text that grows: whole characters, no stop words, whatever the pieces are."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from cloister.inference.engines.answer_text import AnswerText, Texts
from cloister.inference.engines.tool_text import Call, ToolText, called_with
from llama_models import write_llama


@pytest.fixture(scope="module")
def backends(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A tokenizer with fallback to bytes, and one whose tokens are bytes."""
    folder: Path = write_llama(tmp_path_factory.mktemp("text") / "stories")
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    whole = Tokenizer(models.BPE(vocab={char: number for number, char in enumerate(alphabet)}, merges=[]))
    whole.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    whole.decoder = decoders.ByteLevel()
    return {"fallback": Tokenizer.from_file(str(folder / "tokenizer.json")), "bytes": whole}


@pytest.fixture(params=["fallback", "bytes"])
def backend(request: pytest.FixtureRequest, backends: dict[str, Any]) -> Any:
    return backends[request.param]


TEXTS = st.text(st.sampled_from("ab .🦙ÿ語\n"), min_size=1, max_size=12)


def told(backend: Any, text: str, stops: list[str]) -> tuple[str, bool]:
    answer = AnswerText(backend, backend.encode("Hello").ids, stops)
    parts = [answer.add(token) for token in backend.encode(text, add_special_tokens=False).ids]
    return "".join(parts) + answer.rest(), answer.stopped


@given(text=TEXTS)
def test_a_text_comes_out_as_it_went_in(backends: dict[str, Any], text: str) -> None:
    assert told(backends["bytes"], text, []) == (text, False)
    assert told(backends["fallback"], text, [])[0].strip() == text.strip()


@given(text=TEXTS, stops=st.lists(st.text(st.sampled_from("ab .🦙"), min_size=1, max_size=3), max_size=3))
def test_an_answer_ends_before_the_first_stop_word_of_any(
    backends: dict[str, Any], text: str, stops: list[str]
) -> None:
    found, stopped = told(backends["bytes"], text, stops)
    places = [text.find(stop) for stop in stops if stop in text]
    assert stopped == bool(places)
    # Where one stop word ends inside another, the one that is complete first decides.
    assert text.startswith(found)
    assert not any(stop in found for stop in stops)
    if not places:
        assert found == text


def test_a_character_of_several_tokens_is_told_whole(backend: Any) -> None:
    answer = AnswerText(backend, [], [])
    parts = [answer.add(token) for token in backend.encode("a🦙", add_special_tokens=False).ids]
    assert "🦙" in parts
    assert not any("\ufffd" in part for part in parts)


def test_a_stop_word_that_does_not_come_after_all_is_told(backends: dict[str, Any]) -> None:
    backend = backends["bytes"]
    answer = AnswerText(backend, [], ["abc"])
    parts = [answer.add(token) for token in backend.encode("xabx").ids]
    assert parts == ["x", "", "", "abx"]


def test_a_token_that_is_no_whole_character_has_its_bytes(backend: Any) -> None:
    texts = Texts(backend)
    pieces = [texts.piece(token) for token in backend.encode("ÿ", add_special_tokens=False).ids]
    assert b"".join(data for _, data in pieces).strip() == "ÿ".encode()
    assert texts.piece(backend.encode("a", add_special_tokens=False).ids[-1])[1].strip() == b"a"


CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Rome"}}\n</tool_call>'


def separated(text: str, size: int) -> Iterator[str | Call]:
    tools = ToolText()
    for start in range(0, len(text), size):
        yield from tools.add(text[start : start + size])
    if rest := tools.rest():
        yield rest


@pytest.mark.parametrize("size", [1, 3, 1000])
def test_calls_are_separated_from_text_however_it_comes(size: int) -> None:
    parts = list(separated(f"Let me see.{CALL}\n{CALL}", size))
    assert "".join(part for part in parts if isinstance(part, str)) == "Let me see."
    calls = [part for part in parts if isinstance(part, Call)]
    assert calls == [Call("weather", '{"city": "Rome"}')] * 2


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("<tool_call>no JSON</tool_call>", id="no JSON"),
        pytest.param('<tool_call>{"name": 1}</tool_call>', id="a name that is none"),
        pytest.param('<tool_call>{"name": "a", "arguments": "b"}</tool_call>', id="arguments that are none"),
        pytest.param('<tool_call>{"name": "a", "arguments"', id="broken off"),
        pytest.param("a <tool_ca", id="a mark broken off"),
        pytest.param("1 < 2", id="no mark"),
    ],
)
def test_what_is_no_call_stays_text(text: str) -> None:
    assert "".join(map(str, separated(text, 4))) == text


def test_earlier_calls_have_their_arguments_as_objects() -> None:
    call = {"id": "1", "type": "function", "function": {"name": "a", "arguments": '{"b": 1}'}}
    broken = {"id": "2", "type": "function", "function": {"name": "a", "arguments": "{"}}
    told_as = called_with(
        [{"role": "assistant", "tool_calls": [call, broken]}, {"role": "user", "content": "x"}]
    )
    assert told_as[0]["tool_calls"][0]["function"]["arguments"] == {"b": 1}
    assert told_as[0]["tool_calls"][1] == broken
    assert told_as[1] == {"role": "user", "content": "x"}
