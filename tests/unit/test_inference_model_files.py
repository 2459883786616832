"""A model's files under their names, wherever their bytes lie; what is no model, or two, is none."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from cloister.errors import FormatError, UsageError
from cloister.inference.model_files import MAX_FILES, ModelFiles, wanted
from left_behind import left_open, open_descriptors


@pytest.mark.parametrize(
    ("names", "kind", "read"),
    [
        (["m.gguf", "README.md"], "gguf", ["m.gguf"]),
        (["m.gguf", "optimized.json", "config.json"], "gguf", ["m.gguf", "optimized.json"]),
        (
            ["config.json", "a.safetensors", "pytorch_model.bin", "tokenizer.json", "evil.py"],
            "huggingface",
            ["config.json", "tokenizer.json", "a.safetensors"],
        ),
        (
            ["openvino_model.xml", "openvino_model.bin", "other.bin", "config.json", "a.safetensors"],
            "openvino",
            ["config.json", "openvino_model.bin", "openvino_model.xml"],
        ),
    ],
)
def test_of_a_folder_engines_read_what_they_know(names: list[str], kind: str, read: list[str]) -> None:
    assert wanted(names, what="it") == (kind, tuple(read))


@pytest.mark.parametrize(
    ("names", "words"),
    [
        pytest.param([], "no model", id="an empty folder"),
        pytest.param(["config.json"], "no model", id="no weights"),
        pytest.param(["config.json", "pytorch_model.bin"], "no model", id="a pickle"),
        pytest.param(["x/config.json", "x/a.safetensors"], "no model", id="in a folder of it"),
        pytest.param(["a.gguf", "b.gguf"], "2 .gguf files", id="two models"),
        pytest.param(
            ["config.json", *(f"{number}.safetensors" for number in range(MAX_FILES + 1))],
            "at most 1024",
            id="too many files",
        ),
    ],
)
def test_what_is_not_one_model_is_refused(names: list[str], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        wanted(names, what="it")


def test_files_are_read_and_linked_under_their_names_and_nothing_stays_open(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes(b"{}")
    (tmp_path / "m.safetensors").write_bytes(b"weights")
    before = open_descriptors()
    with ModelFiles.of_path(tmp_path) as files:
        assert files.kind == "huggingface"
        assert files.read("config.json") == b"{}"
        assert files.path("m.safetensors").read_bytes() == b"weights"
        with pytest.raises(FormatError, match="at most 3"):
            files.read("m.safetensors", 3)
        with files.folder() as folder:
            assert sorted(os.listdir(folder)) == ["config.json", "m.safetensors"]  # noqa: PTH208
            held = (folder / "m.safetensors").open("rb")
        with held:
            assert held.read() == b"weights"
    assert not left_open(before)


def test_what_cannot_be_read_is_refused_and_nothing_stays_open(tmp_path: Path) -> None:
    before = open_descriptors()
    with pytest.raises(UsageError, match="cannot be read"):
        ModelFiles.of_path(tmp_path / "absent.gguf")
    assert not left_open(before)
