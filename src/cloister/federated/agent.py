"""A party's agent: verifies the aggregator, the other parties' agents and its own workload, before a key moves.

Its people hand it, once they have verified it, the federation that they signed, the party's data keys, and the party's word
for this agent's key. Then, for as long as it runs, in this order and again every few minutes:

1. The aggregator's evidence meets a policy that every party signed, and binds this very version of the federation.
2. The workload's evidence meets a policy for it.
3. Evidence of both, over the aggregator's nonce, is shown to the aggregator, which admits the party or does not.
4. Evidence of every other admitted party's agent, over this agent's nonce, meets a policy for it, and that agent vouches for
   its workload's key.
5. Only then the data keys go to the workload, sealed to the key in its evidence, and with them the others' workload keys;
   later its next certificate, and the time for which it may answer.

If the aggregator's evidence, or another agent's, does not hold any more, the workload is told to hold until all of this was
verified anew, and the agent says why. Nothing is retried without a pause, and nothing waits for ever.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import secrets
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import httpx2

from cloister.channel.evidence_service import EvidenceService
from cloister.channel.transport import SealedClient, connect
from cloister.encoding import encode_json
from cloister.errors import CloisterError, FederationError, NetworkError
from cloister.evidence.bundle import encode_bundle
from cloister.evidence.key_material import KeyMaterial
from cloister.federated.admission import (
    WORKLOAD,
    check_aggregator,
    requested_spki,
    signed_parts,
    verify_presented,
    vouched_parts,
)
from cloister.federated.agreement import AgreedFederation
from cloister.federated.delegation import accept_delegation
from cloister.federated.identity import Identity, read_spki
from cloister.federated.messages import (
    ADMISSIONS,
    ATTENDANCE,
    IDENTITY,
    MODEL,
    NONCE,
    SESSIONS,
    Admission,
    Admitted,
    Ask,
    Attendance,
    Attended,
    Done,
    JoinOrder,
    ModelAsked,
    Named,
    Requested,
    Session,
    Vouched,
)
from cloister.federated.own_workload import EVIDENCE_SECONDS, OwnWorkload
from cloister.federated.provenance import NAME, Provenance, agreed_chain, verify_files, verify_run
from cloister.federated.sealed_call import call
from cloister.manifest.signed import parse_signed
from cloister.manifest.storage import write_whole

PAUSE: Final = 0.5
"""Seconds between two words with the aggregator while the run gathers, and five times that later."""
AT_ONCE: Final = 0.05
"""The same where others wait for what is said next."""
RETRY: Final = 2.0
MOST_RETRIES: Final = 15
"""The pause before another try grows with their number, to this many times :data:`RETRY`."""
_log = logging.getLogger("cloister.federated")


@dataclass(slots=True)
class Standing:
    """How it is with this agent; what its people may be shown."""

    step: str = "waits for its people to join"
    error: str = ""
    verified: tuple[str, ...] = ()
    """Parties whose evidence this agent accepted."""
    rounds: int = 0
    over: bool = False
    written: bool = False


@dataclass(slots=True)
class _Joined:
    order: JoinOrder
    agreed: AgreedFederation
    workload: OwnWorkload


@dataclass(frozen=True, slots=True)
class _Turn:
    """From one verification of aggregator and workload to the next."""

    aggregator: SealedClient
    workload: SealedClient
    admitted: Admitted
    nonce: bytes
    root: str
    tunnel: str


class Agent:
    """One party's. ``aggregator`` and ``workload`` are addresses; who answers there is verified."""

    def __init__(
        self,
        identity: Identity,
        *,
        aggregator: str,
        workload: str,
        out: Path | None,
        now: Callable[[], int] = lambda: int(time.time()),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """``out`` is where provenance goes when this party receives the model, which its workload writes beside it."""
        self.identity = identity
        self.standing = Standing()
        self._aggregator_url = aggregator
        self._workload_url = workload
        self._out = out
        self._now = now
        self._clock = clock
        self._lock = threading.Lock()
        self._joined: _Joined | None = None
        self._evidence: tuple[EvidenceService, asyncio.AbstractEventLoop] | None = None
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._checkpoint_key: bytes | None = None

    def serve_evidence(self, evidence: EvidenceService, loop: asyncio.AbstractEventLoop) -> None:
        """This process's evidence, for its own use."""
        self._evidence = (evidence, loop)

    def close(self) -> None:
        self._stop.set()
        if self._thread is not None:
            self._thread.join(10)

    def join(self, order: JoinOrder) -> Done:
        """What the party's people hand over. Raises ManifestError, FederationError."""
        agreed = agreed_chain(order.federation, digest=order.digest)
        accept_delegation(
            parse_signed(order.delegation), agreed=agreed, party=order.party, agent_key=self.identity.digest,
            now=self._now(),
        )  # fmt: skip
        if order.output not in order.keys:
            raise FederationError("the key to which the model is sealed was not handed over")
        with self._lock:
            if self._joined is not None:
                raise FederationError("this agent acts for its party already", todo="start another one")
            workload = OwnWorkload(self._workload_url, order, agreed, now=self._now)
            self._joined = _Joined(order, agreed, workload)
            self._thread = threading.Thread(target=self._act, args=(self._joined,), name="agent", daemon=True)
            self._thread.start()
        return Done()

    def _act(self, joined: _Joined) -> None:
        failures = 0
        while not self._stop.is_set() and not self.standing.over:
            try:
                self._attend(joined)
                self.standing.error = ""
                failures = 0
            except NetworkError as error:
                self.standing.error = str(error)
                _log.info("%s", error)
            except CloisterError as error:
                self.standing.error = str(error)
                _log.error("%s", error)
                joined.workload.hold()
            except Exception as error:  # whatever it is: who is not verified any more is told nothing further
                self.standing.error = f"the agent failed with {type(error).__name__}"
                _log.exception("the agent failed")
                joined.workload.hold()
            if self.standing.error:
                failures += 1
                self._stop.wait(RETRY * min(failures, MOST_RETRIES))

    def _attend(self, joined: _Joined) -> None:
        """From verification to the next one."""
        agreed = joined.agreed
        self._say("verifies the aggregator")
        with connect(self._aggregator_url, policy=agreed.aggregator_policies()) as aggregator:
            root = check_aggregator(_material(aggregator), agreed)
            self._say("verifies its workload")
            with joined.workload.connect() as workload:
                nonce = secrets.token_bytes(NONCE)
                admitted = self._admitted(joined, aggregator, workload, nonce)
                self._checkpoint_key = admitted.checkpoint_key
                turn = _Turn(aggregator, workload, admitted, nonce, root, self._tunnel(admitted))
                if joined.workload.ready:
                    self._renew(joined.workload, turn)
                self._stay(joined, turn)

    def _admitted(
        self, joined: _Joined, aggregator: SealedClient, workload: SealedClient, nonce: bytes
    ) -> Admitted:
        agreed, party = joined.agreed, joined.order.party
        self._say("shows its evidence to the aggregator")
        session = call(aggregator, SESSIONS, Ask(party=party, federation=agreed.digest), Session)
        named = Named(party=party, federation=agreed.federation.name)
        csr = call(workload, IDENTITY, named, Requested).csr
        key = requested_spki(csr, party, agreed.federation.name)
        read_spki(key, digest=_material(workload).tls_spki_sha256)
        joined.workload.is_of(hashlib.sha256(key).hexdigest())
        vouched = self.identity.sign(WORKLOAD, *vouched_parts(agreed.digest, party, key))
        plain = Admission(
            session=session.session, delegation=joined.order.delegation, agent=self._show(session.nonce),
            agent_key=self.identity.spki, workload=joined.workload.evidence(session.nonce), csr=csr,
            vouched=vouched, nonce=nonce, checkpoint_key=self._checkpoint_key,
            seen=max(self.standing.rounds, joined.workload.rounds), signature=b"",
        )  # fmt: skip
        signature = self.identity.sign("admission", *signed_parts(plain))
        fields = {name: getattr(plain, name) for name in plain.__struct_fields__}
        return call(aggregator, ADMISSIONS, Admission(**(fields | {"signature": signature})), Admitted)

    def _stay(self, joined: _Joined, turn: _Turn) -> None:
        """Verify others, begin, stay in touch, until it is time to attest anew or the run is over."""
        agreed, party, own = joined.agreed, joined.order.party, joined.workload
        federation, token = agreed.federation, turn.admitted.token
        until = self._clock() + 0.6 * max(1, turn.admitted.until - self._now())
        verified: dict[str, bytes] = {}
        answers: dict[str, bytes] = {}
        refused: dict[str, str] = {}
        self._say("verifies the other parties" if federation.everyone else "waits for the other parties")
        while not self._stop.is_set() and self._clock() < until:
            attended = call(
                turn.aggregator, ATTENDANCE,
                Attendance(token=token, answers=answers, ready=own.ready, refused=refused), Attended,
            )  # fmt: skip
            answers = {asked.hex(): self._show(asked) for asked in attended.asked.values()}
            for name, presented in attended.presented.items():
                if verified.get(name) == presented.workload_key:
                    continue
                verified.pop(name, None)
                try:
                    verify_presented(presented, agreed=agreed, party=name, nonce=turn.nonce, now=self._now())
                    verified[name] = presented.workload_key
                except CloisterError as error:
                    refused[name] = error.what[:300]
            own.believe(verified, refused)
            self.standing.verified = tuple(sorted(verified))
            self.standing.rounds = max(self.standing.rounds, attended.rounds)
            if refused and federation.everyone:
                own.doubted = True
                told = Attendance(token=token, answers={}, ready=False, refused=refused)
                with contextlib.suppress(CloisterError):  # whoever does not hear it: the workload is held
                    call(turn.aggregator, ATTENDANCE, told, Attended)
                raise FederationError(
                    "evidence of other parties does not hold: "
                    + "; ".join(f"{name}: {why}" for name, why in sorted(refused.items()))
                )
            if attended.failed:
                raise FederationError(f"the run ended early: {attended.failed}")
            if attended.over and not own.taking:
                self._finish(joined, turn)
                return
            present = {
                name
                for name, state in attended.states.items()
                if state in ("admitted", "ready") and name != party
            }
            trusted = not federation.everyone or present <= verified.keys()
            if own.begun and (trusted or own.ready) and not own.has(turn.admitted):
                self._renew(own, turn)
            elif trusted and len(present) + 1 >= federation.minimum and not own.begun and not own.taking:
                self._say("hands the keys to its workload")
                own.begin(turn.admitted, root=turn.root, tunnel=turn.tunnel)
            if own.begun:
                gone = Attendance(token=token, answers={}, ready=False, refused={})
                own.check(turn.workload, gone=lambda: call(turn.aggregator, ATTENDANCE, gone, Attended))  # noqa: B023 -- at once
                self._say(f"takes part, {attended.rounds} rounds are done")
            pause = AT_ONCE if answers else PAUSE if not attended.started else 4 * PAUSE
            if not own.taking:
                self._stop.wait(pause)
            elif own.taken(pause):
                self._say("takes part")

    def _renew(self, own: OwnWorkload, turn: _Turn) -> None:
        own.renew(turn.workload, turn.admitted, root=turn.root, tunnel=turn.tunnel)
        self._say("takes part")

    def _finish(self, joined: _Joined, turn: _Turn) -> None:
        """The run is over: a receiver's workload writes the model."""
        agreed, order = joined.agreed, joined.order
        if order.party in agreed.federation.receivers:
            self._say("has the model written")
            run = call(turn.aggregator, MODEL, ModelAsked(token=turn.admitted.token), Vouched)
            stated = verify_run(run, agreed)
            files = joined.workload.write_model(turn.workload, run)
            verify_files(files, stated, agreed)
            provenance = Provenance(
                federation=order.federation[-1],
                previous=order.federation[:-1],
                run=run,
                files=files,
            )
            if self._out is not None:
                # Beside the model that the workload wrote.
                write_whole(self._out / NAME, encode_json(provenance), replace=True)
            self.standing.written = True
        self.standing.over = True
        self._say("is done")

    def _tunnel(self, admitted: Admitted) -> str:
        """Where the workload connects; without a host the aggregator's own."""
        host = httpx2.URL(self._aggregator_url).host
        return f"{host}{admitted.tunnel}" if admitted.tunnel.startswith(":") else admitted.tunnel

    def _show(self, nonce: bytes) -> bytes:
        if self._evidence is None:
            raise FederationError("this agent cannot show evidence yet", todo="try again in a moment")
        evidence, loop = self._evidence
        future = asyncio.run_coroutine_threadsafe(evidence.evidence(nonce), loop)
        return encode_bundle(future.result(EVIDENCE_SECONDS))

    def _say(self, step: str) -> None:
        if step != self.standing.step:
            self.standing.step = step
            _log.info("%s", step)


def _material(client: SealedClient) -> KeyMaterial:
    result = client.attestation
    assert result is not None  # noqa: S101 -- connect() verified
    return result.keys
