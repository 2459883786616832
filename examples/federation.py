"""A whole federation on one machine, by the command line alone: parties, their machines, the aggregator, all as processes.

Used by the demonstration beside it, by the scenario tests and by the benchmark. Every organisation has a TEE of its own
(simulated, so nothing is protected), its own keys, and its own sealed data; they share what they would send by mail.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from deployment import Service, cloister, start_service

NAME = "hospitals"
AGGREGATOR = "aggregator"


@dataclass
class Organisation:
    """What one organisation has. ``root`` is its own folder."""

    name: str
    root: Path

    @property
    def tee(self) -> Path:
        return self.root / "tee"

    @property
    def key(self) -> Path:
        """Signs for it."""
        return self.root / "party.key"

    @property
    def data_key(self) -> Path:
        return self.root / "data.key"

    @property
    def data(self) -> Path:
        """Sealed: all that its machine sees."""
        return self.root / "data.sealed"

    @property
    def uri(self) -> str:
        return f"kbs:///{self.name}/data/notes"

    @property
    def out(self) -> Path:
        return self.root / "out"

    def public_key(self) -> str:
        return cloister("manifest", "key", "--key", self.key).strip()

    def index_signer(self) -> str:
        shown = json.loads(cloister("keys", "show", self.root / "index.key", "--json"))
        return str(shown["public_key"])

    def measure(self, role: str) -> Path:
        """The policy for what runs in that role on its machine."""
        path = self.root / f"{role}.toml"
        cloister(
            "measure", "federation", role, "--federation", NAME, "--simulated-tee", self.tee, "--out", path
        )
        return path


@dataclass
class Federation:
    """``files`` has each party's data by file name; ``settings`` are the task's; ``more`` goes into the description."""

    root: Path
    model: Path
    files: Mapping[str, Mapping[str, bytes]]
    settings: Mapping[str, Any]
    plugin: str = "ner"
    rounds: int = 3
    deadline: int = 300
    minimum: int = 2
    everyone: bool = True
    attest_minutes: int = 30
    method: str = "fedavg"
    aggregation: Mapping[str, Any] = field(default_factory=dict)
    privacy: Mapping[str, Any] | None = None
    receivers: Sequence[str] = ()
    metrics: Sequence[str] = ("f1", "precision", "recall", "loss", "examples", "seconds")
    services: dict[str, Service] = field(default_factory=dict)

    @property
    def document(self) -> Path:
        return self.root / "federation.json"

    @property
    def parties(self) -> dict[str, Organisation]:
        return {name: Organisation(name, self.root / name) for name in self.files}

    @property
    def aggregator(self) -> Organisation:
        return Organisation(AGGREGATOR, self.root / AGGREGATOR)

    def prepare(self) -> str:
        """Machines, keys, sealed data, the document with everybody's signature; its digest."""
        shutil.rmtree(self.root, ignore_errors=True)
        self.root.mkdir(parents=True)
        self.aggregator.root.mkdir()
        cloister("simulate", "init", self.aggregator.tee)
        self.aggregator.measure("aggregator")
        for name, party in self.parties.items():
            party.root.mkdir(mode=0o700)
            cloister("simulate", "init", party.tee)
            cloister("keys", "new", "--signing", party.key)
            cloister("keys", "new", party.data_key)
            cloister("keys", "new", "--signing", party.root / "index.key")
            plain = party.root / "plain"
            plain.mkdir()
            for file, content in self.files[name].items():
                (plain / file).write_bytes(content)
            cloister(
                "seal", plain, "--key", party.uri, "--key-file", party.data_key, "--sign-key", party.root / "index.key",
                "--out", party.data,
            )  # fmt: skip
            shutil.rmtree(plain)  # the machine has the sealed form alone
            party.measure("agent")
            party.measure("workload")
            party.out.mkdir()
        return self.sign()

    def sign(self) -> str:
        """Make the document, and have every party sign it."""
        description = self.root / "federation.toml"
        description.write_text(self.description(), "utf-8")
        created = json.loads(cloister("federation", "create", description, "--out", self.document, "--json"))
        digest = str(created["digest"])
        for party in self.parties.values():
            cloister("federation", "approve", self.document, "--key", party.key, "--digest", digest, "--json")
        return digest

    def description(self) -> str:
        """As the one who begins writes it."""
        lines = [
            f'name = "{NAME}"', f"rounds = {self.rounds}", f"deadline = {self.deadline}", f"minimum = {self.minimum}",
            f"attest-minutes = {self.attest_minutes}", f"everyone = {json.dumps(self.everyone)}",
            f"metrics = {json.dumps(list(self.metrics))}",
            f"receivers = {json.dumps(list(self.receivers or self.files))}",
            f'aggregator = ["{AGGREGATOR}/aggregator.toml"]',
        ]  # fmt: skip
        if self.privacy is None:
            lines.append('privacy = "none"')
        for name, party in self.parties.items():
            lines += [
                f"[parties.{name}]", f'key = "{party.public_key()}"', f'agent = ["{name}/agent.toml"]',
                f'workload = ["{name}/workload.toml"]',
            ]  # fmt: skip
        lines += [
            "[task]",
            f'plugin = "{self.plugin}"',
            'code = "this"',
            f"model = {json.dumps(str(self.model))}",
        ]
        lines += [
            "[task.settings]",
            *(f"{name} = {json.dumps(value)}" for name, value in self.settings.items()),
        ]
        aggregation = {"method": self.method, "secure": False, "largest": 100.0, **self.aggregation}
        lines += ["[aggregation]", *(f"{name} = {json.dumps(value)}" for name, value in aggregation.items())]
        if self.privacy is not None:
            lines += ["[privacy]", *(f"{name} = {json.dumps(value)}" for name, value in self.privacy.items())]
        return "\n".join([*lines, ""])

    def start_aggregator(self, *options: str, port: str = "0", tunnel: str = "0") -> Service:
        words: list[str | Path] = [
            "federation", "aggregate", self.document, "--model", self.model, "--state", self.aggregator.root / "state",
            "--simulated-tee", self.aggregator.tee, "--port", port, "--tunnel-port", tunnel, *options,
        ]  # fmt: skip
        return self._start(AGGREGATOR, words, self.aggregator.root / "aggregator.log")

    def start_workload(self, name: str) -> Service:
        party = self.parties[name]
        words: list[str | Path] = [
            "federation", "work", "--federation", NAME, "--model", self.model, "--data", party.data, "--out", party.out,
            "--state", party.root / "state", "--threads", "1", "--simulated-tee", party.tee, "--port", "0",
        ]  # fmt: skip
        return self._start(f"{name} workload", words, party.root / "workload.log")

    def start_agent(self, name: str) -> Service:
        party = self.parties[name]
        words: list[str | Path] = [
            "federation", "agent", "--federation", NAME, "--aggregator", self.services[AGGREGATOR].url, "--workload",
            self.services[f"{name} workload"].url, "--out", party.out, "--simulated-tee", party.tee, "--port", "0",
        ]  # fmt: skip
        return self._start(f"{name} agent", words, party.root / "agent.log")

    def join(self, name: str) -> None:
        """What the party's people do: verify their agent, hand it their keys."""
        party = self.parties[name]
        cloister(
            "federation", "join", self.document, "--as", name, "--agent", self.services[f"{name} agent"].url,
            "--key", party.key, "--data-key", f"{party.uri}={party.data_key}", "--index-signer", party.index_signer(),
            "--json",
        )  # fmt: skip

    def status(self, name: str, *options: str | Path) -> dict[str, Any]:
        """The run as the verified aggregator tells it to one party."""
        party = self.parties[name]
        told: dict[str, Any] = json.loads(
            cloister(
                "federation", "status", self.document, "--aggregator", self.services[AGGREGATOR].url, "--as", name,
                "--key", party.key, "--json", *options,
            )
        )  # fmt: skip
        return told

    def start(self, *names: str, options: Sequence[str] = ()) -> None:
        """Everything, for these parties or all."""
        self.start_aggregator(*options)
        for name in names or self.files:
            self.start_workload(name)
            self.start_agent(name)
        for name in names or self.files:
            self.join(name)

    def stop(self) -> None:
        """All at once: each takes seconds to end what it has started."""
        with ThreadPoolExecutor(len(self.services) or 1) as pool:
            list(pool.map(Service.stop, reversed(self.services.values())))
        self.services.clear()

    def _start(self, name: str, words: Sequence[str | Path], log: Path) -> Service:
        service = start_service(words, log, timeout=120)
        self.services[name] = service
        return service
