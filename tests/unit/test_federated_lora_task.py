"""The task ``causal-lm-lora``: what is learned, that adapters alone travel, what is refused, and the adapter at the end."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cloister.errors import FederationError, FormatError, UsageError
from cloister.federated.tasks import Settings, find_task
from cloister.federated.training.lora import LoraTraining
from cloister.inference.lora import parse_adapter
from task_parts import PRIVACY, distance, jsonl, opening, same, save_decoder, texts

SETTINGS: Settings = {
    "train": "train.jsonl", "test": "test.jsonl", "rank": 2, "alpha": 8, "targets": ("q_proj", "v_proj", "down_proj"),
    "length": 16, "epochs": 2, "batch": 8, "rate-ppm": 30_000, "precision": "fp32",
}  # fmt: skip
SAYING = "he went to the old city of rome . so good"
FILES = {
    "train.jsonl": jsonl([{"text": SAYING}] * 40),
    "test.jsonl": jsonl([{"text": SAYING}] * 3 + [{"text": text} for text in texts(3, 1)]),
}
TENSORS = {
    f"base_model.model.model.layers.{layer}.{module}.lora_{half}.weight"
    for layer in (0, 1)
    for module in ("self_attn.q_proj", "self_attn.v_proj", "mlp.down_proj")
    for half in "AB"
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_decoder(tmp_path_factory.mktemp("model") / "decoder")


@pytest.fixture
def opened(folder: Path) -> Iterator[Any]:
    with ExitStack() as stack:
        yield lambda files=FILES, changed=None, **more: LoraTraining(
            stack.enter_context(opening(folder, SETTINGS | (changed or {}), files, **more))
        )


def quiet(done: int, steps: int) -> None:
    pass


def test_a_party_learns_from_its_file_and_its_held_out_part_says_so(opened: Any) -> None:
    task = opened(files=FILES | {"test.jsonl": jsonl([{"text": SAYING}])}, changed={"epochs": 6})
    start = task.arrays()
    heard: list[tuple[int, int]] = []
    trained = task.train(start, number=1, seed=7, step=lambda *one: heard.append(one))
    assert heard == [(done, 30) for done in range(1, 31)]
    assert trained.examples == trained.metrics["examples"] == 40
    assert trained.metrics.keys() == {"loss", "examples", "seconds"}
    before, after = task.score(start), task.score(trained.arrays)
    assert before.examples == after.examples == 1
    assert before.metrics.keys() == after.metrics.keys() == {"loss"}
    # What knows nothing is about as far off as all words are many.
    assert before.metrics["loss"] == pytest.approx(np.log(18), abs=0.3)
    assert after.metrics["loss"] < before.metrics["loss"] - 0.4


def test_adapters_alone_travel_and_the_model_stays_as_it_is(opened: Any, folder: Path) -> None:
    from safetensors.torch import load_file

    task = opened()
    begin = task.arrays()
    assert begin.keys() == TENSORS
    assert {array.dtype for array in begin.values()} == {np.dtype(np.float32)}
    after = task.train(begin, number=1, seed=1, step=quiet).arrays
    assert not any(np.array_equal(begin[name], after[name]) for name in TENSORS)
    base = {
        name.replace(".base_layer", ""): one
        for name, one in task._model.base_model.model.state_dict().items()
    }
    stored = load_file(folder / "model.safetensors")
    assert all(torch.equal(base[name], one) for name, one in stored.items())


def test_what_travels_is_the_same_for_every_party_of_one_seed_and_begins_as_the_model(opened: Any) -> None:
    begin, other = opened().arrays(), opened(seed=1).arrays()
    assert same(begin, opened(files={}).arrays())
    assert {name for name in begin if not np.array_equal(begin[name], other[name])} == {
        name for name in TENSORS if "lora_A" in name
    }
    assert not any(begin[name].any() for name in TENSORS if "lora_B" in name)


def test_the_same_arrays_data_and_seed_give_the_same_update_whatever_was_trained_before(opened: Any) -> None:
    task = opened(files=FILES | {"train.jsonl": jsonl([{"text": text} for text in texts(40, 2)])})
    start = task.arrays()
    first = task.train(start, number=1, seed=7, step=quiet)
    other = task.train(start, number=1, seed=8, step=quiet)
    assert same(first.arrays, task.train(start, number=1, seed=7, step=quiet).arrays)
    assert not same(first.arrays, other.arrays)


def test_the_proximal_term_keeps_an_update_near_the_rounds_model(opened: Any) -> None:
    start = opened().arrays()
    far = [
        distance(opened(proximal=strength).train(start, number=1, seed=1, step=quiet).arrays, start)
        for strength in (0.0, 100.0)
    ]
    assert far[0] > far[1] > 0


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
def test_the_saved_adapter_is_read_by_peft_and_by_who_serves_it(
    opened: Any, folder: Path, tmp_path: Path
) -> None:
    from peft import PeftModel

    from cloister.inference.pretrained import open_decoder

    task = opened()
    trained = task.train(task.arrays(), number=1, seed=3, step=quiet).arrays
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
        opened(files={}).save(trained, tmp_path / name)
    config, weights = (
        (tmp_path / "one" / name).read_bytes()
        for name in ("adapter_config.json", "adapter_model.safetensors")
    )
    assert {file.name: file.read_bytes() for file in (tmp_path / "other").iterdir()} == {
        "adapter_config.json": config, "adapter_model.safetensors": weights,
    }  # fmt: skip
    assert b"cloister-" not in config
    adapter = parse_adapter(config, memoryview(weights))
    assert (adapter.rank, adapter.scale) == (2, 4.0)
    assert adapter.pairs.keys() == {
        (layer, name) for layer in (0, 1) for name in ("q_proj", "v_proj", "down_proj")
    }
    tokens = torch.tensor([[1, 5, 7, 9, 3]])
    model = PeftModel.from_pretrained(open_decoder(folder), tmp_path / "one").eval()
    with torch.no_grad():
        assert torch.equal(model(tokens).logits, task._model.eval()(tokens).logits)
        assert not torch.equal(model(tokens).logits, open_decoder(folder).eval()(tokens).logits)


def test_the_loss_is_of_every_token_that_follows_one_and_padding_counts_for_nothing(opened: Any) -> None:
    alone = [opened(files={"test.jsonl": jsonl([{"text": text}])}) for text in (SAYING, "so good", "rome")]
    together = opened(files={"test.jsonl": jsonl([{"text": text} for text in (SAYING, "so good", "rome")])})
    losses = [task.score(task.arrays()).metrics["loss"] for task in alone]
    # The end of each text is said, too.
    weights = [11, 2, 1]
    expected = sum(loss * weight for loss, weight in zip(losses, weights, strict=True)) / sum(weights)
    assert together.score(together.arrays()).metrics["loss"] == pytest.approx(expected, rel=1e-4)


def test_a_long_text_is_learned_from_in_parts(opened: Any) -> None:
    task = opened(files={"train.jsonl": jsonl([{"text": " ".join(["rome"] * 40)}])})
    assert task.train(task.arrays(), number=1, seed=1, step=quiet).examples == 3


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"dropout": 1}, "no setting 'dropout'"),
        ({"head-rate-ppm": 1}, "no setting 'head-rate-ppm'"),
        ({"rank": 0}, "'rank'"),
        ({"rank": 1025}, "'rank'"),
        ({"alpha": 0}, "'alpha'"),
        ({"targets": ()}, "'targets'"),
        ({"targets": ("q_proj", "c_attn")}, "no linear layers called 'c_attn'"),
        ({"targets": ("lm_head",)}, "no linear layers called 'lm_head'"),
        ({"targets": ("embed_tokens",)}, "no linear layers called 'embed_tokens'"),
        ({"targets": (".*",)}, "no linear layers"),
        ({"length": 65}, "64 tokens at once"),
    ],
)  # fmt: skip
def test_settings_that_the_task_does_not_know_are_refused_in_one_line(
    changed: dict[str, Any], says: str, opened: Any
) -> None:
    with pytest.raises(UsageError, match=says) as refused:
        opened(changed=changed)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    "line", [b'{"text": ""}\n', b'{"text": "secret", "label": "x"}\n', b'["secret"]\n', b"secret\n", b""]
)  # fmt: skip
def test_lines_of_another_form_are_refused_without_a_word_of_them(line: bytes, opened: Any) -> None:
    task = opened(files={"train.jsonl": line})
    with pytest.raises(FormatError) as refused:
        task.train(task.arrays(), number=1, seed=1, step=quiet)
    assert "secret" not in str(refused.value)


@pytest.mark.parametrize("what", ["of another rank", "a weight of the model"])
def test_arrays_that_are_no_adapter_of_this_model_are_refused_and_change_nothing(
    what: str, opened: Any
) -> None:
    task = opened()
    begin = task.arrays()
    arrays = {name: array + 1 for name, array in begin.items()}
    if what == "of another rank":
        arrays = {name: np.repeat(array, 2, axis=int("lora_B" in name)) for name, array in arrays.items()}
    else:
        arrays["base_model.model.lm_head.weight"] = np.zeros((18, 32), np.float32)
    with pytest.raises(FederationError):
        task.train(arrays, number=1, seed=1, step=quiet)
    assert same(task.arrays(), begin)


def test_without_a_held_out_part_there_are_no_scores(folder: Path) -> None:
    with opening(folder, {name: value for name, value in SETTINGS.items() if name != "test"}) as found:
        task = LoraTraining(found)
        scored = task.score(task.arrays())
    assert (scored.examples, dict(scored.metrics)) == (0, {})


def test_the_privacy_of_examples_is_not_promised_where_it_is_not_kept(opened: Any) -> None:
    with pytest.raises(UsageError, match="single examples"):
        opened(privacy=PRIVACY)


def test_it_is_found_by_its_name() -> None:
    assert find_task("causal-lm-lora") is LoraTraining
