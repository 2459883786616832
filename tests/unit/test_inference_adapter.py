"""LoRA adapters: what peft saves is read strictly, moved into llama.cpp's form, and computes what peft computes."""

from __future__ import annotations

import contextlib
import json
import math
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import llama_models
from cloister.errors import (
    CloisterError,
    FormatError,
    IndexMismatch,
    InferenceError,
    UsageError,
    WrongKey,
)
from cloister.inference.adapter import find_adapter
from cloister.inference.engines.lora_gguf import lora_memory
from cloister.inference.gguf_header import GgufHeader
from cloister.inference.lora import CONFIG_NAME, WEIGHTS_NAME, parse_adapter
from cloister.inference.safetensors_table import read_tensors
from cloister.sealing.directory import seal_directory
from cloister.sealing.key_file import KeyFile
from cloister.sealing.signing import SigningKey
from cloister.sealing.tree import create_tree, open_tree
from opened_engine import engine_on

RANK = 2
HEADS, KV_HEADS, HEAD, WIDTH = 2, 1, 4, 8
HEADER = GgufHeader(
    architecture="llama", name=None, trained_context=64, embedding_length=WIDTH, chat_template=None,
    heads=HEADS, kv_heads=KV_HEADS,
    shapes={
        "blk.0.attn_q.weight": (WIDTH, HEADS * HEAD), "blk.0.attn_k.weight": (WIDTH, KV_HEADS * HEAD),
        "blk.0.ffn_down.weight": (16, WIDTH),
    },
)  # fmt: skip
Q, K, DOWN = "self_attn.q_proj", "self_attn.k_proj", "mlp.down_proj"


def name(module: str, half: str, layer: int = 0) -> str:
    return f"base_model.model.model.layers.{layer}.{module}.lora_{half}.weight"


def tensors() -> dict[str, np.ndarray]:
    """Numbered rows: row ``i`` of a B is all ``i``."""
    shapes = {Q: (WIDTH, HEADS * HEAD), K: (WIDTH, KV_HEADS * HEAD), DOWN: (16, WIDTH)}
    found: dict[str, np.ndarray] = {}
    for module, (inputs, outputs) in shapes.items():
        found[name(module, "A")] = np.arange(RANK * inputs, dtype=np.float32).reshape(RANK, inputs)
        rows = np.arange(outputs, dtype=np.float32)
        found[name(module, "B")] = np.repeat(rows[:, None], RANK, axis=1)
    return found


def safetensors(found: dict[str, np.ndarray], types: dict[str, str] | None = None) -> bytes:
    table: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    body = b""
    for key, tensor in found.items():
        data = tensor.tobytes()
        kind = (types or {}).get(key, {4: "F32", 2: "F16"}[tensor.itemsize])
        table[key] = {
            "dtype": kind,
            "shape": list(tensor.shape),
            "data_offsets": [len(body), len(body) + len(data)],
        }
        body += data
    head = json.dumps(table).encode()
    return struct.pack("<Q", len(head)) + head + body


def config(**changes: Any) -> bytes:
    plain = {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "r": RANK, "lora_alpha": 8, "lora_dropout": 0.05, "bias": "none",
        "target_modules": ["q_proj", "k_proj", "down_proj"], "use_rslora": False, "use_dora": False,
        "init_lora_weights": True,
        "modules_to_save": None, "rank_pattern": {}, "base_model_name_or_path": "/some/where",
    }  # fmt: skip
    return json.dumps({**plain, **changes}).encode()


def converted(weights: bytes, target: Path, settings: bytes | None = None) -> gguf.GGUFReader:
    adapter = parse_adapter(settings or config(), memoryview(weights))
    descriptor = lora_memory(adapter, HEADER)
    try:
        target.write_bytes(os.pread(descriptor, 1 << 20, 0))
    finally:
        os.close(descriptor)
    return gguf.GGUFReader(target)


def test_llama_cpp_s_own_reader_finds_every_tensor_at_its_new_name_with_its_rows_in_pairs(
    tmp_path: Path,
) -> None:
    reader = converted(safetensors(tensors()), tmp_path / "lora.gguf")
    found = {tensor.name: tensor for tensor in reader.tensors}
    assert set(found) == {
        f"blk.0.{part}.weight.lora_{half}" for part in ("attn_q", "attn_k", "ffn_down") for half in "ab"
    }
    assert list(found["blk.0.attn_q.weight.lora_a"].shape) == [WIDTH, RANK]
    assert np.array_equal(found["blk.0.attn_q.weight.lora_a"].data, tensors()[name(Q, "A")])
    assert found["blk.0.attn_q.weight.lora_b"].data[:, 0].tolist() == [0, 2, 1, 3, 4, 6, 5, 7]
    assert found["blk.0.attn_k.weight.lora_b"].data[:, 0].tolist() == [0, 2, 1, 3]
    assert found["blk.0.ffn_down.weight.lora_b"].data[:, 0].tolist() == list(range(WIDTH))
    fields = {key: field.contents() for key, field in reader.fields.items()}
    assert fields["general.architecture"] == "llama"
    assert (fields["general.type"], fields["adapter.type"]) == ("adapter", "lora")
    assert fields["adapter.lora.alpha"] == 8


def test_a_rank_stabilised_adapter_is_as_strong_as_peft_makes_it(tmp_path: Path) -> None:
    reader = converted(safetensors(tensors()), tmp_path / "lora.gguf", config(use_rslora=True))
    alpha = reader.fields["adapter.lora.alpha"].contents()
    assert alpha / RANK == pytest.approx(8 / math.sqrt(RANK))


def test_bfloat16_becomes_the_same_numbers_in_32_bits_and_float16_stays(tmp_path: Path) -> None:
    found = tensors()
    half = {key: tensor.astype(np.float16) for key, tensor in found.items()}
    brain = {key: (tensor.view(np.uint32) >> 16).astype(np.uint16) for key, tensor in found.items()}
    weights = safetensors(brain, dict.fromkeys(brain, "BF16"))
    for encoded, kind in ((safetensors(half), np.float16), (weights, np.float32)):
        reader = converted(encoded, tmp_path / "lora.gguf")
        row = next(tensor for tensor in reader.tensors if tensor.name == "blk.0.attn_q.weight.lora_b").data
        assert row.dtype == kind
        assert row[:, 1].tolist() == [0, 2, 1, 3, 4, 6, 5, 7]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        pytest.param({"peft_type": "IA3"}, "not a LoRA", id="another method"),
        pytest.param({"task_type": "SEQ_CLS"}, "another task", id="another task"),
        pytest.param({"use_dora": True}, "use_dora", id="dora"),
        pytest.param({"bias": "all"}, "biases", id="biases"),
        pytest.param({"lora_bias": True}, "lora_bias", id="bias of the adapter"),
        pytest.param({"modules_to_save": ["lm_head"]}, "modules_to_save", id="whole modules"),
        pytest.param({"rank_pattern": {"q_proj": 8}}, "rank_pattern", id="ranks of their own"),
        pytest.param({"alpha_pattern": {"q_proj": 8}}, "alpha_pattern", id="strengths of their own"),
        pytest.param({"fan_in_fan_out": True}, "fan_in_fan_out", id="transposed"),
        pytest.param({"init_lora_weights": "pissa"}, "changed at the start", id="changed base"),
        pytest.param({"init_lora_weights": 1}, "changed at the start", id="unknown start"),
        pytest.param({"new_in_2027": {"strength": 3}}, "new_in_2027", id="a setting that is not known"),
        pytest.param({"r": 0}, "rank", id="no rank"),
        pytest.param({"r": True}, "rank", id="a rank that is no number"),
        pytest.param({"r": 4}, "not of rank 4", id="another rank than the tensors'"),
        pytest.param({"lora_alpha": -1}, "lora_alpha", id="negative strength"),
        pytest.param({"lora_alpha": "8"}, "lora_alpha", id="strength as text"),
        pytest.param({"use_rslora": 1}, "use_rslora", id="neither true nor false"),
        pytest.param({"target_modules": ["q_proj"]}, "does not name", id="modules that are not named"),
    ],
)
def test_a_setting_that_means_something_else_is_refused_by_name(changes: dict[str, Any], words: str) -> None:
    with pytest.raises((InferenceError, FormatError), match=words):
        parse_adapter(config(**changes), memoryview(safetensors(tensors())))


def test_a_setting_that_is_not_known_and_empty_does_no_harm() -> None:
    parse_adapter(config(new_in_2027=None, another={}, third=False), memoryview(safetensors(tensors())))


def _renamed(old: str, new: str) -> Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]]:
    return lambda found: {key.replace(old, new): tensor for key, tensor in found.items()}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        pytest.param(
            _renamed("mlp.down_proj", "mlp.dense"), "cannot be served", id="a module that is not known"
        ),
        pytest.param(_renamed("lora_A", "lora_embedding_A"), "cannot be served", id="embeddings"),
        pytest.param(_renamed("model.model.layers", "model.layers"), "cannot be served", id="another model"),
        pytest.param(
            _renamed("down_proj", "q_proj"), "cannot be served|half", id="a module in the wrong place"
        ),
        pytest.param(
            lambda found: {key: tensor for key, tensor in found.items() if key != name(Q, "B")},
            "half",
            id="half",
        ),
        pytest.param(lambda found: {}, "no tensors", id="nothing"),
        pytest.param(
            lambda found: {key: tensor.T for key, tensor in found.items()}, "not of rank", id="transposed"
        ),
    ],
)
def test_tensors_that_cannot_be_served_are_refused(
    change: Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]], words: str
) -> None:
    with pytest.raises((InferenceError, FormatError), match=words):
        parse_adapter(config(), memoryview(safetensors(change(tensors()))))


@pytest.mark.parametrize(
    ("header", "words"),
    [
        pytest.param({"architecture": "phi3"}, "phi3", id="another architecture"),
        pytest.param({"shapes": {}}, "which the model does not have", id="fewer layers"),
        pytest.param({"heads": None, "kv_heads": None}, "heads", id="heads that are not said"),
        pytest.param({"heads": 3}, "heads", id="heads that do not fit"),
    ],
)
def test_an_adapter_of_another_model_is_refused(header: dict[str, Any], words: str) -> None:
    from dataclasses import replace

    adapter = parse_adapter(config(), memoryview(safetensors(tensors())))
    with pytest.raises(InferenceError, match=words):
        lora_memory(adapter, replace(HEADER, **header))


def _table(**entry: Any) -> bytes:
    plain = {"dtype": "F32", "shape": [1, 2], "data_offsets": [0, 8]}
    head = json.dumps({"t": {**plain, **entry}}).encode()
    return struct.pack("<Q", len(head)) + head + bytes(8)


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"", id="empty"),
        pytest.param(struct.pack("<Q", 1 << 40) + b"{}", id="a table longer than the file"),
        pytest.param(struct.pack("<Q", 2) + b"[]", id="no table"),
        pytest.param(_table() + b"x", id="bytes behind"),
        pytest.param(_table()[:-1], id="bytes missing"),
        pytest.param(_table(data_offsets=[1, 9]), id="a gap"),
        pytest.param(_table(data_offsets=[0, 4]), id="too few for its shape"),
        pytest.param(_table(shape=[1, -2]), id="a negative side"),
        pytest.param(_table(shape=[1 << 40, 0]), id="no elements"),
        pytest.param(_table(dtype="I64"), id="another type"),
        pytest.param(_table(extra=1), id="an unknown field"),
        pytest.param(_table().replace(b'"t"', b'"__metadata__"'), id="metadata that is none"),
    ],
)
def test_what_is_no_safetensors_file_is_refused(data: bytes) -> None:
    with pytest.raises(FormatError):
        read_tensors(memoryview(data), what="the weights")


@given(st.integers(0, 5000), st.integers(0, 7))
def test_any_flipped_bit_is_read_or_refused_by_our_own_errors(position: int, bit: int) -> None:
    weights = bytearray(safetensors(tensors()))
    weights[position % len(weights)] ^= 1 << bit
    with contextlib.suppress(CloisterError):
        os.close(lora_memory(parse_adapter(config(), memoryview(weights)), HEADER))


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    folder = tmp_path / "adapter"
    folder.mkdir()
    (folder / CONFIG_NAME).write_bytes(config())
    (folder / WEIGHTS_NAME).write_bytes(safetensors(tensors()))
    return folder


def test_a_plain_adapter_is_measured_by_both_files_and_read_once(plain: Path) -> None:
    found = find_adapter(plain, folder="", signers=())
    (plain / CONFIG_NAME).write_bytes(config(lora_alpha=800))
    assert found.open(None).scale == 8 / RANK
    other = find_adapter(plain, folder="", signers=())
    (plain / WEIGHTS_NAME).write_bytes(safetensors({key: 2 * tensor for key, tensor in tensors().items()}))
    digests = {found.digest, other.digest, find_adapter(plain, folder="", signers=()).digest}
    assert {len(digest) for digest in digests} == {32}
    assert len(digests) == 3


def test_a_sealed_adapter_is_measured_by_its_index_and_opened_in_memory(plain: Path, tmp_path: Path) -> None:
    owner = SigningKey(bytes(range(32)))
    seal_directory(
        plain.parent,
        tmp_path.with_suffix(".sealed"),
        key_uri="kbs:///a/b/c",
        kek=b"k" * 32,
        signing_key=owner,
    )
    sealed, signers = tmp_path.with_suffix(".sealed"), [owner.public_key]
    found = find_adapter(sealed, folder="adapter", signers=signers)
    assert len(found.digest) == 32
    assert found.open(KeyFile(b"k" * 32)).rank == RANK
    with pytest.raises(UsageError, match="key source"):
        found.open(None)
    with pytest.raises(IndexMismatch, match="names no file"):
        find_adapter(sealed, folder="", signers=signers).open(KeyFile(b"k" * 32))
    with pytest.raises(UsageError, match="index-signer"):
        find_adapter(sealed, folder="adapter", signers=())
    with pytest.raises(CloisterError):
        find_adapter(sealed, folder="adapter", signers=[b"x" * 32])


@pytest.fixture
def tree(plain: Path, tmp_path: Path) -> Path:
    """A sealed tree as training leaves it: the adapter at its top, a checkpoint beside it."""
    made = tmp_path / "out.tree"
    create_tree(made, key_uri="kbs:///a/b/c", kek=b"k" * 32)
    with contextlib.closing(open_tree(made, KeyFile(b"k" * 32), writable=True)) as files:
        files.make_directory("checkpoint-1", 0o755)
        for folder in ("", "checkpoint-1/"):
            for found in (CONFIG_NAME, WEIGHTS_NAME):
                file = files.create(folder + found, 0o644)
                file.write(0, (plain / found).read_bytes())
                file.close()
    return made


def test_an_adapter_in_a_sealed_tree_is_measured_without_a_key_and_opened_as_it_was_measured(
    tree: Path,
) -> None:
    found = find_adapter(tree, folder="", signers=())
    again = find_adapter(tree, folder="checkpoint-1", signers=())
    assert found.digest == again.digest
    assert found.open(KeyFile(b"k" * 32)).rank == again.open(KeyFile(b"k" * 32)).rank == RANK
    with pytest.raises(UsageError, match="key source"):
        found.open(None)
    with pytest.raises(UsageError, match="adapter-folder"):
        find_adapter(tree, folder="elsewhere", signers=()).open(KeyFile(b"k" * 32))
    with pytest.raises(WrongKey):
        found.open(KeyFile(b"x" * 32))


def test_a_tree_that_goes_on_after_it_was_measured_is_another_one_and_is_not_opened_in_its_place(
    tree: Path,
) -> None:
    before = find_adapter(tree, folder="", signers=())
    with contextlib.closing(open_tree(tree, KeyFile(b"k" * 32), writable=True)) as files:
        files.truncate(CONFIG_NAME, 0)
        file = files.open(CONFIG_NAME, write=True)
        file.write(0, config(lora_alpha=800))
        file.close()
    after = find_adapter(tree, folder="", signers=())
    assert after.digest != before.digest
    assert after.open(KeyFile(b"k" * 32)).scale == 800 / RANK
    # What was measured may be gone from the disk by now, or still be there; it is never the newer one.
    with contextlib.suppress(CloisterError):
        assert before.open(KeyFile(b"k" * 32)).scale == 8 / RANK


def test_a_tree_that_is_being_written_is_not_served_from(tree: Path) -> None:
    found = find_adapter(tree, folder="", signers=())
    with (
        contextlib.closing(open_tree(tree, KeyFile(b"k" * 32), writable=True)),
        pytest.raises(UsageError, match="another process"),
    ):
        found.open(KeyFile(b"k" * 32))


def test_any_other_byte_in_a_tree_is_refused_or_measured_otherwise(tree: Path) -> None:
    digest = find_adapter(tree, folder="", signers=()).digest

    def opened_as_before() -> bool:
        try:
            found = [find_adapter(tree, folder=folder, signers=()) for folder in ("", "checkpoint-1")]
            for adapter in found:
                adapter.open(KeyFile(b"k" * 32))
        except CloisterError:
            return False
        return found[0].digest == digest

    assert opened_as_before()
    for file in sorted(tree.iterdir()):
        content = file.read_bytes()
        for position in (len(content) // 3, len(content) // 2):
            flipped = bytes([content[position] ^ 1])
            file.write_bytes(content[:position] + flipped + content[position + 1 :])
            assert not opened_as_before()
        file.write_bytes(content)


@pytest.mark.parametrize("folder", ["..", "/etc", "a/../..", "a//b"])
def test_a_folder_outside_is_refused(plain: Path, folder: str) -> None:
    with pytest.raises(UsageError, match="plain relative path"):
        find_adapter(plain, folder=folder, signers=())


def test_a_link_in_place_of_the_weights_is_refused(plain: Path) -> None:
    (plain / WEIGHTS_NAME).rename(plain / "elsewhere")
    (plain / WEIGHTS_NAME).symlink_to(plain / "elsewhere")
    with pytest.raises(UsageError, match="cannot open"):
        find_adapter(plain, folder="", signers=())


def test_an_adapter_on_a_model_of_other_sizes_is_refused_before_llama_cpp_sees_it(tmp_path: Path) -> None:
    from tinyllamas_gguf import write_gguf

    model = write_gguf(tmp_path / "story.gguf")
    adapter = parse_adapter(config(), memoryview(safetensors(tensors())))
    with pytest.raises(InferenceError, match="which the model does not have"):
        engine_on(model, context_length=64, adapter=adapter)


def test_the_checkpoint_in_hugging_face_s_form_says_what_its_authors_printed(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from tinyllamas_gguf import expected_text

    base = llama_models.write_llama(tmp_path / "base")
    tokens = llama_models.greedy(AutoModelForCausalLM.from_pretrained(base), [1], 256)
    assert AutoTokenizer.from_pretrained(base).decode(tokens).strip() == expected_text().strip()
