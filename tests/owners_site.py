"""Brokers of owners for scenarios: witnesses that can go away and come back, and a whole site by the real command line."""

from __future__ import annotations

import contextlib
import io
import json
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any
from unittest import mock

import uvicorn
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

import manifest_parts
from broker_parts import OwnersBench
from cloister.appraisal.draft import draft_policy
from cloister.attester.launch import launch_events
from cloister.attester.simulated import SimulatedPlatform, SimulatedTee
from cloister.broker import custody, tables
from cloister.broker.state_key import Share
from cloister.broker.tree_head import log_id
from cloister.broker.witness_app import create_witness
from cloister.broker.witness_memory import Witness
from cloister.cli import main
from ports import free_port
from ssh_keys import make_ssh_key


def command(*words: str | Path) -> list[str]:
    return [sys.executable, "-c", "from cloister.cli import main; main()", *map(str, words)]


def run(*words: str | Path, environment: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(*words),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env=None if environment is None else {**os.environ, **environment},
    )


def here(*words: str | Path) -> subprocess.CompletedProcess[str]:
    """The same without a process of its own, which is a second sooner."""
    out, errors, code = io.StringIO(), io.StringIO(), 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(errors):
        try:
            main([str(word) for word in words])
        except SystemExit as ended:
            code = ended.code if isinstance(ended.code, int) else 1
    return subprocess.CompletedProcess([str(word) for word in words], code, out.getvalue(), errors.getvalue())


def rows(directory: Path) -> dict[str, list[tuple[Any, ...]]]:
    """Everything in the database of a state directory, by table."""
    with contextlib.closing(sqlite3.connect(directory / tables.DATABASE)) as database:
        return {
            name: sorted(database.execute(f"SELECT * FROM {name}"))  # noqa: S608 -- names of our own tables
            for name in ("state", "head", "entries", "records", "evidence")
        }


def snapshot(directory: Path, copy: Path) -> Path:
    """The whole database of ``directory`` at this moment, in another state directory."""
    if not copy.exists():
        tables.make_directory(copy)
    with (
        contextlib.closing(sqlite3.connect(directory / tables.DATABASE)) as source,
        contextlib.closing(sqlite3.connect(copy / tables.DATABASE)) as target,
    ):
        source.backup(target)
    return copy


@dataclass
class RunningWitness:
    """A witness of :func:`manifest_parts.owner` ``name`` in this process, always at the same address."""

    directory: Path
    name: str

    def __post_init__(self) -> None:
        self.directory.mkdir(mode=0o700)
        self.port = free_port()
        self._server: uvicorn.Server | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self, log_key: str) -> None:
        """Serve the log of this public key (hexadecimal)."""
        key = bytes.fromhex(log_key)
        witness = Witness(self.directory, manifest_parts.owner(self.name), {log_id(key): key})
        listener = socket.create_server(("127.0.0.1", self.port))
        self._server = uvicorn.Server(
            uvicorn.Config(
                create_witness(witness), access_log=False, log_level="warning", ws="none", lifespan="off"
            )
        )
        self._thread = threading.Thread(target=self._server.run, kwargs={"sockets": [listener]}, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        if self._server is not None:
            self._server.should_exit = True
            self._thread.join(10)
            self._server = None


class WitnessedBench(OwnersBench):
    """A broker in owners' mode whose manifest demands both wanda and willy."""

    @classmethod
    def opened(cls, root: Path, **options: Any) -> WitnessedBench:
        """A new state that its witnesses have seen, with every share handed out."""
        witnesses = {name: RunningWitness(root / name, name) for name in ("wanda", "willy")}
        urls = {name: one.url for name, one in witnesses.items()}
        with mock.patch.object(custody, "RETRY_SECONDS", 0.05):
            bench = cls(root / "state", witnesses=urls, **options)
            bench.running = witnesses
            bench.log_key = bench.custody.progress().log_key
            bench.witnesses_back()
            deadline = time.monotonic() + 30
            while not bench.custody.progress().open:
                assert time.monotonic() < deadline
                time.sleep(0.02)
        bench.shares = bench.share_out()
        return bench

    running: Mapping[str, RunningWitness]
    shares: Mapping[str, Share]
    log_key: str

    def witnesses_back(self) -> None:
        for one in self.running.values():
            one.start(self.log_key)

    def witnesses_away(self) -> None:
        for one in self.running.values():
            one.stop()


class Service:
    """A process of the command line that says where it listens."""

    def __init__(self, log: Path, *words: str | Path, environment: Mapping[str, str] | None = None) -> None:
        self.log = log
        with log.open("a") as errors:
            self.process = subprocess.Popen(
                command(*words, "--json"),
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                env=None if environment is None else {**os.environ, **environment},
            )
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, log.read_text()
        self.url: str = json.loads(line)["listening"]

    @property
    def port(self) -> str:
        return self.url.rpartition(":")[2]

    def seen(self) -> bytes:
        """What whoever runs the machine can read of it without asking: argv, environment, log."""
        process = Path(f"/proc/{self.process.pid}")
        return (process / "cmdline").read_bytes() + (process / "environ").read_bytes() + self.log.read_bytes()

    def stop(self, how: signal.Signals = signal.SIGTERM) -> None:
        if self.process.poll() is None:
            self.process.send_signal(how)
            self.process.wait(20)
        stdout: IO[str] | None = self.process.stdout
        if stdout is not None:
            stdout.close()


MANIFEST = """application = "clinic"
[owners]
alice = "{alice}"
bob = "{bob}"
carol = "{carol}"
[update]
owners = ["alice", "bob", "carol"]
threshold = 2
[broker]
policies = ["broker.toml"]
[workloads.inference]
policies = ["workload.toml"]
[resources."default/key"]
owners = ["alice", "bob"]
threshold = 2
[resources."default/key/carols"]
owners = ["carol"]
threshold = 1
[witnesses]
threshold = 2
keys = {{ wanda = "{wanda}", willy = "{willy}", wim = "{wim}" }}
[operators]
oscar = "{oscar}"
[auditors]
audrey = "{audrey}"
"""
WITNESSES = ("wanda", "willy", "wim")


class OwnersSite:
    """Owners with three kinds of keys, a broker and three witnesses, each its own process of the command line.

    alice has a key file, bob an SSH key, carol a P-256 key in a PEM file.
    """

    def __init__(self, root: Path) -> None:
        self.root, self.state = root, root / "state"
        self.platform = SimulatedPlatform.create(root / "tee", now=int(time.time()))
        for name in ("alice", *WITNESSES, "oscar", "audrey"):
            self.ok("keys", "new", "--signing", root / f"{name}.key")
        make_ssh_key(root / "bob.ssh")
        self._make_p256(root / "carol.pem")
        self.toml = root / "clinic.toml"
        people = ("alice", "bob", "carol", *WITNESSES, "oscar", "audrey")
        names = {
            name: json.loads(self.ok("manifest", "key", *self.pen(name), "--json"))["key"] for name in people
        }
        (root / "workload.toml").write_text(self.policy(self.workload()))
        self.toml.write_text(MANIFEST.format(**names))
        self.origin = self.ok("manifest", "origin", self.toml).strip()
        self.measure(self.origin, root / "broker.toml")
        self.manifest = self.signed(self.toml, root / "v1.json", "alice", "bob", "carol")
        self.witnesses: dict[str, Service] = {}
        self.ports = {name: free_port() for name in WITNESSES}
        self.shares: dict[str, Path] = {}

    @staticmethod
    def _make_p256(path: Path) -> None:
        path.touch(0o600)
        key = ec.generate_private_key(ec.SECP256R1())
        path.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))

    def pen(self, name: str) -> list[str | Path]:
        """The options by which ``name`` signs."""
        if name == "bob":
            return ["--ssh", self.root / "bob.ssh"]
        if name == "carol":
            return ["--es256", self.root / "carol.pem"]
        return ["--key", self.root / f"{name}.key"]

    def workload(self, config: bytes = b"right") -> SimulatedTee:
        return self.platform.tee(
            "tdx", launch=launch_events(config=config, program=bytes(32), model_index=None)
        )

    def policy(self, tee: SimulatedTee) -> str:
        return draft_policy(
            tee="tdx",
            measurements=tee.measurements,
            events=tee.launch,
            min_tcb_evaluation_number=1,
            simulated_root=self.platform.root_sha256,
        )

    def measure(self, origin: str | None, out: Path) -> Path:
        chosen: list[str | Path] = [] if origin is None else ["--origin", origin]
        self.ok("measure", "broker", *chosen, "--simulated-tee", self.root / "tee", "--out", out)
        return out

    def signed(self, toml: Path, out: Path, *names: str, previous: Path | None = None) -> Path:
        """A manifest made of ``toml`` and signed by these owners."""
        after: list[str | Path] = [] if previous is None else ["--previous", previous]
        self.ok("manifest", "new", toml, "--out", out, *after)
        return self.sign(out, *names)

    def sign(self, document: Path, *names: str) -> Path:
        for name in names:
            self.ok("manifest", "sign", document, *self.pen(name))
        return document

    def serve(self, *, port: str | int = 0) -> Service:
        """Start the broker; right after its state was made it waits for its witnesses."""
        named = [word for name in WITNESSES for word in ("--witness", f"{name}={self.witness_url(name)}")]
        options: list[str | Path] = ["--state", self.state, "--manifest", self.manifest, *named]
        options += ["--simulated-tee", self.root / "tee", "--port", str(port)]
        self.broker = Service(self.root / "broker.log", "broker", "serve", *options)
        return self.broker

    def witness_url(self, name: str) -> str:
        return f"http://127.0.0.1:{self.ports[name]}"

    def witness(self, name: str) -> None:
        """Start one witness of this broker's log."""
        options: list[str | Path] = ["--state", self.root / f"witness-{name}", *self.pen(name)]
        options += ["--log", self.log_key, "--port", str(self.ports[name])]
        self.witnesses[name] = Service(self.root / f"{name}.log", "witness", "serve", *options)

    def status(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.owner("status", "--json"))
        return found

    def wait_open(self, seconds: float = 20) -> None:
        deadline = time.monotonic() + seconds
        while not self.status()["open"]:
            assert time.monotonic() < deadline, self.broker.log.read_text()
            time.sleep(0.5)

    def deploy(self) -> None:
        """From a signed manifest to a broker that is open, with everybody's share at home."""
        self.serve()
        self.log_key: str = self.status()["log_key"]
        for name in WITNESSES:
            self.witness(name)
        self.wait_open()
        for name in ("alice", "bob", "carol"):
            self.shares[name] = self.root / f"{name}.share"
            self.owner("share", "--out", self.shares[name], by=name)

    def unlock(self, *names: str) -> None:
        for name in names:
            self.owner("unlock", "--share", self.shares[name])

    def owner(self, *words: str | Path, by: str | None = None, process: bool = False) -> str:
        return self.ok("owner", *self.told(*words, by=by), process=process)

    def told(self, *words: str | Path, by: str | None = None) -> list[str | Path]:
        """The words of an owner's command, with this site's broker and manifest."""
        pen = [] if by is None else self.pen(by)
        return [*words, "--broker", self.broker.url, "--manifest", self.manifest, *pen]

    @staticmethod
    def ok(*words: str | Path, process: bool = False) -> str:
        """A command that has to succeed; what it printed."""
        result = run(*words) if process else here(*words)
        assert result.returncode == 0, (words, result.stdout, result.stderr)
        return result.stdout

    def stop(self) -> None:
        for one in (self.broker, *self.witnesses.values()):
            one.stop()


@contextlib.contextmanager
def deployed(root: Path) -> Iterator[OwnersSite]:
    """A site that was deployed, until the block ends."""
    site = OwnersSite(root)
    try:
        site.deploy()
        yield site
    finally:
        with contextlib.suppress(AttributeError):  # it did not come so far
            site.stop()
