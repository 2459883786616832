"""Low-bit models on a disk: loaded as they were saved, made tensor by tensor from full precision, refused when damaged."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from cloister.errors import CloisterError, FormatError, UsageError
from cloister.inference import (
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    optimize,
    save_low_bit,
)
from cloister.inference.lowbit.storage import NAME, REST, WEIGHTS, read_low_bit
from lowbit_models import bert, cosine, gpt2, llama, logits, saved, t5

KINDS = {
    "llama": (llama, AutoModelForCausalLM),
    "llama, tied": (lambda: llama(tie_word_embeddings=True), AutoModelForCausalLM),
    "gpt2": (gpt2, AutoModelForCausalLM),
    "bert": (bert, AutoModelForSequenceClassification),
    "t5": (t5, AutoModelForSeq2SeqLM),
}


@pytest.mark.parametrize("precision", ["int8", "int4"])
@pytest.mark.parametrize("kind", sorted(KINDS))
def test_loading_in_few_bits_gives_what_optimising_the_loaded_model_gives(
    kind: str, precision: Any, tmp_path: Path
) -> None:
    make, auto = KINDS[kind]
    folder = saved(make(), tmp_path / "model")
    model = auto.from_pretrained(folder, load_in_low_bit=precision)
    assert model.cloister_report.precision == precision
    expected = logits(optimize(make(), precision=precision))
    assert cosine(logits(model), expected) > 0.9999


@pytest.mark.parametrize("precision", ["int8", "int4"])
@pytest.mark.parametrize("kind", sorted(KINDS))
def test_what_was_saved_in_few_bits_is_loaded_bit_for_bit(kind: str, precision: Any, tmp_path: Path) -> None:
    make, auto = KINDS[kind]
    model = optimize(make(), precision=precision)
    folder = save_low_bit(model, tmp_path / "low-bit")
    assert torch.equal(logits(auto.from_pretrained(folder)), logits(model))


def test_int4_takes_a_sixth_of_the_place_of_float32(tmp_path: Path) -> None:
    folder = saved(llama(), tmp_path / "model")
    low = save_low_bit(optimize(llama(), precision="int4"), tmp_path / "low")
    layers = (folder / "model.safetensors").stat().st_size - (low / REST).stat().st_size
    assert (low / WEIGHTS).stat().st_size < layers / 6


def test_other_precisions_load_as_well(tmp_path: Path) -> None:
    folder = saved(llama(), tmp_path / "model")
    assert AutoModelForCausalLM.from_pretrained(folder, load_in_low_bit="bf16").dtype == torch.bfloat16
    assert AutoModelForCausalLM.from_pretrained(folder).cloister_report.precision == "int8"


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        pytest.param({"load_in_low_bit": "int3"}, "no precision", id="an unknown precision"),
        pytest.param({"trust_remote_code": True}, "code that lies beside", id="code of the model"),
        pytest.param({"device_map": "cuda"}, "on the CPU", id="another device"),
        pytest.param({"quantization_config": object()}, "quantised here", id="another quantisation"),
    ],
)
def test_settings_that_are_not_for_low_bit_are_refused(
    settings: dict[str, Any], words: str, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=words):
        AutoModelForCausalLM.from_pretrained(saved(llama(), tmp_path / "model"), **settings)


def test_a_name_of_the_hub_is_refused() -> None:
    with pytest.raises(UsageError, match="is no folder"):
        AutoModelForCausalLM.from_pretrained("somebody/some-model")


def test_pickled_weights_are_refused(tmp_path: Path) -> None:
    folder = saved(llama(), tmp_path / "model")
    (folder / "model.safetensors").unlink()
    torch.save({}, folder / "pytorch_model.bin")
    with pytest.raises(OSError, match="safetensors"):
        AutoModelForCausalLM.from_pretrained(folder)


def test_a_model_in_full_precision_is_not_saved_as_low_bit(tmp_path: Path) -> None:
    for model in (llama(), optimize(llama(), precision="bf16")):
        with pytest.raises(UsageError, match="not optimised to int8 or int4"):
            save_low_bit(model, tmp_path / "low")


def test_nothing_is_saved_over_what_is_there(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is there already"):
        save_low_bit(optimize(llama(), precision="int8"), tmp_path)


def _table(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        table = json.loads((folder / NAME).read_text())
        change(table)
        (folder / NAME).write_text(json.dumps(table))

    return edit


def _tensors(change: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        tensors = {name: one.clone() for name, one in load_file(folder / WEIGHTS).items()}
        change(tensors)
        save_file(tensors, folder / WEIGHTS)

    return edit


HEAD = "lm_head.int8"
UP = "model.layers.0.mlp.up_proj.int4"
ATTACKS = [
    pytest.param(_table(lambda t: t.update(extra=1)), id="an unknown field"),
    pytest.param(_table(lambda t: t.update(format="cloister/low-bit/v2")), id="another format"),
    pytest.param(_table(lambda t: t["layers"].append(t["layers"][0])), id="a layer named twice"),
    pytest.param(_table(lambda t: t["layers"].clear()), id="no layers"),
    pytest.param(_table(lambda t: t["layers"][0].update(outputs=1 << 30)), id="a layer too large"),
    pytest.param(_table(lambda t: t["layers"][0].update(group=16)), id="another group size"),
    pytest.param(_table(lambda t: t["layers"][0].update(group=0, int8=False)), id="a layer without weights"),
    pytest.param(_table(lambda t: t["layers"][0].update(name="x" * 300)), id="a name too long"),
    pytest.param(_table(lambda t: t["layers"].pop()), id="a tensor that no layer names"),
    pytest.param(_tensors(lambda t: t.pop(f"{HEAD}.scales")), id="a tensor missing"),
    pytest.param(
        _tensors(lambda t: t.update({f"{HEAD}.scales": t[f"{HEAD}.scales"].half()})), id="another type"
    ),
    pytest.param(
        _tensors(lambda t: t.update({f"{HEAD}.scales": t[f"{HEAD}.scales"][:-1]})), id="another shape"
    ),
    pytest.param(_tensors(lambda t: t[f"{HEAD}.values"].fill_(-128)), id="an integer out of range"),
    pytest.param(_tensors(lambda t: t[f"{UP}.offsets"].fill_(float("inf"))), id="an infinite offset"),
    pytest.param(_tensors(lambda t: t[f"{HEAD}.scales"].fill_(float("nan"))), id="a scale that is no number"),
]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_low_bit(optimize(llama(), precision="int4"), tmp_path_factory.mktemp("whole") / "low")


@pytest.mark.parametrize("attack", ATTACKS)
def test_a_damaged_low_bit_model_is_refused(
    attack: Callable[[Path], None], whole: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(whole, tmp_path / "low")
    attack(folder)
    with pytest.raises(FormatError):
        AutoModelForCausalLM.from_pretrained(folder)


def test_a_layer_that_the_model_lacks_is_refused(tmp_path: Path) -> None:
    folder = save_low_bit(optimize(llama(num_hidden_layers=2), precision="int8"), tmp_path / "low")
    config = json.loads((folder / "config.json").read_text())
    config["num_hidden_layers"] = 1
    config.pop("layer_types", None)
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(CloisterError, match="the model lacks"):
        AutoModelForCausalLM.from_pretrained(folder)


def test_a_table_that_is_no_json_is_refused() -> None:
    with pytest.raises(FormatError):
        read_low_bit(b"{")
