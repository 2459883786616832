"""The task ``ner``: what a party learns in a round, what travels, what settings are refused, and the model at the end."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cloister.errors import CloisterError, FederationError, FormatError, UsageError
from cloister.federated.ledger import Ledger
from cloister.federated.privacy import Charge, spent
from cloister.federated.tasks import ExamplePrivacy, Opening, Settings, Trained, find_task
from cloister.federated.training.ner import NerTraining, read_settings
from cloister.federated.training.tagger_files import open_tagger
from cloister.federated.updates import decode_arrays, encode_arrays
from cloister.inference.pretrained import check_length
from cloister.sealing.key_file import KeyFile
from task_parts import PRIVACY, WORDS, distance, opening, same, save_encoder

SETTINGS: Settings = {
    "kinds": ("PLACE",), "train": "train.conll", "test": "test.conll", "length": 48, "stride": 8, "epochs": 4,
    "rate-ppm": 3000, "head-rate-ppm": 10_000, "precision": "fp32",
}  # fmt: skip


def conll(count: int, seed: int) -> bytes:
    """Rome and York are places."""
    draw = random.Random(seed)
    lines: list[str] = []
    for _ in range(count):
        words = draw.choices(WORDS, k=draw.randint(3, 9))
        lines += [f"{word}\t{'B-PLACE' if word in ('rome', 'york') else 'O'}" for word in words]
        lines.append("")
    return "\n".join(lines).encode()


FILES = {"train.conll": conll(120, 1), "test.conll": conll(40, 2)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_encoder(tmp_path_factory.mktemp("model") / "encoder")


@pytest.fixture
def opened(folder: Path) -> Iterator[Any]:
    with ExitStack() as stack:
        yield lambda files=FILES, changed=None, **more: NerTraining(
            stack.enter_context(opening(folder, SETTINGS | (changed or {}), files, **more))
        )


def quiet(done: int, steps: int) -> None:
    pass


def test_a_party_learns_from_its_file_and_its_held_out_part_says_so(opened: Any) -> None:
    task = opened(changed={"epochs": 12})
    start = task.arrays()
    heard: list[tuple[int, int]] = []
    trained = task.train(start, number=1, seed=7, step=lambda *one: heard.append(one))
    assert heard == [(done, 96) for done in range(1, 97)]
    assert trained.examples == 120
    assert trained.metrics.keys() == {"loss", "examples", "seconds"}
    assert trained.metrics["examples"] == 120
    before, after = task.score(start), task.score(trained.arrays)
    assert before.examples == after.examples == 40
    assert after.metrics.keys() == {"f1", "precision", "recall", "loss"}
    assert before.metrics["f1"] < 0.3
    assert after.metrics["f1"] > 0.9
    assert after.metrics["loss"] < before.metrics["loss"]


def test_an_update_weighs_by_sentences_or_by_what_they_name_too_as_all_agreed(opened: Any) -> None:
    some = b"rome\tB-PLACE\nsleeps\tO\n\n" + b"she\tO\nsleeps\tO\n\n" * 8
    none = b"she\tO\nsleeps\tO\n\n" * 5
    for content, weight, expected in (
        (some, "sentences", 9), (some, "balanced", 3), (none, "sentences", 5), (none, "balanced", 1),
    ):  # fmt: skip
        task = opened(FILES | {"train.conll": content}, {"epochs": 1, "weight": weight})
        trained = task.train(task.arrays(), number=1, seed=7, step=quiet)
        assert trained.examples == expected
        assert trained.metrics["examples"] == content.count(b"\n\n")


def test_the_same_arrays_data_and_seed_give_the_same_update_whatever_was_trained_before(opened: Any) -> None:
    task = opened()
    start = task.arrays()
    first = task.train(start, number=1, seed=7, step=quiet)
    other = task.train(start, number=1, seed=8, step=quiet)
    again = task.train(start, number=1, seed=7, step=quiet)
    elsewhere = opened().train(start, number=1, seed=7, step=quiet)
    assert same(first.arrays, again.arrays)
    assert same(first.arrays, elsewhere.arrays)
    assert not same(first.arrays, other.arrays)
    assert first.metrics["loss"] == elsewhere.metrics["loss"]


def test_what_travels_is_the_same_for_every_party_of_one_seed_and_is_all_that_is_trained(opened: Any) -> None:
    task = opened()
    begin = task.arrays()
    assert same(begin, opened(files={}).arrays())
    head = {"linear.weight", "linear.bias", "crf.start", "crf.end", "crf.transitions"}
    assert head < begin.keys()
    assert {name for name in begin if not name.startswith("encoder.")} == head
    assert {array.dtype for array in begin.values()} == {np.dtype(np.float32)}
    other = opened(seed=1).arrays()
    assert {name for name in begin if not np.array_equal(begin[name], other[name])} == head - {"linear.bias"}
    kept = {name: array.copy() for name, array in begin.items()}
    after = task.train(begin, number=1, seed=1, step=quiet).arrays
    assert same(begin, kept)
    assert {name for name in begin if np.array_equal(begin[name], after[name])} <= {
        "encoder.embeddings.token_type_embeddings.weight"
    }
    assert same(decode_arrays(encode_arrays(after), what="an update", limit=1 << 20), after)


def test_the_proximal_term_keeps_an_update_near_the_rounds_model(opened: Any) -> None:
    start = opened().arrays()
    far = [
        distance(opened(proximal=strength).train(start, number=1, seed=1, step=quiet).arrays, start)
        for strength in (0.0, 1.0, 100.0)
    ]
    assert far[0] > far[1] > far[2] > 0


def test_rates_fall_over_all_rounds_of_the_federation(opened: Any) -> None:
    task = opened(changed={"rounds": 3})
    start = task.arrays()
    far = [
        distance(task.train(start, number=number, seed=1, step=quiet).arrays, start) for number in (1, 2, 3)
    ]
    assert far[0] > far[1] > far[2] > 0
    with pytest.raises(UsageError, match="no round 4 of 3"):
        task.train(start, number=4, seed=1, step=quiet)
    alone = opened()
    assert same(*(alone.train(start, number=number, seed=1, step=quiet).arrays for number in (1, 9)))


@pytest.mark.parametrize("crf", [1, 0])
def test_the_saved_model_is_opened_elsewhere_and_tags_as_before(
    crf: int, opened: Any, tmp_path: Path
) -> None:
    from transformers import AutoModel

    task = opened(changed={"crf": crf})
    trained = task.train(task.arrays(), number=1, seed=3, step=quiet).arrays
    opened(files={}, changed={"crf": crf}).save(trained, tmp_path)
    assert {"config.json", "model.safetensors", "tokenizer.json", "head.safetensors", "tagger.json"} <= {
        file.name for file in tmp_path.iterdir()
    }
    found = open_tagger(tmp_path)
    state = {name: tensor.numpy() for name, tensor in found.model.state_dict().items()}
    assert same(state, trained)
    said = found.tag([["he", "went", "to", "rome", "."], ["to", "york"] * 40])
    assert [len(tags) for tags in said] == [5, 80]
    assert set(said[0]) | set(said[1]) <= {"O", "B-PLACE", "I-PLACE"}
    assert found.tag([]) == ()
    with pytest.raises(UsageError, match="without words"):
        found.tag([[]])
    encoder = AutoModel.from_pretrained(tmp_path, local_files_only=True, add_pooling_layer=False)
    assert np.array_equal(
        encoder.embeddings.word_embeddings.weight.detach().numpy(),
        trained["encoder.embeddings.word_embeddings.weight"],
    )


def test_a_saved_model_whose_parts_do_not_fit_together_is_refused(opened: Any, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="holds no tagger"):
        open_tagger(tmp_path)
    task = opened()
    task.save(task.arrays(), tmp_path)
    form = json.loads((tmp_path / "tagger.json").read_bytes())
    for changed, error in (
        ({"kinds": ["PLACE", "PERSON"]}, FormatError), ({"crf": False}, FormatError), ({"more": 1}, FormatError),
        ({"format": "cloister/tagger/v2"}, FormatError), ({"length": 65}, UsageError), ({"stride": 0}, UsageError),
    ):  # fmt: skip
        (tmp_path / "tagger.json").write_text(json.dumps(form | changed))
        with pytest.raises(error):
            open_tagger(tmp_path)


@pytest.mark.parametrize("what", ["another name", "one less", "another shape"])
def test_arrays_of_another_model_are_refused_and_change_nothing(what: str, opened: Any) -> None:
    task = opened()
    begin = task.arrays()
    arrays = {name: array + 1 for name, array in begin.items()}
    taken = arrays.pop("linear.bias")
    arrays |= {
        "another name": {"other.bias": taken},
        "one less": {},
        "another shape": {"linear.bias": taken[:2]},
    }[what]
    for use in (lambda: task.train(arrays, number=1, seed=1, step=quiet), lambda: task.score(arrays)):
        with pytest.raises(FederationError):
            use()
    assert same(task.arrays(), begin)


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"epoch": 3}, "no setting 'epoch'"),
        ({"kinds": ()}, "'kinds'"),
        ({"kinds": ("A", "A")}, "'kinds'"),
        ({"kinds": "PLACE"}, "'kinds'"),
        ({"kinds": ("a b",)}, "kinds of entities"),
        ({"train": 1}, "'train'"),
        ({"train": ""}, "'train'"),
        ({"format": "csv"}, "none of conll, jsonl, parquet"),
        ({"epochs": 0}, "'epochs'"),
        ({"epochs": "1"}, "'epochs'"),
        ({"crf": 2}, "'crf'"),
        ({"crf": True}, "'crf'"),
        ({"rate-ppm": 0}, "'rate-ppm'"),
        ({"warmup-ppm": 1_000_000}, "'warmup-ppm'"),
        ({"weight": "tokens"}, "none of sentences, balanced"),
        ({"precision": "int8"}, "none of auto, fp32, bf16"),
        ({"length": 65}, "64 tokens at once"),
        ({"stride": 40}, "windows of 48 tokens"),
    ],
)  # fmt: skip
def test_settings_that_the_task_does_not_know_are_refused_in_one_line(
    changed: dict[str, Any], says: str, opened: Any
) -> None:
    with pytest.raises(UsageError, match=says) as refused:
        opened(changed=changed)
    assert "\n" not in str(refused.value)


def test_a_weight_that_tells_what_the_privacy_of_examples_hides_is_refused(opened: Any) -> None:
    with pytest.raises(UsageError, match="balanced weight tells"):
        opened(privacy=PRIVACY, changed={"weight": "balanced"})


VALUES = st.one_of(
    st.integers(), st.booleans(), st.text(max_size=20), st.lists(st.text(max_size=9), max_size=4).map(tuple)
)


@given(st.dictionaries(st.sampled_from([*SETTINGS, "format", "tag-column", "rounds", "other"]), VALUES))
def test_settings_of_any_form_are_read_or_refused_as_settings(changed: dict[str, Any]) -> None:
    said = ""
    try:
        found = read_settings(SETTINGS | changed)
    except UsageError as refused:
        said = str(refused)
    else:
        assert "other" not in changed
        assert found.train == (SETTINGS | changed)["train"]
    assert len(said) < 500
    assert said.isprintable()


def test_positions_that_roberta_keeps_for_itself_are_not_there_for_tokens() -> None:
    from transformers import RobertaConfig, RobertaModel

    config = RobertaConfig(
        vocab_size=8, hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8,
        max_position_embeddings=66, pad_token_id=1,
    )  # fmt: skip
    model = RobertaModel(config, add_pooling_layer=False)
    check_length(model, 64)
    model(input_ids=torch.full((1, 64), 3))
    with pytest.raises(UsageError, match="64 tokens at once, and not 65"):
        check_length(model, 65)


@pytest.mark.parametrize("lacking", ["kinds", "train"])
def test_what_has_no_default_has_to_be_there(lacking: str, folder: Path) -> None:
    settings = {name: value for name, value in SETTINGS.items() if name != lacking}
    with (
        opening(folder, settings) as found,
        pytest.raises(UsageError, match=f"lacks its setting '{lacking}'"),
    ):
        NerTraining(found)


def test_without_a_held_out_part_there_are_no_scores(folder: Path) -> None:
    settings = {name: value for name, value in SETTINGS.items() if name != "test"}
    with opening(folder, settings, FILES) as found:
        task = NerTraining(found)
        scored = task.score(task.arrays())
    assert (scored.examples, dict(scored.metrics)) == (0, {})


def test_who_has_no_data_opens_and_saves_and_does_not_train(folder: Path, tmp_path: Path) -> None:
    with opening(folder, SETTINGS) as found:
        task = NerTraining(Opening(found.model, SETTINGS))
        task.save(task.arrays(), tmp_path)
        with pytest.raises(UsageError, match="with data by a party alone"):
            task.train(task.arrays(), number=1, seed=1, step=quiet)


def test_data_of_other_kinds_are_refused_without_a_word_of_them(opened: Any) -> None:
    task = opened(files={"train.conll": b"secret\tB-DISEASE\n"})
    with pytest.raises(FormatError) as refused:
        task.train(task.arrays(), number=1, seed=1, step=quiet)
    assert "secret" not in str(refused.value)


@pytest.mark.parametrize("changed", ["pickled", "lacking", "no tokenizer", "code", "gguf"])
def test_a_model_that_cannot_be_trusted_or_learned_from_is_refused(changed: str, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = save_encoder(tmp_path / "model")
    weights = folder / "model.safetensors"
    state = load_file(weights)
    if changed == "pickled":
        weights.unlink()
        torch.save(state, folder / "pytorch_model.bin")
    elif changed == "lacking":
        del state["encoder.layer.0.output.dense.weight"]
        save_file(state, weights, {"format": "pt"})
    elif changed == "no tokenizer":
        (folder / "tokenizer.json").write_text("{}")
    elif changed == "code":
        config = json.loads((folder / "config.json").read_text())
        config |= {"model_type": "mine", "auto_map": {"AutoConfig": "mine.Config", "AutoModel": "mine.Model"}}
        (folder / "config.json").write_text(json.dumps(config))
        (folder / "mine.py").write_text("raise SystemExit('code of the model ran')")
    else:
        folder = tmp_path / "model.gguf"
        folder.write_bytes(b"GGUF")
    with pytest.raises(CloisterError) as refused, opening(folder, SETTINGS) as found:
        NerTraining(found)
    assert "\n" not in str(refused.value)


def test_private_training_without_a_ledger_is_refused(opened: Any) -> None:
    task = opened(privacy=PRIVACY)
    with pytest.raises(UsageError, match="needs a ledger"):
        task.train(task.arrays(), number=1, seed=1, step=quiet)


LOOSE = ExamplePrivacy(noise=0.5, clip=1.0, delta=1e-3, epsilon=1000.0)
SHORT: Settings = {"epochs": 1, "batch": 30}
"""Four steps of a quarter of the sentences."""
HARDLY = ExamplePrivacy(noise=1e-6, clip=1.0, delta=1e-3, epsilon=1e30)
"""As good as no noise."""


@pytest.fixture
def private(opened: Any, tmp_path: Path) -> Iterator[Any]:
    """Opens the task as a party's workload does that was started again."""
    with ExitStack() as stack:
        held: list[Ledger] = []

        def open_it(privacy: ExamplePrivacy = LOOSE, *, folder: Path = tmp_path, **more: Any) -> NerTraining:
            while held:
                held.pop().close()
            ledger = Ledger(
                folder, first="ab" * 32, version="ab" * 32, party="north", privacy=privacy,
                keys=KeyFile(bytes(32)), key_uri="kbs:///north/key/data",
            )  # fmt: skip
            held.append(ledger)
            stack.callback(ledger.close)
            settings = SHORT | more.pop("changed", {})
            task: NerTraining = opened(privacy=privacy, spend=ledger.spend, changed=settings, **more)
            return task

        yield open_it


def test_a_party_learns_privately_and_says_what_it_spent(private: Any) -> None:
    task = private(changed={"epochs": 4, "batch": 24, "rate-ppm": 8000, "head-rate-ppm": 40_000})
    start = task.arrays()
    heard: list[tuple[int, int]] = []
    trained = task.train(start, number=1, seed=7, step=lambda *one: heard.append(one))
    # As many steps as without privacy: 4 epochs of 120 sentences in batches of 24.
    assert heard == [(done, 20) for done in range(1, 21)]
    assert trained.examples == 120
    assert trained.metrics.keys() == {"loss", "examples", "seconds", "epsilon"}
    assert trained.metrics["epsilon"] == spent([Charge(noise=0.5, rate=0.2, steps=20)], delta=1e-3)
    before, after = task.score(start).metrics, task.score(trained.arrays).metrics
    assert after["loss"] < 0.7 * before["loss"]
    assert after["f1"] > before["f1"]


def test_a_round_costs_more_than_the_one_before_and_the_same_round_again_is_the_same_to_the_bit(
    private: Any, tmp_path: Path
) -> None:
    task = private()
    start = task.arrays()
    first = task.train(start, number=1, seed=7, step=quiet)
    second = task.train(first.arrays, number=2, seed=8, step=quiet)
    assert 0 < first.metrics["epsilon"] < second.metrics["epsilon"]
    # The workload was killed after the second round, and is asked for it once more.
    again = private().train(first.arrays, number=2, seed=8, step=quiet)
    assert same(again.arrays, second.arrays)
    assert again.metrics["epsilon"] == second.metrics["epsilon"]
    third = private().train(second.arrays, number=3, seed=9, step=quiet)
    assert third.metrics["epsilon"] > second.metrics["epsilon"]
    other = tmp_path / "other"
    assert not same(private(folder=other).train(start, number=1, seed=7, step=quiet).arrays, first.arrays)


def asked_otherwise(what: str, private: Any, start: dict[str, Any]) -> Trained:
    number, seed, arrays, more = 1, 7, dict(start), {}
    if what == "another round":
        number = 2
    elif what == "another run":
        seed = 8
    elif what == "another model":
        arrays["linear.bias"] = arrays["linear.bias"] + np.float32(1e-3)
    else:
        lines = FILES["train.conll"].split(b"\n")
        at = next(place for place, line in enumerate(lines) if line == b"york\tB-PLACE")
        lines[at] = b"rome\tB-PLACE"
        more = {"files": FILES | {"train.conll": b"\n".join(lines)}}
    found: Trained = private(**more).train(arrays, number=number, seed=seed, step=quiet)
    return found


@pytest.mark.parametrize(
    "what", ["another round", "another run", "another model", "another word of the data"]
)
def test_whatever_else_is_asked_has_noise_of_its_own_and_is_paid_for(what: str, private: Any) -> None:
    task = private()
    start = task.arrays()
    first = task.train(start, number=1, seed=7, step=quiet)
    other = asked_otherwise(what, private, start)
    assert other.metrics["epsilon"] > first.metrics["epsilon"]
    # Noise that was the same would leave what they differ in: one word of 120 sentences, under noise of half the clip.
    moved = {name: array - start[name] for name, array in first.arrays.items()}
    again = {name: array - start[name] for name, array in other.arrays.items()}
    assert distance(moved, again) > 0.5 * distance(first.arrays, start)


def test_a_sentence_in_several_pieces_is_one_example(private: Any) -> None:
    """One of 90 words is in several windows of 48 tokens."""
    long = b"\n".join(b"york\tB-PLACE" if place % 2 else b"so\tO" for place in range(90)) + b"\n"
    task = private(
        HARDLY,
        files={"train.conll": long + b"\n" + long, "test.conll": long},
        changed={"batch": 1},
    )
    assert [len(parts) > 1 for parts in task._sentences] == [True, True]
    trained = task.train(task.arrays(), number=1, seed=1, step=quiet)
    assert trained.examples == 2
    assert trained.metrics["epsilon"] == spent([Charge(noise=1e-6, rate=0.5, steps=2)], delta=1e-3)


def test_a_round_beyond_the_budget_is_refused_and_nothing_is_learned(private: Any, tmp_path: Path) -> None:
    each = Charge(noise=0.5, rate=0.25, steps=4)
    budget = spent([each, each], delta=1e-3)
    task = private(ExamplePrivacy(noise=0.5, clip=1.0, delta=1e-3, epsilon=budget))
    arrays, heard = task.arrays(), []
    for number in (1, 2):
        trained = task.train(arrays, number=number, seed=number, step=quiet)
        arrays = trained.arrays
    assert trained.metrics["epsilon"] == budget
    kept = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    with pytest.raises(FederationError, match="the privacy budget is spent"):
        task.train(arrays, number=3, seed=3, step=lambda *one: heard.append(one))
    assert heard == []
    assert same(task.arrays(), arrays)
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == kept


def test_private_rates_fall_over_all_rounds_and_a_round_that_is_not_planned_costs_nothing(
    private: Any,
) -> None:
    task = private(HARDLY, changed={"rounds": 3})
    start = task.arrays()
    far = [
        distance(task.train(start, number=number, seed=1, step=quiet).arrays, start) for number in (1, 2, 3)
    ]
    assert far[0] > far[1] > far[2] > 0
    paid = task.train(start, number=3, seed=1, step=quiet).metrics["epsilon"]
    with pytest.raises(UsageError, match="no round 4 of 3"):
        task.train(start, number=4, seed=1, step=quiet)
    assert task.train(start, number=3, seed=1, step=quiet).metrics["epsilon"] == paid


def test_the_proximal_term_holds_private_training_too(private: Any) -> None:
    start = private(HARDLY).arrays()
    far = [
        distance(private(HARDLY, proximal=strength).train(start, number=1, seed=1, step=quiet).arrays, start)
        for strength in (0.0, 100.0)
    ]
    assert far[0] > far[1] > 0


def test_it_is_found_by_its_name() -> None:
    assert find_task("ner") is NerTraining
