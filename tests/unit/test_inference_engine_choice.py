"""Which engine serves a model: the measured configuration, then the model's own choice; of the machine only the threads."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from cloister.errors import FormatError
from cloister.inference.configuration import ServeConfiguration
from cloister.inference.engine_choice import engine_for
from cloister.inference.model_files import ModelFiles
from cloister.inference.optimized import (
    Choice,
    ChosenSettings,
    MeasuredMachine,
    MeasuredRow,
    MeasuredSpeed,
    write_choice,
)

HERE, ELSEWHERE = bytes(32), bytes([1]) * 32
SPEED = MeasuredSpeed(
    rounds=3, prompt_tokens=512, first_token_us=1, prefill_per_1000_s=1, decode_per_1000_s=1, streams=8,
    streams_per_1000_s=1, memory_bytes=1,
)  # fmt: skip
CHOSEN = ChosenSettings(kv_cache="q8_0", speculation="ngram", prefill_chunk=256, threads=3)


def configuration(**changes: Any) -> ServeConfiguration:
    values: dict[str, Any] = {
        "model_name": "m", "engine": "auto", "context_length": 512, "slots": 4, "index_signers": (),
        "broker_policy": None, "api_keys_required": True,
    }  # fmt: skip
    return ServeConfiguration(**values | changes)


def choice(engine: str = "llamacpp") -> bytes:
    row = MeasuredRow(name="row", engine=engine, state="measured", speed=SPEED, chosen=True)
    return write_choice(
        Choice(
            engine=engine, settings=CHOSEN, goal="latency", max_loss_ppm=0, rows=(row,), packages={},
            machine=MeasuredMachine(fingerprint=HERE.hex(), words="here"),
        )
    )  # fmt: skip


@contextmanager
def model(folder: Path, files: dict[str, bytes]) -> Iterator[ModelFiles]:
    for name, content in files.items():
        (folder / name).write_bytes(content)
    with ModelFiles.of_path(folder) as found:
        yield found


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["m.gguf"], "llamacpp"),
        (["config.json", "m.safetensors"], "torch"),
        (["openvino_model.xml", "openvino_model.bin"], "openvino"),
    ],
)
def test_auto_without_a_choice_is_the_usual_engine_of_the_kind_on_every_machine(
    tmp_path: Path, names: list[str], expected: str
) -> None:
    with model(tmp_path, dict.fromkeys(names, b"x")) as files:
        name, settings = engine_for(configuration(), files, fingerprint=HERE)
    assert name == expected
    assert (settings.context_length, settings.slots, settings.threads) == (512, 4, None)


def test_auto_is_what_was_measured_for_the_model(tmp_path: Path) -> None:
    with model(tmp_path, {"m.gguf": b"x", "optimized.json": choice("openvino")}) as files:
        name, settings = engine_for(configuration(), files, fingerprint=HERE)
    assert name == "openvino"
    assert (settings.kv_cache, settings.speculation, settings.prefill_chunk) == ("q8_0", "ngram", 256)
    assert settings.threads == 3


def test_threads_of_another_machine_are_not_taken_and_all_else_is(tmp_path: Path) -> None:
    with model(tmp_path, {"m.gguf": b"x", "optimized.json": choice()}) as files:
        _, settings = engine_for(configuration(), files, fingerprint=ELSEWHERE)
        assert settings.threads is None
        assert settings.kv_cache == "q8_0"
        assert engine_for(configuration(), files, fingerprint=ELSEWHERE, threads=2)[1].threads == 2


def test_what_the_configuration_says_goes_before_what_the_model_says(tmp_path: Path) -> None:
    with model(tmp_path, {"m.gguf": b"x", "optimized.json": choice()}) as files:
        _, settings = engine_for(
            configuration(kv_cache="f16", speculation="off"), files, fingerprint=HERE, threads=1
        )
    assert (settings.kv_cache, settings.speculation, settings.threads) == ("f16", "off", 1)


def test_a_choice_for_one_engine_says_nothing_about_another(tmp_path: Path) -> None:
    with model(tmp_path, {"m.gguf": b"x", "optimized.json": choice("openvino")}) as files:
        name, settings = engine_for(configuration(engine="llamacpp"), files, fingerprint=HERE)
    assert name == "llamacpp"
    assert (settings.kv_cache, settings.speculation, settings.threads) == ("f16", "off", None)


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda data: data[:-1], id="cut off"),
        pytest.param(
            lambda data: data.replace(b'"engine":"llamacpp"', b'"engine":"upstream"'), id="a server to ask"
        ),
        pytest.param(
            lambda data: data.replace(b'"goal"', b'"model":"/etc/shadow","goal"'), id="a file to open"
        ),
        pytest.param(lambda data: data + b" " * (1 << 20), id="too large"),
    ],
)
def test_a_choice_that_is_none_ends_the_launch(tmp_path: Path, change: Any) -> None:
    with (
        model(tmp_path, {"m.gguf": b"x", "optimized.json": change(choice())}) as files,
        pytest.raises(FormatError),
    ):
        engine_for(configuration(), files, fingerprint=HERE)


def test_an_upstream_needs_no_model() -> None:
    asked = configuration(engine="upstream", upstream="unix:/run/llm.sock")
    name, settings = engine_for(asked, None, fingerprint=HERE)
    assert name == "upstream"
    assert settings.upstream == "unix:/run/llm.sock"
