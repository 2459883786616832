"""RFC 9457 problems of the broker: one table of error classes, each with a name, a status and a fixed sentence.

Nothing of a request or of the state is in them, but for what an owner, who signed, is told about the owner's own
document.
"""

from __future__ import annotations

from dataclasses import dataclass

from cloister.broker import protocol
from cloister.broker.audit import AuditDamaged
from cloister.broker.custody import Locked
from cloister.broker.protocol import BadResource, Problem, Unsupported
from cloister.broker.release import NoneLeft, NoRule
from cloister.broker.service import AttestationRefused, Witnessless
from cloister.broker.session import TooManySessions
from cloister.broker.signed_request import NotAllowed, TooManyNonces
from cloister.broker.state_key import ShareRefused
from cloister.broker.tree_head import ForkFound, RollbackFound
from cloister.errors import (
    AppraisalRefused,
    BrokerError,
    CloisterError,
    EndorsementError,
    EvidenceError,
    FormatError,
    KeystoreError,
    KeystoreUnavailable,
    ManifestError,
    NetworkError,
    PolicyError,
    QuorumMissing,
    ReleaseRefused,
    ResultExpired,
    SessionRefused,
    Superseded,
    UnknownResource,
    UsageError,
    VerificationError,
)


class TooLarge(BrokerError):
    """A body over its bound."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """What is answered in place of what was asked for."""

    name: str
    status: int
    detail: str


_DAMAGED = "the broker's state or audit log cannot be used; its operator has the details"
_NOT_ALLOWED = "the rule of this resource does not allow this workload"
_REFUSALS: tuple[tuple[type[CloisterError], str, int, str], ...] = (
    (BadResource, "bad-resource", 400, "this path names no resource"),
    (AttestationRefused, "attestation-refused", 401, "no rule accepts this evidence"),
    (SessionRefused, "session-refused", 401, "no such session: unknown, spent, expired or not yours"),
    (NotAllowed, "not-allowed", 401, "this needs a request signed by somebody the manifest names"),
    (NoRule, "no-rule", 403, "no rule lets anybody read this resource"),
    (NoneLeft, "none-left", 403, "it was released as often as its rule allows"),
    (Witnessless, "unwitnessed", 503, "the witnesses did not confirm this state; nothing was released"),
    (ReleaseRefused, "release-refused", 403, _NOT_ALLOWED),
    (AppraisalRefused, "release-refused", 403, _NOT_ALLOWED),
    (EvidenceError, "release-refused", 403, _NOT_ALLOWED),
    (VerificationError, "release-refused", 403, _NOT_ALLOWED),
    (EndorsementError, "release-refused", 403, _NOT_ALLOWED),
    (ResultExpired, "release-refused", 403, _NOT_ALLOWED),
    (UnknownResource, "unknown-resource", 404, "there is no such thing here, or not for you"),
    (TooLarge, "too-large", 413, "the body is over its bound"),
    (TooManySessions, "busy", 503, "too many sessions are open, try again in a minute"),
    (TooManyNonces, "busy", 503, "too many requests are being prepared, try again in a minute"),
    (Locked, "locked", 503, "the state of this broker waits for its owners' shares"),
    (KeystoreUnavailable, "unavailable", 503, "a store does not answer; nothing was changed, ask again"),
    (ShareRefused, "share-refused", 403, "this share is not one of this state's"),
    (KeystoreError, "state-damaged", 503, _DAMAGED),
    (AuditDamaged, "state-damaged", 503, _DAMAGED),
    (
        RollbackFound,
        "rollback-found",
        503,
        "a newer state than this was seen: an old copy was put in its place",
    ),
    (ForkFound, "fork-found", 503, "another history of this state was seen: a copy of it runs elsewhere"),
    (NetworkError, "unavailable", 503, "somebody this broker needs does not answer; ask again"),
)
_TOLD: tuple[tuple[type[CloisterError], str, int], ...] = (
    (Superseded, "superseded", 409),
    (QuorumMissing, "quorum-missing", 403),
    (ManifestError, "refused-document", 422),
    (PolicyError, "refused-document", 422),
    (UsageError, "not-possible", 409),
)
"""Errors about a document that its owners signed and sent: they are told what is wrong with it."""


def refusal(error: Exception) -> Refusal:
    """What to answer for ``error``."""
    if isinstance(error, Unsupported):
        return Refusal(f"unsupported-{error.kind}", 400, error.todo)
    for kind, name, status, detail in _REFUSALS:
        if isinstance(error, kind):
            return Refusal(name, status, detail)
    for told, name, status in _TOLD:
        if isinstance(error, told):
            return Refusal(name, status, f"{error.what}; {error.todo}" if error.todo else error.what)
    if isinstance(error, FormatError):
        return Refusal("malformed", 400, "the body is not what this endpoint reads")
    return Refusal("internal", 500, "the broker failed; its operator has the details")


def problem_of(found: Refusal) -> Problem:
    """The RFC 9457 document."""
    return Problem(
        type=protocol.PROBLEM_PREFIX + found.name,
        title=found.name.replace("-", " "),
        status=found.status,
        detail=found.detail,
    )
