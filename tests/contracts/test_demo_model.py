"""The shipped model is what its card says: size, shape, digest, licence, and the ten answers word for word."""

from __future__ import annotations

import hashlib
import math
import re
from pathlib import Path

import gguf
import pytest

from cloister.inference.demo_model import demo_model
from cloister.inference.engines import Engine
from opened_engine import engine_on

CARD = (demo_model().parent / "MODEL_CARD.md").read_text()
ANSWERS = {
    question: "\n".join(line.removeprefix(">").strip() for line in quoted.strip().splitlines())
    for question, quoted in re.findall(
        r"^\*\*(.+?)\*\*\n\n((?:>.*\n?)+)", CARD.partition("## Ten answers")[2], re.MULTILINE
    )
}


@pytest.fixture(scope="module")
def engine() -> Engine:
    return engine_on(demo_model())


def test_the_model_has_the_size_and_shape_that_it_should() -> None:
    reader = gguf.GGUFReader(demo_model())
    parameters = sum(math.prod(int(n) for n in tensor.shape) for tensor in reader.tensors)
    assert demo_model().stat().st_size <= 16_000_000
    assert 5_000_000 <= parameters <= 15_000_000
    assert reader.fields["general.architecture"].contents() == "llama"
    assert "chat_template" in " ".join(reader.fields)


def test_the_card_speaks_of_this_file_and_keeps_the_attribution() -> None:
    assert hashlib.sha256(demo_model().read_bytes()).hexdigest() in CARD
    for wanted in ("CC BY 4.0", "Ben Abacha", "Demner-Fushman", "not medical advice", "held out"):
        assert wanted in CARD


def test_the_card_shows_ten_answers_and_more() -> None:
    assert len(ANSWERS) >= 10
    assert all(len(answer.split()) >= 12 for answer in ANSWERS.values())


@pytest.mark.parametrize("question", ANSWERS)
def test_an_answer_of_the_card_is_what_the_model_says(engine: Engine, question: str) -> None:
    pieces: list[str] = []

    def take(chunk: object) -> bool:
        for choice in chunk.get("choices", ()):  # type: ignore[attr-defined]
            pieces.append(choice.get("delta", {}).get("content") or "")
        return False

    request = {"messages": [{"role": "user", "content": question}], "temperature": 0, "max_tokens": 400}
    engine.generate("chat", request, take)
    said = "\n".join(line.strip() for line in "".join(pieces).strip().splitlines())
    assert said == ANSWERS[question]


def test_the_model_is_part_of_the_package() -> None:
    assert Path(demo_model()).parts[-4:-1] == ("cloister", "inference", "models")
