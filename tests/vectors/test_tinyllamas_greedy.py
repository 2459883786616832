"""The engine computes right: a published checkpoint's published greedy continuation, word for word."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cloister.inference.engines import EngineSettings, open_engine
from cloister.inference.model_files import ModelFiles
from opened_engine import engine_on
from tinyllamas_gguf import expected_text, write_gguf

TOKENS = 256


def greedy(engine: Any) -> tuple[str, int]:
    """The text from the beginning token on, at temperature 0, and the number of tokens."""
    texts: list[str] = []
    tokens = 0

    def sink(chunk: Any) -> bool:
        nonlocal tokens
        texts.extend(choice["text"] for choice in chunk.get("choices", ()))
        tokens = chunk["usage"]["completion_tokens"] if "usage" in chunk else tokens
        return False

    engine.generate("text", {"prompt": [1], "temperature": 0, "max_tokens": TOKENS}, sink)
    return "".join(texts), tokens


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_gguf(tmp_path_factory.mktemp("tinyllamas") / "stories260K.gguf")


@pytest.fixture(params=["path", "memfd"])
def engine(request: pytest.FixtureRequest, checkpoint: Path) -> Iterator[Any]:
    if request.param == "path":
        opened = engine_on(checkpoint)
    else:
        # As an unsealed model lies in memory: no name, sealed against writing.
        import fcntl

        descriptor = os.memfd_create("model", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.write(descriptor, checkpoint.read_bytes())
        seals = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, seals)
        with ModelFiles("gguf", {"model.gguf": descriptor}) as files:
            opened = open_engine("llamacpp", files, EngineSettings(context_length=512, slots=1))
    yield opened
    opened.close()


def test_256_greedy_tokens_are_the_published_ones(engine: Any) -> None:
    text, tokens = greedy(engine)
    assert tokens == TOKENS
    assert text.strip() == expected_text().strip()


def test_another_slot_with_a_neighbour_computes_the_same(checkpoint: Path) -> None:
    from concurrent.futures import ThreadPoolExecutor

    engine = engine_on(checkpoint, slots=4)
    try:
        with ThreadPoolExecutor(4) as threads:
            texts = list(threads.map(lambda _: greedy(engine)[0].strip(), range(4)))
    finally:
        engine.close()
    # Batching sums in another order, so late tokens may differ in theory; the first hundred characters may not.
    assert {text[:100] for text in texts} == {expected_text().strip()[:100]}
