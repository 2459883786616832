"""What the README tells people to type works as it stands there: commands in a shell, Python in an interpreter."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ports import free_port

PROJECT = Path(__file__).resolve().parents[2]
README = (PROJECT / "README.md").read_text()


def _blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def _wait_for_port(port: int, process: subprocess.Popen[bytes]) -> None:
    end = time.monotonic() + 150
    while time.monotonic() < end:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        assert process.poll() is None, "the commands ended early"
        time.sleep(0.1)
    raise AssertionError("nothing listens")


@pytest.mark.timeout(600)
def test_the_readme_leads_from_nothing_to_an_answer(tmp_path: Path) -> None:
    preparation = next(block for block in _blocks("console") if "umask" in block)
    commands = next(block for block in _blocks("console") if "cloister simulate init" in block)
    python = next(block for block in _blocks("python") if "cloister.connect" in block)
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    subprocess.run(["bash", "-e", "-c", preparation], cwd=tmp_path, env=environment, check=True, timeout=60)
    key = (tmp_path / "api-keys").read_text().strip()

    # The same text, on ports that are free here; and the second service waits for the first, as a person would.
    serve, broker = free_port(), free_port()
    waits = f"until (: < /dev/tcp/127.0.0.1/{broker}) 2> /dev/null; do sleep 0.2; done"
    commands = commands.replace("8100", str(broker)).replace(
        "cloister serve medquad", f"{waits}; exec cloister serve --port {serve} medquad"
    )
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
        program = python.replace("8000", str(serve)).replace('"YOUR-API-KEY"', repr(key))
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
        check = next(block for block in _blocks("console") if "cloister verify" in block)
        checked = subprocess.run(
            ["bash", "-e", "-c", check.replace("8000", str(serve))],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert checked.returncode == 0, checked.stderr
        assert "accepted" in checked.stdout.lower()
        assert (tmp_path / "report.html").stat().st_size > 1000
        program = next(block for block in _blocks("console") if "cloister run" in block)
        ran = subprocess.run(
            ["bash", "-e", "-c", program.replace("8100", str(broker))],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            timeout=280,
            check=False,
        )
        assert ran.returncode == 0, ran.stderr
        assert re.search(r"^[0-9a-f]{64}  /models/demo/\S+\.gguf$", ran.stdout, re.M)
        assert not Path("/models/demo").exists()
    except BaseException:
        print((tmp_path / "log").read_text())
        raise
    finally:
        os.killpg(shell.pid, signal.SIGTERM)
        shell.wait(20)


def test_the_readme_s_model_in_few_bits_answers(tmp_path: Path) -> None:
    from llama_models import write_llama

    write_llama(tmp_path / "llama")
    python = next(block for block in _blocks("python") if "load_in_low_bit" in block)
    asked = python + "\nimport torch\nprint(model.generate(torch.tensor([[1]]), max_new_tokens=4).shape[1])\n"
    done = subprocess.run(
        [sys.executable, "-c", asked], cwd=tmp_path, capture_output=True, text=True, timeout=280, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["5"]


def test_a_transformers_model_is_made_fast_as_the_how_to_says(tmp_path: Path) -> None:
    from llama_models import write_llama

    write_llama(tmp_path / "llama")
    page = (PROJECT / "docs" / "how-to" / "transformers-models.md").read_text()
    program = "\n".join(re.findall(r"```python\n(.*?)```", page, re.DOTALL))
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "llama.int4").is_dir()
