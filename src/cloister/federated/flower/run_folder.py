"""The private folder between the aggregator and its ServerApp: what the run is, who is ready, what happened.

It lies in memory (a tmpfs of the TEE), is the aggregator's alone (0700) and ends with it. Each file has one writer: the
aggregator writes the order, the roster and what becomes of parties; the ServerApp writes the run's facts, in which it
takes up those of the parties, and the checkpoint in the aggregator's state folder.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Final, Literal

from cloister.encoding import Record, decode_json, encode_json
from cloister.errors import FederationError, FormatError
from cloister.federated.checkpoint import Checkpoint, read_checkpoint, write_checkpoint
from cloister.federated.exchange import Exchange
from cloister.federated.federation import Federation, read_federation
from cloister.federated.privacy import claims_of
from cloister.federated.progress import Begun, Ended, Fact, decode_facts, encode_fact
from cloister.federated.rounds import Kept, Rounds
from cloister.federated.updates import decode_arrays

FOLDER: Final = "CLOISTER_FEDERATION_RUN"
"""The environment variable that names it to the ServerApp."""
MAX_MODEL: Final = 32 << 30
MAX_FACTS: Final = 256 << 20
MAX_ROSTER: Final = 64 * 1024
MAX_ORDER: Final = 4 << 20
MAX_REASON: Final = 2000


class RunOrder(Record, frozen=True, kw_only=True):
    """What the run is. Read by the ServerApp when it begins."""

    format: Literal["cloister/federation-run/v1"] = "cloister/federation-run/v1"
    federation: bytes
    """The document, which the aggregator has accepted with its signatures."""
    digest: str
    run: str
    state: str
    """The folder of the checkpoint."""
    key: bytes
    evidence: str
    """SHA-256 of the aggregator's evidence."""
    simulated: bool


class _Roster(Record, frozen=True, kw_only=True):
    nodes: dict[str, str]
    """Party → Flower's number of its node, as text: it has 64 bits."""
    keys: dict[str, bytes]
    """Party → its workload's key, SubjectPublicKeyInfo, DER."""


@dataclass(slots=True)
class RunFolder:
    """One run's."""

    path: Path
    _facts: list[Fact] = field(default_factory=list)
    _taken: int = 0

    @classmethod
    def open(cls, path: str | Path) -> RunFolder:
        return cls(Path(path))

    def write_order(self, order: RunOrder, initial: bytes) -> None:
        """``initial`` is what training begins with, as safetensors."""
        self._write("initial.safetensors", initial)
        self._write("order.json", encode_json(order))

    def order(self) -> RunOrder:
        data = self._read("order.json", MAX_ORDER)
        return decode_json(data, RunOrder, what="the run's order", limit=MAX_ORDER)

    def initial(self) -> bytes:
        return self._read("initial.safetensors", MAX_MODEL)

    def write_roster(self, nodes: dict[str, int], keys: Mapping[str, bytes] = MappingProxyType({})) -> None:
        """Parties that are ready, their nodes and, for secure aggregation, their workloads' keys."""
        roster = _Roster(nodes={party: str(node) for party, node in nodes.items()}, keys=dict(keys))
        self._write("roster.json", encode_json(roster))

    def nodes(self) -> dict[str, int]:
        """As the aggregator wrote last."""
        return {party: int(node) for party, node in self._roster().nodes.items()}

    def keys(self) -> dict[str, bytes]:
        """Likewise."""
        return self._roster().keys

    def _roster(self) -> _Roster:
        if not (self.path / "roster.json").exists():
            return _Roster(nodes={}, keys={})
        data = self._read("roster.json", MAX_ROSTER)
        return decode_json(data, _Roster, what="the roster", limit=MAX_ROSTER)

    def tell_of_party(self, fact: Fact) -> None:
        """By the aggregator: something became of a party."""
        with (self.path / "parties.jsonl").open("ab") as file:
            file.write(encode_fact(fact))

    def begin(self, earlier: tuple[Fact, ...], begun: Begun) -> None:
        """By the ServerApp: what an earlier aggregator's run told, what became of parties since, and that it goes on.

        All at once: the end of an earlier run is never read without what came after it.
        """
        parties = self._lines("parties.jsonl")
        told = (*earlier, *parties, begun)
        self._write("facts.jsonl", b"".join(map(encode_fact, told)))
        self._facts, self._taken = list(told), len(parties)

    def tell(self, fact: Fact) -> None:
        """By the ServerApp: a fact of the run, behind what became of parties before."""
        self.take_up()
        self._append(fact)

    def take_up(self) -> None:
        """Take what the aggregator told of parties into the run's facts."""
        parties = self._lines("parties.jsonl")
        for fact in parties[self._taken :]:
            self._append(fact)
        self._taken = len(parties)

    def facts(self) -> tuple[Fact, ...]:
        """All, in order, with what the ServerApp has not taken up yet."""
        told = self._lines("facts.jsonl")
        known = {encode_fact(fact) for fact in told}
        return (*told, *(fact for fact in self._lines("parties.jsonl") if encode_fact(fact) not in known))

    def ended(self) -> Ended | None:
        """The end of the run, once it is told; one that ended early and goes on has none."""
        turns = [fact for fact in self._lines("facts.jsonl") if isinstance(fact, Begun | Ended)]
        return turns[-1] if turns and isinstance(turns[-1], Ended) else None

    def all_told(self) -> tuple[Fact, ...]:
        """By the ServerApp: what it wrote so far."""
        return tuple(self._facts)

    def _append(self, fact: Fact) -> None:
        with (self.path / "facts.jsonl").open("ab") as file:
            file.write(encode_fact(fact))
        self._facts.append(fact)

    def fail(self, reason: str) -> None:
        """By the ServerApp: it cannot go on."""
        self._write("failed.txt", reason.encode("utf-8", "replace")[:MAX_REASON])

    def failed(self) -> str:
        """Why the ServerApp ended without telling an end; empty while it has not."""
        there = (self.path / "failed.txt").exists()
        return self._read("failed.txt", MAX_REASON).decode("utf-8", "replace") if there else ""

    def _lines(self, name: str) -> tuple[Fact, ...]:
        there = (self.path / name).exists()
        return decode_facts(self._read(name, MAX_FACTS)) if there else ()

    def _read(self, name: str, limit: int) -> bytes:
        path = self.path / name
        if path.stat().st_size > limit:
            raise FormatError(f"{name} is longer than {limit} bytes")
        return path.read_bytes()

    def _write(self, name: str, data: bytes) -> None:
        beside = self.path / f".{name}"
        descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
        beside.replace(self.path / name)


def go_through(folder: RunFolder, exchange: Exchange) -> None:
    """All rounds of the run in ``folder``, from its checkpoint where there is one. For the ServerApp."""
    order = folder.order()
    federation, _ = read_federation(order.federation)
    state = Path(order.state)
    checkpoint = read_checkpoint(state, federation=order.digest, key=order.key)
    if checkpoint is not None and checkpoint.run != order.run:
        raise FederationError("the checkpoint is of another run than the one that goes on")
    earlier: tuple[Fact, ...] = ()
    if checkpoint is None:
        first = decode_arrays(folder.initial(), what="the first model", limit=MAX_MODEL)
        kept = Kept(0, first, {})
    else:
        kept, earlier = checkpoint.kept, checkpoint.facts
    folder.begin(earlier, _begun(federation, order, kept.number))

    def keep(after: Kept, fact: Fact) -> None:
        folder.take_up()
        over = isinstance(fact, Ended) and fact.finished
        told = (*folder.all_told(), fact)
        write_checkpoint(
            state, Checkpoint(run=order.run, over=over, kept=after, facts=told), federation=order.digest, key=order.key
        )  # fmt: skip
        folder.tell(fact)

    rounds = Rounds(federation, order.run, exchange, keep=keep, claims=claims_of(earlier), keys=folder.keys)
    rounds.go_on(kept)


def _begun(federation: Federation, order: RunOrder, done: int) -> Begun:
    privacy = federation.privacy
    return Begun(
        at=int(time.time()), run=order.run, federation=federation.name, version=federation.version, digest=order.digest,
        parties=tuple(sorted(federation.parties)), rounds=federation.rounds, done=done, method=federation.aggregation.method,
        secure=federation.aggregation.secure, epsilon=None if privacy == "none" else privacy.epsilon_ppm / 1_000_000,
        aggregator=order.evidence, simulated=order.simulated,
    )  # fmt: skip
