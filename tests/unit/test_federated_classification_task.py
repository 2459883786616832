"""The task ``sequence-classification``: what is learned, what travels, what is refused, and the model at the end."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloister.errors import FederationError, FormatError, UsageError
from cloister.federated.tasks import Settings, find_task
from cloister.federated.training.classification import ClassificationTraining, macro
from task_parts import PRIVACY, distance, jsonl, opening, same, save_encoder, texts

SETTINGS: Settings = {
    "labels": ("praise", "blame"), "train": "train.jsonl", "test": "test.jsonl", "length": 16, "epochs": 2,
    "rate-ppm": 3000, "head-rate-ppm": 3000, "precision": "fp32",
}  # fmt: skip


def rows(count: int, seed: int) -> bytes:
    draw = random.Random(seed)
    found = []
    for text in texts(count, seed, ("in", "the", "old", "city", "he", "went", "so")):
        label = draw.choice(["praise", "blame"])
        found.append({"text": f"{text} {'good' if label == 'praise' else 'bad'} so", "label": label})
    return jsonl(found)


FILES = {"train.jsonl": rows(120, 1), "test.jsonl": rows(40, 2)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_encoder(tmp_path_factory.mktemp("model") / "encoder")


@pytest.fixture
def opened(folder: Path) -> Iterator[Any]:
    with ExitStack() as stack:
        yield lambda files=FILES, changed=None, **more: ClassificationTraining(
            stack.enter_context(opening(folder, SETTINGS | (changed or {}), files, **more))
        )


def quiet(done: int, steps: int) -> None:
    pass


def test_a_party_learns_from_its_file_and_its_held_out_part_says_so(opened: Any) -> None:
    task = opened(changed={"epochs": 8})
    start = task.arrays()
    heard: list[tuple[int, int]] = []
    trained = task.train(start, number=1, seed=7, step=lambda *one: heard.append(one))
    assert heard == [(done, 64) for done in range(1, 65)]
    assert trained.examples == trained.metrics["examples"] == 120
    assert trained.metrics.keys() == {"loss", "examples", "seconds"}
    before, after = task.score(start), task.score(trained.arrays)
    assert before.examples == after.examples == 40
    assert after.metrics.keys() == {"f1", "precision", "recall", "loss"}
    assert before.metrics["f1"] < 0.8
    assert after.metrics["f1"] > 0.95
    assert after.metrics["loss"] < 0.3 < before.metrics["loss"]


def test_the_same_arrays_data_and_seed_give_the_same_update_whatever_was_trained_before(opened: Any) -> None:
    task = opened()
    start = task.arrays()
    first = task.train(start, number=1, seed=7, step=quiet)
    other = task.train(start, number=1, seed=8, step=quiet)
    assert same(first.arrays, task.train(start, number=1, seed=7, step=quiet).arrays)
    assert same(first.arrays, opened().train(start, number=1, seed=7, step=quiet).arrays)
    assert not same(first.arrays, other.arrays)


def test_what_travels_is_the_same_for_every_party_of_one_seed(opened: Any) -> None:
    begin = opened().arrays()
    assert same(begin, opened(files={}).arrays())
    assert {array.dtype for array in begin.values()} == {np.dtype(np.float32)}
    other = opened(seed=1).arrays()
    assert {name for name in begin if not np.array_equal(begin[name], other[name])} == {"classifier.weight"}


def test_a_pooler_that_the_model_lacks_is_drawn_with_the_head_and_nothing_else_is(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = save_encoder(tmp_path / "model")
    weights = folder / "model.safetensors"
    state = load_file(weights)
    save_file({name: one for name, one in state.items() if "pooler" not in name}, weights, {"format": "pt"})
    found = []
    for seed in (0, 0, 1):
        with opening(folder, SETTINGS, seed=seed) as one:
            found.append(ClassificationTraining(one).arrays())
    assert same(found[0], found[1])
    assert {name for name in found[0] if not np.array_equal(found[0][name], found[2][name])} == {
        "classifier.weight", "bert.pooler.dense.weight",
    }  # fmt: skip
    save_file({name: one for name, one in state.items() if "layer.1" not in name}, weights, {"format": "pt"})
    with opening(folder, SETTINGS) as one, pytest.raises(UsageError, match="lack 16 of its weights"):
        ClassificationTraining(one)


def test_the_proximal_term_keeps_an_update_near_the_rounds_model(opened: Any) -> None:
    start = opened().arrays()
    far = [
        distance(opened(proximal=strength).train(start, number=1, seed=1, step=quiet).arrays, start)
        for strength in (0.0, 100.0)
    ]
    assert far[0] > far[1] > 0


def test_the_saved_model_is_opened_by_transformers_and_knows_its_labels(opened: Any, tmp_path: Path) -> None:
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    task = opened()
    trained = task.train(task.arrays(), number=1, seed=3, step=quiet).arrays
    opened(files={}).save(trained, tmp_path)
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path, local_files_only=True)
    assert same({name: tensor.numpy() for name, tensor in model.state_dict().items()}, trained)
    assert model.config.id2label == {0: "praise", 1: "blame"}
    assert b"cloister-" not in (tmp_path / "config.json").read_bytes()
    assert AutoTokenizer.from_pretrained(tmp_path, local_files_only=True)("so good")["input_ids"]


def test_a_saved_model_is_what_another_training_begins_with(opened: Any, tmp_path: Path) -> None:
    task = opened()
    trained = task.train(task.arrays(), number=1, seed=3, step=quiet).arrays
    task.save(trained, tmp_path)
    with opening(tmp_path, SETTINGS, seed=5) as one:
        assert same(ClassificationTraining(one).arrays(), trained)
    with opening(tmp_path, SETTINGS | {"labels": ("a", "b", "c")}) as one, pytest.raises(UsageError):
        ClassificationTraining(one)


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"label": "x"}, "no setting 'label'"),
        ({"labels": ("praise",)}, "'labels'"),
        ({"labels": ("a", "a")}, "'labels'"),
        ({"batch": 0}, "'batch'"),
        ({"length": 7}, "'length'"),
        ({"length": 65}, "64 tokens at once"),
        ({"stride": 8}, "no setting 'stride'"),
    ],
)  # fmt: skip
def test_settings_that_the_task_does_not_know_are_refused_in_one_line(
    changed: dict[str, Any], says: str, opened: Any
) -> None:
    with pytest.raises(UsageError, match=says) as refused:
        opened(changed=changed)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    "line",
    [
        b'{"text": "secret", "label": "other"}\n',
        b'{"text": " ", "label": "blame"}\n',
        b'{"text": "secret"}\n',
        b'{"text": "secret", "label": "blame", "more": 1}\n',
        b'{"text": "secret", "label": "blame", "label": "praise"}\n',
        b'{"text": 1, "label": "blame"}\n',
        b"\xff\n",
        b"\n",
        b"",
        b'{"text": "' + b"secret " * 200_000 + b'", "label": "blame"}\n',
    ],
    ids=["other label", "blank", "no label", "more", "twice", "number", "no UTF-8", "empty line", "nothing", "giant"],
)  # fmt: skip
def test_lines_of_another_form_are_refused_without_a_word_of_them(line: bytes, opened: Any) -> None:
    task = opened(files={"train.jsonl": line})
    with pytest.raises(FormatError) as refused:
        task.train(task.arrays(), number=1, seed=1, step=quiet)
    assert "secret" not in str(refused.value)


def test_arrays_of_another_model_are_refused(opened: Any) -> None:
    task = opened()
    arrays = task.arrays()
    del arrays["classifier.bias"]
    with pytest.raises(FederationError):
        task.train(arrays, number=1, seed=1, step=quiet)


def test_without_a_held_out_part_there_are_no_scores(folder: Path) -> None:
    with opening(folder, {name: value for name, value in SETTINGS.items() if name != "test"}) as found:
        task = ClassificationTraining(found)
        scored = task.score(task.arrays())
    assert (scored.examples, dict(scored.metrics)) == (0, {})


def test_the_privacy_of_examples_is_not_promised_where_it_is_not_kept(opened: Any) -> None:
    with pytest.raises(UsageError, match="single examples"):
        opened(privacy=PRIVACY)


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=40))
def test_macro_averages_are_those_of_scikit_learn(pairs: list[tuple[int, int]]) -> None:
    from sklearn.metrics import precision_recall_fscore_support

    expected, found = [one for one, _ in pairs], [other for _, other in pairs]
    precision, recall, f1, _ = precision_recall_fscore_support(
        expected, found, average="macro", zero_division=0
    )
    assert macro(expected, found) == pytest.approx({"f1": f1, "precision": precision, "recall": recall})


def test_it_is_found_by_its_name() -> None:
    assert find_task("sequence-classification") is ClassificationTraining
