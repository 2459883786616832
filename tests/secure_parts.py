"""Rounds whose updates nobody sees, for tests: every party's side is real, in this process; all that is said is kept."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from cloister.errors import CloisterError
from cloister.federated.exchange import Reply, Request
from cloister.federated.federation import Federation
from cloister.federated.identity import Identity
from cloister.federated.progress import Ended, Fact, RoundDone
from cloister.federated.rounds import Kept, Rounds
from cloister.federated.secure.memory import Memory
from cloister.federated.secure.wire import STEPS
from cloister.federated.secure.work import SecureWork
from cloister.federated.tasks import Trained
from cloister.federated.updates import Arrays, decode_arrays, encode_arrays
from cloister.sealing.key_file import KeyFile
from federation_parts import MILLION, aggregation, federation

KEY = b"k" * 32
URI = "kbs:///hospitals/data/output"
LARGEST = 4
RUN = "ab" * 16
MODEL: Arrays = {
    "linear.weight": np.linspace(-1, 1, 12, dtype=np.float32).reshape(3, 4),
    "crf.start": np.zeros(3, dtype=np.float32),
    "scale": np.full(1, 0.5, dtype=np.float32),
}


def secure(*names: str, **changes: Any) -> Federation:
    """A federation whose aggregator sees no update."""
    how = aggregation(secure=True, largest_ppm=LARGEST * MILLION)
    return federation(*names, **({"aggregation": how, "metrics": ("f1", "loss"), "rounds": 2} | changes))


class Killed(BaseException):
    """What ends a process without its asking."""


def memory_at(folder: Path, party: str) -> Memory:
    return Memory(folder, first="11" * 32, party=party, keys=KeyFile(KEY, URI), key_uri=URI)


@dataclass
class Party:
    """A workload, as far as training is concerned."""

    name: str
    federation: Federation
    folder: Path
    identity: Identity = field(default_factory=Identity.generate)
    model: tuple[str, Arrays] = ("", {})
    trained: dict[int, tuple[Arrays, int]] = field(default_factory=dict)
    """Round → update and examples."""
    trainings: int = 0

    def __post_init__(self) -> None:
        self.memory = memory_at(self.folder, self.name)
        self.work = SecureWork(self.federation, self.name, self.identity, self.memory, patience=0.0)

    def train(self, request: Request) -> tuple[Arrays, Trained]:
        """Depends on nothing but the request."""
        self.hold(request)
        digest, model = self.model
        assert digest == request.model
        seed = hashlib.sha256(f"{self.name} {request.number} {digest}".encode()).digest()
        draw = np.random.default_rng(int.from_bytes(seed[:6], "big"))
        update = {
            name: np.asarray(one + np.float32(0.1) * draw.standard_normal(one.shape).astype(one.dtype))
            for name, one in sorted(model.items())
        }
        self.trainings += 1
        self.trained[request.number] = update, 10 * (1 + sum(self.name.encode()) % 7)
        return model, Trained(*self.trained[request.number], {"loss": 0.25, "words": 3.0})

    def hold(self, request: Request) -> None:
        if request.content:
            assert hashlib.sha256(request.content).hexdigest() == request.model
            self.model = request.model, decode_arrays(request.content, what="the model", limit=1 << 20)


@dataclass
class Room:
    """All parties, as an exchange. ``gone`` has the step in which a party says nothing any more in a round."""

    federation: Federation
    folder: Path
    gone: dict[tuple[str, int], str] = field(default_factory=dict)
    spoils: Callable[[Reply, Request], Reply] = lambda reply, _: reply
    killed: int | None = None
    """The question at which everything ends, counted from 0."""
    asked: list[dict[str, Request]] = field(default_factory=list)
    replies: list[Reply] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.parties = {name: Party(name, self.federation, self.folder) for name in self.federation.parties}
        self.present = set(self.parties)
        self.meet()

    def meet(self) -> None:
        """Everybody's agent has verified everybody."""
        keys = self.keys()
        for party in self.parties.values():
            party.work.know({name: key for name, key in keys.items() if name != party.name})

    def restart(self, name: str) -> None:
        """Another workload, with another key; what was sealed in its folder is there still."""
        self.parties[name].memory.close()
        self.parties[name] = Party(name, self.federation, self.folder)
        self.meet()

    def keys(self) -> dict[str, bytes]:
        return {name: party.identity.spki for name, party in self.parties.items()}

    def ready(self) -> frozenset[str]:
        return frozenset(self.present)

    def ask(self, requests: Mapping[str, Request], *, seconds: float) -> Iterator[Reply]:
        if self.killed == len(self.asked):
            raise Killed
        self.asked.append(dict(requests))
        self.seconds.append(seconds)
        for name, request in sorted(requests.items()):
            step = self.gone.get((name, request.number))
            late = step is not None and request.kind in STEPS[STEPS.index(step) :]
            if name in self.present and not late:
                reply = self.spoils(self.answer(self.parties[name], request), request)
                self.replies.append(reply)
                yield reply

    def answer(self, party: Party, request: Request) -> Reply:
        plain = (party.name, request.run, request.number)
        if request.kind == "score":
            party.hold(request)
            return Reply(*plain, b"", 10, {"f1": 0.5})
        try:
            answer = party.work.answer(request, party.train)
        except CloisterError as error:
            return Reply(*plain, b"", 0, {}, error=error.what)
        return Reply(*plain, answer.content, answer.examples, answer.metrics)


@dataclass
class Run:
    """What became of a run."""

    kept: Kept
    facts: list[Fact] = field(default_factory=list)

    @property
    def rounds(self) -> list[RoundDone]:
        return [fact for fact in self.facts if isinstance(fact, RoundDone)]

    @property
    def ended(self) -> Ended:
        assert isinstance(self.facts[-1], Ended)
        return self.facts[-1]


def go(room: Room, kept: Kept | None = None) -> Run:
    """The run, or what is left of it; its clock goes a second at every look."""
    run = Run(kept or Kept(0, MODEL, {}))

    def keep(after: Kept, fact: Fact) -> None:
        run.kept = after
        run.facts.append(fact)

    times = iter(range(1_000_000))
    rounds = Rounds(
        room.federation, RUN, room, keep=keep, keys=room.keys, now=lambda: 1_795_000_000,
        clock=lambda: float(next(times)), sleep=lambda _seconds: None,
    )  # fmt: skip
    try:
        run.kept = rounds.go_on(run.kept)
    except Killed:
        room.killed = None
    return run


def plain_mean(model: Arrays, updates: Mapping[str, tuple[Arrays, int]]) -> dict[str, Any]:
    """What the round comes to, computed in the clear in 64 bits."""
    total = sum(examples for _, examples in updates.values())
    return {
        name: sum(arrays[name].astype(np.float64) * examples for arrays, examples in updates.values()) / total
        for name in model
    }


def same_model(one: Arrays, other: Arrays) -> bool:
    return encode_arrays(one) == encode_arrays(other)
