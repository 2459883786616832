"""An agent's word with its party's workload: the task, certificates, whom to believe, and the model at the end.

What is said first decides whose the workload is; every later order shows the word that came with it.
"""

from __future__ import annotations

import contextlib
import secrets
import threading
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future, wait
from typing import Final

import httpx2

from cloister.channel.headers import ATTESTATION_PATH
from cloister.channel.transport import SealedClient, connect
from cloister.encoding import b64url_encode, encode_json
from cloister.errors import CloisterError, FederationError, NetworkError
from cloister.evidence.bundle import MAX_BUNDLE
from cloister.federated.agreement import AgreedFederation
from cloister.federated.messages import (
    MODEL,
    RENEWAL,
    STATE,
    TASK,
    Admitted,
    Done,
    JoinOrder,
    ModelOrder,
    Renewal,
    TaskOrder,
    Vouched,
    WorkAsked,
    WorkState,
    Written,
)
from cloister.federated.sealed_call import Refused, call

EVIDENCE_SECONDS: Final = 60.0
GRACE: Final = 30
"""Seconds that a workload may answer beyond the end of its evidence: the aggregator excludes it by itself."""
OPEN_SECONDS: Final = 600.0
"""For a workload to open its model, and to write it."""


class OwnWorkload:
    """One party's. ``client`` is always a connection to it whose evidence was verified for this purpose just before."""

    def __init__(
        self, url: str, order: JoinOrder, agreed: AgreedFederation, *, now: Callable[[], int]
    ) -> None:
        self.url = url
        self.begun = False
        self._order = order
        self._agreed = agreed
        self._now = now
        self._word = secrets.token_hex(32)
        self._taking: Future[Done] | None = None
        """Of the task that it was handed, until it has it."""
        self._handed: dict[str, bytes] = {}
        """:attr:`_peers` as they were then."""
        self._peers: dict[str, bytes] = {}
        """The workload keys of parties whose agents were verified, as the workload has them once it has begun."""

    def connect(self) -> SealedClient:
        """Verified. Raises what verification raises, and NetworkError."""
        return connect(self.url, policy=self._agreed.workload_policies(self._order.party))

    def evidence(self, nonce: bytes) -> bytes:
        """Its evidence over somebody's nonce, to be handed on unread. Raises NetworkError."""
        question = encode_json({"nonce": b64url_encode(nonce)})
        headers = {"content-type": "application/json", "accept": "application/json"}
        try:
            with httpx2.Client(timeout=EVIDENCE_SECONDS, verify=self.url.startswith("https:")) as client:
                response = client.post(
                    httpx2.URL(self.url).join(ATTESTATION_PATH), content=question, headers=headers
                )
        except httpx2.TransportError as error:
            raise NetworkError(f"{self.url} shows no evidence ({type(error).__name__})") from None
        if response.status_code != 200 or len(response.content) > MAX_BUNDLE:
            raise Refused(f"{self.url} shows no evidence: status {response.status_code}")
        return response.content

    def begin(self, client: SealedClient, admitted: Admitted, *, root: str, tunnel: str) -> None:
        """Hand over the keys, in a thread: other parties need this agent while its workload opens model and data."""
        order = self._order
        task = TaskOrder(
            federation=order.federation, digest=order.digest, word=self._word, lease=self._lease(admitted),
            party=order.party, run=admitted.run, chain=admitted.chain, bundle=admitted.bundle, root=root, tunnel=tunnel,
            keys=order.keys, signers=order.signers, output=order.output, peers=self._peers,
        )  # fmt: skip
        taking: Future[Done] = Future()

        def hand_over() -> None:
            try:
                taking.set_result(call(client, TASK, task, Done, seconds=OPEN_SECONDS))
            except BaseException as error:
                taking.set_exception(error)

        self._taking, self._handed = taking, self._peers
        threading.Thread(target=hand_over, name="keys", daemon=True).start()

    @property
    def taking(self) -> bool:
        """Whether it was handed its task, and :meth:`taken` has not said yet what became of that."""
        return self._taking is not None

    def taken(self, seconds: float) -> bool:
        """Whether it has its task within ``seconds``. Raises what handing it over raised."""
        taking = self._taking
        if taking is not None and wait([taking], seconds).done:
            self._taking = None
            taking.result()
            self.begun = True
        return self.begun

    @property
    def behind(self) -> bool:
        """Whether it believes other parties' keys than it was handed with its task."""
        return self._handed != self._peers

    def renew(self, client: SealedClient, admitted: Admitted, *, root: str, tunnel: str) -> None:
        """The next certificate, and time until the next verification."""
        renewal = Renewal(
            word=self._word, lease=self._lease(admitted), chain=admitted.chain, bundle=admitted.bundle, root=root,
            tunnel=tunnel, run=admitted.run, peers=self._peers,
        )  # fmt: skip
        call(client, RENEWAL, renewal, Done)

    def believes(self, verified: Mapping[str, bytes], refused: Iterable[str]) -> bool:
        """Which keys of other parties' workloads it may believe: of who was verified, and is not refused since.

        Whether these are others than before.
        """
        peers = self._peers | dict(verified)
        for name in refused:
            peers.pop(name, None)
        changed = peers != self._peers
        self._peers = peers
        return changed

    def hold(self) -> None:
        """What was verified does not hold any more: it answers nobody until it does."""
        if not self.begun:
            return
        with (
            contextlib.suppress(CloisterError),
            self.connect() as client,
        ):  # it ends by itself when the lease does
            call(client, STATE, WorkAsked(word=self._word, hold=True), WorkState)

    def check(self, client: SealedClient, *, gone: Callable[[], object]) -> None:
        """Raises FederationError where Flower's node there has ended, NetworkError where the workload does not answer.

        ``gone`` is called if a new connection does not lead to it either.
        """
        try:
            state = call(client, STATE, WorkAsked(word=self._word, hold=False), WorkState)
        except NetworkError:
            try:
                self.connect().close()
            except NetworkError:
                gone()
            raise
        if not state.running:
            raise FederationError(
                "the workload's node has ended", todo="it is started again with fresh evidence"
            )

    def write_model(self, client: SealedClient, run: Vouched) -> Vouched:
        """Its statement of the model that it wrote."""
        return call(
            client, MODEL, ModelOrder(word=self._word, vouched=run), Written, seconds=OPEN_SECONDS
        ).vouched

    def _lease(self, admitted: Admitted) -> int:
        """Until this party's own evidence ends; by then everything was verified again, or the workload answers nobody."""
        return max(1, admitted.until - self._now()) + GRACE
