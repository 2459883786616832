"""The OpenVINO engine on small models."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cloister.inference.engines import EngineSettings
from cloister.inference.engines.openvino import OpenVinoEngine
from cloister.inference.model_files import ModelFiles


@contextmanager
def opened(model: Path, **settings: Any) -> Iterator[OpenVinoEngine]:
    """The engine on ``model``, whose descriptors are closed by then."""
    with ModelFiles.of_path(model) as files:
        engine = OpenVinoEngine.open(
            files, EngineSettings(**({"context_length": 512, "slots": 4, "threads": 1} | settings))
        )
    try:
        yield engine
    finally:
        engine.close()


def ask(engine: OpenVinoEngine, kind: Any = "text", **request: Any) -> list[Any]:
    """Every chunk of one answer."""
    chunks: list[Any] = []

    def sink(chunk: Any) -> bool:
        if chunk:
            chunks.append(chunk)
        return False

    engine.generate(kind, request, sink)
    return chunks


def text_of(chunks: list[Any], index: int = 0) -> str:
    """The text of one choice."""
    parts = [part for chunk in chunks for part in chunk["choices"] if part["index"] == index]
    return "".join(part["text"] if "text" in part else part["delta"].get("content") or "" for part in parts)
