"""Long prompts are read in pieces: others are answered meanwhile, and nothing else is to be seen of it."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from cloister.inference.api_errors import RequestRefused
from cloister.inference.engines import Engine
from opened_engine import engine_on
from tinyllamas_gguf import write_gguf

SENTENCE = "The girl hid the red key under the old tree. "
LONG = SENTENCE * 20
"""About 440 tokens of the 512 that fit."""
TALK: Mapping[str, Any] = {
    "prompt": "Once upon a time",
    "max_tokens": 480,
    "logit_bias": {"1": -100, "2": -100},
}
AT_ONCE = 2048


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_gguf(tmp_path_factory.mktemp("tinyllamas") / "stories260K.gguf")


@pytest.fixture
def engine(model: Path) -> Iterator[Engine]:
    opened = engine_on(model, slots=2, prefill_chunk=16)
    yield opened
    opened.close()


class Talk:
    """An answer that goes on beside what a test does, until it ends."""

    def __init__(self, engine: Engine) -> None:
        self.tokens = 0
        self._first = threading.Event()
        self._enough = threading.Event()
        self._thread = threading.Thread(target=engine.generate, args=("text", TALK, self._sink))

    def __enter__(self) -> Talk:
        self._thread.start()
        assert self._first.wait(30)
        return self

    def __exit__(self, *_: object) -> None:
        self._enough.set()
        self._thread.join(30)

    def _sink(self, chunk: Mapping[str, Any]) -> bool:
        if chunk.get("choices"):
            self.tokens += 1
            self._first.set()
        return self._enough.is_set()


def asked(engine: Engine, kind: Any, request: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    texts: list[str] = []
    usage: dict[str, Any] = {}

    def sink(chunk: Mapping[str, Any]) -> bool:
        for choice in chunk.get("choices", ()):
            texts.append((choice.get("text") or choice.get("delta", {}).get("content")) or "")
        usage.update(chunk.get("usage", {}))
        return False

    engine.generate(kind, {"temperature": 0, "max_tokens": 20} | dict(request), sink)
    return "".join(texts), usage


CHAT = {
    "messages": [{"role": "user", "content": SENTENCE * 6}, {"role": "assistant", "content": SENTENCE}] * 3
}
CHAT["messages"] = [*CHAT["messages"][:5], {"role": "user", "content": "And then"}]


@pytest.mark.parametrize(
    ("kind", "request_"),
    [
        pytest.param("text", {"prompt": LONG}, id="text"),
        pytest.param("text", {"prompt": [1, *range(260, 500), *range(260, 400)]}, id="tokens"),
        pytest.param("chat", {"messages": [{"role": "user", "content": LONG}]}, id="chat"),
        pytest.param("chat", CHAT, id="chat of several turns"),
        pytest.param("text", {"prompt": LONG, "n": 2}, id="two choices"),
    ],
)
def test_a_prompt_read_in_pieces_has_the_answer_and_the_usage_of_one_read_at_once(
    model: Path, engine: Engine, kind: Any, request_: Mapping[str, Any]
) -> None:
    whole = engine_on(model, slots=2, prefill_chunk=AT_ONCE)
    try:
        text, usage = asked(whole, kind, request_)
    finally:
        whole.close()
    assert usage["prompt_tokens"] > 300
    alone = asked(engine, kind, request_)
    if "n" in request_:
        assert alone[1] == usage
        return
    assert alone == (text, usage)
    with Talk(engine):
        assert asked(engine, kind, request_) == (text, usage)


def test_others_are_answered_between_the_pieces(model: Path, engine: Engine) -> None:
    tokens = {}
    whole = engine_on(model, slots=2, prefill_chunk=AT_ONCE)
    for name, one in (("pieces", engine), ("at once", whole)):
        with Talk(one) as talk:
            before = talk.tokens
            asked(one, "text", {"prompt": LONG, "max_tokens": 1})
            tokens[name] = talk.tokens - before
    whole.close()
    assert tokens["pieces"] >= 27  # one for each piece, at the least
    assert tokens["at once"] < tokens["pieces"] / 2


def test_two_long_prompts_take_turns_and_are_both_answered(model: Path) -> None:
    engine = engine_on(model, slots=3, prefill_chunk=16)
    try:
        expected = asked(engine, "text", {"prompt": LONG})[0]
        with Talk(engine), ThreadPoolExecutor(2) as threads:
            texts = list(threads.map(lambda _: asked(engine, "text", {"prompt": LONG})[0], range(2)))
    finally:
        engine.close()
    assert texts == [expected] * 2


def test_a_prompt_that_does_not_fit_is_refused_before_any_of_it_is_computed(engine: Engine) -> None:
    with pytest.raises(RequestRefused) as refused:
        asked(engine, "text", {"prompt": [1, *range(260, 500)] * 4})
    assert refused.value.code == "context_length_exceeded"
    assert engine.stats().prompt_tokens == 0


def test_a_client_that_leaves_while_its_prompt_is_read_frees_its_slot(engine: Engine) -> None:
    count = 0

    def leave(_: Mapping[str, Any]) -> bool:
        nonlocal count
        count += 1
        return count >= 4

    with Talk(engine):
        engine.generate("text", {"prompt": LONG, "max_tokens": 50}, leave)
        computed = engine.stats().prompt_tokens
        assert computed < 200
        assert asked(engine, "text", {"prompt": "a", "max_tokens": 1})[1]["completion_tokens"] == 1


def test_closing_ends_the_reading_of_a_prompt(engine: Engine) -> None:
    ended: list[object] = []

    def ask() -> None:
        try:
            asked(engine, "text", {"prompt": LONG})
            ended.append(None)
        except RequestRefused as refused:
            ended.append(refused.status)

    with Talk(engine):
        threads = [threading.Thread(target=ask) for _ in range(3)]
        for thread in threads:
            thread.start()
        time.sleep(0.02)
        engine.close()
        for thread in threads:
            thread.join(10)
            assert not thread.is_alive()
    assert len(ended) == 3
    assert set(ended) <= {None, 503}
