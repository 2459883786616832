"""Results, tokens and relying parties for the tests of EAR: honest ones, and with one thing changed."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import cache
from typing import Any

from joserfc import jws

import simulated_evidence as attacks
from cloister import merkle
from cloister.appraisal.appraise import appraise
from cloister.appraisal.draft import draft_policy
from cloister.appraisal.ear import EarSigner, TrustedVerifier, VerifierId, accept_ear, issue_ear
from cloister.appraisal.policy import Policy, load_policy
from cloister.appraisal.result import AttestationResult
from cloister.encoding import b64url_decode, encode_json, parse_json
from cloister.evidence.binding import report_data
from cloister.evidence.bundle import EvidenceBundle, NonceProof, TeeKind
from simulated_evidence import NOW

KEYS = b'{"keys":"of this workload"}'
ASKED = b"what the relying party asked"
AUDIENCE = "https://relying.example"
NAME = "https://verifier.example"
NONCE = bytes(32)


@cache
def _signer(name: str, algorithm: Any) -> EarSigner:
    return EarSigner.generate(algorithm)


def signer(name: str = NAME, algorithm: Any = "ES384") -> EarSigner:
    """The one key of this verifier."""
    return _signer(name, algorithm)


def trusted(name: str = NAME, algorithm: Any = "ES384") -> TrustedVerifier:
    return TrustedVerifier.from_pem(name, signer(name, algorithm).public_pem)


def policy_text(kind: TeeKind = "tdx", max_age_seconds: int = 3600) -> str:
    """Accepts exactly the simulated workload of :func:`bundle_of`."""
    return draft_policy(
        tee=kind,
        measurements=attacks.platform().tee(kind, launch=attacks.LAUNCH).measurements,
        events=attacks.LAUNCH,
        min_tcb_evaluation_number=1,
        simulated_root=attacks.platform().root_sha256,
        max_age_seconds=max_age_seconds,
    )


@cache
def policy(kind: TeeKind = "tdx", max_age_seconds: int = 3600) -> Policy:
    return load_policy(policy_text(kind, max_age_seconds), name="p.toml")


@cache
def bundle_of(kind: TeeKind = "tdx") -> EvidenceBundle:
    """Honest evidence of a simulated workload, over :data:`NONCE`."""
    tee = attacks.platform().tee(kind, launch=attacks.LAUNCH, clock=lambda: NOW)
    raw = tee.quote(report_data(merkle.root([NONCE]), KEYS))
    return EvidenceBundle(
        tee=raw.tee,
        quote=raw.quote,
        key_material=KEYS,
        nonce_proof=NonceProof(index=0, size=1, path=()),
        event_log=raw.event_log,
        endorsements=raw.endorsements,
    )


@cache
def result(kind: TeeKind = "tdx", now: int = NOW) -> AttestationResult[bytes]:
    """A simulated workload, appraised here at ``now``."""
    return appraise(
        bundle_of(kind), nonce=NONCE, policy=policy(kind), now=now, decode=bytes, not_after=lambda _: None
    )


def issue(subject: Any = None, **changes: Any) -> str:
    arguments: dict[str, Any] = {
        "signer": signer(),
        "verifier_id": VerifierId(developer=NAME, build="cloister 0"),
        "now": NOW,
        "policy": policy(),
        "nonce": ASKED,
        "audience": AUDIENCE,
    }
    return issue_ear(result() if subject is None else subject, **{**arguments, **changes})


def accept(token: str, **changes: Any) -> AttestationResult[bytes]:
    arguments: dict[str, Any] = {
        "trusted": [trusted()],
        "policies": [policy().digest],
        "nonce": ASKED,
        "audience": AUDIENCE,
        "now": NOW + 10,
        "max_age_seconds": 600,
        "decode": bytes,
        "not_after": lambda _: None,
        "simulated_root": attacks.platform().root_sha256,
    }
    return accept_ear(token, **{**arguments, **changes})


def opened(token: str) -> dict[str, Any]:
    """The claims of a token, for whoever alters them."""
    claims: dict[str, Any] = parse_json(b64url_decode(token.split(".")[1], what="claims"), what="claims")
    return claims


def resigned(change: Callable[[dict[str, Any]], object], *, by: str = NAME, **header: Any) -> str:
    """The honest token's claims after ``change``, signed anew by a verifier: what a careless or hostile one could say."""
    claims = opened(issue())
    change(claims)
    key = signer(by)
    fields = {"alg": key.algorithm, "kid": key.kid, "typ": "JWT", **header}
    registry = jws.JWSRegistry(algorithms=[key.algorithm], strict_check_header=False)
    return jws.serialize_compact(fields, encode_json(claims), key.key, registry=registry)


def hardware(kind: TeeKind = "tdx") -> AttestationResult[bytes]:
    """As if the simulated root were a vendor's: there is no hardware here to ask."""
    from cloister.appraisal.result import Appraised

    genuine = result(kind)
    claims = dataclasses.replace(genuine.claims, simulated=False, root_sha256="11" * 32)
    standing: dict[str, Any] = {
        name: getattr(genuine, name)
        for name in ("key_material", "policy_digest", "verified_at", "expires", "checks", "verifier")
    }
    return AttestationResult(
        keys=genuine.keys, claims=claims, **standing, _seal=Appraised(genuine.keys, claims, **standing)
    )
