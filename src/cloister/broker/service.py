"""The broker's three answers, without HTTP: challenge, attest, resource (docs/spec/kbs.md).

Evidence is appraised at the attestation (does any policy in force accept it?) and again at each release, against the
rule as it stands then. The release itself is one transaction: rule, manifest and resource are what they were when
they were looked at, the counter goes up, and the audit entry is written; only then does anything leave. Refusals go
to the audit log with their reason and to the client without it. No audit entry, no answer.
"""

from __future__ import annotations

import hmac
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

from cloister.appraisal.policy import Policy
from cloister.appraisal.result import AttestationResult
from cloister.broker import protocol, release
from cloister.broker.audit import AuditDamaged, Fact, measurements_digest
from cloister.broker.authority import InForce
from cloister.broker.clock import RisingClock
from cloister.broker.counters import count, counted
from cloister.broker.jwe import check_key, encrypt, key_digest
from cloister.broker.metrics import Metrics
from cloister.broker.profiles import (
    Collateral,
    DeviceCollateral,
    Presented,
    announce,
    appraise_presented,
    challenge,
    present,
)
from cloister.broker.protocol import RuntimeData, TokenAnswer
from cloister.broker.release import Grant, Reader
from cloister.broker.session import Attested, Pending, Sessions, session_digest
from cloister.broker.state import State
from cloister.broker.token import TokenSigner
from cloister.broker.transaction import Transaction
from cloister.broker.tree_head import ForkFound, RollbackFound
from cloister.encoding import encode_json
from cloister.errors import (
    AppraisalRefused,
    CloisterError,
    EvidenceError,
    FormatError,
    KeystoreError,
    NetworkError,
    ReleaseRefused,
    SessionRefused,
    UnknownResource,
    UsageError,
)
from cloister.manifest.acceptance import AcceptedManifest

STATE_KEY_PATH: Final = "cloister/state/key"
"""What a peer broker asks for: the key of the shared state, under the manifest's own policies for brokers."""


class AttestationRefused(SessionRefused):
    """Evidence that is not genuine, not fresh, not bound to this session, or that no rule accepts."""


class Witnessless(ReleaseRefused):
    """The witnesses did not confirm this state, so nothing leaves."""

    exit_code = NetworkError.exit_code


@dataclass(frozen=True, slots=True)
class Admitted:
    """A session that meets a rule, and what that was decided on."""

    path: str
    rule: InForce
    manifest: AcceptedManifest
    reader: Reader
    result: AttestationResult[RuntimeData]

    def require_unchanged(self, transaction: Transaction) -> None:
        """Raise :class:`ReleaseRefused` if rule or manifest are others by now."""
        if transaction.version("rule", self.path) != self.rule.version:
            raise ReleaseRefused(f"the rule of {self.path} was replaced during the request", todo="ask again")
        require_same_manifest(transaction, self.manifest)


@dataclass(frozen=True, slots=True)
class Answer:
    """A JSON body and, where a session begins, its identifier (for the cookie)."""

    body: bytes
    identifier: str | None = None


class Broker:
    """One broker over one opened state. Its methods block for milliseconds: the server calls them in threads.

    ``collateral`` and ``device_collateral`` find endorsements for evidence that brings none (guests that are not ours).
    """

    def __init__(
        self,
        state: State,
        *,
        clock: RisingClock,
        sessions: Sessions,
        tokens: TokenSigner,
        metrics: Metrics,
        collateral: Collateral | None = None,
        device_collateral: DeviceCollateral | None = None,
    ) -> None:
        self._state = state
        self._clock = clock
        self._sessions = sessions
        self._tokens = tokens
        self._metrics = metrics
        self._collateral = collateral
        self._device_collateral = device_collateral

    def challenge(self, body: bytes) -> Answer:
        """``POST /kbs/v0/auth``: a fresh nonce under a fresh identifier."""
        announced = announce(body)
        identifier, pending = self._sessions.challenge(announced, self._clock())
        return Answer(encode_json(challenge(announced, pending.nonce)), identifier)

    def attest(self, identifier: str | None, body: bytes) -> Answer:
        """``POST /kbs/v0/attest``: spend the challenge, appraise, open a session under a new identifier."""
        now = self._clock()
        if identifier is None:
            raise SessionRefused("no session was named", todo="start at /kbs/v0/auth")
        pending = self._sessions.spend(identifier, now)
        try:
            presented = present(
                pending.announced,
                body,
                collateral=self._collateral,
                device_collateral=self._device_collateral,
            )
            check_key(presented.runtime.tee_pubkey)
            result = self._appraise_any(pending, presented, now)
        except CloisterError as error:
            self.refused("attestation", error, session_digest(identifier))
            if isinstance(error, FormatError | NetworkError) or _of_the_state(error):
                raise
            raise AttestationRefused("the evidence was refused", todo="see the broker's audit log") from None
        self._clock.raise_to(result.claims.issued_at)
        new, session = self._sessions.attested(
            pending,
            presented,
            policy=result.policy_digest,
            size=len(presented.record),
            ends=result.expires,
            now=now,
        )

        def work(transaction: Transaction) -> None:
            transaction.log(_told("attestation", session, result))
            transaction.keep_evidence(presented.evidence_sha256, presented.record, now=now)

        self._state.journal.transact(work)
        self._metrics.attested.labels("accepted").inc()
        return Answer(encode_json(TokenAnswer(token=self._tokens.sign(session, result, now))), new)

    def resource(self, raw_path: bytes, query: bytes, identifier: str | None, token: str | None) -> Answer:
        """``GET /kbs/v0/resource/…``: the resource to the session's TEE key, if its rule says so now."""
        now = self._clock()
        uri = protocol.parse_resource_path(raw_path, query)
        session = self.session(identifier, token)
        path = protocol.resource_path(uri)
        try:
            if path == STATE_KEY_PATH:
                content, grant = self._for_peer(session, now)
            else:
                content, grant = self._release(path, session, now)
            body = encrypt(content, grant.tee_key, str(uri))
        except CloisterError as error:
            self.refused("release", error, session.digest, resource=str(uri))
            if isinstance(error, ReleaseRefused | SessionRefused | UnknownResource) or _of_the_state(error):
                raise
            raise ReleaseRefused("the rule does not allow this workload") from None
        self._metrics.released.labels("accepted").inc()
        return Answer(body)

    def session(self, identifier: str | None, token: str | None) -> Attested:
        """The attested session of a cookie or a bearer token, or of both if they agree. Raises :class:`SessionRefused`."""
        now = self._clock()
        presented = self._tokens.read(token, now) if token is not None else None
        if identifier is not None:
            session = self._sessions.find(session_digest(identifier), now)
        elif presented is not None:
            session = self._sessions.find(presented.session, now)
        else:
            raise SessionRefused("no session was named", todo="start at /kbs/v0/auth")
        if presented is not None:
            presented.require(session)
        return session

    def admit(self, session: Attested, path: str) -> Admitted:
        """How this session meets the rule of ``path`` now. Raises :class:`ReleaseRefused`."""
        now = self._clock()
        found = self._state.authority.rule(path)
        rule = release.require_rule(None if found is None else found.rule, path)
        manifest = self._state.authority.manifest
        readers = release.require_readers(
            rule, manifest.manifest, self._state.authority.readers(rule, manifest)
        )
        release.require_allowed(rule, purpose=session.runtime.purpose, now=now)
        reader, result = self.appraise(session, readers)
        assert found is not None  # noqa: S101 -- require_rule() would have raised
        return Admitted(path, found, manifest, reader, result)

    def appraise(
        self, session: Attested, readers: Sequence[Reader]
    ) -> tuple[Reader, AttestationResult[RuntimeData]]:
        """The first reader whose policy this session's evidence meets now. Raises why the last one is not met."""
        now = self._clock()
        refusal: CloisterError = ReleaseRefused("nobody may read this")
        # The policy that accepted it at the attestation first: mostly that is all there is to do.
        for reader in sorted(readers, key=lambda one: one.policy.digest != session.policy):
            try:
                return reader, self._appraise(session, reader.policy, now)
            except SessionRefused as error:
                refusal = error
            except CloisterError as error:
                refusal = error
        raise refusal

    def _release(self, path: str, session: Attested, now: int) -> tuple[bytes, Grant]:
        admitted = self.admit(session, path)
        found, reader, result = admitted.rule, admitted.reader, admitted.result
        self.require_witnesses()
        read = self._state.resources.read(path)
        if read is None:
            raise UnknownResource("its rule is met, but there is no such resource", todo="put it first")
        version, content = read

        def work(transaction: Transaction) -> Grant:
            # A rule narrowed before the resource was replaced must hold for what was read.
            admitted.require_unchanged(transaction)
            if transaction.version("resource", path) != version:
                raise ReleaseRefused(f"{path} was replaced during the request", todo="ask again")
            counter = counted(transaction.get("counter", path), found.rule.digest)
            grant = release.release(found.rule, path, reader, result, released=counter.released, now=now)
            if grant.number is not None:
                count(transaction, path, grant.rule, grant.number)
            transaction.log(
                _told("release", session, result, path=path, grant=grant, manifest=admitted.manifest.digest)
            )
            return grant

        grant = self._state.journal.transact(work)
        if grant.number is not None:
            self._confirm(path, session, grant)
        return content, grant

    def _confirm(self, path: str, session: Attested, grant: Grant) -> None:
        """The witnesses' word for a head that covers a counted release, or the count goes back and nothing leaves."""
        try:
            self._state.witnessing.require(self._state.journal.size)
        except CloisterError as error:

            def undo(transaction: Transaction) -> None:
                counter = counted(transaction.get("counter", path), grant.rule)
                if counter.released:
                    count(transaction, path, grant.rule, counter.released - 1)
                    transaction.log(
                        Fact(
                            "counter",
                            "done",
                            resource=f"kbs:///{path}",
                            session=session.digest,
                            rule=grant.rule,
                            reason="not released: the witnesses did not confirm it",
                        )
                    )

            self._state.journal.transact(undo)
            if _of_the_state(error):
                raise
            raise Witnessless(
                f"the witnesses did not confirm the release ({error.what})", todo=error.todo
            ) from None

    def require_witnesses(self) -> None:
        """Raise :class:`Witnessless` unless witnesses have lately seen this state, with its newest changes."""
        try:
            self._state.witnessing.require_recent()
        except (NetworkError, UsageError) as error:
            raise Witnessless(
                f"the witnesses did not confirm this state ({error.what})", todo=error.todo
            ) from None

    def _for_peer(self, session: Attested, now: int) -> tuple[bytes, Grant]:
        """The key of the state, to a broker that meets the manifest's policies for brokers."""
        self._state.journal.catch_up()  # another replica may have taken a manifest with other policies
        manifest = self._state.authority.manifest
        if self._state.laptop or not manifest.broker_policies:
            raise release.NoRule("this state has no peers", todo="the manifest names broker policies")
        reader, result = self.appraise(session, [Reader("broker", one) for one in manifest.broker_policies])
        self.require_witnesses()
        grant = release.grant_peer(STATE_KEY_PATH, reader, result, manifest=manifest.digest, now=now)

        def work(transaction: Transaction) -> None:
            require_same_manifest(transaction, manifest)
            transaction.log(
                _told("release", session, result, path=STATE_KEY_PATH, grant=grant, manifest=manifest.digest)
            )

        self._state.journal.transact(work)
        return self._state.key_for_peer(), grant

    def _appraise(self, session: Attested, policy: Policy, now: int) -> AttestationResult[RuntimeData]:
        # Appraising old evidence again makes it no younger.
        ends = min(session.expires, session.opened + policy.max_age_seconds)
        if ends <= now:
            raise SessionRefused("the evidence is older than the rule allows", todo="attest again")
        return appraise_presented(
            session.presented, nonce=session.nonce, policy=policy, now=now, not_after=ends
        )

    def _appraise_any(
        self, pending: Pending, presented: Presented, now: int
    ) -> AttestationResult[RuntimeData]:
        """The result under the first policy that accepts. Raises why the last one did not."""
        if not hmac.compare_digest(protocol.decode_nonce(presented.runtime.nonce), pending.nonce):
            raise AttestationRefused("the evidence answers the challenge of another session")
        self._state.journal.catch_up()
        manifest = self._state.authority.manifest
        policies = (*self._state.authority.policies(), *manifest.broker_policies)
        refusal: CloisterError = AppraisalRefused("there is no policy in force, so no evidence is accepted")
        for policy in policies:
            try:
                return appraise_presented(
                    presented, nonce=pending.nonce, policy=policy, now=now, not_after=None
                )
            except EvidenceError:
                raise  # not fresh or not bound: no policy would say otherwise
            except CloisterError as error:
                refusal = error
        if len(policies) > 1:
            refusal = AppraisalRefused(
                f"none of {len(policies)} policies accepts it; the last: {type(refusal).__name__}: {refusal.what}"
            )
        raise refusal

    def refused(
        self,
        event: Literal["attestation", "release", "certificate", "tree"],
        error: CloisterError,
        session: str,
        *,
        resource: str = "",
    ) -> None:
        """Log a refusal, with its reason."""
        # A malformed body's error quotes the body; only what came out of checked evidence is written down.
        reason = "malformed" if isinstance(error, FormatError) else f"{type(error).__name__}: {error.what}"
        if event == "attestation":
            self._metrics.attested.labels("refused").inc()
        elif event == "release":
            self._metrics.released.labels("refused").inc()
        fact = Fact(event, "refused", resource=resource, session=session, reason=reason)
        self._state.journal.transact(lambda transaction: transaction.log(fact))


def _of_the_state(error: CloisterError) -> bool:
    """Is it about the broker's state, and not about who asked? The operator's tools tell these apart."""
    return isinstance(error, KeystoreError | AuditDamaged | RollbackFound | ForkFound)


def require_same_manifest(transaction: Transaction, manifest: AcceptedManifest) -> None:
    """Raise :class:`ReleaseRefused` if a newer manifest is in force by now."""
    if transaction.version("manifest", str(manifest.manifest.version + 1)):
        raise ReleaseRefused("the manifest was replaced during the request", todo="ask again")


def _told(
    event: Literal["attestation", "release"],
    session: Attested,
    result: AttestationResult[RuntimeData],
    *,
    path: str = "",
    grant: Grant | None = None,
    manifest: str = "",
) -> Fact:
    return Fact(
        event,
        "accepted",
        resource=f"kbs:///{path}" if path else "",
        workload=grant.workload if grant else "",
        purpose=session.runtime.purpose or "",
        session=session.digest,
        evidence=session.presented.evidence_sha256,
        measurements=measurements_digest(result.claims),
        policy=result.policy_digest,
        rule=grant.rule if grant else "",
        manifest=manifest,
        tee=result.claims.tee,
        tee_key=key_digest(session.runtime.tee_pubkey),
        simulated=result.claims.simulated,
        reason=f"release {grant.number}" if grant and grant.number is not None else "",
    )
