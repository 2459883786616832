"""The aggregator: admits attested parties, lets their workloads reach Flower's SuperLink, has the run gone through, tells.

Everything that decides is elsewhere: who may take part (admission.py), who is in (roster.py), which updates count and what
becomes of them (rounds.py, in the ServerApp). Here it is put together, in one process, for one version of a federation. The
run begins when everybody is ready, or after ``gather`` seconds with those who are, if they are enough.
"""

from __future__ import annotations

import hashlib
import logging
import secrets
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from msgspec import structs

from cloister.broker.audit import measurements_digest
from cloister.broker.mesh_tls import demanding
from cloister.channel.tls_context import server_side, swapping
from cloister.encoding import encode_json
from cloister.errors import CloisterError, FederationError
from cloister.federated.admission import Verified, verify_admission
from cloister.federated.agreement import AgreedFederation
from cloister.federated.checkpoint import NAME, newest_checkpoint
from cloister.federated.flower.processes import SuperLink
from cloister.federated.flower.run_folder import FOLDER, RunFolder, RunOrder
from cloister.federated.mesh import FederationMesh, encoded
from cloister.federated.messages import (
    KEY_SIZE,
    Admission,
    Admitted,
    Ask,
    Attendance,
    Attended,
    ModelAsked,
    Session,
)
from cloister.federated.progress import Fact, PartyState, RoundDone, State, newest_states
from cloister.federated.provenance import run_stated
from cloister.federated.relay import Relay, admitted_party
from cloister.federated.roster import Member, Roster
from cloister.federated.serving import ThreadedServer, peer_certificate

PAUSE: Final = 0.2
MAX_REFUSALS: Final = 100
"""Of admissions in one party's name, that are told as facts."""
RENEW_TLS: Final = 1800.0
"""Seconds after which the aggregator's own certificate is made anew."""
_log = logging.getLogger("cloister.federated")


@dataclass(frozen=True, slots=True)
class Places:
    """Where things are."""

    memory: Path
    """A private folder in memory, empty, that ends with the process."""
    state: Path
    """On the host's disk: the sealed checkpoint."""


class Aggregator:
    """One version of a federation. Threads may share it. ``initial`` is the first model as safetensors."""

    def __init__(
        self,
        agreed: AgreedFederation,
        mesh: FederationMesh,
        *,
        initial: bytes,
        places: Places,
        tunnel: socket.socket,
        public_tunnel: str,
        gather: float,
        evidence: Callable[[], str],
        now: Callable[[], int] = lambda: int(time.time()),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._agreed = agreed
        self._mesh = mesh
        self._initial = initial
        self._state = places.state
        self._tunnel = public_tunnel
        self._gather = gather
        self._evidence = evidence
        self._now = now
        self._clock = clock
        self._begun = clock()
        self._lock = threading.RLock()
        federation = agreed.federation
        self._roster = Roster(federation.parties, everyone=federation.everyone, entropy=secrets.token_bytes)
        run = places.memory / "run"
        run.mkdir(mode=0o700)
        self._folder = RunFolder(run)
        flower = places.memory / "flower"
        flower.mkdir(mode=0o700)
        self._superlink = SuperLink(flower, environment={FOLDER: str(run)})
        self._nodes: dict[bytes, int] = {}
        self._keys: list[bytes] = []
        """Checkpoint keys that parties brought, the newest last."""
        self._own_key = secrets.token_bytes(KEY_SIZE)
        self._run_key: bytes | None = None
        self._seen = 0
        self._said: dict[str, PartyState] = {}
        self._refusals: dict[str, int] = {}
        self._run = ""
        self._started = False
        self._failed = ""
        self._simulated = False
        self._over = threading.Event()
        self.relay = Relay(self._superlink.connections(), check=self._admit_request)
        self._tls = mesh.server(now=now())
        context = swapping(demanding(server_side()), lambda: self._tls)
        self._server = ThreadedServer(self.relay, tunnel, context, name="federation-tunnel")
        self._conductor = threading.Thread(target=self._conduct, name="conductor", daemon=True)
        self._conductor.start()

    def close(self) -> None:
        """End Flower and the tunnel."""
        self._over.set()
        self._superlink.close()
        self._server.close()
        self._conductor.join(2)

    # What agents ask (messages.py).

    def open_session(self, ask: Ask) -> Session:
        if ask.federation != self._agreed.digest:
            raise FederationError(
                "this aggregator runs another federation, or another version of it",
                todo=f"its digest is {self._agreed.digest}",
            )
        with self._lock:
            session, nonce = self._roster.open_session(ask.party, now=self._clock())
        return Session(session=session, nonce=nonce)

    def admit(self, admission: Admission) -> Admitted:
        with self._lock:
            party, nonce = self._roster.session(admission.session, now=self._clock())
        now = self._now()
        try:
            found = verify_admission(admission, agreed=self._agreed, party=party, nonce=nonce, now=now)
        except CloisterError as error:
            self._refused(party, error.what)
            raise
        self._require_newest(admission.seen)
        with self._lock:
            self._roster.use_session(admission.session, now=self._clock())
        node = self._node(found.workload_key)
        with self._lock:
            seconds = min(found.until - now, 60 * self._agreed.federation.attest_minutes)
            member = Member(
                party=party, agent_key=admission.agent_key, delegation=admission.delegation,
                workload_key=found.workload_key, vouched=admission.vouched, nonce=admission.nonce,
                until=self._clock() + seconds,
            )  # fmt: skip
            token = self._roster.admit(member)
            self._nodes[found.workload_key] = node
            if admission.checkpoint_key is not None and admission.checkpoint_key not in self._keys:
                self._keys.append(admission.checkpoint_key)
            self._seen = max(self._seen, admission.seen)
            self._simulated |= found.agent.claims.simulated or found.workload.claims.simulated
            key = self._key()
            self._write_roster()
        self._tell(party, member.state, "", found)
        chain = self._mesh.issue(admission.csr, name=party, evidence=admission.workload, now=now)
        return Admitted(
            token=token, run=self._run, chain=chain, bundle=encoded(self._mesh), tunnel=self._tunnel,
            checkpoint_key=key, until=now + seconds,
        )  # fmt: skip

    def _require_newest(self, seen: int) -> None:
        """Whoever comes after the run went on from a checkpoint may have seen more than that one has."""
        if self._started and seen > (done := self._done()):
            raise FederationError(
                f"this run goes on after round {done}, and round {seen} was over before",
                todo="somebody restored an older checkpoint of the aggregator: restore the newest",
            )

    def _done(self) -> int:
        return max((fact.number for fact in self.facts() if isinstance(fact, RoundDone)), default=0)

    def attend(self, attendance: Attendance) -> Attended:
        federation = self._agreed.federation
        with self._lock:
            member = self._roster.member(attendance.token, now=self._clock())
            self._roster.show(member, attendance.answers)
            change = self._roster.set_ready if attendance.ready else self._roster.set_waiting
            news = change(member)
            if news:
                self._write_roster()
            asked = self._roster.asked_of(member)
            presented = self._roster.presented_to(member)
            states = self._roster.states()
        for refused, reason in list(attendance.refused.items())[: len(federation.parties)]:
            _log.warning("%s refuses the evidence of %s: %s", member.party, refused[:64], reason[:200])
        if news:
            reason = "" if attendance.ready else "its workload does not answer its agent"
            self._tell(member.party, member.state, reason, None)
        ended = self._folder.ended()
        return Attended(
            asked=asked, presented=presented, states=states, started=self._started,
            rounds=self._done(), over=ended is not None and ended.finished,
            failed=self._failed or ("" if ended is None or ended.finished else ended.reason),
        )  # fmt: skip

    def leave(self, party: str) -> None:
        """Its people said so, by the party's key."""
        with self._lock:
            self._roster.leave(party)
            self._write_roster()
        self._tell(party, "left", "its people said so", None)

    def facts(self) -> tuple[Fact, ...]:
        """All that happened."""
        return self._folder.facts()

    def states(self) -> dict[str, str]:
        """What each party is now."""
        with self._lock:
            return self._roster.states()

    def statement(self, asked: ModelAsked) -> bytes:
        """Of a run that is over, for a receiver. Raises FederationError."""
        with self._lock:
            member = self._roster.member(asked.token, now=self._clock())
        if member.party not in self._agreed.federation.receivers:
            raise FederationError(f"{member.party} does not receive the model")
        ended = self._folder.ended()
        if ended is None or not ended.finished:
            raise FederationError("the run is not over")
        facts = self.facts()
        rounds = [fact for fact in facts if isinstance(fact, RoundDone)]
        first = hashlib.sha256(self._initial).hexdigest()
        stated = run_stated(
            self._agreed.digest, self._run, first, rounds, newest_states(facts), at=self._now()
        )
        return encode_json(stated)

    @property
    def ended(self) -> str | None:
        """None while the run goes on; then why it ended, empty where all rounds were done."""
        if self._failed:
            return self._failed
        ended = self._folder.ended()
        return None if ended is None else ended.reason

    def _admit_request(self, scope: Any) -> None:
        """The relay's check: an admitted party's certificate, with that party's own node key."""
        with self._lock:
            admitted_party(
                scope, peer_certificate(scope), mesh=self._mesh, roster=self._roster, now=self._now()
            )

    def _refused(self, party: str, reason: str) -> None:
        """Tell it, a bounded number of times: anybody may ask in a party's name, so who is in stays in by its evidence."""
        with self._lock:
            inside = self._roster.states().get(party) in ("admitted", "ready")
            count = self._refusals.get(party, 0)
            if inside or count >= MAX_REFUSALS:
                return
            self._refusals[party] = count + 1
        self._tell(party, "excluded", reason, None)

    def _node(self, spki: bytes) -> int:
        with self._lock:
            known = self._nodes.get(spki)
        return self._superlink.register(spki) if known is None else known

    def _key(self) -> bytes:
        """What agents keep: the run's; before it begins, what may open the checkpoint that is there."""
        if self._run_key is not None:
            return self._run_key
        return self._keys[-1] if self._keys and (self._state / NAME).exists() else self._own_key

    def _write_roster(self) -> None:
        ready = self._roster.ready()
        self._folder.write_roster(
            {party: self._nodes[member.workload_key] for party, member in ready.items()},
            {party: member.workload_key for party, member in ready.items()},
        )

    def _conduct(self) -> None:
        """Exclude whose evidence ended; begin the run when it is time."""
        renewed = self._clock()
        while not self._over.wait(PAUSE):
            with self._lock:
                late = self._roster.ended(now=self._clock())
                if late:
                    self._write_roster()
            for party in late:
                self._tell(party, "excluded", "its evidence ended, and no fresh one came", None)
            if self._started and not self._failed and (reason := self._folder.failed()):
                self._failed = reason
                _log.error("the run cannot go on: %s", reason)
            if not self._started and not self._failed and self._may_start():
                try:
                    self._start()
                except CloisterError as error:
                    self._failed = str(error)
                    _log.error("the run did not begin: %s", error)
            if self._clock() - renewed > RENEW_TLS:
                renewed = self._clock()
                self._tls = self._mesh.server(now=self._now())

    def _may_start(self) -> bool:
        with self._lock:
            ready = self._roster.ready()
            enough = len(ready) >= self._agreed.federation.minimum
            return enough and (self._roster.complete() or self._clock() - self._begun > self._gather)

    def _start(self) -> None:
        with self._lock:
            keys, seen = [*self._keys[::-1], self._own_key], self._seen
        found = newest_checkpoint(self._state, federation=self._agreed.digest, keys=keys, seen=seen)
        key = self._run_key = self._own_key if found is None else found[0]
        run = self._run = secrets.token_hex(16) if found is None else found[1].run
        order = RunOrder(
            federation=self._agreed.signed.document, digest=self._agreed.digest, run=run, state=str(self._state), key=key,
            evidence=self._evidence(), simulated=self._simulated,
        )  # fmt: skip
        self._folder.write_order(order, self._initial)
        self._superlink.run()
        self._started = True

    def _tell(self, party: str, state: State, reason: str, found: Verified | None) -> None:
        said = self._said.get(party, PartyState(
            at=0, party=party, state=state, reason="", agent="", workload="", measurements="", tee="", until=0
        ))  # fmt: skip
        if found is not None:
            said = structs.replace(
                said, agent=found.agent_digest, workload=found.workload_digest, until=found.until,
                measurements=measurements_digest(found.workload.claims), tee=str(found.workload.claims.tee),
            )  # fmt: skip
        fact = structs.replace(said, at=self._now(), state=state, reason=reason[:300])
        with self._lock:
            self._said[party] = fact
            self._folder.tell_of_party(fact)
