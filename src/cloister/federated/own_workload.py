"""An agent's word with its party's workload: the task, certificates, whom to believe, and the model at the end.

What is said first decides whose the workload is; every later order shows the word that came with it.
"""

from __future__ import annotations

import contextlib
import secrets
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future, wait
from dataclasses import dataclass
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
TAKE_SECONDS: Final = OPEN_SECONDS + 2 * EVIDENCE_SECONDS
"""Until it is asked again, whatever the connection does."""
_Given = tuple[Admitted, dict[str, bytes]]
"""What it was given last: an admission, and other workloads' keys."""


@dataclass(frozen=True, slots=True)
class _Taking:
    """A task that it was handed."""

    done: Future[Done]
    until: float
    given: _Given


class OwnWorkload:
    """One party's. ``client`` is always a connection to it whose evidence was verified for this purpose just before."""

    def __init__(
        self, url: str, order: JoinOrder, agreed: AgreedFederation, *, now: Callable[[], int]
    ) -> None:
        self.url = url
        self.begun = False
        self.rounds = 0
        """Of which it knows that they are over."""
        self.doubted = False
        """Whether another party's evidence was refused, and not everybody's was verified since."""
        self._key: str | None = None
        self._handed = False
        """Whether it was handed its task: it may have it, although nothing came back."""
        self._held = False
        self._order = order
        self._agreed = agreed
        self._now = now
        self._word = secrets.token_hex(32)
        self._taking: _Taking | None = None
        self._given: _Given | None = None
        """None where it has to be given everything anew."""
        self._peers: dict[str, bytes] = {}
        """The workload keys of parties whose agents were verified, as the workload has them once it has begun."""

    @property
    def ready(self) -> bool:
        """Whether rounds may ask it."""
        return self.begun and not self.doubted

    def is_of(self, key: str) -> None:
        """The key of the workload that is there (SHA-256 of SubjectPublicKeyInfo, hexadecimal), verified a moment ago.

        One that was started anew has nothing of what the one before was given.
        """
        if self._key not in (None, key):
            self.begun = self._handed = self._held = False
            self._taking = self._given = None
            self._word = secrets.token_hex(32)
        self._key = key

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

    def begin(self, admitted: Admitted, *, root: str, tunnel: str) -> None:
        """Hand over the keys, in a thread: other parties need this agent while its workload opens model and data."""
        order, key = self._order, self._key
        task = TaskOrder(
            federation=order.federation, digest=order.digest, word=self._word, lease=self._lease(admitted),
            party=order.party, run=admitted.run, chain=admitted.chain, bundle=admitted.bundle, root=root, tunnel=tunnel,
            keys=order.keys, signers=order.signers, output=order.output, peers=self._peers,
        )  # fmt: skip
        done: Future[Done] = Future()

        def hand_over() -> None:
            try:
                with self.connect() as client:
                    if client.attestation is None or client.attestation.keys.tls_spki_sha256 != key:
                        raise FederationError("the workload is another than was admitted a moment ago")
                    found = call(client, TASK, task, Done, seconds=OPEN_SECONDS)
            except BaseException as error:
                done.set_exception(error)
            else:
                done.set_result(found)

        self._handed, self._held, self.doubted = True, False, False
        self._taking = _Taking(done, time.monotonic() + TAKE_SECONDS, (admitted, self._peers))
        threading.Thread(target=hand_over, name="keys", daemon=True).start()

    @property
    def taking(self) -> bool:
        """Whether it was handed its task, and :meth:`taken` has not said yet what became of that."""
        return self._taking is not None

    def taken(self, seconds: float) -> bool:
        """Whether it has its task within ``seconds``. Raises what handing it over raised, and NetworkError after long."""
        taking = self._taking
        if taking is None:
            return self.begun
        if wait([taking.done], seconds).done:
            self._taking = None
            taking.done.result()
            self.begun, self._given = True, taking.given
            if self._held:  # a word that came before it had its task was lost on it
                self.hold()
        elif time.monotonic() > taking.until:
            self._taking = None
            raise NetworkError(
                "the workload does not say whether it has opened its task", todo="is it running?"
            )
        return self.begun

    def has(self, admitted: Admitted) -> bool:
        """Whether it was given this, with the keys that it may believe now."""
        return self._given == (admitted, self._peers)

    def renew(self, client: SealedClient, admitted: Admitted, *, root: str, tunnel: str) -> None:
        """The next certificate, and time until the next verification."""
        renewal = Renewal(
            word=self._word, lease=self._lease(admitted), chain=admitted.chain, bundle=admitted.bundle, root=root,
            tunnel=tunnel, run=admitted.run, peers=self._peers,
        )  # fmt: skip
        call(client, RENEWAL, renewal, Done)
        self._given, self._held, self.doubted = (admitted, self._peers), False, False

    def believe(self, verified: Mapping[str, bytes], refused: Iterable[str]) -> None:
        """Which keys of other parties' workloads it may believe: of who was verified, and is not refused since."""
        self._peers = {
            name: key for name, key in (self._peers | dict(verified)).items() if name not in set(refused)
        }

    def hold(self) -> None:
        """What was verified does not hold any more: it answers nobody until it is given everything anew."""
        if not self._handed:
            return
        self._held, self._given = True, None
        with (
            contextlib.suppress(CloisterError),  # it ends by itself when the lease does
            self.connect() as client,
        ):
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
        self.rounds = max(self.rounds, state.rounds)
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
