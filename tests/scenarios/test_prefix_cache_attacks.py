"""What one tenant asked is not to be found out by another from what the engine has in its slots."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from cloister.inference.api_errors import RequestRefused
from cloister.inference.engines import Engine
from opened_engine import engine_on
from tinyllamas_gguf import write_gguf

ANNA, BERT = b"a" * 32, b"b" * 32
SECRET = "The girl hid the red key under the old tree. " * 20
"""About 300 tokens."""
SHARED = 2
"""Tokens that any two prompts have in common: the one that begins every text, and a space."""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_gguf(tmp_path_factory.mktemp("tinyllamas") / "stories260K.gguf")


@pytest.fixture
def engine(model: Path) -> Iterator[Engine]:
    opened = engine_on(model, slots=3, prefix_cache=True)
    yield opened
    opened.close()


def cached(engine: Engine, tenant: bytes | None, prompt: Any = SECRET, **more: Any) -> int:
    """Ask for one token of an answer: how many of the prompt's the engine says it had already."""
    found: list[int] = []

    def sink(chunk: Mapping[str, Any]) -> bool:
        if "usage" in chunk:
            found.append(chunk["usage"]["prompt_tokens_details"]["cached_tokens"])
        return False

    engine.generate("text", {"prompt": prompt, "max_tokens": 1} | more, sink, tenant=tenant)
    return max(found)


def first_token(engine: Engine, tenant: bytes | None, prompt: str) -> float:
    """Seconds until the first token, as who asks can measure them."""
    began = time.perf_counter()
    ended: list[float] = []

    def sink(chunk: Mapping[str, Any]) -> bool:
        if chunk.get("choices"):
            ended.append(time.perf_counter())
        return bool(ended)

    engine.generate("text", {"prompt": prompt, "max_tokens": 1}, sink, tenant=tenant)
    return ended[0] - began


def test_a_tenants_own_prompt_is_not_computed_again_and_counted_once(engine: Engine) -> None:
    assert cached(engine, ANNA) == 0
    length = engine.stats().prompt_tokens
    assert length > 200
    assert cached(engine, ANNA) >= length - 1
    assert cached(engine, ANNA, SECRET + "And then") >= length - 2
    assert engine.stats().prompt_tokens < length + 12


def test_how_fast_an_answer_starts_does_not_tell_what_others_asked(engine: Engine) -> None:
    """The probe: guess another's prompt, and see whether the answer starts sooner than for one never asked."""
    seconds: dict[str, list[float]] = {"same": [], "other": [], "nobody": [], "never asked": []}
    for round_ in range(9):
        prompt = f"{round_} " + SECRET
        first_token(engine, ANNA, prompt)
        seconds["same"].append(first_token(engine, ANNA, prompt))
        seconds["other"].append(first_token(engine, BERT, prompt))
        seconds["nobody"].append(first_token(engine, None, prompt))
        seconds["never asked"].append(first_token(engine, BERT, f"never {round_} " + SECRET))
    # What else this machine does only lengthens them.
    shortest = {who: min(times) for who, times in seconds.items()}
    assert shortest["same"] < 0.4 * shortest["never asked"], shortest
    for who in ("other", "nobody"):
        assert shortest[who] > 0.5 * shortest["never asked"], (who, shortest)


def too_long(engine: Engine) -> None:
    with pytest.raises(RequestRefused):
        cached(engine, BERT, SECRET * 4)


def broken_off(engine: Engine) -> None:
    engine.generate("text", {"prompt": SECRET, "max_tokens": 50}, lambda _: True, tenant=BERT)


ATTACKS: list[tuple[str, Callable[[Engine], object], Callable[[Engine], int]]] = [
    ("another key", lambda e: cached(e, ANNA), lambda e: cached(e, BERT)),
    ("no key", lambda e: cached(e, ANNA), lambda e: cached(e, None)),
    ("what nobody asked", lambda e: cached(e, None), lambda e: cached(e, None)),
    ("what nobody asked, by a key", lambda e: cached(e, None), lambda e: cached(e, BERT)),
    (
        "the other's slot by number, in every slot",
        lambda e: cached(e, ANNA),
        lambda e: max(cached(e, bytes([n]) * 32, id_slot=n, cache_prompt=True) for n in range(3)),
    ),
    (
        "chunks in other places",
        lambda e: cached(e, ANNA),
        lambda e: max(
            cached(e, bytes([n]) * 32, "x " + SECRET, n_cache_reuse=1, cache_prompt=True) for n in range(3)
        ),
    ),
    ("two choices", lambda e: cached(e, ANNA), lambda e: cached(e, BERT, n=2, cache_prompt=True)),
    (
        "two choices under their other name",
        lambda e: cached(e, ANNA),
        lambda e: cached(e, BERT, n_cmpl=2, cache_prompt=True),
    ),
    ("a list of prompts", lambda e: cached(e, ANNA), lambda e: cached(e, BERT, [SECRET, SECRET])),
    ("what others asked two choices of", lambda e: cached(e, ANNA, n=3), lambda e: cached(e, BERT)),
    ("what others asked in a list", lambda e: cached(e, ANNA, [SECRET] * 3), lambda e: cached(e, BERT)),
    ("what others embedded", lambda e: e.embed({"input": [SECRET] * 3}), lambda e: cached(e, BERT)),
    (
        "what others embedded where one's own lay",
        lambda e: (
            [cached(e, BERT, f"{word} was here. " * 3) for word in ("He", "Cat", "Sun")],
            e.embed({"input": [SECRET] * 3}),
        ),
        lambda e: cached(e, BERT),
    ),
    (
        "behind a request of one's own that was refused",
        lambda e: ([cached(e, tenant) for tenant in (ANNA, b"c" * 32, b"d" * 32)], too_long(e)),
        lambda e: cached(e, BERT),
    ),
    ("what others broke off", broken_off, lambda e: cached(e, ANNA)),
    (
        "in a slot that changed its owner twice",
        lambda e: [cached(e, bytes([number]) * 32) for number in range(6)],
        lambda e: cached(e, BERT),
    ),
]


@pytest.mark.parametrize(
    ("before", "probe"), [pytest.param(before, probe, id=name) for name, before, probe in ATTACKS]
)
def test_a_probe_finds_nothing_of_what_others_asked(
    engine: Engine, before: Callable[[Engine], object], probe: Callable[[Engine], int]
) -> None:
    before(engine)
    assert probe(engine) <= SHARED


def test_without_the_setting_nothing_is_kept_even_for_oneself(model: Path) -> None:
    engine = engine_on(model, slots=2)
    try:
        assert [cached(engine, ANNA, cache_prompt=True) for _ in range(3)] == [0, 0, 0]
    finally:
        engine.close()


def test_under_load_nobody_is_given_anothers_prompt(engine: Engine) -> None:
    """Everybody asks the same prompts, each once, in another order, among embeddings, choices and refusals."""
    prompts = [f"{word} {SECRET[:200]}" for word in ("He", "Cat", "Sun", "Dog", "Box", "Jo", "Ann", "Mom")]

    def work(tenant: bytes) -> list[int]:
        own = random.Random(tenant)
        found = []
        for prompt in own.sample(prompts, len(prompts)):
            found.append(cached(engine, tenant, prompt))
            with suppress(RequestRefused):
                noise = own.randrange(4)
                if noise == 0:
                    engine.embed({"input": own.choices(prompts, k=3)})
                elif noise == 1:
                    cached(engine, None, own.choice(prompts), n=2)
                elif noise == 2:
                    cached(engine, tenant, SECRET * 4)
        return found

    with ThreadPoolExecutor(6) as threads:
        found = list(threads.map(work, [bytes([65 + number]) * 32 for number in range(6)]))
    assert max(map(max, found)) <= SHARED
    # And no slot was lost on the way.
    with ThreadPoolExecutor(3) as threads:
        list(threads.map(lambda _: cached(engine, None, "a", max_tokens=20), range(6)))
    assert engine.stats().running == 0
