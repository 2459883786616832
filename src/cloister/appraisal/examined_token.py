"""EAR tokens under examination: the word of a verifier whose public key a person named.

The token goes through ``accept_ear()``, which relying parties use. What a file cannot know is taken from the token
itself and shown: whom it is meant for, and, without a policy, under which it was appraised; then it is called genuine
and no more.
"""

from __future__ import annotations

from typing import Any

from cloister.appraisal.asked import Asked, Found
from cloister.appraisal.ear import TokenRefused, TrustedVerifier, accept_ear
from cloister.appraisal.policy import MAX_AGE
from cloister.encoding import b64url_decode, parse_json
from cloister.errors import (
    AppraisalRefused,
    CloisterError,
    FormatError,
    ResultExpired,
    StaleNonce,
    UsageError,
)
from cloister.evidence.key_material import parse_key_material
from cloister.evidence.recognise import MAX_INPUT, Recognised

_CHECKS: tuple[tuple[type[CloisterError], int], ...] = (
    (StaleNonce, 1),
    (ResultExpired, 17),
    (AppraisalRefused, 2),
    (TokenRefused, 7),
    (FormatError, 3),
)


def examine_token(subject: Recognised, asked: Asked, found: Found) -> None:
    """Who signed it, and what it says. Raises the errors of :func:`~cloister.appraisal.ear.accept_ear`."""
    if not asked.token_keys:
        raise UsageError(
            "a token is as good as the verifier that signed it", todo="name its public key with --ear KEY"
        )
    try:
        _accept(subject, asked, found)
    except CloisterError as error:
        found.trail.stop(next((number for kind, number in _CHECKS if isinstance(error, kind)), 3), error)
        raise


def _accept(subject: Recognised, asked: Asked, found: Found) -> None:
    text = subject.data.decode("ascii")
    said = _unverified(text)
    name = said.get("developer") or "unnamed"
    policy = asked.policy
    digest = policy.digest if policy is not None else said.get("policy_digest", "")
    if not digest:
        raise AppraisalRefused(
            "the token says what was verified, and nobody appraised it", todo="ask for a result"
        )
    result = accept_ear(
        text,
        trusted=[TrustedVerifier.from_pem(name, pem) for pem in asked.token_keys],
        policies=[digest],
        nonce=asked.nonce,
        audience=said.get("audience"),
        now=asked.now,
        max_age_seconds=policy.max_age_seconds if policy is not None else MAX_AGE,
        decode=parse_key_material,
        not_after=lambda material: material.not_after,
        simulated_root=policy.roots.simulated if policy is not None else None,
    )
    found.claims, found.fresh = result.claims, policy is not None and asked.nonce is not None
    if asked.nonce is not None:
        found.trail.found(1, "the token answers it")
    if policy is not None:
        found.trail.found(2, f"{result.claims.tee.upper()}, by the verifier's word")
    found.trail.found(3, "EAR token")
    found.trail.found(7, f"signed by {name}, whose key was named", name="token's signature")
    found.trail.found(17, f"the result stands for {result.expires - asked.now} s")
    found.facts = {
        "verifier": name,
        "meant for": said.get("audience", "") or "no audience in particular",
        "policy digest": result.policy_digest,
        "evidence verified at": str(result.verified_at),
        "checks of the verifier": "; ".join(
            f"{one.number} {one.name}: {one.outcome}" for one in result.checks
        ),
    }


def _unverified(token: str) -> dict[str, str]:
    """What the token says of itself: only ever compared with its signed content, or shown."""
    payload: Any = parse_json(
        b64url_decode(token.split(".")[1], what="the token's payload"),
        what="the token's payload",
        limit=MAX_INPUT,
    )
    if not isinstance(payload, dict):
        raise FormatError("the token's payload is no object")
    found = {"audience": payload.get("aud")}
    for group, field in (("ear.verifier-id", "developer"), ("cloister", "policy_digest")):
        table = payload.get(group)
        found[field] = table.get(field) if isinstance(table, dict) else None
    return {name: value for name, value in found.items() if isinstance(value, str) and value}
