"""Models with random weights: the files are what they say they are, and engines can load them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import gguf
import numpy as np
import pytest
from benchmarks import local_tokenizer
from benchmarks.random_models import CYCLE, SHAPES, Shape, shapes_of, write_gguf, write_hugging_face

TINY = Shape("llama", layers=2, hidden=64, heads=4, kv_heads=2, feed_forward=96, vocabulary=1100, context=128)


@pytest.fixture(autouse=True)
def _few_texts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Training on all of the project's text takes seconds, and a vocabulary of a thousand needs a page of it."""
    page = (Path(__file__).resolve().parents[2] / "docs" / "spec" / "sealed-file.md").read_text("utf-8")
    monkeypatch.setattr(local_tokenizer, "_texts", lambda: iter([page]))


@pytest.mark.parametrize("architecture", ["llama", "chatglm"])
def test_a_gguf_has_every_tensor_in_its_shape(tmp_path: Path, architecture: str) -> None:
    shape = replace(TINY, architecture=architecture)  # type: ignore[arg-type]
    write_gguf(shape, tmp_path / "tiny.gguf")
    reader = gguf.GGUFReader(tmp_path / "tiny.gguf")
    found = {one.name: tuple(reversed(one.shape.tolist())) for one in reader.tensors}
    assert found == {name: size for name, size, _ in shapes_of(shape)}
    assert reader.get_field("general.architecture").contents() == architecture  # type: ignore[union-attr]


def test_a_word_of_the_cycle_points_at_the_next(tmp_path: Path) -> None:
    write_gguf(TINY, tmp_path / "tiny.gguf")
    tensors = {one.name: one for one in gguf.GGUFReader(tmp_path / "tiny.gguf").tensors}
    embedding, output = (
        gguf.quants.dequantize(tensors[name].data, gguf.GGMLQuantizationType.Q4_0)
        for name in ("token_embd.weight", "output.weight")
    )
    likeliest = (embedding[list(CYCLE)] @ output.T).argmax(axis=1)
    assert likeliest.tolist() == [*CYCLE[1:], CYCLE[0]]


def test_quantised_weights_have_the_deviation_that_was_asked_for_and_no_bias(tmp_path: Path) -> None:
    write_gguf(replace(TINY, hidden=256, feed_forward=512), tmp_path / "tiny.gguf")
    found = next(
        one for one in gguf.GGUFReader(tmp_path / "tiny.gguf").tensors if one.name == "blk.0.ffn_up.weight"
    )
    values = gguf.quants.dequantize(found.data, gguf.GGMLQuantizationType.Q4_0)
    assert float(np.std(values)) == pytest.approx(1 / 16, rel=0.03)
    assert abs(float(np.mean(values))) < 0.001


def test_a_hugging_face_folder_is_read_by_its_own_library(tmp_path: Path) -> None:
    from safetensors.numpy import load_file

    write_hugging_face(TINY, tmp_path / "tiny")
    assert json.loads((tmp_path / "tiny" / "config.json").read_text())["num_hidden_layers"] == 2
    assert (tmp_path / "tiny" / "tokenizer.json").stat().st_size > 0
    with pytest.raises((TypeError, AttributeError, KeyError)):
        load_file(tmp_path / "tiny" / "model.safetensors")  # numpy has no bfloat16, and the library says so
    header = (tmp_path / "tiny" / "model.safetensors").read_bytes()
    table = json.loads(header[8 : 8 + int.from_bytes(header[:8], "little")])
    assert table["model.layers.1.self_attn.k_proj.weight"]["shape"] == [32, 64]
    ends = [one["data_offsets"][1] for name, one in table.items() if name != "__metadata__"]
    assert len(header) == 8 + int.from_bytes(header[:8], "little") + max(ends)


def test_only_llama_shapes_are_written_for_transformers(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="LLaMA"):
        write_hugging_face(SHAPES["chatglm-6b"], tmp_path / "x")


def test_the_shapes_are_those_of_the_models_they_are_named_after() -> None:
    def parameters(name: str) -> float:
        sizes = (size for _, size, _ in shapes_of(SHAPES[name]))
        return sum(int(np.prod(size)) for size in sizes) / 1e9

    assert parameters("llama-1b") == pytest.approx(1.10, abs=0.01)
    assert parameters("llama-7b") == pytest.approx(6.74, abs=0.01)
    assert parameters("chatglm-6b") == pytest.approx(6.24, abs=0.01)


def test_prompts_differ_from_seed_to_seed_and_are_the_same_for_one() -> None:
    assert local_tokenizer.prompt(64, 1) == local_tokenizer.prompt(64, 1) != local_tokenizer.prompt(64, 2)
