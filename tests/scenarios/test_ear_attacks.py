"""Attacks on attestation results that travel as tokens: whoever carries one may not change, reuse or invent it."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Callable
from typing import Any

import pytest

import simulated_evidence as attacks
from cloister.appraisal.ear import NOTICE, TokenRefused
from cloister.encoding import b64url_decode, b64url_encode, encode_json, parse_json
from cloister.errors import AppraisalRefused, CloisterError, ResultExpired, StaleNonce
from ear_parts import (
    AUDIENCE,
    NAME,
    accept,
    hardware,
    issue,
    opened,
    policy,
    resigned,
    result,
    signer,
    trusted,
)
from simulated_evidence import NOW

MALLORY = "https://mallory.example"


def with_header(**fields: Any) -> str:
    """The honest token under another header; the signature is the old one."""
    _, payload, signature = issue().split(".")
    header = {"alg": "ES384", "kid": signer().kid, "typ": "JWT", **fields}
    header = {name: value for name, value in header.items() if value is not None}
    return ".".join((b64url_encode(encode_json(header)), payload, signature))


def unsigned() -> str:
    header, payload, _ = with_header(alg="none").split(".")
    return f"{header}.{payload}."


def keyed_with_the_public_key() -> str:
    """RFC 8725, section 2.1: the public key's bytes as the secret of an HMAC."""
    header, payload, _ = with_header(alg="HS256").split(".")
    tag = hmac.new(signer().public_pem, f"{header}.{payload}".encode(), hashlib.sha256).digest()
    return f"{header}.{payload}.{b64url_encode(tag)}"


def altered(change: Callable[[dict[str, Any]], object]) -> str:
    """Claims changed under the honest signature."""
    header, _, signature = issue().split(".")
    claims = opened(issue())
    change(claims)
    return ".".join((header, b64url_encode(encode_json(claims)), signature))


def spelled_twice() -> str:
    """An honest payload that names a field twice, signed by the verifier."""
    from joserfc import jws

    payload = issue().split(".")[1]
    text = b64url_decode(payload, what="payload").replace(b'"iat":', b'"iat":1,"iat":', 1)
    key = signer()
    return jws.serialize_compact(
        {"alg": key.algorithm, "kid": key.kid, "typ": "JWT"}, text, key.key, [key.algorithm]
    )


def into(*path: str) -> Callable[..., Callable[[dict[str, Any]], None]]:
    """``into("a", "b")(c=1)``: a change that sets ``c`` within ``a.b``; None removes."""

    def fields(**values: Any) -> Callable[[dict[str, Any]], None]:
        def change(claims: dict[str, Any]) -> None:
            place: Any = claims
            for part in path:
                place = place[part]
            for name, value in values.items():
                if value is None:
                    place.pop(name)
                else:
                    place[name] = value

        return change

    return fields


def vector(**values: int) -> Callable[[dict[str, Any]], None]:
    return into("submods", "cpu0", "ear.trustworthiness-vector")(**values)


def gpu() -> dict[str, Any]:
    return {
        "ear.status": "affirming",
        "ear.trustworthiness-vector": {
            **opened(issue(hardware()))["submods"]["cpu0"]["ear.trustworthiness-vector"]
        },
        "ear.appraisal-policy-id": policy().digest,
    }


ATTACKS: dict[str, tuple[Callable[[], object], type[CloisterError], str]] = {
    # Forged, or signed with what the token itself chose
    "alg none": (lambda: accept(unsigned()), TokenRefused, "no signed token"),
    "alg none over an honest signature": (
        lambda: accept(with_header(alg="none")),
        TokenRefused,
        "neither ES384 nor",
    ),
    "HS256 with the public key": (
        lambda: accept(keyed_with_the_public_key()),
        TokenRefused,
        "neither ES384 nor",
    ),
    "ES256": (lambda: accept(with_header(alg="ES256")), TokenRefused, "neither ES384 nor"),
    "EdDSA, which names no curve": (
        lambda: accept(with_header(alg="EdDSA")),
        TokenRefused,
        "neither ES384 nor",
    ),
    "the other algorithm under this key": (
        lambda: accept(with_header(alg="Ed25519")),
        TokenRefused,
        "not ES384",
    ),
    "another kid": (lambda: accept(with_header(kid="AAAA")), TokenRefused, "no trusted verifier"),
    "no kid": (lambda: accept(with_header(kid=None)), TokenRefused, "required field `kid`"),
    "a key in the header": (
        lambda: accept(with_header(jwk={"kty": "EC"})),
        TokenRefused,
        "unknown field `jwk`",
    ),
    "a key to be fetched": (lambda: accept(with_header(jku="http://x")), TokenRefused, "unknown field `jku`"),
    "an unknown critical header": (
        lambda: accept(with_header(crit=["x"], x=1)),
        TokenRefused,
        "unknown field",
    ),
    "an unencoded payload": (
        lambda: accept(with_header(b64=False, crit=["b64"])),
        TokenRefused,
        "unknown field",
    ),
    "another typ": (lambda: accept(with_header(typ="dpop+jwt")), TokenRefused, "typ"),
    "a verifier that nobody trusts": (
        lambda: accept(issue(signer=signer(MALLORY))),
        TokenRefused,
        "no trusted verifier",
    ),
    "a trusted verifier in another's name": (
        lambda: accept(issue(signer=signer(MALLORY)), trusted=[trusted(), trusted(MALLORY)]),
        TokenRefused,
        "names another verifier",
    ),
    "an altered claim": (
        lambda: accept(altered(into("cloister")(simulated=False))),
        TokenRefused,
        "signature does not verify",
    ),
    "a later end": (
        lambda: accept(altered(into()(exp=NOW + 10**6))),
        TokenRefused,
        "signature does not verify",
    ),
    "a stripped gpu under the old signature": (
        lambda: accept(altered(lambda claims: claims["submods"].clear())),
        TokenRefused,
        "signature does not verify",
    ),
    # Genuine, at the wrong time or place
    "expired": (
        lambda: accept(issue(), now=NOW + 3600, max_age_seconds=10**6),
        ResultExpired,
        "the token ended",
    ),
    "verified too long ago": (lambda: accept(issue(), now=NOW + 601), ResultExpired, "over 600 s ago"),
    "an old result in a new token": (
        lambda: accept(issue(now=NOW + 700), now=NOW + 701),
        ResultExpired,
        "over 600 s ago",
    ),
    "issued in the future": (lambda: accept(issue(), now=NOW - 1), TokenRefused, "after now"),
    "verified after it was issued": (
        lambda: accept(resigned(into("cloister")(verified_at=NOW + 1))),
        TokenRefused,
        "times contradict",
    ),
    "an end before all time": (lambda: accept(resigned(into()(exp=-1))), TokenRefused, "a time that is none"),
    "an end after all time": (
        lambda: accept(resigned(into()(exp=1 << 50))),
        TokenRefused,
        "a time that is none",
    ),
    "another policy": (lambda: accept(issue(), policies=["00" * 32]), AppraisalRefused, "not listed"),
    "no policy at all": (
        lambda: accept(issue(result().claims, policy=None)),
        AppraisalRefused,
        "nobody appraised it",
    ),
    "another audience": (
        lambda: accept(issue(audience="https://other.example")),
        TokenRefused,
        "another audience",
    ),
    "no audience, where one is asked for": (
        lambda: accept(issue(audience=None)),
        TokenRefused,
        "another audience",
    ),
    "an audience, where none is ours": (
        lambda: accept(issue(), audience=None),
        TokenRefused,
        "another audience",
    ),
    "a replayed nonce": (
        lambda: accept(issue(), nonce=b"what I asked this time"),
        StaleNonce,
        "another nonce",
    ),
    "no nonce": (lambda: accept(issue(nonce=None)), StaleNonce, "another nonce"),
    # Simulation
    "a simulated token for a hardware relying party": (
        lambda: accept(issue(), simulated_root=None),
        AppraisalRefused,
        "simulated TEE",
    ),
    "another simulation than the one asked for": (
        lambda: accept(issue(), simulated_root="00" * 32),
        AppraisalRefused,
        "simulated TEE",
    ),
    "hardware where a simulation was asked for": (
        lambda: accept(issue(hardware())),
        AppraisalRefused,
        "is about hardware",
    ),
    "a simulation that denies it": (
        lambda: accept(resigned(into("cloister")(simulated=False))),
        TokenRefused,
        "does not agree with itself",
    ),
    "a simulation that shows the vector of hardware": (
        lambda: accept(resigned(vector(hardware=2))),
        TokenRefused,
        "something else than its claims",
    ),
    # A careless or hostile verifier: signed, and still no result
    "a gpu that the claims do not have": (
        lambda: accept(resigned(lambda claims: claims["submods"].update(gpu0=gpu()))),
        TokenRefused,
        "submodules are not those",
    ),
    "an unknown submodule": (
        lambda: accept(resigned(lambda claims: claims["submods"].update(fpga0=gpu()))),
        TokenRefused,
        "submodules are not those",
    ),
    "no submodule": (
        lambda: accept(resigned(lambda c: c["submods"].clear())),
        TokenRefused,
        "submodules are not",
    ),
    "a status better than its vector": (
        lambda: accept(
            resigned(lambda claims: claims["submods"]["cpu0"].update({"ear.status": "affirming"}))
        ),
        TokenRefused,
        "contradicts itself",
    ),
    "a submodule under another policy": (
        lambda: accept(
            resigned(lambda c: c["submods"]["cpu0"].update({"ear.appraisal-policy-id": "00" * 32})),
        ),
        TokenRefused,
        "contradicts itself",
    ),
    "a value that AR4SI has and this profile has not": (
        lambda: accept(resigned(vector(hardware=4))),
        TokenRefused,
        "other values",
    ),
    "a vector without hardware": (
        lambda: accept(resigned(vector(hardware=None))),  # type: ignore[arg-type]
        TokenRefused,
        "other values",
    ),
    "an unknown claim": (
        lambda: accept(resigned(into()(scope="all"))),
        TokenRefused,
        "unknown field `scope`",
    ),
    "another profile": (
        lambda: accept(resigned(into()(eat_profile="tag:github.com,2024:confidential-containers/Trustee"))),
        TokenRefused,
        "eat_profile",
    ),
    "a claim twice": (lambda: accept(spelled_twice()), TokenRefused, "names a field twice"),
    "keys exchanged": (
        lambda: accept(resigned(into("cloister")(key_material=b64url_encode(b"keys of somebody else")))),
        TokenRefused,
        "another digest",
    ),
    "keys left out": (
        lambda: accept(resigned(into("cloister")(key_material=None))),
        AppraisalRefused,
        "appraised",
    ),
    "a debug workload": (
        lambda: accept(resigned(into("cloister", "claims")(debug=True))),
        TokenRefused,
        "debug mode",
    ),
    "claims with a rider": (
        lambda: accept(resigned(into("cloister", "claims")(trusted=True))),
        CloisterError,
        "other fields",
    ),
    # Size
    "a huge token": (lambda: accept("A" * (256 * 1024 + 1)), TokenRefused, "longer than"),
    "a huge header": (lambda: accept(with_header(kid="A" * 2000)), TokenRefused, "over its bound"),
    "a deep payload": (
        lambda: accept(resigned(into("cloister", "claims")(details=nested(40)))),
        TokenRefused,
        "nested deeper",
    ),
}


def nested(depth: int) -> Any:
    value: Any = {}
    for _ in range(depth):
        value = {"a": value}
    return value


def test_the_honest_token_is_accepted() -> None:
    accepted = accept(issue())
    assert accepted.keys == result().keys
    assert opened(issue())["cloister"]["notice"] == NOTICE
    assert accepted.claims.simulated
    assert accepted.claims.root_sha256 == attacks.platform().root_sha256
    assert (opened(issue())["aud"], accepted.verifier) == (AUDIENCE, NAME)
    assert parse_json(b64url_decode(with_header().split(".")[0], what="h"), what="h")["alg"] == "ES384"


@pytest.mark.parametrize("attack", ATTACKS)
def test_a_token_is_refused_for_its_own_reason(attack: str) -> None:
    attempt, error, words = ATTACKS[attack]
    with pytest.raises(error) as refusal:
        attempt()
    assert words in str(refusal.value)
    assert refusal.value.exit_code in (3, 5)
    assert "\n" not in str(refusal.value)
