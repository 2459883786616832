"""The model on disk: measured before it is opened, opened whole into memory, refused when it is another one by then."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from cloister.encoding import labelled_hash
from cloister.errors import IndexMismatch, InferenceError, TamperedFile, UsageError
from cloister.inference.model import PLAIN_LABEL, OpenedModel, PlainModel, SealedModel, find_model
from left_behind import left_open, open_descriptors
from sealing_samples import OWNER, STRANGER, Keys, alter, patterned, sealed_folder

SIGNERS = [OWNER.public_key]
CONTENT = b"GGUF" + patterned(5_500_000)


def plain_folder(place: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).write_bytes(content)
    return place


def read(opened: OpenedModel) -> bytes:
    opened.confirm()
    with opened.files as files:
        for descriptor in files.descriptors.values():
            with pytest.raises(OSError, match=r"Bad file descriptor|not permitted|Read-only"):
                os.pwrite(descriptor, b"x", 0)
        return os.pread(files.main, len(CONTENT) + 1, 0)


def test_a_sealed_model_is_opened_into_memory_that_nobody_can_change(tmp_path: Path) -> None:
    sealed, index = sealed_folder(tmp_path, {"model.gguf": CONTENT, "README": b"x"})
    model = find_model(sealed, signers=SIGNERS)
    assert isinstance(model, SealedModel)
    assert model.digest == index.digest
    assert read(model.open(Keys())) == CONTENT


def test_a_plain_model_is_measured_and_copied_into_memory(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(CONTENT)
    model = find_model(path, signers=())
    assert isinstance(model, PlainModel)
    assert model.digest == labelled_hash(PLAIN_LABEL, hashlib.sha256(CONTENT).digest())
    assert read(model.open(None)) == CONTENT


@pytest.mark.parametrize("change", ["a flipped bit", "shorter", "longer in the middle"])
def test_a_plain_model_that_changed_after_it_was_measured_is_refused(tmp_path: Path, change: str) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(CONTENT)
    model = find_model(path, signers=())
    if change == "a flipped bit":
        alter(path, -1)
    elif change == "shorter":
        os.truncate(path, len(CONTENT) - 1)
    else:
        path.write_bytes(CONTENT[:100] + b"x" + CONTENT[100:])
    with pytest.raises(InferenceError, match="changed after it was measured"):
        model.open(None)


def test_a_sealed_model_that_changed_after_its_index_was_read_is_refused(tmp_path: Path) -> None:
    sealed, index = sealed_folder(tmp_path, {"model.gguf": CONTENT})
    model = find_model(sealed, signers=SIGNERS)
    alter(sealed / index.files["model.gguf"].file_name, -1)
    with pytest.raises(TamperedFile):
        model.open(Keys())


def test_a_sealed_model_without_a_key_source_is_refused(tmp_path: Path) -> None:
    sealed, _ = sealed_folder(tmp_path, {"model.gguf": CONTENT})
    with pytest.raises(UsageError, match="no key source"):
        find_model(sealed, signers=SIGNERS).open(None)


@pytest.mark.parametrize(
    ("files", "words"),
    [
        pytest.param({"a.gguf": b"GGUF", "b.gguf": b"GGUF"}, "holds 2 .gguf files", id="two models"),
        pytest.param({"config.json": b"{}"}, "holds no model", id="no weights"),
        pytest.param({"config.json": b"{}", "pytorch_model.bin": b"x"}, "holds no model", id="a pickle"),
        pytest.param({"model.safetensors": b"x", "modeling.py": b"x"}, "holds no model", id="a program"),
        pytest.param({"sub/model.gguf": b"GGUF"}, "holds no model", id="in a folder of it"),
    ],
)
@pytest.mark.parametrize("protected", [True, False], ids=["sealed", "plain"])
def test_a_folder_that_does_not_hold_one_model_is_refused(
    tmp_path: Path, files: dict[str, bytes], words: str, protected: bool
) -> None:
    place = sealed_folder(tmp_path, files)[0] if protected else plain_folder(tmp_path / "plain", files)
    with pytest.raises(UsageError, match=words):
        find_model(place, signers=SIGNERS)


HUGGING_FACE = {
    "config.json": b"{}",
    "model-00001-of-00002.safetensors": b"first",
    "model-00002-of-00002.safetensors": patterned(3_000_000),
    "tokenizer.json": b"[]",
    "optimized.json": b"{}",
}
UNREAD = {"pytorch_model.bin": b"pickle", "modeling_evil.py": b"code", "README.md": b"words"}


@pytest.mark.parametrize("protected", [True, False], ids=["sealed", "plain"])
def test_of_a_folder_exactly_what_engines_read_is_opened(tmp_path: Path, protected: bool) -> None:
    files = HUGGING_FACE | UNREAD
    place = sealed_folder(tmp_path, files)[0] if protected else plain_folder(tmp_path / "plain", files)
    model = find_model(place, signers=SIGNERS if protected else ())
    assert model.kind == "huggingface"
    opened = model.open(Keys() if protected else None)
    with opened.files as found:
        opened.confirm()
        assert {name: found.read(name) for name in found.descriptors} == HUGGING_FACE
        with found.folder() as folder:
            assert {path.name: path.read_bytes() for path in folder.iterdir()} == HUGGING_FACE
            assert folder.stat().st_mode & 0o077 == 0
        assert not folder.exists()


def test_a_file_of_a_plain_folder_that_changed_after_it_was_measured_is_refused(tmp_path: Path) -> None:
    folder = plain_folder(tmp_path / "plain", HUGGING_FACE)
    before = open_descriptors()
    model = find_model(folder, signers=())
    alter(folder / "tokenizer.json", 0)
    with pytest.raises(InferenceError, match=r"tokenizer\.json changed after it was measured"):
        model.open(None)
    assert not left_open(before)


def test_names_and_contents_of_a_plain_folder_are_measured(tmp_path: Path) -> None:
    variants = [
        HUGGING_FACE,
        HUGGING_FACE | {"tokenizer.json": b"[ ]"},
        {name: data for name, data in HUGGING_FACE.items() if name != "tokenizer.json"}
        | {"vocab.json": b"[]"},
        {name: data for name, data in HUGGING_FACE.items() if name != "optimized.json"},
    ]
    places = [plain_folder(tmp_path / str(number), files) for number, files in enumerate(variants)]
    assert len({find_model(place, signers=()).digest for place in places}) == len(variants)
    same = plain_folder(tmp_path / "same", HUGGING_FACE | UNREAD)
    assert find_model(same, signers=()).digest == find_model(places[0], signers=()).digest


def test_a_model_signed_by_a_stranger_or_for_nobody_is_refused(tmp_path: Path) -> None:
    sealed, _ = sealed_folder(tmp_path, {"model.gguf": CONTENT}, signing_key=STRANGER)
    with pytest.raises(IndexMismatch):
        find_model(sealed, signers=SIGNERS)
    with pytest.raises(UsageError, match="index-signer"):
        find_model(sealed, signers=())


def test_what_is_no_model_is_refused(tmp_path: Path) -> None:
    (tmp_path / "text").write_bytes(b"GGU")
    with pytest.raises(UsageError, match="not a GGUF file"):
        find_model(tmp_path / "text", signers=())
    with pytest.raises(UsageError, match="no model at"):
        find_model(tmp_path / "absent", signers=())
