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


REQUESTS: dict[str, tuple[object, type[Exception]]] = {
    "old version": (
        {"version": "0.1.0", "tee": "tdx", "extra-params": {"profile": protocol.PROFILE}},
        Unsupported,
    ),
    "Trustee guest": ({"version": "0.4.0", "tee": "tdx", "extra-params": ""}, Unsupported),
    "no parameters": ({"version": "0.4.0", "tee": "tdx"}, Unsupported),
    "foreign profile": ({"version": "0.4.0", "tee": "tdx", "extra-params": {"profile": "x"}}, Unsupported),
    "more parameters": (
        {"version": "0.4.0", "tee": "tdx", "extra-params": {"profile": protocol.PROFILE, "x": 1}},
        Unsupported,
    ),
    "sample TEE": (
        {"version": "0.4.0", "tee": "sample", "extra-params": {"profile": protocol.PROFILE}},
        Unsupported,
    ),
    "unknown field": ({"version": "0.4.0", "tee": "tdx", "extra-params": {}, "x": 1}, FormatError),
    "list": ([], FormatError),
    "number": ({"version": 1, "tee": "tdx"}, FormatError),
}


@pytest.mark.parametrize(("document", "error"), REQUESTS.values(), ids=REQUESTS.keys())
def test_a_request_for_anything_else_is_refused(document: object, error: type[Exception]) -> None:
    with pytest.raises(error):
        parse_auth(json.dumps(document).encode())


def test_our_own_request_is_read() -> None:
    assert parse_auth(protocol.auth_request("sgx")) == "sgx"


def test_a_challenge_goes_round() -> None:
    nonce = bytes(range(32))
    text = protocol.encode_nonce(nonce)
    assert text == "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8="
    body = encode_json(protocol.Challenge(nonce=text))
    assert body == b'{"extra-params":{},"nonce":"' + text.encode() + b'"}'
    assert parse_challenge(body) == (text, nonce)


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
