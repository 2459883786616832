"""What `serve` and `measure serve` are told: options that belong together, and the configuration that they mean."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cloister.cli.serve_options import ServeOptions, understood
from cloister.errors import UsageError


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "story.gguf"
    path.write_bytes(b"GGUF and no more")
    return path


def options(**changes: Any) -> ServeOptions:
    values: dict[str, Any] = {
        "model": None, "model_name": "", "engine": "auto", "context": 512, "slots": 8, "adapter": None,
        "adapter_folder": "", "precision": None, "kv_cache": None, "prefix_cache": False, "speculation": None,
        "draft": None, "upstream": None, "index_signer": None, "broker_policy": None, "api_keys": None,
        "no_api_keys": True,
    }  # fmt: skip
    return ServeOptions(**values | changes)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        pytest.param({"no_api_keys": False}, "who may ask", id="nobody is named"),
        pytest.param({"api_keys": Path("keys")}, "who may ask", id="keys, and anybody"),
        pytest.param({"model": None}, "name the model", id="no model"),
        pytest.param({"engine": "upstream"}, "--upstream go together", id="an upstream without an address"),
        pytest.param({"upstream": "unix:/s"}, "go together", id="an address for another engine"),
        pytest.param(
            {"engine": "upstream", "upstream": "unix:/s", "model_name": "m"}, "other server", id="two models"
        ),
        pytest.param(
            {"engine": "upstream", "upstream": "unix:/s", "model": None}, "needs a name", id="no name"
        ),
        pytest.param({"speculation": "draft"}, "--draft go together", id="no draft"),
        pytest.param({"draft": Path("draft.gguf")}, "--draft go together", id="a draft that nobody asks"),
        pytest.param({"prefix_cache": True}, "by API key", id="a cache that would be everybody's"),
        pytest.param({"adapter_folder": "a"}, "--adapter-folder without", id="a folder of no adapter"),
    ],
)
def test_options_that_contradict_each_other_are_refused(
    model: Path, changes: dict[str, Any], words: str
) -> None:
    with pytest.raises(UsageError, match=words):
        understood(options(**{"model": model, **changes}))


def test_what_is_asked_for_is_what_is_measured(model: Path) -> None:
    asked = understood(
        options(model=model, precision="int8", kv_cache="q8_0", speculation="draft", draft=model)
    )
    found = asked.configuration
    assert (found.model_name, found.engine, found.precision, found.kv_cache) == (
        "story",
        "auto",
        "int8",
        "q8_0",
    )
    assert asked.model is not None
    assert found.draft == asked.model.digest.hex() == asked.model_index.hex()


def test_an_upstream_is_measured_by_its_address() -> None:
    indexes = {
        understood(options(engine="upstream", upstream=address, model_name="m")).model_index
        for address in ("unix:/run/a.sock", "unix:/run/b.sock")
    }
    assert len(indexes) == 2
