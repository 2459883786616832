"""Engines of plugins for tests of who opens them: installed as packages are, in a folder for ``PYTHONPATH``."""

from __future__ import annotations

from pathlib import Path

_PACED = '''
import time

class PacedEngine:
    """Answers at a pace that a test knows."""
    context_length, slots, embedding_length, tools = 640, 8, None, False

    def __init__(self, pause):
        self._pause = pause

    def generate(self, kind, request, sink, *, tenant=None):
        time.sleep(self._pause)
        for _ in range(request["max_tokens"]):
            time.sleep(self._pause)
            sink({"choices": [{"index": 0, "text": "a ", "finish_reason": None}]})
        words = len(str(request["prompt"]).split())
        sink({"choices": [], "usage": {"prompt_tokens": words, "completion_tokens": request["max_tokens"]}})

    def embed(self, request):
        return {}

    def close(self):
        pass

def quick(model, settings):
    return PacedEngine(0.0005)

def slow(model, settings):
    return PacedEngine(0.002)

def crashing(model, settings):
    import os, signal
    os.kill(os.getpid(), signal.SIGSEGV)

def starving(model, settings):
    raise MemoryError

def raising(model, settings):
    raise ValueError("no such thing\\n on this machine")

def hanging(model, settings):
    import os, pathlib, subprocess, sys
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    pathlib.Path(os.environ["HANGING"]).write_text(f"{os.getpid()} {child.pid}")
    time.sleep(600)
'''


def install_engines(folder: Path, *names: str) -> Path:
    """Install the engines ``names`` into the new ``folder``: quick, slow, crashing, starving, raising, hanging."""
    package = folder / "engine_plugins_for_tests-1.0.dist-info"
    package.mkdir(parents=True)
    (package / "METADATA").write_text("Metadata-Version: 2.1\nName: engine-plugins-for-tests\nVersion: 1.0\n")
    lines = [f"{name} = engine_plugins_for_tests:{name}" for name in names]
    (package / "entry_points.txt").write_text("\n".join(["[cloister.engines]", *lines, ""]))
    (folder / "engine_plugins_for_tests.py").write_text(_PACED)
    return folder
