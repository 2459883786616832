"""Flower alone as processes on this machine: a SuperLink, a SuperNode for each party, with TLS or without, and one run.

Settings are Flower's own: it looks for tasks every second, for messages every three. ``staying`` takes out of Flower what
Cloister does without, too: model and data stay loaded in a process beside each node, and one looks for tasks ten times a
second. In both nodes register themselves with a key that they draw, and sign every request by it: 1.41 has no other way.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

from benchmarks.sides import ROOT, SideFailedError
from cloister.federated.flower.processes import HOST, Loopback, free_port
from cloister.federated.flower.programs import flower_environment, started, stop

PACKAGE: Final = "plain_tagger"
COMPUTING: Final = {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
"""As a Cloister workload has it with `--threads 1`."""
SECONDS: Final = 120.0
_PROJECT: Final = """\
[project]
name = "plain-tagger"
version = "1.0.0"
description = "A tagger that parties train together"
license = {{ file = "LICENSE" }}
dependencies = ["flwr>={flwr},<{below}"]

[tool.flwr.app]
publisher = "benchmarks"
fab-format-version = 1
flwr-version-target = "{flwr}"

[tool.flwr.app.components]
serverapp = "{package}.apps:{server}"
clientapp = "{package}.apps:{client}"

[tool.flwr.app.config]
{config}
"""


@dataclass
class PlainFlower:
    """``files`` are each party's ``train`` and ``test``; ``config`` is what plain_flower_apps.py takes."""

    root: Path
    """A folder that is there and empty."""
    files: Mapping[str, tuple[Path, Path]]
    config: Mapping[str, int | float | str]
    tls: bool = False
    staying: bool = False
    reach: int | None = None
    """The port by which nodes reach the SuperLink, if not its own."""
    port: int = field(default_factory=free_port)
    _undo: ExitStack = field(default_factory=ExitStack)
    _processes: list[subprocess.Popen[bytes]] = field(default_factory=list)

    @property
    def marks(self) -> Path:
        """Where the ServerApp writes a line when a round is over."""
        return self.root / "marks.jsonl"

    @property
    def log(self) -> Path:
        return self.root / "flower.log"

    def start(self) -> None:
        """All processes, and the run. Raises SideFailedError."""
        secured = Loopback.make(self.root) if self.tls else None
        environment = self._environment("superlink", secured)
        options = ["--insecure"] if secured is None else [
            "--ssl-certfile", str(secured.certificate), "--ssl-keyfile", str(secured.key), "--ssl-ca-certfile",
            str(secured.certificate),
        ]  # fmt: skip
        self._process(
            "flower-superlink",
            ["--host", HOST, "--port", str(self.port), "--disable-runtime-dependency-installation", *options],
            environment,
        )
        for party, (train, test) in self.files.items():
            given = {"train": str(train), "test": str(test)}
            if self.staying:
                given["socket"] = str(self.root / f"{party}.socket")
                self._undo.enter_context(_staying({"config": dict(self.config), **given}, self.log))
            self._process(
                "flower-supernode",
                [
                    "--superlink", f"{HOST}:{self.reach or self.port}", "--host", HOST, "--port", str(free_port()),
                    "--node-config", " ".join(f"{name}={json.dumps(value)}" for name, value in given.items()),
                    *(["--insecure"] if secured is None else ["--root-certificates", str(secured.certificate)]),
                ],
                self._environment(party, None),
            )  # fmt: skip
        self._run(environment)

    def close(self) -> None:
        """End all of them at once: one after another they take seconds each."""
        with ThreadPoolExecutor(len(self._processes) + 1) as pool:
            list(pool.map(stop, self._processes))
        self._undo.close()

    def said(self) -> list[dict[str, Any]]:
        """The marks so far. Raises SideFailedError where the run failed."""
        lines = self.marks.read_text("utf-8").splitlines() if self.marks.exists() else []
        found = [json.loads(line) for line in lines]
        for one in found:
            if "failed" in one:
                raise SideFailedError(f"Flower alone: {one['failed']}")
        return found

    def _run(self, environment: Mapping[str, str]) -> None:
        app = self.root / "app"
        self._write_app(app)
        until, said = time.monotonic() + SECONDS, ""
        while time.monotonic() < until:  # the SuperLink takes a moment to listen
            done = subprocess.run(
                [program("flwr"), "run", str(app), "here", "--format", "json"],
                env=dict(environment), capture_output=True, text=True, timeout=SECONDS, check=False,
            )  # fmt: skip
            if done.returncode == 0 and json.loads(done.stdout).get("success"):
                return
            said = (done.stdout or done.stderr).strip()
            time.sleep(0.5)
        raise SideFailedError(f"flwr run: {said[-300:]}")

    def _write_app(self, folder: Path) -> None:
        package = folder / PACKAGE
        package.mkdir(parents=True)
        flwr = version("flwr")
        major, minor = flwr.split(".")[:2]
        server, client = ("quick_server", "thin_client") if self.staying else ("server", "client")
        config = {**self.config, "marks": str(self.marks), "parties": len(self.files)}
        (folder / "pyproject.toml").write_text(
            _PROJECT.format(
                flwr=flwr, below=f"{major}.{int(minor) + 1}", package=PACKAGE, server=server, client=client,
                config="\n".join(f"{name} = {json.dumps(value)}" for name, value in config.items()),
            ),
            "utf-8",
        )  # fmt: skip
        (folder / "LICENSE").write_text("Apache-2.0\n", "utf-8")
        (package / "__init__.py").write_text("", "utf-8")
        (package / "apps.py").write_text(
            f"from benchmarks.plain_flower_apps import {client}, {server}\n\n__all__ = [{client!r}, {server!r}]\n", "utf-8"
        )  # fmt: skip

    def _environment(self, name: str, secured: Loopback | None) -> dict[str, str]:
        home = self.root / f"home-{name}"
        home.mkdir()
        how = "insecure = true" if secured is None else f'root-certificates = "{secured.certificate}"'
        (home / "config.toml").write_text(
            f'[superlink]\ndefault = "here"\n[superlink.here]\naddress = "{HOST}:{self.port}"\n{how}\n',
            "utf-8",
        )
        found = flower_environment() | {"FLWR_HOME": str(home)} | COMPUTING
        if not self.staying:
            found.pop("FLWR_SUPEREXEC_TASK_POLL_INTERVAL", None)  # Flower's own: a second
        found["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
        return found

    def _process(self, name: str, arguments: list[str], environment: Mapping[str, str]) -> None:
        self._processes.append(started([program(name), *arguments], environment, self.log))


def program(name: str) -> str:
    """Of this installation."""
    return str(Path(sys.executable).parent / name)


@contextmanager
def _staying(given: Mapping[str, Any], log: Path) -> Iterator[None]:
    """A party's process in which model and data stay."""
    with log.open("ab") as errors:
        process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.plain_flower_apps", json.dumps(given)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, cwd=ROOT, env=os.environ | COMPUTING,
        )  # fmt: skip
    assert process.stdout is not None
    assert process.stdin is not None
    try:
        if process.stdout.readline() != b"ready\n":
            raise SideFailedError(f"a process that keeps model and data did not start; see {log}")
        yield
    finally:
        process.stdin.close()
        process.kill()
        process.wait()
        process.stdout.close()
