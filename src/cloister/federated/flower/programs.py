"""Flower's programs, started through a starter (starter.py) that has loaded Flower already.

Telemetry, the look for updates and the installation of packages at run time are off; of this process's environment Flower
gets nothing but what finds programs and libraries.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

from cloister.errors import FederationError
from cloister.federated.flower.launcher import SOCKET, START_SECONDS, STOP_SECONDS, Started, ask
from cloister.federated.flower.starter import PROGRAMS

CALL_SECONDS: Final = 60.0
MAX_OUTPUT: Final = 1 << 20
LAUNCHER: Final = "cloister-flower-program"


class Programs:
    """One starter. ``folder`` is private, and in memory. Raises FederationError."""

    def __init__(self, folder: Path) -> None:
        launcher = Path(sys.executable).parent / LAUNCHER
        if importlib.util.find_spec("flwr") is None or not launcher.exists():
            raise FederationError(
                "Flower is not installed beside this Python", todo="install cloister[federated]"
            )
        own = folder / "programs"
        own.mkdir()
        for name in PROGRAMS:
            # Links: from a folder in memory nothing may be executed on many machines.
            (own / name).symlink_to(launcher)
        self._socket = own / "starter"
        self._environment = flower_environment(own) | {SOCKET: str(self._socket)}
        self._process = started(
            [sys.executable, "-m", "cloister.federated.flower.starter", str(self._socket)],
            self._environment | {"OPENBLAS_NUM_THREADS": "1"}, own / "starter.log",
        )  # fmt: skip

    def start(
        self, name: str, arguments: Sequence[str], environment: Mapping[str, str], log: Path
    ) -> Started:
        """A process group of its own, its output in ``log``. It ends with this process, however that ends."""
        with log.open("ab") as out:
            log.chmod(0o600)
            return self._ask([name, *arguments], environment, out.fileno())

    def call(self, name: str, arguments: Sequence[str], environment: Mapping[str, str]) -> bytes:
        """What it prints. Raises FederationError, also where it does not end in time."""
        with os.fdopen(os.memfd_create("output"), "w+b") as out:
            process = self._ask([name, *arguments], environment, out.fileno())
            try:
                if process.wait(CALL_SECONDS) is None:
                    raise FederationError("Flower's command line does not end")
            finally:
                process.close()
            out.seek(0)
            return out.read(MAX_OUTPUT)

    def close(self) -> None:
        """End everything that was started."""
        stop(self._process)

    def _ask(self, arguments: Sequence[str], environment: Mapping[str, str], out: int) -> Started:
        until = time.monotonic() + START_SECONDS
        while not self._socket.exists() and time.monotonic() < until and self._process.poll() is None:
            time.sleep(0.01)
        try:
            return ask(self._socket, arguments, {**self._environment, **environment}, out=out, errors=out)
        except OSError as error:
            reason = error.strerror or str(error)
            raise FederationError(f"{arguments[0]} cannot be started ({reason})") from None


def flower_environment(*programs: Path) -> dict[str, str]:
    """Nothing of this process's environment but what finds programs and libraries; ``programs`` come before all others."""
    kept = {
        name: os.environ[name]
        for name in ("LANG", "LC_ALL", "LD_LIBRARY_PATH", "HOME", "PYTHONPATH")
        if name in os.environ
    }
    places = (*map(str, programs), str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath))
    return kept | {
        "PATH": os.pathsep.join(places),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.1",
        "PYTHONDONTWRITEBYTECODE": "1",
        "NO_COLOR": "1",
    }


def started(command: Sequence[str], environment: Mapping[str, str], log: Path) -> subprocess.Popen[bytes]:
    """A process group of its own, its output in ``log``. It ends with this process, however that ends."""
    if tether := shutil.which("setpriv"):
        command = [tether, "--pdeathsig", "KILL", *command]
    made: list[subprocess.Popen[bytes] | OSError] = []
    there = threading.Event()

    def start() -> None:
        try:
            with log.open("ab") as out:
                log.chmod(0o600)
                process = subprocess.Popen(  # noqa: S603 -- of this installation, with arguments of our own
                    command, env=dict(environment), stdin=subprocess.DEVNULL, stdout=out, stderr=out,
                    start_new_session=True,
                )  # fmt: skip
        except OSError as error:
            made.append(error)
            there.set()
            return
        made.append(process)
        there.set()
        # Linux tells a child of the end of the thread that started it: this one stays as long as the child does.
        process.wait()

    threading.Thread(target=start, name="flower", daemon=True).start()
    there.wait()
    if isinstance(made[0], OSError):
        raise FederationError(f"Flower cannot be started ({made[0].strerror})")
    return made[0]


def stop(process: subprocess.Popen[bytes]) -> None:
    """End it with all that it started."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        with suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with suppress(subprocess.TimeoutExpired):
            process.wait(STOP_SECONDS)
