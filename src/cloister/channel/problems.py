"""What a gateway says in plaintext (RFC 9457), because there is nothing to seal it to.

Both sides know these names; only the server's side may mean them. A client acts on none but "the key may be gone",
and then only by verifying again (docs/spec/attestation-endpoint.md).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from cloister.encoding import encode_json, parse_json
from cloister.errors import (
    CloisterError,
    DecapsulationFailed,
    FormatError,
    Overloaded,
    OversizedChunk,
    PlaintextRequest,
    ReplayedRequest,
    StaleNonce,
    UnknownKey,
)

PROBLEM_TYPE: Final = "application/problem+json"
MAX_PROBLEM: Final = 64 * 1024
"""Bytes of a plaintext answer that a client looks at."""
_OWN = "urn:cloister:problem:"


@dataclass(frozen=True, slots=True)
class Problem:
    """One row of the table in docs/spec/attestation-endpoint.md."""

    status: int
    type: str
    title: str
    code: str
    """As OpenAI's ``error.code``."""


UNKNOWN_KEY: Final = Problem(
    400, "https://iana.org/assignments/http-problem-types#ohttp-key", "Unknown key identifier", "unknown_key"
)
UNDECIPHERABLE: Final = Problem(400, _OWN + "undecipherable", "The request does not open", "undecipherable")
MALFORMED: Final = Problem(400, _OWN + "malformed", "Malformed request", "malformed")
REPLAYED: Final = Problem(409, _OWN + "replayed-request", "Replayed request", "replayed_request")
TOO_LARGE: Final = Problem(413, _OWN + "too-large", "Over its bound", "too_large")
TOO_SLOW: Final = Problem(408, _OWN + "too-slow", "The request did not arrive in time", "too_slow")
MEDIA_TYPE: Final = Problem(415, _OWN + "media-type", "Unsupported media type", "media_type")
METHOD: Final = Problem(405, _OWN + "method", "Method not allowed", "method")
OVERLOADED: Final = Problem(503, _OWN + "overloaded", "Too much at once", "overloaded")
NO_MANIFEST: Final = Problem(404, _OWN + "no-manifest", "No manifest", "no_manifest")
FAILED: Final = Problem(503, _OWN + "no-evidence", "No evidence can be made", "no_evidence")
SEALED_REQUIRED: Final = Problem(
    403, _OWN + "sealed-request-required", "Sealed request required", "sealed_request_required"
)

INTERNAL: Final = Problem(500, "about:blank", "Internal error", "internal_error")
"""Only ever sealed: the application failed before it answered."""

_BY_ERROR: Final[tuple[tuple[type[CloisterError], Problem], ...]] = (
    (UnknownKey, UNKNOWN_KEY),
    (DecapsulationFailed, UNDECIPHERABLE),
    (ReplayedRequest, REPLAYED),
    (OversizedChunk, TOO_LARGE),
    (Overloaded, OVERLOADED),
    (PlaintextRequest, SEALED_REQUIRED),
    (FormatError, MALFORMED),
    (StaleNonce, MALFORMED),
)
_KEY_MAY_BE_GONE: Final = (UNKNOWN_KEY.type, UNDECIPHERABLE.type)


def problem_of(error: CloisterError, *, otherwise: Problem = MALFORMED) -> Problem:
    """The row for an error."""
    return next((problem for kind, problem in _BY_ERROR if isinstance(error, kind)), otherwise)


def encode_problem(problem: Problem, detail: str) -> bytes:
    """The body: problem details, and the same as OpenAI's API would say it."""
    message = f"{problem.title}: {detail}" if detail else problem.title
    error = {"message": message, "type": "cloister_error", "param": None, "code": problem.code}
    document = {
        "type": problem.type,
        "title": problem.title,
        "status": problem.status,
        "detail": detail,
        "error": error,
    }
    return encode_json(document)


def says_key_may_be_gone(media_type: str, body: bytes) -> bool:
    """Whether an unauthenticated answer *claims* this; false for everything that is not such a claim."""
    if media_type.partition(";")[0].strip().lower() != PROBLEM_TYPE:
        return False
    try:
        document = parse_json(body, what="problem details", limit=MAX_PROBLEM)
    except FormatError:
        return False
    return isinstance(document, dict) and document.get("type") in _KEY_MAY_BE_GONE
