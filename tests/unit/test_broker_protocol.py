"""Wire records: strict, one encoding, resources named by undecoded bytes."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker_parts import NOW, platform, workload
from cloister.broker import protocol
from cloister.broker.client import collect
from cloister.broker.jwe import TeeKeyPair
from cloister.broker.protocol import (
    Attestation,
    BadResource,
    RuntimeData,
    TeeEvidence,
    Unsupported,
    parse_attestation,
    parse_auth,
    parse_challenge,
    parse_resource_path,
    parse_runtime_data,
)
from cloister.encoding import encode_json
from cloister.errors import FormatError

TRAVERSALS = {
    "parent": b"../key/demo",
    "parent in the middle": b"models/../demo",
    "parent at the end": b"models/key/..",
    "encoded parent": b"%2e%2e/key/demo",
    "encoded slash": b"models%2fkey/demo/x",
    "double-encoded slash": b"models%252fkey/demo/x",
    "encoded letter": b"models/key/dem%6f",
    "unicode": "models/key/démo".encode(),
    "full-width dots": "models/key/\uff0e\uff0e".encode(),
    "overlong encoding of a slash": b"models\xc0\xafkey/demo/x",
    "null": b"models/key/demo\x00",
    "newline": b"models/key/demo\n",
    "backslash": b"models\\key\\demo",
    "two parts": b"models/key",
    "four parts": b"models/key/demo/x",
    "empty part": b"models//demo",
    "trailing slash": b"models/key/demo/",
    "leading slash": b"/models/key/demo",
    "nothing": b"",
    "hidden": b"models/key/.demo",
    "parameters": b"models/key/demo;v=1",
    "authority": b"@host/key/demo",
    "over-long part": b"models/key/" + b"a" * 65,
    "over-long path": b"a" * 100_000,
}


@pytest.mark.parametrize("rest", TRAVERSALS.values(), ids=TRAVERSALS.keys())
def test_a_path_that_is_not_exactly_three_plain_names_is_refused(rest: bytes) -> None:
    with pytest.raises(BadResource):
        parse_resource_path(protocol.RESOURCE_PATH.encode() + rest)


def test_a_query_is_refused() -> None:
    with pytest.raises(BadResource):
        parse_resource_path(protocol.RESOURCE_PATH.encode() + b"models/key/demo", b"a=1")


@given(st.binary(max_size=80))
def test_a_path_is_a_resource_or_bad_and_nothing_else(rest: bytes) -> None:
    raw = protocol.RESOURCE_PATH.encode() + rest
    try:
        uri = parse_resource_path(raw)
    except BadResource:
        return
    assert protocol.RESOURCE_PATH + protocol.resource_path(uri) == raw.decode()


VERSIONS = [
    "",
    "0",
    "0.1.0",
    "0.1.1",
    "0.2.0",
    "0.3.0",
    "0.4",
    "0.4.1",
    "0.5.0",
    "v0.4.0",
    " 0.4.0",
    "0.4.0-rc1",
]


@pytest.mark.parametrize("version", VERSIONS)
def test_another_version_is_refused_as_such(version: str) -> None:
    request = {"version": version, "tee": "tdx", "extra-params": {"profile": protocol.PROFILE}}
    with pytest.raises(Unsupported) as refused:
        parse_auth(json.dumps(request).encode())
    assert refused.value.kind == "version"


MALFORMED: dict[str, str] = {
    "unknown field": '{"version":"0.4.0","tee":"tdx","extra-params":{},"x":1}',
    "no TEE": '{"version":"0.4.0","extra-params":""}',
    "TEE twice": '{"version":"0.4.0","tee":"sgx","tee":"tdx","extra-params":""}',
    "list": "[]",
    "number": '{"version":1,"tee":"tdx"}',
    "trailing bytes": '{"version":"0.4.0","tee":"tdx","extra-params":""} x',
}


@pytest.mark.parametrize("body", MALFORMED.values(), ids=MALFORMED.keys())
def test_a_malformed_request_is_refused(body: str) -> None:
    with pytest.raises(FormatError):
        parse_auth(body.encode())


def test_our_own_request_is_read() -> None:
    request = parse_auth(protocol.auth_request("sgx"))
    assert (request.version, request.tee, request.extra_params) == (
        protocol.VERSION,
        "sgx",
        {"profile": protocol.PROFILE},
    )


def test_a_challenge_goes_round() -> None:
    nonce = bytes(range(32))
    text = protocol.encode_nonce(nonce)
    assert text == "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8="
    body = encode_json(protocol.Challenge(nonce=text))
    assert body == b'{"extra-params":{},"nonce":"' + text.encode() + b'"}'
    assert parse_challenge(body) == (text, nonce)


def test_a_workload_of_ours_refuses_a_challenge_that_selects_a_hash() -> None:
    chosen = protocol.ChallengeParameters(selected_hash_algorithm="sha256")
    body = encode_json(protocol.Challenge(nonce=protocol.encode_nonce(bytes(32)), extra_params=chosen))
    with pytest.raises(FormatError, match="hash"):
        parse_challenge(body)


@pytest.mark.parametrize(
    "text", ["", "AAAA", "A" * 44, "!" * 44, "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh9="]
)
def test_a_nonce_of_another_form_is_refused(text: str) -> None:
    with pytest.raises(FormatError):
        protocol.decode_nonce(text)


def _attestation() -> tuple[RuntimeData, bytes]:
    runtime = RuntimeData(nonce=protocol.encode_nonce(bytes(32)), tee_pubkey=TeeKeyPair.generate().public)
    bundle = collect(workload(), bytes(32), encode_json(runtime))
    return runtime, encode_json(
        Attestation(runtime_data=runtime, tee_evidence=TeeEvidence(primary_evidence=bundle))
    )


def test_an_attestation_goes_round() -> None:
    runtime, body = _attestation()
    assert parse_attestation(body)[0] == runtime
    assert platform().root_sha256
    assert NOW


def test_any_other_field_of_an_attestation_is_refused() -> None:
    _, body = _attestation()
    for change in ({"init-data": {"format": "json", "body": ""}}, {"x": 1}):
        with pytest.raises(FormatError):
            parse_attestation(json.dumps({**json.loads(body), **change}).encode())


def test_runtime_data_has_one_encoding() -> None:
    runtime, _ = _attestation()
    data = encode_json(runtime)
    assert parse_runtime_data(data) == runtime
    with pytest.raises(FormatError, match="canonical"):
        parse_runtime_data(json.dumps(json.loads(data)).encode())


def test_a_purpose_is_bound_and_without_one_the_form_is_as_before() -> None:
    runtime, _ = _attestation()
    assert b"purpose" not in encode_json(runtime)
    named = RuntimeData(nonce=runtime.nonce, tee_pubkey=runtime.tee_pubkey, purpose="nightly-batch")
    data = encode_json(named)
    assert b'"purpose":"nightly-batch"' in data
    assert parse_runtime_data(data) == named


@pytest.mark.parametrize("purpose", ["", "a b", "ä", "x" * 65, ".hidden", "a/b", "line\n", None, 7])
def test_a_purpose_of_another_form_is_refused(purpose: object) -> None:
    runtime, _ = _attestation()
    with pytest.raises(FormatError):
        parse_runtime_data(encode_json({**json.loads(encode_json(runtime)), "purpose": purpose}))


def test_a_private_key_in_runtime_data_is_refused() -> None:
    runtime, _ = _attestation()
    document = json.loads(encode_json(runtime))
    document["tee-pubkey"]["d"] = "AAAA"
    with pytest.raises(FormatError):
        parse_runtime_data(encode_json(document))


KEYS = {
    "another curve": {"kty": "EC", "crv": "secp256k1", "alg": "ECDH-ES+A256KW", "x": "A" * 43, "y": "A" * 43},
    "another algorithm": {"kty": "EC", "crv": "P-256", "alg": "ECDH-ES", "x": "A" * 43, "y": "A" * 43},
    "short coordinate": {"kty": "EC", "crv": "P-256", "alg": "ECDH-ES+A256KW", "x": "AAAA", "y": "A" * 43},
    "symmetric": {"kty": "oct", "k": "AAAA"},
    "RSA 1.5": {"kty": "RSA", "alg": "RSA1_5", "n": "_" * 342, "e": "AQAB"},
    "RSA of 1,024 bits": {"kty": "RSA", "alg": "RSA-OAEP-256", "n": "_" * 170 + "8", "e": "AQAB"},
    "RSA with exponent 1": {"kty": "RSA", "alg": "RSA-OAEP-256", "n": "_" * 341 + "8", "e": "AQ"},
}


@pytest.mark.parametrize("key", KEYS.values(), ids=KEYS.keys())
def test_a_key_of_another_kind_is_refused(key: dict[str, str]) -> None:
    with pytest.raises(FormatError):
        parse_runtime_data(encode_json({"nonce": protocol.encode_nonce(bytes(32)), "tee-pubkey": key}))


@given(st.binary(max_size=200))
def test_parsers_raise_only_their_own_errors(data: bytes) -> None:
    for parse in (parse_auth, parse_challenge, parse_attestation, parse_runtime_data):
        with pytest.raises((FormatError, Unsupported)):
            parse(data)
