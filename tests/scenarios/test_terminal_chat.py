"""`cloister chat` as people use it: a terminal of its own, a pipe, Ctrl-C; and nothing of it left behind."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import select
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from deployment import CLOISTER, secret
from sealed_service import MODEL, Service, launched, policy_file, running

CANARY = "Zugzwangquark"


class Terminal:
    """A person at `cloister chat`."""

    def __init__(self, words: list[str | Path], home: Path) -> None:
        self._own, theirs = pty.openpty()
        self.process = subprocess.Popen(
            [CLOISTER, "chat", *words], stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True, cwd=home,
            env=os.environ | {"HOME": str(home), "TERM": "dumb", "COLUMNS": "200"},
        )  # fmt: skip
        os.close(theirs)
        self.seen = ""
        self._at = 0

    def wait_for(self, text: str, seconds: float = 30) -> None:
        """Behind what was waited for before."""
        until = time.monotonic() + seconds
        while (found := self.seen.find(text, self._at)) < 0:
            ready, _, _ = select.select([self._own], [], [], max(0.0, until - time.monotonic()))
            assert ready, f"{text!r} did not come; seen: {self.seen[-600:]}"
            try:
                self.seen += os.read(self._own, 65536).decode(errors="replace")
            except OSError:
                raise AssertionError(f"it ended; seen: {self.seen[-600:]}") from None
        self._at = found + len(text)

    def type(self, text: str) -> None:
        os.write(self._own, text.encode())

    def end(self) -> int:
        with contextlib.suppress(OSError):
            while select.select([self._own], [], [], 10)[0]:
                data = os.read(self._own, 65536)
                if not data:
                    break
                self.seen += data.decode(errors="replace")
        code = self.process.wait(60)
        os.close(self._own)
        return code


@pytest.fixture(scope="module")
def service() -> Iterator[Service]:
    with running(answers=["Hel", "lo ", "\x1b[2J", "there"]) as it:
        yield it


def asked(*words: str | Path, question: bytes, folder: Path) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [CLOISTER, "chat", *words], input=question, capture_output=True, timeout=60, check=False, cwd=folder
    )


def test_a_question_by_a_pipe_is_answered_once(service: Service, tmp_path: Path) -> None:
    policy = policy_file(tmp_path, service.tee)
    done = asked(service.url, "--policy", policy, question=f"What of {CANARY}?\n".encode(), folder=tmp_path)
    assert (done.returncode, done.stdout) == (0, b"Hello \\u001b[2Jthere\n")
    assert json.loads(service.asked[-1].body)["messages"] == [
        {"role": "user", "content": f"What of {CANARY}?"}
    ]
    assert service.asked[-1].sealed
    done = asked(service.url, "--policy", policy, "--json", question=b"And?", folder=tmp_path)
    assert json.loads(done.stdout) == {"model": MODEL, "answer": "Hello \x1b[2Jthere"}


def test_a_person_talks_sees_who_answers_and_leaves_nothing_behind(service: Service, tmp_path: Path) -> None:
    policy = policy_file(tmp_path, service.tee)
    secret(tmp_path / "key", "sk-of-the-service")
    terminal = Terminal([service.url, "--policy", policy, "--service-key-file", tmp_path / "key"], tmp_path)
    terminal.wait_for("> ")
    assert "SIMULATED" in terminal.seen
    terminal.type(f"{CANARY}?\n")
    terminal.wait_for("there")
    terminal.wait_for("> ")
    assert "\x1b[2J" not in terminal.seen
    terminal.type("And more?\n")
    terminal.wait_for("there")
    said = [one["content"] for one in json.loads(service.asked[-1].body)["messages"]]
    assert said == [f"{CANARY}?", "Hello \x1b[2Jthere", "And more?"]
    assert service.asked[-1].headers["authorization"] == "Bearer sk-of-the-service"
    terminal.type("/verify\n")
    terminal.wait_for("verified: ")
    terminal.type("/new\n")
    terminal.wait_for("> ")
    terminal.type("Anew?\n")
    terminal.wait_for("there")
    assert [one["content"] for one in json.loads(service.asked[-1].body)["messages"]] == ["Anew?"]
    terminal.type("/quit\n")
    assert terminal.end() == 0
    left = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert sorted(path.name for path in left) == ["key", "policy.toml"]


def test_ctrl_c_stops_an_answer_and_not_the_conversation(tmp_path: Path) -> None:
    with running(answers=["word "] * 1000, pause=0.1, cadence=0.01) as service:
        terminal = Terminal([service.url, "--policy", policy_file(tmp_path, service.tee)], tmp_path)
        terminal.wait_for("> ")
        terminal.type("Count.\n")
        terminal.wait_for("word word")
        terminal.process.send_signal(signal.SIGINT)
        terminal.wait_for("> ")
        assert service.disconnected.wait(60)
        terminal.type("\x04")
        assert terminal.end() == 0


def test_a_service_that_is_not_the_one_of_the_policy_hears_nothing(tmp_path: Path) -> None:
    with running(tee=launched(b"\x09" * 32)) as service:
        done = asked(
            service.url,
            "--policy",
            policy_file(tmp_path, launched()),
            question=CANARY.encode(),
            folder=tmp_path,
        )
        assert done.returncode == 5
        assert "appraisal" in done.stderr.decode().strip().splitlines()[-1]
        assert service.asked == []


@pytest.mark.parametrize(
    ("words", "question", "code", "said"),
    [
        pytest.param([], b"", 2, "empty", id="no question"),
        pytest.param([], b"\xff\xfe", 2, "UTF-8", id="a question that is no text"),
        pytest.param(["--system", "missing"], b"?", 2, "cannot be read", id="a file that is not there"),
        pytest.param(["--service-key-file", "missing"], b"?", 2, "cannot be read", id="a key file that is not there"),
        pytest.param(["What is this?"], b"?", 2, "unexpected", id="a question on the command line"),
    ],
)  # fmt: skip
def test_what_cannot_be_asked_is_one_line(
    service: Service, tmp_path: Path, words: list[str], question: bytes, code: int, said: str
) -> None:
    done = asked(
        service.url,
        "--policy",
        policy_file(tmp_path, service.tee),
        *words,
        question=question,
        folder=tmp_path,
    )
    assert done.returncode == code
    *loud, last = done.stderr.decode().strip().splitlines()
    assert said in last
    assert all("SIMULATED" in line for line in loud)
