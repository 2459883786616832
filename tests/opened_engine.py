"""An engine on a model that lies on a disk, as tests and examples of the engines open one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cloister.inference.engines import Engine, EngineSettings, open_engine
from cloister.inference.model_files import ModelFiles


def engine_on(
    path: Path, name: str = "llamacpp", *, context_length: int = 512, slots: int = 1, **settings: Any
) -> Engine:
    """The engine ``name`` on the model at ``path``, its files closed again; the caller's to close."""
    with ModelFiles.of_path(path) as files:
        wished = EngineSettings(context_length=context_length, slots=slots, **settings)
        return open_engine(name, files, wished)
