"""What the README tells people to type works as it stands there: commands in a shell, Python in an interpreter."""

from __future__ import annotations

import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cloister.inference.demo_model import demo_model
from deployment import secret

PROJECT = Path(__file__).resolve().parents[2]
README = (PROJECT / "README.md").read_text()


def _blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _wait_for_port(port: int, process: subprocess.Popen[bytes]) -> None:
    end = time.monotonic() + 60
    while time.monotonic() < end:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        assert process.poll() is None, "the commands ended early"
        time.sleep(0.1)
    raise AssertionError("nothing listens")


@pytest.mark.timeout(240)
def test_the_readme_leads_from_nothing_to_an_answer(tmp_path: Path) -> None:
    commands = next(block for block in _blocks("console") if "cloister simulate init" in block)
    python = next(block for block in _blocks("python") if "cloister.connect" in block)
    (tmp_path / "model").mkdir()
    shutil.copy(demo_model(), tmp_path / "model" / "medquad-demo.gguf")
    key = secrets.token_urlsafe(24)
    secret(tmp_path / "passphrase", secrets.token_urlsafe(24))
    secret(tmp_path / "api-keys", key)

    # The same text, on ports that are free here; and the second service waits for the first, as a person would.
    serve, broker = _free_port(), _free_port()
    commands = commands.replace("8100", str(broker)).replace(
        "cloister serve model.sealed", f"sleep 6; exec cloister serve --port {serve} model.sealed"
    )
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    with (tmp_path / "log").open("w") as log:
        shell = subprocess.Popen(
            ["bash", "-e", "-c", commands],
            cwd=tmp_path,
            env=environment,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:
        _wait_for_port(serve, shell)
        program = python.replace("8000", str(serve)).replace('api_key="…"', f"api_key={key!r}")
        program = program.replace('model="medquad-demo"', 'model="model.sealed"')
        done = subprocess.run(
            [sys.executable, "-c", program],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert len(done.stdout) > 40
    except AssertionError:
        print((tmp_path / "log").read_text())
        raise
    finally:
        os.killpg(shell.pid, signal.SIGTERM)
        shell.wait(20)
