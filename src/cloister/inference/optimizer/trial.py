"""One candidate in a process of its own: the child's side. ``python -m cloister.inference.optimizer.trial FD PARENT``.

Requests come as lines of JSON on standard input, answers go as lines of JSON to the descriptor FD, since native libraries
write on standard output what they please. The process dies with its parent, is the first that the kernel kills where memory
ends, and opens nothing but the files that it is told.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from cloister.errors import CloisterError
from cloister.inference.engines import Engine, EngineSettings, open_engine
from cloister.inference.model_files import ModelFiles
from cloister.inference.optimizer.measurement import Load, Meter
from cloister.workload import linux


class Trial:
    """What the requests act on."""

    def __init__(self) -> None:
        self._engine: Engine | None = None
        self._meter: Meter | None = None

    def open(self, request: Mapping[str, Any]) -> Mapping[str, Any]:
        """Load the model and compute with it once."""
        settings = EngineSettings(**request["settings"])
        begun = time.monotonic()
        with ModelFiles.of_path(Path(request["path"])) as model:
            self._engine = open_engine(request["engine"], model, settings)
        loaded = time.monotonic() - begun
        self._meter = Meter(self._engine)
        return {"load_seconds": loaded, "context_length": self._engine.context_length}

    def measure(self, request: Mapping[str, Any]) -> Mapping[str, Any]:
        assert self._meter is not None  # noqa: S101 -- the parent opens first
        sample = self._meter.measure(Load(**request["load"]), seed=request["seed"])
        return {"sample": asdict(sample), "memory": _peak()}

    def quality(self, request: Mapping[str, Any]) -> Mapping[str, Any]:
        from cloister.inference.optimizer.judging import judge  # noqa: PLC0415 -- numpy, for this request alone

        return judge(request, self._engine)

    def close(self, _: Mapping[str, Any]) -> Mapping[str, Any]:
        if self._engine is not None:
            self._engine.close()
        return {}


def _make(request: Mapping[str, Any]) -> Mapping[str, Any]:
    from cloister.inference.optimizer.forms import make  # noqa: PLC0415 -- numpy, for this request alone

    make(Path(request["source"]), Path(request["target"]), request["form"])
    return {}


def main(descriptor: int, *, parent: int) -> None:
    """Answer requests until standard input ends."""
    _die_with(parent)
    trial = Trial()
    handlers = {
        "open": trial.open,
        "measure": trial.measure,
        "close": trial.close,
        "make": _make,
        "quality": trial.quality,
    }
    with os.fdopen(descriptor, "w", encoding="utf-8") as answers:
        for line in sys.stdin:
            request = json.loads(line)
            try:
                answer: Mapping[str, Any] = {"answer": handlers[request["do"]](request)}
            except CloisterError as error:
                answer = {"failed": error.what}
            except MemoryError:
                answer = {"failed": "out of memory"}
            except Exception as error:
                # Engines of plugins and native libraries raise what they please: it ends one candidate, not the search.
                text = " ".join(str(error).split())
                answer = {"failed": f"{type(error).__name__}: {text}"[:300]}
            answers.write(json.dumps(answer) + "\n")
            answers.flush()


def _peak() -> int:
    """Bytes: the most that was ever resident of this process (proc(5), VmHWM)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) << 10
    return 0


def _die_with(parent: int) -> None:
    linux.end_with(parent)
    with contextlib.suppress(OSError):  # forbidden in some sandboxes
        Path("/proc/self/oom_score_adj").write_text("1000")


if __name__ == "__main__":
    main(int(sys.argv[1]), parent=int(sys.argv[2]))
