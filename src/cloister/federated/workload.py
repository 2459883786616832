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
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from typing import Final

from cloister.attester.launch import this_program
from cloister.broker.mesh_request import make_request
from cloister.errors import FederationError, UpdateRefused
from cloister.federated.agreement import AgreedFederation
from cloister.federated.exchange import Request
from cloister.federated.flower.app import app_digest
from cloister.federated.flower.node import PartyNode
from cloister.federated.flower.programs import Programs
from cloister.federated.flower.workshop import Answer
from cloister.federated.identity import Identity
from cloister.federated.messages import Done, Named, Renewal, Requested, TaskOrder, WorkAsked, WorkState
from cloister.federated.opening import Places, open_secure, open_task
from cloister.federated.provenance import FilesStated, agreed_chain
from cloister.federated.rounds import digest_of
from cloister.federated.secure.wire import STEPS
from cloister.federated.secure.work import SecureWork
from cloister.federated.tasks import Trained, Training
from cloister.federated.updates import Arrays, decode_arrays, encode_arrays

MAX_MODEL: Final = 32 << 30
LOADED: Final = (
    "torch", "transformers.models.auto.modeling_auto", "transformers.models.bert.modeling_bert", "seqeval.metrics.v1",
)  # fmt: skip
"""What tasks need. With one family of models comes what takes the time in all others."""
_log = logging.getLogger("cloister.federated")


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
        self._held_at = 0.0
        """When its agent last had it hold."""
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
        """Of the run, that are over for all it knows."""
        self._programs: Programs | None = None
        self._node: PartyNode | None = None
        self._run = ""

    def warm_up(self) -> None:
        """Load in a thread what every task needs, so that an order does not wait for it."""

        def load() -> None:
            for name in LOADED:
                importlib.import_module(name)
            app_digest()

        self._flower()
        threading.Thread(target=load, name="warm-up", daemon=True).start()

    def close(self) -> None:
        """End Flower's node and let go of everything."""
        self._undo.close()
        if self._programs is not None:
            self._programs.close()

    # What the agent asks (messages.py).

    def request(self, named: Named) -> Requested:
        """A certificate request for the key in this process's evidence."""
        return Requested(
            csr=make_request(self.identity.key, workload=named.party, application=named.federation)
        )

    def begin(self, order: TaskOrder) -> Done:
        """Take the task. Raises FederationError where there is one already, and what opening it raises.

        An agent that was not answered asks again: then it is a renewal.
        """
        asked = self._clock()
        with self._lock:
            if self.order is not None:
                if not hmac.compare_digest(self.order.word.encode(), order.word.encode()):
                    raise FederationError("this workload has its task", todo="start another for another task")
                renewal = {name: getattr(order, name) for name in Renewal.__struct_fields__}
                return self._renewed(Renewal(**renewal), asked)
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
                undo.callback(self._forget)
                self.training = open_task(self._places, agreed, order, undo)
                if federation.aggregation.secure:
                    self._secure = open_secure(self._places, agreed, order, self.identity, undo)
                self.order, self.agreed, self._run = order, agreed, order.run
                self._lease(order.lease, asked)
                self._node = PartyNode(
                    self.identity,
                    self._places.memory,
                    self._flower(),
                    self.work,
                    order,
                    digest=agreed.digest,
                    now=self._now,
                )
                undo.callback(self._node.close)
                self._undo = undo.pop_all()
        return Done()

    def _flower(self) -> Programs:
        if self._programs is None:
            self._programs = Programs(self._places.memory)
        return self._programs

    def renew(self, renewal: Renewal) -> Done:
        """The next certificate, and the run that goes on."""
        asked = self._clock()
        with self._lock:
            self.own(renewal.word)
            return self._renewed(renewal, asked)

    def _renewed(self, renewal: Renewal, asked: float) -> Done:
        if renewal.run != self._run:
            self._run, self._rounds = renewal.run, 0
        self._lease(renewal.lease, asked)
        if self._secure is not None:
            self._secure.know(renewal.peers)
        if self._node is not None:
            self._node.renew(renewal)
        return Done()

    def _lease(self, seconds: int, asked: float) -> None:
        """From when it was asked for, and nothing where the agent had it hold since."""
        self.leased = asked + seconds if asked >= self._held_at else 0.0

    def state(self, asked: WorkAsked) -> WorkState:
        at = self._clock()
        with self._lock:
            self.own(asked.word)
            if asked.hold:
                self._held_at, self.leased = at, 0.0
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
        self._require_lease()
        if self._run and request.run != self._run:
            raise UpdateRefused("the request is of another run")
        if not 1 <= request.number <= agreed.federation.rounds:
            raise UpdateRefused(f"there is no round {request.number}")
        if request.number <= self._rounds:
            raise UpdateRefused(f"round {request.number} is over")
        answer = self._answered(request, training, agreed, secure)
        self._require_lease()  # still: training takes long, and the agent may have had it hold
        return answer

    def _require_lease(self) -> None:
        if self._clock() > self.leased:
            raise FederationError(
                "the agent has not verified the aggregator in time", todo="see what the agent says"
            )

    def _answered(
        self, request: Request, training: Training, agreed: AgreedFederation, secure: SecureWork | None
    ) -> Answer:
        if request.kind != "score":
            # No round begins before the one before is kept.
            self._rounds = max(self._rounds, request.number - 1)
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

    def _forget(self) -> None:
        self.order = self.agreed = self.training = self._secure = self._node = None
