"""`cloister optimize` as its users run it: real engines, real processes, and what can go wrong with them."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cloister.inference.demo_model import demo_model
from cloister.inference.engines import EngineSettings, open_engine
from cloister.inference.machine import read_machine
from cloister.inference.model_files import ModelFiles
from cloister.inference.optimized import Choice, read_choice
from engine_plugins import install_engines
from llama_models import write_llama
from real_parts import absent

PAGE = Path(__file__).resolve().parents[2] / "docs" / "how-to" / "optimize.md"
CLOISTER = (sys.executable, "-c", "from cloister.cli import main; main()")
# Below nohup every process ignores SIGHUP, and the command then leaves it so.
AS_USUAL = "import signal; signal.signal(signal.SIGHUP, signal.SIG_DFL); "
STOPPABLE = (sys.executable, "-c", AS_USUAL + CLOISTER[-1])


def optimise(
    *arguments: object, plugins: Path | None = None, **environment: str
) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join(filter(None, (str(plugins or ""), os.environ.get("PYTHONPATH", ""))))
    return subprocess.run(
        (*CLOISTER, "optimize", *map(str, arguments)),
        env={**os.environ, "PYTHONPATH": path, **environment},
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )


def rows(choice: Choice) -> dict[str, Any]:
    return {row.name: row for row in choice.rows}


def of_plugins(folder: Path) -> Path:
    """A model that no built-in engine opens."""
    model = folder / "model"
    model.mkdir()
    (model / "openvino_model.xml").write_text("<net/>")
    (model / "openvino_model.bin").write_bytes(bytes(1000))
    return model


def left_behind(folder: Path, *expected: str) -> list[str]:
    return sorted({entry.name for entry in folder.iterdir()} - set(expected))


def is_alive(process: int) -> bool:
    try:
        state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


def test_a_hugging_face_model_becomes_a_folder_that_the_chosen_engine_opens(tmp_path: Path) -> None:
    model = write_llama(tmp_path / "model")
    done = optimise(model, "--budget", "25s", "--max-quality-loss", "20%", "--json")
    assert done.returncode == 0, done.stderr
    out = tmp_path / "model.optimized"
    told = json.loads(done.stdout)
    assert told["out"] == str(out)
    choice = read_choice((out / "optimized.json").read_bytes())
    assert choice.machine.fingerprint == read_machine().fingerprint.hex()
    assert choice.chosen.speed is not None
    measured = [row for row in choice.rows if row.speed is not None]
    assert len(measured) >= 2
    assert any(row.quality is not None for row in measured), [row.reason for row in choice.rows]
    settings = EngineSettings(
        context_length=64, slots=1, precision=choice.settings.precision, kv_cache=choice.settings.kv_cache
    )
    with ModelFiles.of_path(out) as files:
        engine = open_engine(choice.engine, files, settings)
    said: list[str] = []
    try:
        request = {"prompt": "Once upon a time", "max_tokens": 8, "temperature": 0}
        engine.generate(
            "text",
            request,
            lambda chunk: bool(said.extend(one.get("text") or "" for one in chunk.get("choices", ()))),
        )
    finally:
        engine.close()
    assert "there was" in "".join(said)
    assert left_behind(tmp_path, "model", "model.optimized") == []


def test_a_gguf_model_is_linked_and_its_table_is_printed(tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = optimise(demo_model(), "--budget", "15s", "--for", "memory", "--out", out, COLUMNS="200")
    assert done.returncode == 0, done.stderr
    assert "✓" in done.stdout
    assert "llamacpp as it is" in done.stdout
    assert (out / demo_model().name).stat().st_size == demo_model().stat().st_size
    assert read_choice((out / "optimized.json").read_bytes()).goal == "memory"


def test_candidates_that_crash_starve_or_raise_are_rows_and_not_the_end(tmp_path: Path) -> None:
    plugins = install_engines(tmp_path / "plugins", "quick", "crashing", "starving", "raising")
    done = optimise(of_plugins(tmp_path), "--budget", "60s", "--json", plugins=plugins)
    assert done.returncode == 0, done.stderr
    choice = read_choice((tmp_path / "model.optimized" / "optimized.json").read_bytes())
    table = rows(choice)
    assert "segmentation fault" in table["crashing as it is"].reason
    assert table["starving as it is"].reason == "out of memory"
    assert table["raising as it is"].reason == "ValueError: no such thing on this machine"
    assert {table[f"{name} as it is"].state for name in ("crashing", "starving", "raising")} == {"failed"}
    assert choice.engine == "quick"
    assert left_behind(tmp_path, "plugins", "model", "model.optimized") == []


def test_the_quicker_of_two_engines_is_chosen(tmp_path: Path) -> None:
    plugins = install_engines(tmp_path / "plugins", "quick", "slow")
    done = optimise(of_plugins(tmp_path), "--budget", "50s", "--json", plugins=plugins)
    assert done.returncode == 0, done.stderr
    choice = read_choice((tmp_path / "model.optimized" / "optimized.json").read_bytes())
    assert choice.engine == "quick"
    quick, slow = (rows(choice)[f"{name} as it is"].speed for name in ("quick", "slow"))
    assert quick.decode_per_1000_s > 1.5 * slow.decode_per_1000_s
    assert quick.rounds > 1


def test_a_candidate_that_hangs_is_killed_with_its_children_and_the_budget_is_kept(tmp_path: Path) -> None:
    plugins = install_engines(tmp_path / "plugins", "hanging", "quick")
    noted = tmp_path / "noted"
    model = of_plugins(tmp_path)
    begun = time.monotonic()
    done = optimise(model, "--budget", "40s", "--json", plugins=plugins, HANGING=str(noted))
    took = time.monotonic() - begun
    assert done.returncode == 0, done.stderr
    choice = read_choice((tmp_path / "model.optimized" / "optimized.json").read_bytes())
    assert choice.engine == "quick"
    assert rows(choice)["hanging as it is"].reason == "it was not done when its time was over"
    assert took < 40 + 40  # starting and ending Python
    assert not any(is_alive(int(number)) for number in noted.read_text().split())


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP], ids=lambda stop: stop.name)
def test_a_search_that_is_stopped_leaves_no_folder_and_no_process(
    tmp_path: Path, stop: signal.Signals
) -> None:
    noted = tmp_path / "noted"
    searching = _hanging_search(tmp_path, noted)
    searching.send_signal(stop)
    assert searching.wait(30) == 130
    assert left_behind(tmp_path, "plugins", "noted", "model") == []
    assert not any(is_alive(int(number)) for number in noted.read_text().split())


def test_a_search_that_is_killed_leaves_no_measuring_process(tmp_path: Path) -> None:
    noted = tmp_path / "noted"
    searching = _hanging_search(tmp_path, noted)
    measuring = int(noted.read_text().split()[0])
    grandchild = int(noted.read_text().split()[1])
    searching.kill()
    searching.wait(30)
    deadline = time.monotonic() + 20
    while is_alive(measuring) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not is_alive(measuring)
    os.kill(grandchild, signal.SIGKILL)  # the test's own engine started it


def _hanging_search(tmp_path: Path, noted: Path) -> subprocess.Popen[bytes]:
    plugins = install_engines(tmp_path / "plugins", "hanging")
    quiet = subprocess.DEVNULL
    searching = subprocess.Popen(
        (*STOPPABLE, "optimize", str(of_plugins(tmp_path)), "--budget", "1h", "--out", str(tmp_path / "out")),
        env={**os.environ, "PYTHONPATH": str(plugins), "HANGING": str(noted)},
        stdout=quiet,
        stderr=quiet,
    )
    deadline = time.monotonic() + 60
    while not (noted.exists() and " " in noted.read_text()) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert noted.exists()
    return searching


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Large enough for what the search notes, which is more on a quicker machine, and for no conversion's spare 64 MB."""
    with disk_of("48m", tmp_path / "small") as place:
        yield place


@pytest.fixture
def smaller_disk(tmp_path: Path) -> Iterator[Path]:
    with disk_of("4m", tmp_path / "small") as place:
        yield place


@contextlib.contextmanager
def disk_of(size: str, place: Path) -> Iterator[Path]:
    place.mkdir()
    command = ("mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", place)
    made = subprocess.run(command, check=False, capture_output=True)
    if made.returncode:
        absent(f"a small disk cannot be mounted: {made.stderr.decode()}")
    try:
        yield place
    finally:
        subprocess.run(("umount", "-l", place), check=True)


def test_a_disk_that_is_full_is_one_line_and_leaves_nothing(smaller_disk: Path) -> None:
    done = optimise(demo_model(), "--budget", "10s", "--out", smaller_disk / "out", "--json")
    assert done.returncode == 2, done.stderr
    assert "No space left on device" in json.loads(done.stderr)["error"]
    assert left_behind(smaller_disk) == []


def test_conversions_that_the_disk_cannot_hold_are_not_begun(small_disk: Path) -> None:
    model = write_llama(small_disk / "model")
    done = optimise(model, "--budget", "90s", "--json")
    assert done.returncode == 0, done.stderr
    choice = read_choice((small_disk / "model.optimized" / "optimized.json").read_bytes())
    assert choice.engine == "torch"
    assert "GB of disk" in rows(choice)["llamacpp q4_0"].reason


def test_a_damaged_model_ends_in_one_line(tmp_path: Path) -> None:
    model = tmp_path / "model.gguf"
    model.write_bytes(demo_model().read_bytes()[:-1000])
    done = optimise(model, "--json")
    assert done.returncode == 1, done.stdout
    assert "truncated" in json.loads(done.stderr)["error"]
    assert left_behind(tmp_path, "model.gguf") == []


def test_a_model_that_no_engine_computes_is_told_with_the_reasons(tmp_path: Path) -> None:
    plugins = install_engines(tmp_path / "plugins", "starving", "raising")
    done = optimise(of_plugins(tmp_path), "--budget", "60s", "--json", plugins=plugins)
    assert done.returncode == 1, done.stdout
    error = json.loads(done.stderr)["error"]
    assert "nothing could be chosen" in error
    assert "starving as it is: out of memory" in error
    assert left_behind(tmp_path, "plugins", "model") == []


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        pytest.param(["{model}", "--budget", "soon"], "no time", id="a budget that is no time"),
        pytest.param(["{model}", "--budget", "1s"], "a budget of 1 s", id="a budget too small"),
        pytest.param(["{model}", "--max-quality-loss", "3"], "no percentage", id="a bound without %"),
        pytest.param(
            ["{model}", "--out", "{full}"], "not an empty directory", id="a folder that is occupied"
        ),
        pytest.param(["{sealed}"], "is sealed", id="a sealed model"),
        pytest.param(["{full}"], "holds no model", id="a folder without a model"),
        pytest.param(["{missing}"], "cannot be read", id="nothing there"),
        pytest.param(["{model}", "--text", "{missing}"], "cannot be read", id="no such text"),
    ],
)
def test_what_cannot_be_meant_is_refused_in_one_line(
    tmp_path: Path, arguments: list[str], words: str
) -> None:
    places = {"model": demo_model(), "missing": tmp_path / "missing"}
    for name, file in (("full", "a.txt"), ("sealed", "index.json")):
        places[name] = tmp_path / name
        places[name].mkdir()
        (places[name] / file).write_text("{}")
    told = [argument.format(**places) for argument in arguments]
    out = [] if "--out" in told else ["--out", str(tmp_path / "out")]
    done = optimise(*told, *out, "--json")
    assert done.returncode == 2, done.stderr
    error = json.loads(done.stderr)["error"]
    assert words in error
    assert "\n" not in error
    assert left_behind(tmp_path, "full", "sealed") == []


def test_the_how_to_works_as_it_stands_there(tmp_path: Path) -> None:
    write_llama(tmp_path / "llama")
    script = ["set -euo pipefail"]
    for language, block in re.findall(r"```(console|python)\n(.*?)```", PAGE.read_text(), re.DOTALL):
        script.append(block if language == "console" else f"python <<'END-OF-BLOCK'\n{block}END-OF-BLOCK")
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "COLUMNS": "160",
    }
    shell = subprocess.Popen(
        ["bash", "-c", "\n".join([*script, "echo THE-END"])],
        cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        start_new_session=True,
    )  # fmt: skip
    try:
        said, _ = shell.communicate(timeout=280)
    finally:
        with contextlib.suppress(ProcessLookupError):  # nothing was left running
            os.killpg(shell.pid, signal.SIGKILL)
    assert "THE-END" in said, said[-4000:]
    assert "Traceback" not in said
    assert "<- chosen" in said
    assert "optimized.json" in said
    assert read_choice((tmp_path / "llama.small" / "optimized.json").read_bytes()).goal == "memory"


def test_who_lacks_every_engine_is_told_what_to_install(tmp_path: Path) -> None:
    """The demo's installation has llama.cpp alone, and nothing to convert a folder with."""
    model = write_llama(tmp_path / "model")
    hidden = "import sys; sys.modules |= dict.fromkeys(('numpy', 'torch', 'openvino_genai')); "
    done = subprocess.run(
        [sys.executable, "-c", hidden + "from cloister.cli import main; main()", "optimize", str(model)],
        capture_output=True,
        text=True,
        check=False,
    )
    (line,) = done.stderr.splitlines()
    assert done.returncode == 1
    assert "numpy, which is not installed" in line
    assert "pip install 'cloister[optimize,torch,openvino]'" in line
