"""`cloister witness`: what is remembered is shown, and forgotten only by its owner's explicit decision."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cloister.broker.witness_memory import Witness, held, read_memory
from cloister.cli.witness import app
from cloister.errors import CloisterError, UsageError
from witness_parts import Log, signer

LOG = Log(8)


def run(*arguments: str | Path, answer: str | None = None, raises: type[CloisterError] | None = None) -> str:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], input=answer)
    if raises is None:
        assert result.exception is None, result.exception
        return result.output
    assert isinstance(result.exception, raises), result.exception
    return str(result.exception)


@pytest.fixture
def state(tmp_path: Path) -> Path:
    """Of a witness that co-signed 8 entries."""
    Witness(tmp_path, signer("anna"), {LOG.id: LOG.public}).cosign(LOG.request(0))
    return tmp_path


def size(state: Path) -> int:
    memory = read_memory(state, LOG.id)
    assert memory is not None
    return memory.size


def test_what_is_remembered_is_shown(state: Path) -> None:
    assert f"log {LOG.id}: 8 entries, root {LOG.tree.root().hex()}" in run("show", "--state", state)
    facts = json.loads(run("show", "--state", state, "--json"))
    assert facts[LOG.id] == {
        "log_key": LOG.public.hex(),
        "size": 8,
        "root": LOG.tree.root().hex(),
        "cosigned": True,
        "forgotten": [],
    }


def test_a_witness_that_saw_nothing_says_so(tmp_path: Path) -> None:
    assert "nothing was witnessed yet" in run("show", "--state", tmp_path)
    assert run("show", "--state", tmp_path / "nowhere", raises=UsageError)


def test_nothing_is_forgotten_without_a_yes(state: Path) -> None:
    words: list[str | Path] = ["forget", "--state", state, "--log", LOG.public.hex(), "--to-size", "5"]
    assert "nothing was forgotten" in run(*words, answer="n\n", raises=UsageError)
    assert size(state) == 8
    run(*words, answer="y\n")
    assert size(state) == 5


def test_what_was_forgotten_is_remembered(state: Path) -> None:
    root = LOG.tree.root(5).hex()
    words: list[str | Path] = [
        "forget",
        "--state",
        state,
        "--log",
        LOG.public.hex(),
        "--to-size",
        "5",
        "--root",
        root,
        "--yes",
    ]
    assert json.loads(run(*words, "--json")) == {"log": LOG.id, "from": 8, "to": 5, "root": root}
    shown = run("show", "--state", state)
    assert f"its owner went back to 5 entries, root {root}" in shown
    assert f"from 8 entries with root {LOG.tree.root().hex()} to 5" in shown


@pytest.mark.parametrize(
    ("options", "error"),
    [
        (["--log", LOG.public.hex(), "--to-size", "8"], "nothing to forget"),
        (["--log", LOG.public.hex(), "--to-size", "5", "--root", "beef"], "64 lower-case"),
        (["--log", Log(name="another").public.hex(), "--to-size", "0"], "nothing is remembered"),
        (["--log", "beef", "--to-size", "0"], "64 lower-case"),
    ],
)
def test_what_cannot_be_forgotten_is_refused(state: Path, options: list[str], error: str) -> None:
    assert error in run("forget", "--state", state, "--yes", *options, raises=UsageError)
    assert size(state) == 8


def test_nothing_is_forgotten_under_a_running_witness(state: Path) -> None:
    with held(state):
        words: list[str | Path] = [
            "forget",
            "--state",
            state,
            "--log",
            LOG.public.hex(),
            "--to-size",
            "5",
            "--yes",
        ]
        assert "another witness works" in run(*words, raises=UsageError)


@pytest.mark.parametrize("log", ["beef", "ed25519:" + "0" * 64, "0" * 63 + "G"])
def test_a_log_key_that_is_none_is_refused_before_anything_is_made(tmp_path: Path, log: str) -> None:
    directory = tmp_path / "state"
    words: list[str | Path] = ["serve", "--state", directory, "--key", tmp_path / "no.key", "--log", log]
    assert "a log key must be 64" in run(*words, raises=UsageError)
    assert not directory.exists()
