"""Where the packaged demonstration model lies: a small model of medical questions, to try everything with."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import Final

from cloister.errors import InferenceError

NAME: Final = "medquad-demo"
FILE: Final = "medquad-demo-q8_0.gguf"


def demo_model() -> Path:
    """The path of the packaged GGUF file. Raises InferenceError where the installation lacks it."""
    path = Path(str(files("cloister.inference") / "models" / FILE))
    if not path.is_file():
        raise InferenceError(
            f"this installation has no demonstration model ({FILE})",
            todo="reinstall, or name a model of your own",
        )
    return path
