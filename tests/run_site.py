"""An owner, a broker in laptop mode and a machine with the simulated TEE, all by the command line, for `cloister run`.

What is released to whom is said as an owner would: measure the run, give the policy to the broker, run.
"""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from deployment import CLOISTER, Service, cloister, start_service


@dataclass
class Site:
    """Everything lies below ``root``; programs start in ``root / "work"``."""

    root: Path
    uris: list[str] = field(default_factory=list)
    policies: list[Path] = field(default_factory=list)
    """Of every run that was allowed: they are alternatives."""
    broker: Service | None = None

    def __post_init__(self) -> None:
        self.work.mkdir()
        passphrase = self.root / "passphrase"
        passphrase.write_text("correct horse battery staple\n")
        passphrase.chmod(0o600)
        cloister("simulate", "init", self.tee)
        cloister("measure", "broker", "--simulated-tee", self.tee, "--out", self.work / "broker-policy.toml")
        cloister("keys", "new", "--signing", self.root / "index.key")
        self.signer = cloister("keys", "show", self.root / "index.key").split()[0]

    @property
    def work(self) -> Path:
        return self.root / "work"

    @property
    def tee(self) -> Path:
        return self.root / "tee"

    @property
    def _state(self) -> tuple[str | Path, ...]:
        return ("--state", self.root / "state", "--passphrase-file", self.root / "passphrase")

    def key(self, name: str) -> Path:
        """A new key-encryption key, which the broker has at ``kbs:///default/key/<name>``."""
        path = self.root / f"{name}.key"
        cloister("keys", "new", path)
        self.put(f"kbs:///default/key/{name}", path)
        return path

    def put(self, uri: str, path: Path, *options: str) -> None:
        """Give the broker a resource; ``--raw`` for what is no key file."""
        init = () if (self.root / "state").exists() else ("--init",)
        cloister("broker", "put", uri, "--file", path, *options, *init, *self._state)
        self.uris.append(uri)

    def seal(self, source: Path, name: str, key: str) -> Path:
        """A sealed directory in the folder of the run."""
        out = self.work / name
        cloister(
            "seal", source, "--key", f"kbs:///default/key/{key}", "--key-file", self.root / f"{key}.key",
            "--sign-key", self.root / "index.key", "--out", out,
        )  # fmt: skip
        return out

    def serve(self) -> None:
        """Start the broker; it sees what is put later as well."""
        self.broker = start_service(
            ["broker", "serve", *self._state, "--simulated-tee", self.tee, "--port", "0"],
            self.root / "broker.log",
        )

    def configure(self, text: str, *, head: str = "") -> Path:
        """``workload.toml`` of a run with this broker."""
        assert self.broker is not None
        path = self.work / "workload.toml"
        path.write_text(
            f'name = "test"\nsigners = ["{self.signer}"]\n{head}\n'
            f'[broker]\nurl = "{self.broker.url}"\npolicy = "broker-policy.toml"\n{text}'
        )
        return path

    def allow(self, argv: Sequence[str], *uris: str) -> None:
        """Release every key (or just ``uris``) to this run as well, and to no others than were allowed."""
        policy = self.root / f"run-policy-{len(self.policies)}.toml"
        self.policies.append(policy)
        self.cloister("measure", "run", "--simulated-tee", str(self.tee), "--out", str(policy), "--", *argv)
        self.release(*uris)

    def release(self, *uris: str) -> None:
        """The same for the policies that are there."""
        files = [word for one in self.policies for word in ("--file", one)]
        for uri in uris or self.uris:
            cloister("broker", "policy", uri, *files, *self._state)

    def cloister(self, *words: str, timeout: float = 280) -> str:
        """A command in the folder of the run; its standard output."""
        done = self.command(*words, timeout=timeout)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def command(
        self, *words: str, timeout: float = 280, directory: Path | None = None
    ) -> subprocess.CompletedProcess[str]:
        """The same, whatever comes of it."""
        return subprocess.run(
            [CLOISTER, *words],
            cwd=directory or self.work, capture_output=True, text=True, timeout=timeout, check=False,
        )  # fmt: skip

    def run(
        self, argv: Sequence[str], *options: str, timeout: float = 280
    ) -> subprocess.CompletedProcess[str]:
        """``cloister run`` of this program."""
        return self.command("run", "--simulated-tee", str(self.tee), *options, "--", *argv, timeout=timeout)

    def start(self, argv: Sequence[str], *options: str) -> subprocess.Popen[str]:
        """The same, in the background, in a session of its own."""
        return subprocess.Popen(
            [CLOISTER, "run", "--simulated-tee", str(self.tee), *options, "--", *argv],
            cwd=self.work, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
        )  # fmt: skip


@contextlib.contextmanager
def site(root: Path) -> Iterator[Site]:
    """A site whose broker is stopped at the end."""
    made = Site(root)
    try:
        yield made
    finally:
        if made.broker is not None:
            made.broker.stop()
