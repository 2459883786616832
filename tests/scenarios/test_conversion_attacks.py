"""A model's folder from somebody who means harm, or one that was damaged: refused in one line, and nothing is left."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloister.errors import CloisterError, FormatError, InferenceError, UsageError
from cloister.inference.conversion.configuration import read_shape
from cloister.inference.conversion.gguf import convert
from cloister.inference.conversion.piece_model import read_piece_model
from cloister.inference.model_files import ModelFiles
from llama_models import write_llama

Change = Callable[[Path], None]


@pytest.fixture(scope="module")
def honest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_llama(tmp_path_factory.mktemp("honest") / "model")


@pytest.fixture
def folder(honest: Path, tmp_path: Path) -> Path:
    target = tmp_path / "model"
    target.mkdir()
    for file in honest.iterdir():
        (target / file.name).write_bytes(file.read_bytes())
    return target


def refused(folder: Path, words: str, *kinds: type[CloisterError], quantisation: str = "q4_0") -> None:
    out = folder.parent / "out"
    out.mkdir()
    with (
        ModelFiles.of_path(folder) as model,
        pytest.raises(kinds or (FormatError, InferenceError), match=words) as caught,
    ):
        convert(model, out / "a.gguf", quantisation=quantisation)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 600
    assert list(out.iterdir()) == []


def configuration(**changes: Any) -> Change:
    def change(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text()) | changes
        (folder / "config.json").write_text(
            json.dumps({key: value for key, value in config.items() if value != "gone"})
        )

    return change


def table(edit: Callable[[dict[str, Any]], object], *, keep: bool = False) -> Change:
    """Edit the safetensors table; ``keep`` the tensors' bytes as they are."""

    def change(folder: Path) -> None:
        file = folder / "model.safetensors"
        data = file.read_bytes()
        length = int.from_bytes(data[:8], "little")
        found = json.loads(data[8 : 8 + length])
        edit(found)
        head = json.dumps(found).encode()
        file.write_bytes(len(head).to_bytes(8, "little") + head + data[8 + length :])

    return change


def tokenizer(edit: Callable[[dict[str, Any]], object]) -> Change:
    def change(folder: Path) -> None:
        found = json.loads((folder / "tokenizer.json").read_text())
        edit(found)
        (folder / "tokenizer.json").write_text(json.dumps(found))

    return change


def raw(name: str, data: bytes) -> Change:
    return lambda folder: (folder / name).write_bytes(data) and None


def cut(name: str, keep: float) -> Change:
    def change(folder: Path) -> None:
        data = (folder / name).read_bytes()
        (folder / name).write_bytes(data[: int(len(data) * keep)])

    return change


def weight(value: float) -> Change:
    def change(folder: Path) -> None:
        file = folder / "model.safetensors"
        data = bytearray(file.read_bytes())
        data[-4:] = np.array([value], "<f4").tobytes()
        file.write_bytes(data)

    return change


def renamed(found: dict[str, Any]) -> None:
    found["model.layers.0.mlp.down_proj.weights"] = found.pop("model.layers.0.mlp.down_proj.weight")


def swapped(found: dict[str, Any]) -> None:
    entry = found["model.layers.0.mlp.down_proj.weight"]
    entry["shape"] = entry["shape"][::-1]


def shifted(found: dict[str, Any]) -> None:
    entry = found["model.layers.0.mlp.down_proj.weight"]
    entry["data_offsets"] = [place - 4 for place in entry["data_offsets"]]


def of_type(kind: str) -> Callable[[dict[str, Any]], None]:
    def edit(found: dict[str, Any]) -> None:
        found["model.norm.weight"]["dtype"] = kind

    return edit


def second_copy(folder: Path) -> None:
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").unlink()
    for name in ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"):
        (folder / name).write_bytes(data)


def lying_index(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "one.safetensors")
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"weight_map": {"model.norm.weight": "one.safetensors"}})
    )


def index_out_of_the_folder(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "one.safetensors")
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"weight_map": {"model.norm.weight": "../../etc/passwd"}})
    )


def number_twice(found: dict[str, Any]) -> None:
    found["model"]["vocab"]["once"] = 300


def huge_number(found: dict[str, Any]) -> None:
    found["model"]["vocab"]["once"] = 1 << 40


def beyond_embeddings(found: dict[str, Any]) -> None:
    found["model"]["vocab"]["once"] = 512


def no_bytes(found: dict[str, Any]) -> None:
    for byte in range(256):
        found["model"]["vocab"].pop(f"<0x{byte:02X}>", None)


ATTACKS = [
    pytest.param(raw("config.json", b"["), "not JSON", id="a configuration that is no JSON"),
    pytest.param(raw("config.json", b"[" * 100000), "nested deeper", id="a configuration nested without end"),
    pytest.param(raw("config.json", b'{"model_type": "llama", "model_type": "qwen2"}'), "twice", id="a field twice"),
    pytest.param(configuration(model_type="mixtral"), "mixtral cannot be converted", id="a kind we do not know"),
    pytest.param(configuration(model_type="\x1b[2J" * 40), "cannot be converted", id="a kind that steers a terminal"),
    pytest.param(configuration(hidden_act="gelu"), "not SiLU", id="another activation"),
    pytest.param(configuration(num_hidden_layers=10**9), "num_hidden_layers from", id="a billion layers"),
    pytest.param(configuration(num_hidden_layers=-1), "num_hidden_layers from", id="less than no layers"),
    pytest.param(configuration(num_hidden_layers=True), "num_hidden_layers from", id="a truth for a number"),
    pytest.param(configuration(num_hidden_layers=6), "lacks the tensor", id="more layers than there are"),
    pytest.param(configuration(num_hidden_layers=4), "tensors that a llama has not", id="fewer layers than there are"),
    pytest.param(configuration(vocab_size=10**12), "vocab_size from", id="an absurd vocabulary"),
    pytest.param(configuration(vocab_size=2**21), "must be", id="a vocabulary without embeddings"),
    pytest.param(configuration(hidden_size=2**40), "hidden_size from", id="an absurd width"),
    pytest.param(configuration(num_attention_heads=0), "num_attention_heads from", id="no heads"),
    pytest.param(configuration(num_key_value_heads=3), "cannot share", id="heads that cannot share"),
    pytest.param(configuration(head_dim=7), "even count", id="an odd head"),
    pytest.param(configuration(head_dim=16), "must be", id="heads that do not fit the tensors"),
    pytest.param(configuration(rms_norm_eps=0), "rms_norm_eps from", id="a norm that divides by zero"),
    pytest.param(configuration(rope_theta=-1), "rope_theta from", id="a negative angle"),
    pytest.param(configuration(rope_scaling={"rope_type": "dynamic", "factor": 2}), "by dynamic", id="another stretch"),
    pytest.param(configuration(rope_scaling={"rope_type": "linear", "factor": 0}), "factor from", id="a stretch to nothing"),
    pytest.param(configuration(rope_scaling=[1]), "no object", id="a stretch that is a list"),
    pytest.param(configuration(quantization_config={"quant_method": "gptq"}), "quantised already", id="quantised weights"),
    pytest.param(table(renamed), "lacks the tensor", id="a tensor under another name"),
    pytest.param(table(swapped), "must be", id="a tensor with its sides swapped"),
    pytest.param(table(shifted), "overlap", id="tensors that overlap"),
    pytest.param(table(of_type("I64")), "form it should", id="a tensor of integers"),
    pytest.param(table(of_type("BF16")), "do not fit their shapes", id="a tensor of half the bytes"),
    pytest.param(cut("model.safetensors", 0.5), "overlap|longer|fit", id="weights cut in half"),
    pytest.param(cut("model.safetensors", 0.0), "too short", id="an empty file of weights"),
    pytest.param(raw("model.safetensors", b"\xff" * 64), "over its bound", id="a table of 2^64 bytes"),
    pytest.param(second_copy, "two files have the tensor", id="a tensor in two files"),
    pytest.param(lying_index, "index has elsewhere", id="an index that names fewer tensors"),
    pytest.param(index_out_of_the_folder, "not there", id="an index that leads out of the folder"),
    pytest.param(weight(float("nan")), "no finite numbers", id="a weight that is no number"),
    pytest.param(weight(float("inf")), "no finite numbers", id="an infinite weight"),
    pytest.param(tokenizer(number_twice), "number of its own", id="two tokens of one number"),
    pytest.param(tokenizer(huge_number), "number of its own", id="a token of an absurd number"),
    pytest.param(tokenizer(beyond_embeddings), "embeddings for 512 only", id="a token without an embedding"),
    pytest.param(tokenizer(no_bytes), "to fall back to", id="a vocabulary without its bytes"),
    pytest.param(
        tokenizer(lambda found: found.update(normalizer={"type": "Lowercase"})), "changes text",
        id="a tokenizer that changes text",
    ),
    pytest.param(
        tokenizer(lambda found: found["model"].update(type="Unigram")), "kind Unigram", id="a tokenizer of another kind"
    ),
    pytest.param(
        tokenizer(lambda found: found["model"].update(merges=["a b c"])), "merge that is not", id="a merge of three"
    ),
    pytest.param(
        tokenizer(lambda found: found["model"].update(byte_fallback=False)), "does not know|does not",
        id="a rule to split by that nobody knows",
    ),
    pytest.param(tokenizer(lambda found: found.update(model=[])), "no model", id="a tokenizer without a model"),
    pytest.param(lambda folder: (folder / "tokenizer.json").unlink(), "neither", id="no tokenizer"),
    pytest.param(raw("chat_template.jinja", b"\xff\xfe"), "not UTF-8", id="a chat template that is no text"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "words"), ATTACKS)
def test_an_attack_is_refused_in_one_line_and_leaves_no_file(
    folder: Path, change: Change, words: str
) -> None:
    change(folder)
    refused(folder, words)


def test_weights_beyond_16_bits_are_refused_for_f16_and_converted_to_bf16(folder: Path) -> None:
    file = folder / "model.safetensors"
    data = bytearray(file.read_bytes())
    head = int.from_bytes(data[:8], "little")
    place = json.loads(data[8 : 8 + head])["model.layers.0.mlp.up_proj.weight"]["data_offsets"][0] + 8 + head
    data[place : place + 4] = np.array([1e9], "<f4").tobytes()
    file.write_bytes(data)
    refused(folder, "too large for 16-bit floats", quantisation="f16")
    with ModelFiles.of_path(folder) as model:
        assert convert(model, folder.parent / "a.gguf", quantisation="bf16").types["BF16"] == 36


def test_a_file_that_is_cut_while_it_is_read_gives_an_error_and_no_signal(folder: Path) -> None:
    def shorten(done: int, total: int) -> None:
        os.truncate(folder / "model.safetensors", 20000)

    with ModelFiles.of_path(folder) as model, pytest.raises(FormatError, match="ends too early"):
        convert(model, folder.parent / "a.gguf", quantisation="f16", threads=1, progress=shorten)
    assert not (folder.parent / "a.gguf").exists()


def test_a_link_in_place_of_the_target_is_replaced_and_not_followed(folder: Path) -> None:
    victim = folder.parent / "victim"
    victim.write_text("mine")
    (folder.parent / "a.gguf").symlink_to(victim)
    with ModelFiles.of_path(folder) as model:
        convert(model, folder.parent / "a.gguf", quantisation="f16")
    assert victim.read_text() == "mine"
    assert not (folder.parent / "a.gguf").is_symlink()


def test_a_model_of_another_kind_is_refused(folder: Path) -> None:
    with ModelFiles.of_path(folder) as model:
        convert(model, folder.parent / "a.gguf", quantisation="f16")
    with (
        ModelFiles.of_path(folder.parent / "a.gguf") as model,
        pytest.raises(UsageError, match="not converted"),
    ):
        convert(model, folder.parent / "b.gguf", quantisation="f16")


@given(st.binary(max_size=400))
def test_no_bytes_as_a_sentencepiece_file_raise_anything_but_our_own_errors(data: bytes) -> None:
    with pytest.raises(CloisterError):
        read_piece_model(data, {}, _SHAPE)


@given(st.dictionaries(st.sampled_from(["hidden_size", "head_dim", "rope_scaling", "vocab_size", "rms_norm_eps",
    "num_attention_heads", "max_position_embeddings", "tie_word_embeddings", "sliding_window"]),
    st.one_of(st.none(), st.integers(-(2**53), 2**53), st.floats(allow_nan=False, allow_infinity=False), st.text(max_size=5),
    st.dictionaries(st.sampled_from(["rope_type", "factor", "type"]), st.text(max_size=6)))))  # fmt: skip
def test_no_configuration_raises_anything_but_our_own_errors(changes: dict[str, Any]) -> None:
    config = _CONFIG | changes
    try:
        shape = read_shape(json.dumps(config).encode())
    except CloisterError:
        return
    assert 1 <= shape.width <= 1 << 17
    assert 1 <= shape.vocabulary <= 1 << 21


_CONFIG = {
    "model_type": "mistral", "hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 1,
    "num_attention_heads": 2, "vocab_size": 10, "max_position_embeddings": 512,
}  # fmt: skip
_SHAPE = read_shape(json.dumps(_CONFIG).encode())
