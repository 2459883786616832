"""`cloister simulate`, as a person and as a script sees it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cloister.attester.simulated import SimulatedPlatform
from cloister.errors import EXIT_USAGE

# Typer 0.20 (the newest that Flower allows) imports names that Click 8.5 deprecates.
pytestmark = pytest.mark.filterwarnings(r"ignore:'click\.utils:DeprecationWarning")


def run(*arguments: str) -> int:
    from cloister.cli import main

    with pytest.raises(SystemExit) as caught:
        main(["simulate", *arguments])
    assert isinstance(caught.value.code, int)
    return caught.value.code


def test_init_and_show_agree_and_announce_the_simulation(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    directory = str(tmp_path / "platform")
    assert run("init", directory) == 0
    made = capsys.readouterr().out
    assert run("show", directory) == 0
    assert capsys.readouterr().out == made
    assert "SIMULATED TEE" in made
    assert SimulatedPlatform.load(Path(directory)).root_sha256 in made


def test_json_is_one_object_with_root_and_measurements(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    directory = str(tmp_path / "platform")
    assert run("init", directory, "--json") == 0
    made = json.loads(capsys.readouterr().out)
    assert run("show", directory, "--json") == 0
    assert json.loads(capsys.readouterr().out) == made
    platform = SimulatedPlatform.load(Path(directory))
    assert made["simulated"] is True
    assert made["root_sha256"] == platform.root_sha256
    assert made["measurements"] == {name: value.hex() for name, value in platform.firmware.items()}
    assert set(made["measurements"]) == {"mrtd", "rtmr0", "rtmr1", "rtmr2", "mrsigner"}


@pytest.mark.parametrize(("command", "exists"), [("init", True), ("show", False)])
def test_a_wrong_directory_is_one_line_and_a_usage_error(
    command: str, exists: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    directory = tmp_path / "platform"
    if exists:
        SimulatedPlatform.create(directory, now=1_790_000_000)
        capsys.readouterr()
    assert run(command, str(directory)) == EXIT_USAGE
    shown = capsys.readouterr()
    assert shown.out == ""
    (line,) = shown.err.splitlines()
    assert line.startswith("usage: ")
    assert str(directory) in line
