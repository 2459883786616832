"""Flower's programs through a starter: a real one, which has loaded the Flower that is installed."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from cloister.errors import FederationError
from cloister.federated.flower import programs as programs_module
from cloister.federated.flower.launcher import HEAD, MOST, SOCKET, Started, ask
from cloister.federated.flower.programs import Programs
from federation_site import alive, children

WAIT = 30.0


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Programs]:
    made = Programs(tmp_path_factory.mktemp("flower"))
    yield made
    made.close()


def environment(place: Path) -> dict[str, str]:
    return {"FLWR_HOME": str(place)}


def waiting(programs: Programs, place: Path) -> Started:
    """A SuperExec, which looks every moment for a SuperNode that is not there."""
    words = ["--insecure", "--runtime-api-address", "127.0.0.1:9"]
    return programs.start("flower-superexec", words, environment(place), place / "log")


def ended(process: int) -> bool:
    until = time.monotonic() + WAIT
    while alive(process) and time.monotonic() < until:
        time.sleep(0.05)
    return not alive(process)


def test_what_a_program_prints_is_handed_back(programs: Programs, tmp_path: Path) -> None:
    told = programs.call("flwr", ["--version"], environment(tmp_path)).decode()
    assert "1.41" in told


def test_the_exit_code_of_a_program_is_its_own(programs: Programs, tmp_path: Path) -> None:
    started = programs.start("flwr", ["no-such-command"], environment(tmp_path), tmp_path / "log")
    assert started.wait(WAIT) == 2
    started.close()
    assert "no-such-command" in (tmp_path / "log").read_text()


def test_what_a_program_prints_stays_with_its_owner(programs: Programs, tmp_path: Path) -> None:
    started = programs.start("flwr", ["--version"], environment(tmp_path), tmp_path / "log")
    assert started.wait(WAIT) == 0
    started.close()
    assert (tmp_path / "log").stat().st_mode & 0o777 == 0o600


def test_a_program_has_nothing_of_this_environment_that_it_does_not_need(
    programs: Programs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SECRET_OF_THE_TEST", "canary")
    started = waiting(programs, tmp_path)
    found = programs_module.flower_environment(tmp_path)
    assert "SECRET_OF_THE_TEST" not in found
    starter = Path(f"/proc/{parent_of(started.pid)}/environ").read_bytes()
    assert b"canary" not in starter
    assert b"FLWR_TELEMETRY_ENABLED=0" in starter
    started.close()


def parent_of(process: int) -> int:
    return int(Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[1])


def test_a_program_ends_when_it_is_closed(programs: Programs, tmp_path: Path) -> None:
    started = waiting(programs, tmp_path)
    assert started.poll() is None
    assert alive(started.pid)
    started.close()
    assert ended(started.pid)


def test_a_program_ends_when_who_asked_for_it_is_killed(programs: Programs, tmp_path: Path) -> None:
    starter = programs._process.pid
    before = set(children(starter))
    launcher = subprocess.Popen(
        [tmp_path_link(programs, "flower-superexec"), "--insecure", "--runtime-api-address", "127.0.0.1:9"],
        env=programs._environment | environment(tmp_path), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    until = time.monotonic() + WAIT
    while not (new := set(children(starter)) - before) and time.monotonic() < until:
        time.sleep(0.05)
    (child,) = new
    launcher.send_signal(signal.SIGKILL)
    launcher.wait(WAIT)
    assert ended(child)


def tmp_path_link(programs: Programs, name: str) -> str:
    return str(programs._socket.parent / name)


def test_a_launcher_hands_on_output_and_exit_code(programs: Programs, tmp_path: Path) -> None:
    done = subprocess.run(
        [tmp_path_link(programs, "flwr"), "no-such-command"],
        env=programs._environment | environment(tmp_path), capture_output=True, timeout=30, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert b"no-such-command" in done.stderr


@pytest.mark.parametrize(
    "arguments", [["sh", "-c", "true"], ["/bin/sh"], ["../flwr"], [""]], ids=lambda words: words[0] or "none"
)
def test_nothing_but_flowers_programs_is_started(programs: Programs, arguments: list[str]) -> None:
    with pytest.raises(FederationError, match="cannot be started"):
        programs.call(arguments[0], arguments[1:], {})


@pytest.mark.parametrize(
    "sent", [b"", b"\0", HEAD.pack(MOST + 1) + b"[]", HEAD.pack(2) + b"[]", HEAD.pack(9) + b"no json!!"],
    ids=["nothing", "half a head", "too long", "no program", "no JSON"],
)  # fmt: skip
def test_a_request_that_is_none_does_not_end_the_starter(
    programs: Programs, tmp_path: Path, sent: bytes
) -> None:
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(str(programs._socket))
        connection.sendall(sent)
        connection.shutdown(socket.SHUT_WR)
        connection.settimeout(WAIT)
        with contextlib.suppress(ConnectionResetError):  # so it is where something was left unread
            assert connection.recv(1) == b""
    assert programs.call("flwr", ["--version"], environment(tmp_path))


def test_everything_ends_with_the_starter(tmp_path: Path) -> None:
    own = Programs(tmp_path)
    with contextlib.closing(waiting(own, tmp_path)) as started:
        os.kill(own._process.pid, signal.SIGKILL)
        assert ended(started.pid)
        assert started.wait(WAIT) == -signal.SIGKILL
    with pytest.raises(FederationError, match="cannot be started"):
        own.call("flwr", ["--version"], environment(tmp_path))
    own.close()


def test_a_program_whose_starter_ended_before_it_began_does_not_begin() -> None:
    code = (
        "import os\n"
        "from cloister.federated.flower.tether import end_with_parent\n"
        "parent = os.getpid()\n"
        "if os.fork() == 0:\n"
        "    while os.getppid() == parent:\n"
        "        pass\n"
        "    end_with_parent(parent)\n"
        "    print('it began', flush=True)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, timeout=60)
    assert (done.stdout, done.stderr) == (b"", b"")


def test_without_flower_one_is_told_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    with pytest.raises(FederationError, match=r"install cloister\[federated\]"):
        Programs(tmp_path)


def test_a_starter_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No such file"):
        ask(tmp_path / "nobody", ["flwr"], {SOCKET: ""}, out=1, errors=2)
