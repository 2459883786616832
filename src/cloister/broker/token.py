"""Attestation tokens: a short EAR (RATS attestation result) as a JWT, ES256 (docs/spec/kbs.md, section 3).

A token says what was found and which session may ask; it opens nothing by itself. Its signing key lives in this
process's memory only, so a restarted broker knows none of its old tokens. The TEE's key stands in ``cnf`` and, for those
who look where Trustee's tokens have it, under the annotated evidence of ``cpu0``; read back is ``cnf`` alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from joserfc import jwt
from joserfc.errors import JoseError
from joserfc.jwk import ECKey

from cloister.appraisal.result import AttestationResult
from cloister.broker.protocol import MAX_TOKEN, RuntimeData, TeeKey
from cloister.broker.session import Attested
from cloister.encoding import encode_json, parse_json
from cloister.errors import SessionRefused

PROFILE = "tag:github.com,2023:veraison/ear"
AFFIRMING, WARNING, CONTRAINDICATED = 2, 32, 97
_STATUS = {AFFIRMING: "affirming", WARNING: "warning", CONTRAINDICATED: "contraindicated"}


class TokenSigner:
    """Signs and reads back this broker's own tokens."""

    def __init__(self, *, build: str) -> None:
        self._key = ECKey.generate_key("P-256")
        self._build = build

    def sign(self, session: Attested, result: AttestationResult[RuntimeData], now: int) -> str:
        """A token that ends with its session."""
        claims = {
            "eat_profile": PROFILE,
            "iat": now,
            "exp": session.expires,
            "jti": session.digest,
            "cnf": {"jwk": _plain(session.runtime.tee_pubkey)},
            "ear.verifier-id": {"developer": "cloister", "build": self._build},
            "submods": {"cpu0": _submodule(session, result)},
        }
        return jwt.encode({"typ": "JWT", "alg": "ES256"}, claims, self._key, algorithms=["ES256"])

    def read(self, token: str, now: int) -> Bearer:
        """What a genuine, unexpired token names. Raises :class:`SessionRefused`."""
        refusal = SessionRefused("this token is not one of ours, or has expired", todo="attest again")
        if len(token) > MAX_TOKEN:
            raise refusal
        try:
            decoded = jwt.decode(token, self._key, algorithms=["ES256"])
        except (JoseError, ValueError):
            raise refusal from None
        claims = decoded.claims
        # Signed by us, so of the form that sign() gives; the times are what a holder cannot change.
        if not claims["iat"] <= now < claims["exp"]:
            raise refusal
        return Bearer(claims["jti"], encode_json(claims["cnf"]["jwk"]))


@dataclass(frozen=True, slots=True)
class Bearer:
    """A token's session and the canonical JWK it was issued for."""

    session: str
    tee_key: bytes

    def require(self, session: Attested) -> None:
        """Raise :class:`SessionRefused` unless this token was issued for exactly this session and key."""
        if self.session != session.digest or self.tee_key != encode_json(session.runtime.tee_pubkey):
            raise SessionRefused("this token belongs to another session or key", todo="attest again")


def _submodule(session: Attested, result: AttestationResult[RuntimeData]) -> dict[str, Any]:
    claims = result.claims
    hardware = AFFIRMING if claims.tcb_status == "UpToDate" else WARNING
    if claims.simulated:
        hardware = CONTRAINDICATED
    return {
        "ear.status": _STATUS[hardware],
        "ear.appraisal-policy-id": result.policy_digest,
        "ear.trustworthiness-vector": {
            "hardware": hardware,
            "executables": AFFIRMING,
            "configuration": AFFIRMING,
        },
        "ear.veraison.annotated-evidence": {
            "runtime_data_claims": {
                "nonce": session.runtime.nonce,
                "tee-pubkey": _plain(session.runtime.tee_pubkey),
            }
        },
    }


def _plain(key: TeeKey) -> Any:
    return parse_json(encode_json(key), what="TEE key")
