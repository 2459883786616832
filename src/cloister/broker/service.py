"""The broker's three answers, without HTTP: challenge, attest, resource (docs/spec/kbs.md).

Evidence is appraised at the attestation (does any rule accept it?) and again at each release, against the rule as it stands
then. Refusals go to the audit log with their reason and to the client without it. No audit line, no answer.
"""

from __future__ import annotations

import functools
import hmac
import threading
from collections.abc import Callable
from dataclasses import dataclass

from cloister.appraisal.appraise import appraise
from cloister.appraisal.policy import Policy, load_policy
from cloister.appraisal.result import AttestationResult
from cloister.broker import protocol, release
from cloister.broker.audit import AuditDamaged, AuditLog, Event, Fact, measurements_digest
from cloister.broker.jwe import check_key, encrypt, key_digest
from cloister.broker.protocol import Challenge, RuntimeData, TokenAnswer
from cloister.broker.session import Attested, Pending, Sessions, session_digest
from cloister.broker.store import MAX_POLICIES, Store
from cloister.broker.token import TokenSigner
from cloister.encoding import encode_json
from cloister.errors import (
    AppraisalRefused,
    CloisterError,
    EvidenceError,
    FormatError,
    KeystoreError,
    PolicyError,
    ReleaseRefused,
    SessionRefused,
    UnknownResource,
)
from cloister.evidence.bundle import EvidenceBundle


class AttestationRefused(SessionRefused):
    """Evidence that is not genuine, not fresh, not bound to this session, or that no rule accepts."""


@dataclass(frozen=True, slots=True)
class Answer:
    """A JSON body and, where a session begins, its identifier (for the cookie)."""

    body: bytes
    identifier: str | None = None


class Broker:
    """One broker over one store. Its methods block for milliseconds: the server calls them in threads."""

    def __init__(
        self,
        store: Store,
        audit: AuditLog,
        *,
        now: Callable[[], int],
        sessions: Sessions,
        tokens: TokenSigner,
    ) -> None:
        self._store = store
        self._audit = audit
        self._clock = _RisingClock(now)
        self._sessions = sessions
        self._tokens = tokens

    def challenge(self, body: bytes) -> Answer:
        """``POST /kbs/v0/auth``: a fresh nonce under a fresh identifier."""
        tee = protocol.parse_auth(body)
        identifier, pending = self._sessions.challenge(tee, self._clock())
        nonce = protocol.encode_nonce(pending.nonce)
        return Answer(encode_json(Challenge(nonce=nonce)), identifier)

    def attest(self, identifier: str | None, body: bytes) -> Answer:
        """``POST /kbs/v0/attest``: spend the challenge, appraise, open a session under a new identifier."""
        now = self._clock()
        if identifier is None:
            raise SessionRefused("no session was named", todo="start at /kbs/v0/auth")
        pending = self._sessions.spend(identifier, now)
        try:
            runtime, bundle = protocol.parse_attestation(body)
            check_key(runtime.tee_pubkey)
            result = self._appraise_any(pending, runtime, bundle, now)
        except CloisterError as error:
            self._refused("attestation", error, session_digest(identifier), now)
            if isinstance(error, FormatError | KeystoreError):
                raise
            raise AttestationRefused("the evidence was refused", todo="see the broker's audit log") from None
        self._clock.raise_to(result.claims.issued_at)
        new, session = self._sessions.attested(pending, bundle, runtime, ends=result.expires, now=now)
        self._audit.append(
            Fact(
                "attestation",
                "accepted",
                session=session.digest,
                measurements=measurements_digest(result.claims),
                policy=result.policy_digest,
                tee_key=key_digest(runtime.tee_pubkey),
                simulated=result.claims.simulated,
            ),
            now,
        )
        return Answer(encode_json(TokenAnswer(token=self._tokens.sign(session, result, now))), new)

    def resource(self, raw_path: bytes, query: bytes, identifier: str | None, token: str | None) -> Answer:
        """``GET /kbs/v0/resource/…``: the resource to the session's TEE key, if its rule says so now."""
        now = self._clock()
        uri = protocol.parse_resource_path(raw_path, query)
        session = self._session(identifier, token, now)
        path = protocol.resource_path(uri)
        try:
            rule = release.require_rule(self._rule(path), path)
            result = self._appraise(session, rule.policy, now)
            grant = release.release(rule, path, result, now=now)
            content = self._content(grant)
            # A rule narrowed before the resource was replaced must hold for what was read: look again, behind it.
            if self._rule(path) != rule:
                raise ReleaseRefused(f"the rule of {path} was replaced during the request", todo="ask again")
            body = encrypt(content, grant.tee_key, str(uri))
        except CloisterError as error:
            self._refused("release", error, session.digest, now, resource=str(uri))
            if isinstance(
                error, KeystoreError | AuditDamaged | ReleaseRefused | SessionRefused | UnknownResource
            ):
                raise
            raise ReleaseRefused("the rule does not allow this workload") from None
        self._audit.append(
            Fact(
                "release",
                "accepted",
                resource=str(uri),
                session=session.digest,
                measurements=measurements_digest(result.claims),
                policy=grant.policy_digest,
                tee_key=key_digest(grant.tee_key),
                simulated=result.claims.simulated,
            ),
            now,
        )
        return Answer(body)

    def _session(self, identifier: str | None, token: str | None, now: int) -> Attested:
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

    def _rule(self, path: str) -> release.Rule | None:
        text = self._store.get("rule", path)
        return None if text is None else release.Rule(path, _policy(text))

    def _content(self, grant: release.Grant) -> bytes:
        content = self._store.get("resource", grant.path)
        if content is None:
            raise UnknownResource("its rule is met, but there is no such resource", todo="put it first")
        return content

    def _appraise(self, session: Attested, policy: Policy, now: int) -> AttestationResult[RuntimeData]:
        # Appraising old evidence again makes it no younger.
        ends = min(session.expires, session.opened + policy.max_age_seconds)
        if ends <= now:
            raise SessionRefused("the evidence is older than the rule allows", todo="attest again")
        return appraise(
            session.bundle,
            nonce=session.nonce,
            policy=policy,
            now=now,
            decode=protocol.parse_runtime_data,
            not_after=lambda _runtime: ends,
        )

    def _appraise_any(
        self, pending: Pending, runtime: RuntimeData, bundle: EvidenceBundle, now: int
    ) -> AttestationResult[RuntimeData]:
        """The result under the first policy that accepts. Raises why the last one did not."""
        if not hmac.compare_digest(protocol.decode_nonce(runtime.nonce), pending.nonce):
            raise AttestationRefused("the evidence answers the challenge of another session")
        if bundle.tee != pending.tee:
            raise AttestationRefused("the evidence is of another TEE than was announced")
        rules = self._store.distinct_rules(MAX_POLICIES)
        refusal: CloisterError = AppraisalRefused("there is no rule, so no evidence is accepted")
        for text in rules:
            try:
                return appraise(
                    bundle,
                    nonce=pending.nonce,
                    policy=_policy(text),
                    now=now,
                    decode=protocol.parse_runtime_data,
                    not_after=lambda _runtime: None,
                )
            except EvidenceError:
                raise  # not fresh or not bound: no policy would say otherwise
            except CloisterError as error:
                refusal = error
        if len(rules) > 1:
            refusal = AppraisalRefused(
                f"none of {len(rules)} policies accepts it; the last: {type(refusal).__name__}: {refusal.what}"
            )
        raise refusal

    def _refused(
        self, event: Event, error: CloisterError, session: str, now: int, *, resource: str = ""
    ) -> None:
        # A malformed body's error quotes the body; only what came out of checked evidence is written down.
        reason = "malformed" if isinstance(error, FormatError) else f"{type(error).__name__}: {error.what}"
        self._audit.append(Fact(event, "refused", resource=resource, session=session, reason=reason), now)


class _RisingClock:
    """Unix seconds that never go back, and not before the newest collateral that was verified."""

    def __init__(self, now: Callable[[], int]) -> None:
        self._now = now
        self._floor = 0
        self._lock = threading.Lock()

    def __call__(self) -> int:
        return self.raise_to(self._now())

    def raise_to(self, floor: int) -> int:
        with self._lock:
            self._floor = max(self._floor, floor)
            return self._floor


@functools.lru_cache(maxsize=256)
def _policy(text: bytes) -> Policy:
    """A stored rule's policy. Raises :class:`PolicyError`; it was checked when it was set."""
    try:
        return load_policy(text.decode("utf-8"), name="rule")
    except UnicodeDecodeError:
        raise PolicyError("a rule is not UTF-8", todo="set it again") from None
