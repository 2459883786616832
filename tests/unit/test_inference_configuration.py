"""The measured configuration and the model on disk."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import re
from pathlib import Path
from typing import Any

import msgspec
import pytest

from cloister.encoding import encode_json
from cloister.errors import InferenceError, UsageError
from cloister.evidence.eventlog import CONFIG_EVENT, MODEL_INDEX_EVENT, PROGRAM_EVENT
from cloister.inference.configuration import (
    MeasuredAdapter,
    MeasuredKnowledge,
    ServeConfiguration,
    serving_events,
)
from cloister.inference.model import PlainModel, find_model

SPEC = Path(__file__).resolve().parents[2] / "docs" / "spec" / "serve-configuration.md"
BASE = ServeConfiguration(
    model_name="demo", engine="llamacpp", context_length=512, slots=8,
    index_signers=(), broker_policy=None, api_keys_required=True,
)  # fmt: skip


def test_the_specification_s_vector_holds() -> None:
    vector = json.loads(re.findall(r"```json\n(.*?)\n```", SPEC.read_text(), re.DOTALL)[0])
    assert json.loads(encode_json(BASE)) == vector["configuration"]
    assert hashlib.sha256(encode_json(BASE)).hexdigest() == vector["sha256"]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("model_name", "other"), ("engine", "other"), ("context_length", 256), ("slots", 1),
        ("index_signers", ("00" * 32,)), ("broker_policy", "00" * 32), ("api_keys_required", False),
        ("adapter", MeasuredAdapter(digest="00" * 32)), ("adapter", MeasuredAdapter(digest="00" * 32, folder="a")),
        ("precision", "int8"), ("kv_cache", "q8_0"), ("prefix_cache", True), ("speculation", "ngram"),
        ("draft", "00" * 32), ("upstream", "unix:/run/llm.sock"),
        ("knowledge", MeasuredKnowledge(rules="00" * 32, encoder="00" * 32)),
    ],
)  # fmt: skip
def test_every_field_changes_the_measurement(field: str, value: Any) -> None:
    changed = msgspec.structs.replace(BASE, **{field: value})
    before, after = ({e.name: e.payload for e in serving_events(c, bytes(32))} for c in (BASE, changed))
    assert before[CONFIG_EVENT] != after[CONFIG_EVENT]
    assert before[PROGRAM_EVENT] == after[PROGRAM_EVENT]
    assert set(before) == {CONFIG_EVENT, PROGRAM_EVENT, MODEL_INDEX_EVENT}


def test_a_plain_model_is_measured_by_its_content(tmp_path: Path) -> None:
    one, other = tmp_path / "one.gguf", tmp_path / "other.gguf"
    one.write_bytes(b"GGUF" + b"1" * 100)
    other.write_bytes(b"GGUF" + b"2" * 100)
    digests = {find_model(path, signers=()).digest for path in (one, other)}
    assert len(digests) == 2
    assert {len(digest) for digest in digests} == {32}


def test_what_is_no_model_is_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("hello")
    for path, signers in ((tmp_path / "text", ()), (tmp_path / "nowhere", ()), (tmp_path, ())):
        with pytest.raises(UsageError):
            find_model(path, signers=signers)


@pytest.mark.parametrize("after", [b"GGUF the wrong", b"GGUF", b""], ids=["other", "cut", "empty"])
def test_a_plain_model_that_changed_after_it_was_measured_is_refused(tmp_path: Path, after: bytes) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(b"GGUF the right")
    model = find_model(path, signers=())
    path.write_bytes(after)
    with pytest.raises(InferenceError, match="changed after it was measured"):
        model.open(None)


def test_what_is_appended_to_a_plain_model_after_it_was_measured_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(b"GGUF the right")
    model = find_model(path, signers=())
    with path.open("ab") as file:
        file.write(b" and more")
    with model.open(None).files as files:
        assert os.pread(files.main, 100, 0) == b"GGUF the right"


def test_a_plain_model_is_opened_into_memory_that_nobody_can_change(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(b"GGUF" + bytes(range(256)) * 8192)
    with find_model(path, signers=()).open(None).files as files:
        path.write_bytes(b"GGUF" + b"evil" * 500_000)
        assert os.pread(files.main, 1 << 22, 0) == b"GGUF" + bytes(range(256)) * 8192
        for change in (lambda: os.pwrite(files.main, b"x", 0), lambda: os.ftruncate(files.main, 4)):
            with pytest.raises(OSError, match=r"not permitted|Bad file descriptor|Invalid argument"):
                change()


def test_a_plain_model_is_immutable_once_found(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(b"GGUF....")
    model = find_model(path, signers=())
    assert isinstance(model, PlainModel)
    with pytest.raises(dataclasses.FrozenInstanceError):
        model.digest = b""  # type: ignore[misc]
