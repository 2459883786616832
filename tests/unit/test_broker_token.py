"""Tokens: what is in them and where others look for it, and which ones are taken back."""

from __future__ import annotations

import base64
import json
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
from joserfc import jwt
from joserfc.jwk import ECKey

from cloister import merkle
from cloister.appraisal.draft import draft_policy
from cloister.appraisal.policy import load_policy
from cloister.appraisal.result import AttestationResult
from cloister.broker import protocol
from cloister.broker.jwe import TeeKeyPair
from cloister.broker.profiles import Announced, Presented, appraise_presented
from cloister.broker.protocol import RuntimeData
from cloister.broker.session import Attested, Sessions
from cloister.broker.token import TokenSigner
from cloister.encoding import encode_json
from cloister.errors import SessionRefused
from cloister.evidence.binding import report_data
from cloister.evidence.bundle import EvidenceBundle, NonceProof
from shared_data import vectors
from simulated_evidence import NOW, platform

NONCE = bytes(range(32))


@cache
def session() -> tuple[Attested, AttestationResult[RuntimeData]]:
    runtime = RuntimeData(nonce=protocol.encode_nonce(NONCE), tee_pubkey=TeeKeyPair.generate().public)
    keys = encode_json(runtime)
    tee = platform().tee("tdx", clock=lambda: NOW)
    raw = tee.quote(report_data(merkle.root([NONCE]), keys))
    bundle = EvidenceBundle(
        tee="tdx",
        quote=raw.quote,
        key_material=keys,
        nonce_proof=NonceProof(index=0, size=1, path=()),
        endorsements=raw.endorsements,
    )
    presented = Presented("cloister/evidence/v1", runtime, bundle)
    text = draft_policy(
        tee="tdx",
        measurements=tee.measurements,
        min_tcb_evaluation_number=1,
        simulated_root=platform().root_sha256,
    )
    policy = load_policy(text, name="test")
    result = appraise_presented(presented, nonce=NONCE, policy=policy, now=NOW, not_after=None)
    sessions = Sessions()
    _, pending = sessions.challenge(Announced("cloister/evidence/v1", "tdx"), NOW)
    _, attested = sessions.attested(
        pending, presented, policy=policy.digest, size=len(keys), ends=result.expires, now=NOW
    )
    return attested, result


SIGNER = TokenSigner(build="test")


def token() -> str:
    return SIGNER.sign(*session(), NOW)


def claims(text: str) -> dict[str, Any]:
    part = text.split(".")[1]
    found: dict[str, Any] = json.loads(base64.urlsafe_b64decode(part + "=" * (-len(part) % 4)))
    return found


def test_the_key_stands_where_relying_parties_look_for_it() -> None:
    attested, _ = session()
    key = json.loads(encode_json(attested.runtime.tee_pubkey))
    found = claims(token())
    assert found["cnf"]["jwk"] == key
    annotated = found["submods"]["cpu0"]["ear.veraison.annotated-evidence"]
    assert annotated["runtime_data_claims"] == {"nonce": attested.runtime.nonce, "tee-pubkey": key}


def test_a_token_has_the_members_of_trustees_published_example() -> None:
    theirs, ours = json.loads(vectors("coco-trustee/example.token.json").read_text()), claims(token())
    assert set(theirs) <= set(ours)
    assert set(theirs["submods"]["cpu0"]) <= set(ours["submods"]["cpu0"])
    assert {type(ours[name]) for name in ("iat", "exp")} == {int}


def test_a_token_lives_for_five_minutes() -> None:
    found = claims(token())
    assert (found["iat"], found["exp"]) == (NOW, NOW + 300)
    SIGNER.read(token(), NOW + 299).require(session()[0])
    for now in (NOW - 1, NOW + 300):
        with pytest.raises(SessionRefused):
            SIGNER.read(token(), now)


def _resigned(**changes: object) -> str:
    key = ECKey.generate_key("P-256")
    return jwt.encode({"alg": "ES256"}, {**claims(token()), **changes}, key, algorithms=["ES256"])


def _unsigned() -> str:
    head = base64.urlsafe_b64encode(b'{"alg":"none"}').rstrip(b"=").decode()
    return f"{head}.{token().split('.')[1]}."


FORGED = {
    "of another broker": lambda: TokenSigner(build="test").sign(*session(), NOW),
    "signed by its holder": _resigned,
    "prolonged by its holder": lambda: _resigned(exp=NOW + 10_000),
    "unsigned": _unsigned,
    "cut": lambda: token()[:-1],
    "empty": lambda: "",
    "two tokens": lambda: token() + token(),
    "long": lambda: token() + "A" * protocol.MAX_TOKEN,
}


@pytest.mark.parametrize("forge", FORGED.values(), ids=FORGED.keys())
def test_a_token_that_is_not_ours_is_refused(forge: Any) -> None:
    with pytest.raises(SessionRefused):
        SIGNER.read(forge(), NOW)


def test_a_token_of_another_session_or_key_opens_nothing() -> None:
    attested, _ = session()
    bearer = SIGNER.read(token(), NOW)
    bearer.require(attested)
    other = RuntimeData(nonce=attested.runtime.nonce, tee_pubkey=TeeKeyPair.generate().public)
    for changed in (
        replace(attested, digest="0" * 64),
        replace(attested, presented=Presented(attested.presented.profile, other, attested.presented.bundle)),
    ):
        with pytest.raises(SessionRefused):
            bearer.require(changed)
