"""Federations for tests: real keys, real signatures, policies of the simulated TEE, and real evidence that meets them."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from msgspec import structs

from cloister import merkle
from cloister.appraisal.draft import draft_policy
from cloister.attester.simulated import SimulatedPlatform, SimulatedTee
from cloister.broker.mesh_request import make_request
from cloister.encoding import encode_json
from cloister.evidence.binding import report_data
from cloister.evidence.bundle import EvidenceBundle, NonceProof, encode_bundle
from cloister.evidence.key_material import KeyMaterial, encode_key_material
from cloister.federated.admission import WORKLOAD, signed_parts, vouched_parts
from cloister.federated.agreement import AgreedFederation, agree_first
from cloister.federated.checkpoint import read_checkpoint
from cloister.federated.configuration import Role, federated_events
from cloister.federated.delegation import delegate
from cloister.federated.exchange import Reply, Request
from cloister.federated.federation import Aggregation, Federation, Party, Privacy, Task
from cloister.federated.flower.run_folder import RunFolder, RunOrder, go_through
from cloister.federated.identity import Identity
from cloister.federated.messages import Admission, Vouched
from cloister.federated.progress import Fact
from cloister.federated.provenance import STATEMENT, nonce_of
from cloister.federated.rounds import Kept, digest_of
from cloister.federated.updates import Arrays, decode_arrays, encode_arrays
from cloister.manifest.signed import Signed, encode_signed, sign
from manifest_parts import NOW, owner, policy_text
from simulated_evidence import platform

NAMES = ("north", "south", "west")
MILLION = 1_000_000


def party(name: str, **changes: Any) -> Party:
    plain = Party(key=owner(name).key, agent=(policy_text("a1"),), workload=(policy_text("b2"),))
    return structs.replace(plain, **changes)


def aggregation(**changes: Any) -> Aggregation:
    plain = Aggregation(method="fedavg", secure=False, tolerated=0, proximal_ppm=0, largest_ppm=50 * MILLION)
    return structs.replace(plain, **changes)


def privacy(**changes: Any) -> Privacy:
    plain = Privacy(
        of="clients", noise_ppm=MILLION, clip_ppm=MILLION, epsilon_ppm=8 * MILLION, delta_inverse=100_000
    )
    return structs.replace(plain, **changes)


def federation(*names: str, **changes: Any) -> Federation:
    """Three hospitals that learn to find diseases, or parties of these names."""
    plain = Federation(
        name="hospitals",
        version=1,
        previous="",
        issued=NOW,
        parties={name: party(name) for name in names or NAMES},
        aggregator=(policy_text("c3"),),
        everyone=True,
        attest_minutes=30,
        task=Task(
            plugin="ner", code="11" * 32, model="22" * 32, settings={"kinds": ("Disease",), "epochs": 1}
        ),
        rounds=5,
        deadline=600,
        minimum=2,
        aggregation=aggregation(),
        privacy="none",
        metrics=("f1", "loss"),
        receivers=("north",),
    )
    return structs.replace(plain, **changes)


def signed(document: Federation, *names: str) -> Signed:
    """Signed by these, or by all parties."""
    return sign("federation", encode_json(document), [owner(name) for name in names or document.parties])


def machine(organisation: str) -> SimulatedPlatform:
    """An organisation's own platform, of a vendor of its own."""
    return platform(organisation)


@functools.cache
def launched(role: Role, organisation: str) -> SimulatedTee:
    """The TEE of a process, as ``cloister federation`` launches it."""
    events = federated_events(role, "hospitals")
    return machine(organisation).tee("tdx", launch=events, clock=lambda: NOW)


@functools.cache
def policy_of(role: Role, organisation: str) -> str:
    """The policy that this process meets, as ``cloister measure federation`` writes it."""
    tee = launched(role, organisation)
    return draft_policy(
        tee="tdx", measurements=tee.measurements, events=tee.launch, min_tcb_evaluation_number=1,
        simulated_root=machine(organisation).root_sha256,
    )  # fmt: skip


@functools.cache
def identity(process: str) -> Identity:
    """The same key for the same process, always."""
    del process
    return Identity.generate()


def attested(*names: str, **changes: Any) -> Federation:
    """A federation whose policies real evidence of these parts meets."""
    parties = {
        name: party(name, agent=(policy_of("agent", name),), workload=(policy_of("workload", name),))
        for name in names or NAMES
    }
    return federation(
        *parties, **({"parties": parties, "aggregator": (policy_of("aggregator", "host"),)} | changes)
    )


def agreed(document: Federation) -> AgreedFederation:
    """Signed by all its parties."""
    found = signed(document)
    return agree_first(found, digest=found.digest)


def evidence(
    role: Role, organisation: str, nonce: bytes, *, key: Identity | None = None, **shown: Any
) -> bytes:
    """A bundle of this process over ``nonce``, which binds its key (or another)."""
    material = encode_key_material(
        KeyMaterial(
            ohttp_keys=b"keys", not_after=NOW + 3000, replica=f"{role}-1",
            tls_spki_sha256=(key or identity(f"{organisation} {role}")).digest, **shown,
        )
    )  # fmt: skip
    raw = launched(role, organisation).quote(report_data(merkle.root([nonce]), material))
    return encode_bundle(
        EvidenceBundle(
            tee="tdx", quote=raw.quote, key_material=material, nonce_proof=NonceProof(index=0, size=1, path=()),
            event_log=raw.event_log, endorsements=raw.endorsements,
        )
    )  # fmt: skip


def delegated(
    found: AgreedFederation, name: str, *, key: Identity | None = None, until: int = NOW + 86_400
) -> bytes:
    """A party's word for its agent."""
    agent = (key or identity(f"{name} agent")).digest
    return encode_signed(delegate(found, party=name, agent_key=agent, not_after=until, signer=owner(name)))


def admission(
    found: AgreedFederation, name: str, session_nonce: bytes, /, *, by: str = "", **changes: Any
) -> Admission:
    """What an honest agent of ``name`` sends, but for ``changes``; signed over them, by the agent of ``by``."""
    plain: dict[str, Any] = {
        "session": "5e" * 32,
        "delegation": delegated(found, name),
        "agent": evidence("agent", name, session_nonce),
        "agent_key": identity(f"{name} agent").spki,
        "workload": evidence("workload", name, session_nonce),
        "csr": make_request(
            identity(f"{name} workload").key, workload=name, application=found.federation.name
        ),
        "nonce": bytes(32),
        "checkpoint_key": None,
        "seen": 0,
        "vouched": identity(f"{name} agent").sign(
            WORKLOAD, *vouched_parts(found.digest, name, identity(f"{name} workload").spki)
        ),
        "signature": b"",
    }  # fmt: skip
    asked = Admission(**(plain | changes))
    signature = identity(f"{by or name} agent").sign("admission", *signed_parts(asked))
    return structs.replace(asked, signature=signature)


def vouched(role: Role, organisation: str, statement: bytes, **changes: Any) -> Vouched:
    """A statement as this process makes it, but for ``changes``."""
    key = identity(f"{organisation} {role}")
    plain: dict[str, Any] = {
        "statement": statement,
        "evidence": evidence(role, organisation, nonce_of(statement)),
        "key": key.spki,
        "signature": key.sign(STATEMENT, statement),
    }
    return Vouched(**(plain | changes))


MODEL: Arrays = {
    "crf.start": np.zeros(3, dtype=np.float32),
    "linear.weight": np.linspace(-1, 1, 8, dtype=np.float32).reshape(2, 4),
    "half": np.ones((2, 2), dtype=np.float16),
}
"""What training begins with."""


class Killed(BaseException):
    """What ends a process without its asking."""


@dataclass
class Classroom:
    """Parties in this process, as an exchange of rounds.py. Their updates depend on nothing but the request.

    ``spoils`` replaces a party's reply to a training request of a round by others; ``killed`` ends everything at that
    question, counted from 0. Replies come in ``order``, or each time in another one.
    """

    parties: tuple[str, ...] = NAMES
    spoils: dict[tuple[str, int], Callable[[Reply], Iterable[Reply]]] = field(default_factory=dict)
    killed: int | None = None
    present: set[str] = field(default_factory=set)
    asked: list[dict[str, Request]] = field(default_factory=list)
    held: dict[str, tuple[str, bytes]] = field(default_factory=dict)
    order: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        self.present |= set(self.parties)

    def ready(self) -> frozenset[str]:
        return frozenset(self.present)

    def ask(self, requests: Mapping[str, Request], *, seconds: float) -> Iterator[Reply]:
        assert seconds > 0
        if self.killed == len(self.asked):
            raise Killed
        self.asked.append(dict(requests))
        order = self.order or sorted(
            requests, key=lambda name: digest_of(f"{name} {len(self.asked)}".encode())
        )
        for name in (one for one in order if one in requests):
            request = requests[name]
            reply = self.answer(name, request)
            change = self.spoils.get((name, request.number)) if request.kind == "train" else None
            yield from [reply] if change is None else change(reply)

    def answer(self, name: str, request: Request) -> Reply:
        """What the party's workload answers."""
        if request.content:
            assert digest_of(request.content) == request.model
            self.held[name] = (request.model, request.content)
        digest, blob = self.held[name]
        assert digest == request.model
        model = decode_arrays(blob, what="the model", limit=len(blob))
        if request.kind == "score":
            return Reply(name, request.run, request.number, b"", 10, {"f1": 0.5, "words": 3.0})
        seed = digest_of(f"{name} {request.number} {digest}".encode())
        draw = np.random.default_rng(int(seed[:12], 16))
        update = {
            key: (one + 0.1 * draw.standard_normal(one.shape)).astype(one.dtype)
            for key, one in sorted(model.items())
        }
        examples = 10 * (1 + self.parties.index(name))
        return Reply(name, request.run, request.number, encode_arrays(update), examples, {"loss": 0.25})


@dataclass(frozen=True)
class Run:
    """What a run came to, as its sealed checkpoint and its folder have it."""

    kept: Kept
    facts: tuple[Fact, ...]
    folder: RunFolder


CHECKPOINT_KEY = bytes(range(32))


def run_order(document: Federation, state: Path, **changes: Any) -> RunOrder:
    plain: dict[str, Any] = {
        "federation": encode_json(document),
        "digest": signed(document).digest,
        "run": "5e" * 16,
        "state": str(state),
        "key": CHECKPOINT_KEY,
        "evidence": "ee" * 32,
        "simulated": True,
    }
    return RunOrder(**(plain | changes))


def run_of(
    document: Federation, root: Path, classroom: Classroom, *, attempt: int = 0, **changes: Any
) -> Run:
    """A run as the ServerApp makes it, in a folder of memory for this attempt, with the state of those before."""
    path, state = root / f"run-{attempt}", root / "state"
    path.mkdir(parents=True)
    state.mkdir(exist_ok=True)
    folder, order = RunFolder(path), run_order(document, state, **changes)
    folder.write_order(order, encode_arrays(MODEL))
    go_through(RunFolder.open(path), classroom)
    found = read_checkpoint(state, federation=order.digest, key=order.key)
    assert found is not None
    return Run(found.kept, folder.facts(), folder)
