from __future__ import annotations

import subprocess
import sys
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest

from cloister.errors import InferenceError, UsageError
from cloister.inference import engines
from cloister.inference.engines import EngineSettings, engine_entry_points, open_engine
from cloister.inference.model_files import ModelFiles

SMALL = EngineSettings(context_length=64, slots=1)


def test_an_unknown_engine_is_refused_and_the_known_ones_named() -> None:
    with pytest.raises(UsageError, match="llamacpp"):
        open_engine("abacus", None, SMALL)


def test_a_plugin_cannot_replace_a_built_in(monkeypatch: pytest.MonkeyPatch) -> None:
    rogue = EntryPoint(name="llamacpp", value="rogue:open", group=engines.GROUP)
    monkeypatch.setattr(engines, "entry_points", lambda group: [rogue])
    with pytest.raises(UsageError, match="replace"):
        engine_entry_points()


def test_a_plugin_adds_an_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    abacus = EntryPoint(name="abacus", value="abacus_engine:open", group=engines.GROUP)
    monkeypatch.setattr(engines, "entry_points", lambda group: [abacus])
    assert set(engine_entry_points()) == {point.name for point in engines.BUILT_IN} | {"abacus"}
    with pytest.raises(InferenceError, match="not installed"):
        open_engine("abacus", None, SMALL)


def test_the_native_engine_is_imported_only_when_a_model_is_opened() -> None:
    program = (
        "import sys, cloister.inference.app, cloister.inference.engines.llamacpp\n"
        "assert not [name for name in sys.modules if name.startswith('xllamacpp')]"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        pytest.param("empty.gguf", b"", "not a GGUF", id="empty"),
        pytest.param("page.gguf", b"<html>" * 100, "not a GGUF", id="another format"),
    ],
)
def test_what_is_not_a_model_is_one_clear_line(tmp_path: Path, name: str, content: bytes, says: str) -> None:
    (tmp_path / name).write_bytes(content)
    with (
        ModelFiles.of_path(tmp_path / name) as files,
        pytest.raises(InferenceError, match=says) as refused,
    ):
        open_engine("llamacpp", files, SMALL)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    "numbers",
    [
        {"context_length": 64, "slots": 0},
        {"context_length": 64, "slots": 1000},
        {"context_length": 1, "slots": 1},
        {"context_length": 1 << 30, "slots": 1},
        {"context_length": 64, "slots": 1, "threads": 0},
    ],
)
def test_sizes_out_of_bounds_are_refused_before_the_model_is_touched(numbers: dict[str, int]) -> None:
    with pytest.raises(UsageError):
        open_engine("llamacpp", None, EngineSettings(**numbers))  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["huggingface", "openvino", None])
def test_llamacpp_computes_gguf_models_alone(kind: Any) -> None:
    with pytest.raises(UsageError, match="GGUF"):
        open_engine("llamacpp", kind and ModelFiles(kind, {}), SMALL)
