"""EAR tokens: what a verifier states is what a relying party gets, for as long as it stands, and nothing made by hand."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)
from hypothesis import given
from hypothesis import strategies as st

from cloister.appraisal.ear import EarSigner, TrustedVerifier
from cloister.appraisal.ear_claims import decode_claims, encode_claims
from cloister.appraisal.ear_trust import NAMES, cpu_vector, device_vector, status_of
from cloister.appraisal.policy import Policy
from cloister.appraisal.result import AttestationResult
from cloister.encoding import b64url_decode, encode_json, parse_json
from cloister.endorsements.roots import INTEL_ROOT
from cloister.errors import CloisterError, FormatError, ResultExpired, UsageError
from cloister.evidence.key_material import KeyMaterial
from cloister.evidence.measured import MeasuredEvent
from cloister.verifier.claims import Claims, DeviceClaims
from cloister.verifier.intel import verify
from ear_parts import (
    ASKED,
    AUDIENCE,
    KEYS,
    NAME,
    accept,
    hardware,
    issue,
    opened,
    policy,
    result,
    signer,
    trusted,
)
from intel_vectors import SERVER, at, collateral, quote
from simulated_evidence import NOW

SOURCES = Path(__file__).resolve().parents[2] / "src" / "cloister"

JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)
GPU = DeviceClaims(
    kind="gpu",
    architecture="hopper",
    identity="aa" * 32,
    root_sha256="bb" * 32,
    simulated=False,
    driver_version="570.1",
    vbios_version="96.00",
    matched=60,
    differing=(),
    rims=("NV_GPU_DRIVER_GH100_570.1",),
    revocation="checked",
    issued_at=NOW - 100,
    expires=NOW + 10_000,
    details={"serial": "1"},
)


@pytest.mark.parametrize("algorithm", ["ES384", "Ed25519"])
@pytest.mark.parametrize("kind", ["tdx", "sgx"])
def test_a_result_comes_back_from_the_token_of_a_trusted_verifier(kind: Any, algorithm: str) -> None:
    token = issue(result(kind), policy=policy(kind), signer=signer(NAME, algorithm))
    assert parse_json(b64url_decode(token.split(".")[0], what="header"), what="header") == {
        "alg": algorithm,
        "kid": signer(NAME, algorithm).kid,
        "typ": "JWT",
    }
    accepted = accept(token, trusted=[trusted(NAME, algorithm)], policies=[policy(kind).digest])
    assert accepted.claims == result(kind).claims
    assert accepted.checks == result(kind).checks
    assert accepted.keys == accepted.key_material == KEYS
    assert (accepted.policy_digest, accepted.verified_at) == (policy(kind).digest, NOW)
    assert (accepted.verifier, result(kind).verifier) == (NAME, "")
    assert accepted.require_fresh(NOW + 599) == KEYS
    with pytest.raises(ResultExpired):
        accepted.require_fresh(NOW + 600)


def test_a_token_has_the_form_that_others_read() -> None:
    claims = opened(issue())
    assert claims["eat_profile"] == "tag:github.com,2023:veraison/ear"
    assert (claims["iat"], claims["exp"], claims["aud"]) == (NOW, result().expires, AUDIENCE)
    assert b64url_decode(claims["eat_nonce"], what="nonce") == ASKED
    assert claims["ear.verifier-id"] == {"developer": NAME, "build": "cloister 0"}
    assert set(claims["submods"]) == {"cpu0"}
    assert claims["submods"]["cpu0"]["ear.appraisal-policy-id"] == policy().digest
    assert set(claims["submods"]["cpu0"]["ear.trustworthiness-vector"]) == set(NAMES)
    assert set(claims["cloister"]) == {
        "format", "simulated", "notice", "verified_at", "policy_digest", "key_material", "key_material_sha256", "claims",
    }  # fmt: skip


def test_a_simulated_tee_is_contraindicated_and_says_so() -> None:
    claims = opened(issue())
    assert claims["submods"]["cpu0"]["ear.status"] == "contraindicated"
    assert claims["submods"]["cpu0"]["ear.trustworthiness-vector"]["hardware"] == 97
    assert claims["submods"]["cpu0"]["ear.trustworthiness-vector"]["executables"] == 0
    assert claims["cloister"]["simulated"] is True
    assert claims["cloister"]["notice"].startswith("SIMULATED TEE")


def test_an_appraised_workload_on_hardware_is_affirmed() -> None:
    claims = opened(issue(hardware()))
    assert claims["submods"]["cpu0"]["ear.status"] == "affirming"
    assert "notice" not in claims["cloister"]
    assert accept(issue(hardware()), simulated_root=None).keys == KEYS


def test_every_device_is_a_submodule_of_its_own() -> None:
    claims = dataclasses.replace(
        hardware().claims, devices=(GPU, dataclasses.replace(GPU, kind="nvswitch"), GPU)
    )
    token = issue(claims, policy=None)
    submods = opened(token)["submods"]
    assert set(submods) == {"cpu0", "gpu0", "gpu1", "nvswitch0"}
    assert {submodule["ear.status"] for submodule in submods.values()} == {"none"}
    assert decode_claims(opened(token)["cloister"]["claims"]) == claims


def test_what_was_verified_and_not_appraised_is_never_affirmed() -> None:
    claims = verify(
        quote("phala-dcap-qvl/tdx_quote"),
        collateral("tdx_quote_collateral"),
        root=INTEL_ROOT,
        now=at("2025-06-25"),
        rules=SERVER,
    )
    token = opened(issue(claims, policy=None, now=at("2025-06-25")))
    assert token["submods"]["cpu0"]["ear.status"] == "none"
    assert "ear.appraisal-policy-id" not in token["submods"]["cpu0"]
    assert token["exp"] == at("2025-06-25") + 3600
    hardening = dataclasses.replace(claims, tcb_status="SWHardeningNeeded")
    warned = opened(issue(hardening, policy=None, now=at("2025-06-25")))
    assert warned["submods"]["cpu0"]["ear.status"] == "warning"
    simulated = opened(issue(result().claims, policy=None))
    assert simulated["submods"]["cpu0"]["ear.status"] == "contraindicated"


def test_a_vector_claims_only_what_the_policy_pinned() -> None:
    claims = hardware().claims
    pinned = cpu_vector(claims, policy())
    assert (pinned["executables"], pinned["configuration"], pinned["instance-identity"]) == (3, 2, 0)
    assert (pinned["file-system"], pinned["storage-opaque"], pinned["sourced-data"]) == (0, 0, 0)
    loose = changed(tdx={"rtmr1": "any"})
    assert cpu_vector(claims, loose)["executables"] == 0
    nothing = changed(tdx={"rtmr3": "any", "events": None})
    assert cpu_vector(claims, nothing)["executables"] == cpu_vector(claims, nothing)["configuration"] == 0
    assert cpu_vector(claims, None)["executables"] == 0
    old = dataclasses.replace(claims, tcb_status="SWHardeningNeeded")
    assert cpu_vector(old, policy())["hardware"] == 32
    assert status_of(cpu_vector(old, policy())) == "warning"
    listed = changed(hardware={"ppid": ["00" * 16]})
    machine = dataclasses.replace(claims, hardware={"ppid": "00" * 16})
    assert cpu_vector(machine, listed)["instance-identity"] == 2
    assert cpu_vector(dataclasses.replace(claims, tee="tpm"), None)["runtime-opaque"] == 0
    assert device_vector(GPU, policy())["executables"] == 3
    assert device_vector(dataclasses.replace(GPU, rims=()), policy())["executables"] == 0
    assert status_of(device_vector(dataclasses.replace(GPU, simulated=True), policy())) == "contraindicated"
    assert status_of({}) == "none"


def changed(**tables: Any) -> Policy:
    """The honest policy with fields of its tables changed."""
    import msgspec

    plain = msgspec.to_builtins(policy())
    for table, fields in tables.items():
        plain[table] = {**(plain[table] or {}), **fields}
    return msgspec.convert(plain, Policy)


def test_a_result_ends_at_the_earliest_of_its_ends() -> None:
    token = issue()
    assert result().expires == NOW + 3600
    assert accept(token, max_age_seconds=10_000).expires == NOW + 3600
    assert accept(token, max_age_seconds=60).expires == NOW + 60
    assert accept(token, not_after=lambda _: NOW + 20).expires == NOW + 20
    with pytest.raises(ResultExpired):
        accept(token, not_after=lambda _: NOW + 10)


def test_a_clock_that_is_ahead_is_allowed_only_as_far_as_said() -> None:
    assert accept(issue(), now=NOW - 5, skew_seconds=5).keys == KEYS
    with pytest.raises(CloisterError, match="after now"):
        accept(issue(), now=NOW - 6, skew_seconds=5)
    for skew in (-1, 301):
        with pytest.raises(UsageError, match="clock skew"):
            accept(issue(), skew_seconds=skew)


def test_a_token_can_be_accepted_without_a_nonce_only_by_saying_so() -> None:
    assert accept(issue(), nonce=None).keys == KEYS
    assert accept(issue(nonce=None), nonce=None).keys == KEYS


@pytest.mark.parametrize(
    ("change", "words"),
    [
        pytest.param({"trusted": []}, "no verifier is trusted", id="nobody"),
        pytest.param({"policies": []}, "no policy is accepted", id="no-policy"),
        pytest.param({"policies": "aa" * 32}, "no policy is accepted", id="a-text-for-a-list"),
        pytest.param({"max_age_seconds": 0}, "maximum age", id="no-age"),
    ],
)
def test_a_relying_party_that_decides_nothing_is_refused(change: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        accept(issue(), **change)
    for other in ({"policies": ["any"]}, {"simulated_root": "any"}):
        with pytest.raises(FormatError):
            accept(issue(), **other)


def test_only_what_was_appraised_under_this_policy_is_signed_as_such() -> None:
    with pytest.raises(UsageError, match="policy that it was appraised under"):
        issue(policy=None)
    with pytest.raises(UsageError, match="policy that it was appraised under"):
        issue(policy=policy("sgx"))
    with pytest.raises(UsageError, match="have no policy"):
        issue(result().claims)
    with pytest.raises(ResultExpired):
        issue(now=NOW + 3600)
    with pytest.raises(UsageError, match="came in a token"):
        issue(accept(issue()))
    for size in (0, 7, 65):
        with pytest.raises(UsageError, match="8 to 64"):
            issue(nonce=bytes(size))


def test_keys_are_decoded_only_when_all_else_holds() -> None:
    seen: list[bytes] = []
    with pytest.raises(CloisterError):
        accept(issue(), decode=seen.append, policies=["00" * 32])
    assert seen == []


def test_results_are_made_in_two_places_of_the_source_only() -> None:
    makers = {
        str(path.relative_to(SOURCES))
        for path in SOURCES.rglob("*.py")
        if re.search(r"(?<!class )\b(AttestationResult|Appraised)\(", path.read_text())
    }
    assert makers == {"appraisal/appraise.py", "appraisal/ear.py"}


def test_a_result_of_a_token_cannot_be_changed_by_hand() -> None:
    accepted = accept(issue())
    for change in (
        {"keys": b"attacker"},
        {"expires": 1 << 40},
        {"verified_at": NOW + 1},
        {"key_material": b"attacker"},
        {"verifier": ""},
        {"checks": ()},
        {"policy_digest": "00" * 32},
    ):
        with pytest.raises(TypeError, match="never by hand"):
            dataclasses.replace(accepted, **change)
        with pytest.raises(TypeError, match="never by hand"):
            dataclasses.replace(result(), **({"verifier": "x"} if "verifier" in change else change))
    with pytest.raises(TypeError, match="never by hand"):
        AttestationResult(
            keys=b"",
            claims=result().claims,
            policy_digest="",
            verified_at=0,
            expires=1,
            checks=(),
            _seal=None,
        )


def test_a_signing_key_is_p384_or_ed25519_and_never_shown() -> None:
    for algorithm in ("ES384", "Ed25519"):
        key = signer("k", algorithm).key.as_pem(private=True)
        again = EarSigner.from_pem(key)
        assert (again.kid, again.algorithm) == (signer("k", algorithm).kid, algorithm)
        assert repr(again) == f"EarSigner(kid='{again.kid}')"
        assert TrustedVerifier.from_pem("v", again.public_pem).kid == again.kid


def pem(key: Any, password: bytes | None = None) -> bytes:
    lock = BestAvailableEncryption(password) if password else NoEncryption()
    return bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, lock))


@pytest.mark.parametrize(
    "case", ["empty", "garbage", "rsa", "p256", "encrypted", "public", "long"], ids=lambda case: case
)
def test_another_key_is_refused_in_one_line(case: str) -> None:
    p384 = ec.generate_private_key(ec.SECP384R1())
    keys = {
        "empty": b"",
        "garbage": b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n",
        "rsa": pem(rsa.generate_private_key(65537, 2048)),
        "p256": pem(ec.generate_private_key(ec.SECP256R1())),
        "encrypted": pem(p384, b"secret"),
        "public": p384.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo),
        "long": b"-" * 10_000,
    }
    with pytest.raises(UsageError):
        EarSigner.from_pem(keys[case])
    if case != "public":
        with pytest.raises(UsageError):
            TrustedVerifier.from_pem("v", keys[case])
    with pytest.raises(UsageError, match="name"):
        TrustedVerifier("", p384.public_key())


def test_claims_travel_whole_but_for_the_events_that_nobody_can_ask_for() -> None:
    named = MeasuredEvent(
        register=2, kind="EV_IPL", digest=b"\1" * 48, data=b"quiet", vouched=True, name="kernel-command-line"
    )
    events = (
        named,
        dataclasses.replace(named, name=""),
        dataclasses.replace(named, vouched=False),
    )
    claims = dataclasses.replace(result().claims, measured_events=events, devices=(GPU,))
    again = decode_claims(parse_json(encode_json(encode_claims(claims)), what="claims"))
    assert again == dataclasses.replace(claims, measured_events=(named,))


@pytest.mark.parametrize(
    "case", ["a field more", "a field less", "another kind", "a field in the report", "no object"]
)
def test_claims_of_another_form_are_refused(case: str) -> None:
    value: Any = encode_claims(result().claims)
    if case == "a field more":
        value["trusted"] = True
    elif case == "a field less":
        del value["simulated"]
    elif case == "another kind":
        value["tee"] = "sgx"
    elif case == "a field in the report":
        value["report"]["trusted"] = True
    else:
        value = [value]
    with pytest.raises(FormatError):
        decode_claims(value)


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
        max_leaves=8,
    ),
    st.sampled_from(sorted(encode_claims(result().claims))),
)
def test_claims_with_anything_in_a_field_are_claims_or_our_error(value: Any, field: str) -> None:
    try:
        claims = decode_claims({**encode_claims(result().claims), field: value})
    except FormatError:
        return
    assert isinstance(claims, Claims)


@given(st.data())
def test_a_token_altered_anywhere_is_refused_with_our_own_error(data: st.DataObject) -> None:
    token = list(issue())
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.integers(0, len(token) - 1))
        token[place] = data.draw(st.characters().filter(lambda char, old=token[place]: char != old))
    if "".join(token) != issue():
        with pytest.raises(CloisterError):
            accept("".join(token))


@given(st.text(max_size=200))
def test_any_text_is_no_token(text: str) -> None:
    with pytest.raises(CloisterError):
        accept(text)


def test_the_guide_shows_code_that_runs() -> None:
    page = (SOURCES.parents[1] / "docs" / "how-to" / "write-a-policy.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    names: dict[str, Any] = {
        "token": issue(hardware(), audience="https://me.example"),
        "public_key": signer().public_pem,
        "policy_digest": policy().digest,
        "nonce": ASKED,
        "now": NOW + 1,
        "parse_key_material": lambda data: KeyMaterial(ohttp_keys=data, not_after=NOW + 60, replica="r"),
    }
    exec(code, names)  # noqa: S102 -- our own page, which a reader will copy
    assert names["result"].keys.ohttp_keys == KEYS


def test_a_key_is_named_as_rfc_8037_names_its_example() -> None:
    # Appendix A.1 (the key) and A.3 (its thumbprint).
    seed = b64url_decode("nWGxne_9WmC6hEr0kuwsxERJxWl7MmkZcDusAxyuf2A", what="seed", length=32)
    private = Ed25519PrivateKey.from_private_bytes(seed)
    assert EarSigner(private).kid == "kPrK_qmxVWaYVA9wwBF6Iuo3vVzz7TxHCTwXBygrS4k"
    assert TrustedVerifier("v", private.public_key()).kid == EarSigner(private).kid


def test_accepting_a_simulation_is_said_loudly(caplog: pytest.LogCaptureFixture) -> None:
    accept(issue())
    assert "SIMULATED TEE ACCEPTED" in caplog.text
    caplog.clear()
    accept(issue(hardware()), simulated_root=None)
    assert "SIMULATED" not in caplog.text
