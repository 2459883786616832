"""Guessing ahead: what is guessed and checked changes the speed of a greedy answer, and not one word of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import gguf
import pytest

from cloister.errors import UsageError
from cloister.inference.api_errors import RequestRefused
from cloister.inference.demo_model import demo_model
from cloister.inference.engines import Engine, EngineSettings, open_engine
from cloister.inference.model_files import ModelFiles
from opened_engine import engine_on
from tinyllamas_gguf import expected_text, write_gguf

STORY: Mapping[str, Any] = {"prompt": [1], "max_tokens": 256}
REFRAIN = "The cat sat on the mat and the dog ran to the hat. "
SONG: Mapping[str, Any] = {"prompt": REFRAIN * 2, "max_tokens": 100, "grammar": f'root ::= ("{REFRAIN}")+'}
"""A text that repeats itself whatever the model thinks of it."""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_gguf(tmp_path_factory.mktemp("tinyllamas") / "stories260K.gguf")


@pytest.fixture(scope="module")
def plain(model: Path) -> Iterator[Engine]:
    engine = engine_on(model)
    yield engine
    engine.close()


@pytest.fixture(scope="module", params=["ngram", "draft"])
def guessing(request: pytest.FixtureRequest, model: Path) -> Iterator[Engine]:
    if request.param == "draft":
        with ModelFiles.of_path(model) as draft:
            engine = engine_on(model, slots=3, speculation="draft", draft=draft, prefix_cache=True)
    else:
        engine = engine_on(model, slots=3, speculation="ngram", prefix_cache=True)
    yield engine
    engine.close()


def greedy(engine: Engine, request: Mapping[str, Any], *, tenant: bytes | None = None) -> tuple[str, int]:
    """The answer at temperature 0, and how many of its tokens were guessed right."""
    texts: list[str] = []
    right = 0

    def sink(chunk: Mapping[str, Any]) -> bool:
        nonlocal right
        texts.extend(choice["text"] for choice in chunk.get("choices", ()))
        right = chunk.get("timings", {}).get("draft_n_accepted", right)
        return False

    engine.generate("text", {**request, "temperature": 0}, sink, tenant=tenant)
    return "".join(texts), right


def test_a_greedy_answer_is_the_published_one_word_for_word(guessing: Engine) -> None:
    assert greedy(guessing, STORY)[0].strip() == expected_text().strip()


def test_a_text_that_repeats_itself_is_guessed_and_stays_the_same(guessing: Engine, plain: Engine) -> None:
    told, right = greedy(guessing, SONG)
    assert told == greedy(plain, SONG)[0]
    assert right > 10


def test_answers_beside_each_other_are_guessed_each_from_its_own_text(
    guessing: Engine, plain: Engine
) -> None:
    asked = [
        STORY | {"max_tokens": 60},
        SONG | {"max_tokens": 60},
        STORY | {"prompt": "Lily", "max_tokens": 60},
    ]
    with ThreadPoolExecutor(3) as threads:
        together = list(threads.map(lambda one: greedy(guessing, one)[0], asked))
    assert together == [greedy(plain, one)[0] for one in asked]


def test_what_another_tenant_made_repeat_itself_is_not_guessed_from(guessing: Engine, plain: Engine) -> None:
    """How many tokens were guessed right would tell what others asked."""
    first = greedy(guessing, STORY | {"prompt": "Tom and", "max_tokens": 40}, tenant=b"a" * 32)
    for tenant in (b"b" * 32, b"c" * 32, None):
        greedy(guessing, SONG, tenant=tenant)
    assert greedy(guessing, STORY | {"prompt": "Tom and", "max_tokens": 40}, tenant=b"d" * 32) == first
    assert first[0] == greedy(plain, STORY | {"prompt": "Tom and", "max_tokens": 40})[0]


def test_a_prompt_in_the_cache_and_guesses_give_the_same_answer(guessing: Engine) -> None:
    asked = {"prompt": "Once upon a time, there was a little girl named Lily. " * 4, "max_tokens": 60}
    first, again = (greedy(guessing, asked, tenant=b"e" * 32)[0] for _ in range(2))
    assert first == again


def test_an_engine_that_guesses_says_that_it_makes_no_embeddings(guessing: Engine) -> None:
    assert guessing.embedding_length is None
    with pytest.raises(RequestRefused, match="embeddings"):
        guessing.embed({"input": ["a"]})


def test_a_draft_model_of_another_vocabulary_is_refused_in_one_line(model: Path) -> None:
    with ModelFiles.of_path(demo_model()) as draft, ModelFiles.of_path(model) as files:
        settings = EngineSettings(context_length=256, slots=1, speculation="draft", draft=draft)
        with pytest.raises(UsageError, match="another vocabulary") as refused:
            open_engine("llamacpp", files, settings)
    assert "\n" not in str(refused.value)


def test_one_other_token_is_enough(model: Path, tmp_path: Path) -> None:
    """The same file, but for one word of its vocabulary: as long, so that nothing moves."""
    data = model.read_bytes()
    word = next(
        bytes(part)
        for part in gguf.GGUFReader(model).fields["tokenizer.ggml.tokens"].parts[500:]
        if part.dtype == "uint8" and len(bytes(part)) > 3
    )
    assert data.count(word)
    (tmp_path / "other.gguf").write_bytes(data.replace(word, word[::-1].swapcase(), 1))
    with ModelFiles.of_path(tmp_path / "other.gguf") as draft, ModelFiles.of_path(model) as files:
        settings = EngineSettings(context_length=256, slots=1, speculation="draft", draft=draft)
        with pytest.raises(UsageError, match="another vocabulary"):
            open_engine("llamacpp", files, settings)


def test_a_draft_model_alone_or_missing_is_refused(model: Path) -> None:
    with ModelFiles.of_path(model) as files:
        for settings in (
            EngineSettings(context_length=256, slots=1, draft=files),
            EngineSettings(context_length=256, slots=1, speculation="draft"),
        ):
            with pytest.raises(UsageError, match="go together"):
                open_engine("llamacpp", files, settings)
