"""The layers are held by import-linter; here a violation is planted to see that it really looks."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parents[2]
LINT = Path(sys.executable).parent / "lint-imports"


def _lint(root: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [LINT, "--no-cache", "--config", PROJECT / "pyproject.toml"],
        cwd=root, env={"PYTHONPATH": str(root / "src"), "PATH": "/usr/bin:/bin"},
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    shutil.copytree(
        PROJECT / "src", tmp_path / "src", ignore=shutil.ignore_patterns("__pycache__", "*.gguf", "models")
    )
    return tmp_path


def test_the_house_keeps_its_layers(copy: Path) -> None:
    done = _lint(copy)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    ("module", "line"),
    [
        pytest.param(
            "evidence/bundle.py", "import cloister.verifier.claims", id="evidence imports its verifier"
        ),
        pytest.param(
            "verifier/claims.py", "import cloister.appraisal.result", id="verifier imports appraisal"
        ),
        pytest.param(
            "sealing/__init__.py", "import cloister.channel", id="two rooms of one layer know each other"
        ),
        pytest.param("errors.py", "import cloister.encoding", id="the bottom imports anything"),
        pytest.param("channel/__init__.py", "import cloister.cli", id="a room imports the command line"),
    ],
)
def test_a_planted_violation_is_caught(copy: Path, module: str, line: str) -> None:
    path = copy / "src" / "cloister" / module
    path.write_text(path.read_text() + f"\n{line}\n")
    done = _lint(copy)
    assert done.returncode == 1
    assert "BROKEN" in done.stdout


def test_a_room_that_no_layer_names_is_caught(copy: Path) -> None:
    room = copy / "src" / "cloister" / "annex"
    room.mkdir()
    (room / "__init__.py").write_text("")
    assert _lint(copy).returncode == 1
