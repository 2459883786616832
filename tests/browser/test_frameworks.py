"""LangChain, LlamaIndex and curl reach a verified service through the local proxy by its base URL alone.

The frameworks live in an environment of their own below ``build/frameworks``, since one of them needs an OpenAI client of
another generation: they know nothing of Cloister. Run by ``make test-browser``, the slow lane.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from deployment import Service, secret, start_service
from real_parts import absent
from sealed_service import MODEL, launched, policy_file, running

pytestmark = [pytest.mark.browser, pytest.mark.timeout(900)]
PINS = Path(__file__).parents[1] / "contracts" / "frameworks.txt"
HOME = Path(__file__).parents[2] / "build" / "frameworks"
PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "any-openai-program.md"
LANGCHAIN = """
import os
from langchain_openai import ChatOpenAI
model = ChatOpenAI(model={model!r}, base_url=os.environ["OPENAI_BASE_URL"], api_key=os.environ["OPENAI_API_KEY"])
print(model.invoke("hello").content)
print("".join(piece.content for piece in model.stream("hello")))
"""
LLAMA_INDEX = """
import os
from llama_index.llms.openai_like import OpenAILike
own = dict(api_base=os.environ["OPENAI_BASE_URL"], api_key=os.environ["OPENAI_API_KEY"])
model = OpenAILike(model={model!r}, is_chat_model=True, **own)
print(model.complete("hello").text)
print("".join(piece.delta or "" for piece in model.stream_complete("hello")))
"""


@pytest.fixture(scope="module")
def python() -> Path:
    """The interpreter that has the frameworks; installed once for these pins."""
    program = HOME / "bin" / "python"
    mark = HOME / hashlib.sha256(PINS.read_bytes()).hexdigest()
    if not mark.exists():
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(HOME)], check=True, capture_output=True)
        install = [
            str(program),
            "-m",
            "pip",
            "install",
            "--quiet",
            "--disable-pip-version-check",
            "-r",
            str(PINS),
        ]
        done = subprocess.run(install, capture_output=True, text=True, timeout=600, check=False)
        if done.returncode != 0:
            absent(f"the frameworks cannot be installed: {done.stderr.strip()[-300:]}")
        mark.touch()
    return program


@pytest.fixture(scope="module")
def proxy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Service, str]]:
    """The local proxy before a sealed service, and its key."""
    root = tmp_path_factory.mktemp("proxy")
    tee = launched()
    with running(tee=tee) as service:
        secret(root / "service.key", "sk-the-services-own-key\n")
        words = [
            "proxy",
            service.url,
            "--policy",
            policy_file(root, tee),
            "--service-key-file",
            root / "service.key",
        ]
        started = start_service([*words, "--listen", "127.0.0.1:0", "--key-file", root / "key"], root / "log")
        yield started, (root / "key").read_text().strip()
        started.stop()


@pytest.mark.parametrize("program", [LANGCHAIN, LLAMA_INDEX], ids=["LangChain", "LlamaIndex"])
def test_a_framework_is_answered_at_once_and_as_a_stream(
    program: str, python: Path, proxy: tuple[Service, str]
) -> None:
    service, key = proxy
    own = {
        "OPENAI_BASE_URL": f"{service.url}/v1",
        "OPENAI_API_KEY": key,
        "HOME": os.environ.get("HOME", "/"),
        "PATH": "/usr/bin:/bin",
    }
    done = subprocess.run(
        [str(python), "-c", program.format(model=MODEL)],
        env=own,
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )
    assert done.stdout.splitlines() == ["Hello there.", "Hello there."], done.stderr[-2000:]


def test_curl_is_answered_with_two_variables_changed(proxy: tuple[Service, str], tmp_path: Path) -> None:
    service, key = proxy
    secret(tmp_path / "header", f"Authorization: Bearer {key}\n")
    body = f'{{"model": "{MODEL}", "messages": [{{"role": "user", "content": "hello"}}]}}'
    done = subprocess.run(
        ["curl", "-s", f"{service.url}/v1/chat/completions", "-H", f"@{tmp_path / 'header'}",
         "-H", "Content-Type: application/json", "-d", "@-"],
        input=body, capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    assert "Hello there." in done.stdout
