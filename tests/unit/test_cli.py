"""The command line as a whole: help, JSON everywhere, one line and the right exit code for every error."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
import typer

from cloister import cli, errors
from cloister.errors import CloisterError

CLOISTER = Path(sys.executable).parent / "cloister"


def _commands(
    command: click.Command, path: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    if isinstance(command, click.Group):
        for name, child in command.commands.items():
            yield from _commands(child, (*path, name))
    else:
        yield path, command


COMMANDS = dict(_commands(typer.main.get_command(cli.build())))


@pytest.mark.parametrize("path", COMMANDS, ids=" ".join)
def test_every_command_can_answer_in_json_and_says_what_it_does(path: tuple[str, ...]) -> None:
    command = COMMANDS[path]
    assert any("--json" in parameter.opts for parameter in command.params)
    assert command.help


@pytest.mark.parametrize("path", COMMANDS, ids=" ".join)
def test_no_command_takes_a_secret_on_its_command_line(path: tuple[str, ...]) -> None:
    forbidden = {"--key-hex", "--passphrase", "--password", "--secret", "--api-key", "--token"}
    assert not forbidden & {name for parameter in COMMANDS[path].params for name in parameter.opts}


def test_help_needs_no_heavy_library() -> None:
    program = (
        "import sys; from cloister.cli import build; build();"
        "heavy = {'httpx2', 'dcap_qvl', 'uvicorn', 'starlette', 'xllamacpp', 'cryptography', 'joserfc', 'openai'};"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        pytest.param([], 2, "Usage", id="nothing asked"),
        pytest.param(["no-such-command"], 2, "usage: No such command", id="unknown command"),
        pytest.param(["serv"], 2, "Did you mean 'serve'?\n", id="mistyped command"),
        pytest.param(
            ["measure", "broker", "--out", "/nowhere/p"], 2, "usage: no TEE was found", id="no TEE to measure"
        ),
        pytest.param(["seal"], 2, "usage: Missing", id="missing argument"),
        pytest.param(["serve", "/nowhere", "--no-api-keys"], 2, "usage: no TEE was found", id="no TEE"),
        pytest.param(["simulate", "show", "/nowhere"], 2, "simulate init", id="no platform"),
        pytest.param(["keys", "show", "/nowhere"], 2, "/nowhere", id="no key file"),
        pytest.param(["unseal", "/nowhere", "--out", "/tmp/x"], 2, "usage", id="missing option"),
    ],
)
def test_bad_usage_is_one_line_and_exit_code_2(arguments: list[str], code: int, words: str) -> None:
    done = subprocess.run([CLOISTER, *arguments], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == code
    assert words in done.stderr + done.stdout
    assert "Traceback" not in done.stderr
    if arguments:
        assert len(done.stderr.strip().splitlines()) == 1, done.stderr


@pytest.mark.parametrize("command", [["serve", "m", "--no-api-keys"], ["broker", "serve", "--state", "s"]])
def test_a_command_whose_extra_is_not_installed_says_what_to_install(
    command: list[str], tmp_path: Path
) -> None:
    from cloister.attester.simulated import SimulatedPlatform

    SimulatedPlatform.create(tmp_path / "tee", now=int(time.time()))
    arguments = [*command, "--simulated-tee", str(tmp_path / "tee"), "--port", "0"]
    if command[0] == "broker":
        arguments += ["--passphrase-file", "p"]
    program = (
        "import sys; sys.modules['starlette'] = None; sys.modules['uvicorn'] = None;"
        f"from cloister.cli import main; main({arguments!r})"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 2
    assert done.stderr.strip().splitlines()[-1].endswith("pip install 'cloister[inference]'")
    assert "Traceback" not in done.stderr


def test_with_json_an_error_is_json() -> None:
    done = subprocess.run(
        [CLOISTER, "keys", "show", "/nowhere", "--json"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert json.loads(done.stderr) == {
        "error": json.loads(done.stderr)["error"],
        "exit_code": 2,
        "layer": "usage",
    }


def _tree(root: type[CloisterError]) -> Iterator[type[CloisterError]]:
    for child in root.__subclasses__():
        yield child
        yield from _tree(child)


@pytest.mark.parametrize("kind", sorted(_tree(CloisterError), key=lambda kind: kind.__qualname__))
def test_every_error_names_its_layer_and_has_an_exit_code_of_its_class(kind: type[CloisterError]) -> None:
    assert kind.layer != CloisterError.layer
    assert kind.exit_code in (
        errors.EXIT_INTERNAL, errors.EXIT_USAGE, errors.EXIT_VERIFICATION, errors.EXIT_NETWORK, errors.EXIT_POLICY
    )  # fmt: skip
    assert kind.__doc__
