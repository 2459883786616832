"""A party's training workload: takes its task from the party's verified agent, trains when it is asked, writes the model.

It begins with nothing: no key, no federation, nobody that it believes. Its agent verifies it first and then gives it all at
once, sealed to the key in its evidence; the first to do so is its agent for good, since whoever else comes knows not the
word that came with the order. Data and base model are read sealed, with the keys of the order, into memory. What leaves is
what the federation names: updates, or where these are hidden nothing but a masked vector, and the metrics that it lists.
"""

from __future__ import annotations

import hashlib
import hmac
import importlib
import logging
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final, Literal, cast

import httpx2

from cloister.attester.launch import this_program
from cloister.broker.mesh_request import make_request
from cloister.channel.tls_context import server_side
from cloister.encoding import from_hex
from cloister.errors import FederationError, KeyUnavailable, UpdateRefused, UsageError
from cloister.federated.agreement import AgreedFederation
from cloister.federated.exchange import Request
from cloister.federated.federation import MILLION, Privacy
from cloister.federated.flower.app import app_digest
from cloister.federated.flower.processes import HOST, Loopback, SuperNode
from cloister.federated.flower.workshop import SOCKET, Answer, Workshop
from cloister.federated.identity import Identity
from cloister.federated.ledger import Ledger
from cloister.federated.mesh import party_context
from cloister.federated.messages import Done, Named, Renewal, Requested, TaskOrder, WorkAsked, WorkState
from cloister.federated.provenance import FilesStated, agreed_chain
from cloister.federated.relay import Relay, own_bundle, own_node
from cloister.federated.rounds import digest_of
from cloister.federated.secure.memory import Memory
from cloister.federated.secure.wire import STEPS
from cloister.federated.secure.work import SecureWork
from cloister.federated.serving import ThreadedServer, listen
from cloister.federated.tasks import ExamplePrivacy, Opening, Trained, Training, find_task
from cloister.federated.updates import Arrays, decode_arrays, encode_arrays
from cloister.inference.model import OpenedModel, find_model
from cloister.sealing import KeySource
from cloister.sealing.access import Access
from cloister.sealing.opening import open as open_sealed

MAX_MODEL: Final = 32 << 30
_log = logging.getLogger("cloister.federated")


@dataclass(frozen=True, slots=True)
class Places:
    """Where a workload finds things. ``data`` and ``model`` are on the host's disk, sealed or, the model, plain."""

    memory: Path
    """A private folder in memory, empty, that ends with the process."""
    data: Path
    model: Path
    state: Path | None = None
    """Where the ledger of spent privacy lies, and what secure aggregation remembers, sealed. It outlives the process."""


class GivenKeys:
    """The keys of an order: a :class:`~cloister.sealing.KeySource`."""

    def __init__(self, keys: dict[str, bytes]) -> None:
        self._keys = keys

    def __repr__(self) -> str:
        return f"GivenKeys({', '.join(sorted(self._keys))})"

    def key(self, uri: str) -> bytes:
        found = self._keys.get(uri)
        if found is None:
            raise KeyUnavailable(
                f"the agent gave no key at {uri}",
                todo="hand it to the agent with `cloister federation join --data-key`",
            )
        return found


class Workload:
    """One party's, for one task. Threads may share it."""

    def __init__(
        self,
        identity: Identity,
        places: Places,
        *,
        now: Callable[[], int] = lambda: int(time.time()),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.identity = identity
        self._places = places
        self._now = now
        self._clock = clock
        self.leased = 0.0
        """On its clock: until when the agent's last verification lets it answer the aggregator."""
        self._lock = threading.RLock()
        self._undo = ExitStack()
        self.order: TaskOrder | None = None
        self.agreed: AgreedFederation | None = None
        self.training: Training | None = None
        self._secure: SecureWork | None = None
        """Where nobody may see this party's update."""
        self.written: FilesStated | None = None
        """What it said of the model that it wrote."""
        self._held: tuple[str, Arrays] | None = None
        """The newest model, and its digest."""
        self._rounds = 0
        self._relay: Relay | None = None
        self._root = ""
        """Of the aggregator's mesh: another one's is another aggregator."""
        self._node: SuperNode | None = None
        self._restart: Callable[[], None] = lambda: None
        self._run = ""

    def warm_up(self) -> None:
        """Load in a thread what every task needs, so that an order does not wait for it."""

        def load() -> None:
            for name in ("torch", "transformers", "seqeval.metrics.v1"):
                importlib.import_module(name)
            app_digest()

        threading.Thread(target=load, name="warm-up", daemon=True).start()

    def close(self) -> None:
        """End Flower's node and let go of everything."""
        self._undo.close()

    # What the agent asks (messages.py).

    def request(self, named: Named) -> Requested:
        """A certificate request for the key in this process's evidence."""
        return Requested(
            csr=make_request(self.identity.key, workload=named.party, application=named.federation)
        )

    def begin(self, order: TaskOrder) -> Done:
        """Take the task. Raises FederationError where there is one already, and what opening it raises."""
        with self._lock:
            if self.order is not None:
                raise FederationError("this workload has its task", todo="start another for another task")
            agreed = agreed_chain(order.federation, digest=order.digest)
            federation = agreed.federation
            if order.party not in federation.parties:
                raise FederationError(f"{order.party[:80]!r} is no party of {federation.name}")
            if federation.task.code != this_program().hex():
                raise FederationError(
                    "the parties agreed on other code than this program's",
                    todo="install the version that they signed",
                )
            with ExitStack() as undo:
                self.training = self._opened(agreed, order, undo)
                self._secure = self._hidden(agreed, order, undo) if federation.aggregation.secure else None
                self.order, self.agreed = order, agreed
                self.leased = self._clock() + order.lease
                undo.callback(self._forget)
                self._connect(order, undo)
                self._undo = undo.pop_all()
        return Done()

    def renew(self, renewal: Renewal) -> Done:
        """The next certificate, and the run that goes on."""
        with self._lock:
            self.own(renewal.word)
            self._run = renewal.run
            self.leased = self._clock() + renewal.lease
            if self._secure is not None:
                self._secure.know(renewal.peers)
            self._set_client(renewal.chain, renewal.bundle, renewal.root, renewal.tunnel)
            if renewal.root != self._root or self._node is None or not self._node.running:
                # Another aggregator does not know this node's number, and Flower's node ends when it hears that.
                self._root = renewal.root
                self._restart()
        return Done()

    def state(self, asked: WorkAsked) -> WorkState:
        with self._lock:
            self.own(asked.word)
            if asked.hold:
                self.leased = 0.0
            running = self._node is not None and self._node.running
            return WorkState(running=running, rounds=self._rounds)

    def final_model(self, digest: str) -> Arrays:
        """The model with this digest, which was scored last. Raises FederationError."""
        if self._held is None or self._held[0] != digest:
            raise FederationError(
                "this workload does not have the final model", todo="it missed the last round"
            )
        return self._held[1]

    # What the aggregator asks, over Flower.

    def work(self, request: Request) -> Answer:
        """Train, score, or a step of secure aggregation. Raises UpdateRefused, also for a request of another run."""
        training, agreed, secure = self.training, self.agreed, self._secure
        if training is None or agreed is None:
            raise FederationError("this workload has no task yet")
        if self._clock() > self.leased:
            raise FederationError(
                "the agent has not verified the aggregator in time", todo="see what the agent says"
            )
        if self._run and request.run != self._run:
            raise UpdateRefused("the request is of another run")
        if not 1 <= request.number <= agreed.federation.rounds:
            raise UpdateRefused(f"there is no round {request.number}")
        if request.kind in STEPS:
            if secure is None:
                raise UpdateRefused("in this federation updates are not added under masks")
            return secure.answer(request, self._trained)
        if request.kind == "train":
            if agreed.federation.aggregation.secure:
                raise UpdateRefused("in this federation nobody is shown an update, but the sum of all")
            _, trained = self._trained(request)
            metrics = {
                name: value for name, value in trained.metrics.items() if name in agreed.federation.metrics
            }
            return Answer(encode_arrays(trained.arrays), trained.examples, metrics)
        if request.kind == "score":
            scored = training.score(self._model(request))
            self._rounds = request.number
            metrics = {
                name: value for name, value in scored.metrics.items() if name in agreed.federation.metrics
            }
            return Answer(b"", scored.examples, metrics)
        raise UpdateRefused(f"there is no request {request.kind[:32]!r}")

    def _trained(self, request: Request) -> tuple[Arrays, Trained]:
        """The round's model, and what training made of it."""
        training, order = self.training, self.order
        if training is None or order is None:
            raise FederationError("this workload has no task yet")
        arrays = self._model(request)
        words = f"{order.party} {request.run} {request.number}"
        seed = int.from_bytes(hashlib.sha256(words.encode()).digest()[:6], "big")
        return arrays, training.train(
            arrays, number=request.number, seed=seed, step=lambda _done, _steps: None
        )

    def _model(self, request: Request) -> Arrays:
        if request.content:
            if digest_of(request.content) != request.model:
                raise UpdateRefused("the model is not the one that the request names")
            self._held = (
                request.model,
                decode_arrays(request.content, what="the round's model", limit=MAX_MODEL),
            )
        if self._held is None or self._held[0] != request.model:
            raise UpdateRefused("the request is for a model that this workload does not have")
        return self._held[1]

    def own(self, word: str) -> TaskOrder:
        """The order, for who gave it. Raises FederationError."""
        if self.order is None or not hmac.compare_digest(self.order.word.encode(), word.encode()):
            raise FederationError("this is not the agent that gave the task")
        return self.order

    def _opened(self, agreed: AgreedFederation, order: TaskOrder, undo: ExitStack) -> Training:
        federation = agreed.federation
        signers = frozenset(from_hex(one, 32, what="an index signer") for one in order.signers)
        keys = GivenKeys(order.keys)
        opened = open_model(self._places.model, federation.task.model, signers, keys)
        undo.callback(opened.discard)
        undo.callback(opened.files.close)
        access = Access(keys=keys, signers=signers)
        places = self._places

        def read(name: str) -> BinaryIO:
            return cast("BinaryIO", open_sealed(places.data / name, "rb", access=access))

        privacy = _example_privacy(federation.privacy)
        ledger = None if privacy is None else self._ledger(agreed, order, privacy, undo)
        opening = Opening(
            model=opened.files, settings=federation.task.settings, read=read,
            proximal=federation.aggregation.proximal_ppm / MILLION, privacy=privacy,
            spend=None if ledger is None else ledger.spend,
        )  # fmt: skip
        training = find_task(federation.task.plugin)(opening)
        opened.confirm()
        return training

    def _hidden(self, agreed: AgreedFederation, order: TaskOrder, undo: ExitStack) -> SecureWork:
        if self._places.state is None:
            raise UsageError(
                "this workload was not told where to keep in which rounds its update was hidden",
                todo="start it with --state, always with the same folder",
            )
        memory = Memory(
            self._places.state, first=order.digest, party=order.party, keys=GivenKeys(order.keys), key_uri=order.output
        )  # fmt: skip
        undo.callback(memory.close)
        secure = SecureWork(agreed.federation, order.party, self.identity, memory)
        secure.know(order.peers)
        return secure

    def _ledger(
        self, agreed: AgreedFederation, order: TaskOrder, privacy: ExamplePrivacy, undo: ExitStack
    ) -> Ledger:
        if self._places.state is None:
            raise UsageError(
                "this workload was not told where to keep what privacy it spends",
                todo="start it with --state, always with the same folder",
            )
        ledger = Ledger(
            self._places.state, first=order.digest, version=agreed.digest, party=order.party, privacy=privacy,
            keys=GivenKeys(order.keys), key_uri=order.output,
        )  # fmt: skip
        undo.callback(ledger.close)
        _log.info("privacy: epsilon %.4g of %.6g is spent so far", ledger.spent(), privacy.epsilon)
        return ledger

    def _connect(self, order: TaskOrder, undo: ExitStack) -> None:
        """The workshop, the relay and Flower's node, from inside out."""
        place = self._places.memory / "flower"
        place.mkdir(mode=0o700)
        path = place / "workshop"
        undo.callback(Workshop(path, self.work).close)
        self._run = order.run
        self._set_client(order.chain, order.bundle, order.root, order.tunnel)
        assert self._relay is not None  # noqa: S101 -- the line above
        loopback = Loopback.make(place)
        context = server_side()
        context.load_cert_chain(loopback.certificate, loopback.key)
        server = ThreadedServer(self._relay, listen(HOST, 0), context, name="federation-relay")
        undo.callback(server.close)

        def restart() -> None:
            self._end_node()
            self._node = SuperNode(
                Path(tempfile.mkdtemp(prefix="node-", dir=place)), forward=server.port, root=loopback.certificate,
                key=self.identity.openssh(), environment={SOCKET: str(path)},
            )  # fmt: skip

        self._root, self._restart = order.root, restart
        undo.callback(self._end_node)
        restart()

    def _end_node(self) -> None:
        if self._node is not None:
            self._node.close()

    def _set_client(self, chain: tuple[bytes, ...], bundle: bytes, root: str, tunnel: str) -> None:
        assert self.agreed is not None  # noqa: S101 -- who has a task has one
        digest = self.agreed.digest
        context, name = party_context(
            bundle, chain, self.identity.key, root=root, digest=digest, now=self._now()
        )
        client = httpx2.AsyncClient(
            base_url=f"https://{tunnel}", verify=context, limits=httpx2.Limits(max_connections=32)
        )
        if self._relay is None:
            spki = self.identity.spki
            self._relay = Relay(
                client, check=lambda scope: own_node(scope, spki), check_answer=own_bundle(app_digest()), name=name
            )  # fmt: skip
        else:
            self._relay.use(client)

    def _forget(self) -> None:
        self.order = self.agreed = self.training = self._secure = self._node = None


def open_model(path: Path, digest: str, signers: frozenset[bytes], keys: KeySource | None) -> OpenedModel:
    """The model that the parties agreed on. Raises FederationError for another one, and what opening raises."""
    model = find_model(path, signers=signers)
    if model.digest.hex() != digest:
        raise FederationError(
            f"{path} is not the model that the parties agreed on",
            todo=f"its digest is {model.digest.hex()}, and they signed {digest}",
        )
    return model.open(keys)


def _example_privacy(privacy: Literal["none"] | Privacy) -> ExamplePrivacy | None:
    if not isinstance(privacy, Privacy) or privacy.of != "examples":
        return None
    return ExamplePrivacy(
        noise=privacy.noise_ppm / MILLION, clip=privacy.clip_ppm / MILLION, delta=1 / privacy.delta_inverse,
        epsilon=privacy.epsilon_ppm / MILLION,
    )  # fmt: skip
