"""A whole deployment on one machine, by the command line alone: owner, broker and workload as processes.

Used by the demonstration beside it, by the scenario tests and by the benchmark. It is also the shortest description
of what an owner and an operator type. Everything lives below one folder; nothing of it is protected (simulated TEE).
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import json
import os
import secrets
import selectors
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

CLOISTER = str(Path(sys.executable).parent / "cloister")
KEY_URI = "kbs:///default/key/demo-model"
MODEL_NAME = "medquad-demo"
PR_SET_PDEATHSIG = 1


class CommandFailedError(Exception):
    """A `cloister` command ended with an error; ``code`` and ``line`` are what it said."""

    def __init__(self, arguments: Sequence[str], code: int, line: str) -> None:
        super().__init__(f"cloister {' '.join(arguments[:2])} exited {code}: {line}")
        self.code = code
        self.line = line


def cloister(*arguments: str | Path, timeout: float = 120) -> str:
    """Run one command and return its standard output."""
    words = [str(word) for word in arguments]
    done = subprocess.run([CLOISTER, *words], capture_output=True, text=True, timeout=timeout, check=False)
    if done.returncode != 0:
        raise CommandFailedError(words, done.returncode, done.stderr.strip())
    return done.stdout


def _die_with_parent() -> None:
    """In the child, before exec: a parent that is killed outright leaves no service behind."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


@dataclass
class Service:
    """One serving process. ``url`` is where it listens; ``log`` is what it wrote to standard error."""

    process: subprocess.Popen[str]
    url: str
    log: Path

    def stop(self) -> None:
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(10)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait(10)
        if self.process.stdout:
            self.process.stdout.close()


def start_service(arguments: Sequence[str | Path], log: Path, *, timeout: float = 60) -> Service:
    """Start a serving command and wait for its `listening` line. Raises :class:`CommandFailedError`."""
    words = [str(word) for word in arguments]
    with log.open("w") as errors:
        process = subprocess.Popen(
            [CLOISTER, *words, "--json"],
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            preexec_fn=_die_with_parent,
            start_new_session=True,  # Ctrl-C reaches the demonstration alone, which stops its services in order
        )
    assert process.stdout is not None
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ)
        line = process.stdout.readline() if selector.select(timeout) else ""
    if not line:
        if not _ended(process):
            process.kill()
        code = process.wait(10)
        process.stdout.close()
        said = log.read_text().strip().splitlines()
        raise CommandFailedError(words, code, _error_line(said[-1]) if said else "no word in time")
    return Service(process, json.loads(line)["listening"], log)


def _error_line(said: str) -> str:
    """With --json an error is a JSON object, whose `error` is the line for people."""
    try:
        return str(json.loads(said)["error"])
    except (ValueError, KeyError, TypeError):
        return said


def _ended(process: subprocess.Popen[str]) -> bool:
    """Standard output closed: give the process a moment to end by itself, so that its exit code is its own."""
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(5)
    return process.poll() is not None


@dataclass
class Deployment:
    """Owner, broker and workload below ``root``."""

    root: Path
    model: Path
    """The plain GGUF of the owner; the workload sees only its sealed form."""
    model_name: str = MODEL_NAME
    serve_options: tuple[str, ...] = ()
    services: list[Service] = field(default_factory=list)

    @property
    def tee(self) -> Path:
        return self.root / "simulated-tee"

    @property
    def owner(self) -> Path:
        return self.root / "owner"

    @property
    def sealed(self) -> Path:
        return self.root / "host" / "model.sealed"

    @property
    def policy(self) -> Path:
        """By which clients and the broker accept the inference workload."""
        return self.root / "inference-policy.toml"

    @property
    def broker_policy(self) -> Path:
        return self.root / "broker-policy.toml"

    def prepare(self) -> bool:
        """Make platform, keys and sealed model; True if anything had to be made.

        What an interrupted run left half made, or made of another model, is thrown away and made again.
        """
        marker = self.root / "prepared"  # written last: the digest of the model that was sealed
        digest = hashlib.sha256(self.model.read_bytes()).hexdigest()
        if marker.exists() and marker.read_text() == digest:
            return False
        for folder in (self.tee, self.owner, self.sealed.parent, self.root / "broker"):
            shutil.rmtree(folder, ignore_errors=True)
        for name in ("passphrase", "api-keys", "rule-in-broker", "prepared"):
            (self.root / name).unlink(missing_ok=True)
        self.owner.mkdir(parents=True, mode=0o700)
        self.sealed.parent.mkdir()
        cloister("simulate", "init", self.tee)
        cloister("keys", "new", self.owner / "model.key")
        cloister("keys", "new", "--signing", self.owner / "index.key")
        plain = self.owner / "model"
        plain.mkdir()
        os.link(self.model, plain / self.model.name) if _same_device(self.model, plain) else _copy(
            self.model, plain / self.model.name
        )
        cloister(
            "seal", plain, "--key", KEY_URI, "--key-file", self.owner / "model.key",
            "--sign-key", self.owner / "index.key", "--out", self.sealed,
        )  # fmt: skip
        secret(self.root / "passphrase", secrets.token_urlsafe(32))
        secret(self.root / "api-keys", secrets.token_urlsafe(24))
        marker.write_text(digest)
        return True

    @property
    def api_key(self) -> str:
        return (self.root / "api-keys").read_text().strip()

    def signer(self) -> str:
        return str(json.loads(cloister("keys", "show", self.owner / "index.key", "--json"))["public_key"])

    def write_policies(self) -> None:
        """Reference values come from the very options that the services will run with."""
        cloister("measure", "broker", "--simulated-tee", self.tee, "--out", self.broker_policy)
        cloister(
            "measure", "serve", *self.measured_options(), "--simulated-tee", self.tee, "--out", self.policy
        )

    def measured_options(self) -> list[str | Path]:
        return [
            self.sealed, "--model-name", self.model_name, "--index-signer", self.signer(),
            "--broker-policy", self.broker_policy, "--api-keys", self.root / "api-keys", *self.serve_options,
        ]  # fmt: skip

    def fill_broker(self) -> None:
        """The owner hands the key to the broker, and the rule: who may have it."""
        state = ["--state", self.root / "broker", "--passphrase-file", self.root / "passphrase"]
        cloister("broker", "put", KEY_URI, "--file", self.owner / "model.key", "--init", *state)
        cloister("broker", "policy", KEY_URI, "--file", self.policy, *state)

    def audited(self) -> list[dict[str, Any]]:
        """The broker's newest audit entries, checked against its signed tree head."""
        state = ["--state", self.root / "broker", "--passphrase-file", self.root / "passphrase"]
        entries: list[dict[str, Any]] = json.loads(
            cloister("broker", "audit", "--last", "16", "--json", *state)
        )["entries"]
        return entries

    def start_broker(self) -> Service:
        service = start_service(
            [
                "broker", "serve", "--state", self.root / "broker", "--passphrase-file", self.root / "passphrase",
                "--simulated-tee", self.tee, "--port", "0",
            ],
            self.root / "broker.log",
        )  # fmt: skip
        self.services.append(service)
        return service

    def start_inference(self, broker_url: str, *extra: str | Path, log: str = "inference.log") -> Service:
        return self.start_with([*self.measured_options(), *extra], broker_url, log)

    def start_with(
        self, options: Sequence[str | Path], broker_url: str, log: str, port: str = "0"
    ) -> Service:
        """Start `cloister serve` with these options, whatever they are."""
        words = ["serve", *options, "--broker", broker_url, "--simulated-tee", self.tee, "--port", port]
        service = start_service(words, self.root / log)
        self.services.append(service)
        return service

    def stop(self) -> None:
        for service in reversed(self.services):
            service.stop()
        self.services.clear()


@contextlib.contextmanager
def deployment(root: Path, model: Path, **options: object) -> Iterator[Deployment]:
    """A deployment whose services are stopped at the end, however it ends."""
    running = Deployment(root, model, **options)  # type: ignore[arg-type]
    try:
        yield running
    finally:
        running.stop()


def secret(path: Path, text: str) -> None:
    """Write a file that only we can read."""
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(text + "\n")


def _same_device(one: Path, other: Path) -> bool:
    return one.stat().st_dev == other.stat().st_dev


def _copy(source: Path, target: Path) -> None:
    target.write_bytes(source.read_bytes())


def wait_until(condition: object, *, timeout: float = 10, step: float = 0.05) -> None:
    """Poll a callable until it is true, at most ``timeout`` seconds."""
    end = time.monotonic() + timeout
    while not condition():  # type: ignore[operator]
        if time.monotonic() > end:
            raise TimeoutError("what was waited for did not happen")
        time.sleep(step)
