"""Answers: to one key, about one resource, of one form."""

from __future__ import annotations

import base64
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from joserfc import jwe
from joserfc.jwk import ECKey, RSAKey

from cloister.broker.jwe import RESOURCE_HEADER, AnswerRefused, TeeKeyPair, check_key, encrypt, key_digest
from cloister.broker.protocol import EcKey, RsaKey
from cloister.encoding import convert
from cloister.errors import FormatError
from trustee_guest import Guest

URI = "kbs:///models/key/demo"
PAIR = TeeKeyPair.generate()


@given(st.binary(min_size=1, max_size=200))
@settings(max_examples=20)
def test_an_answer_goes_round(content: bytes) -> None:
    assert PAIR.decrypt(encrypt(content, PAIR.public, URI), URI) == content


@pytest.mark.parametrize("crv", ["P-256", "P-384", "P-521"])
def test_a_flattened_jwe_of_any_curve_opens_with_an_independent_reader(crv: str) -> None:
    private = ECKey.generate_key(crv)
    public = convert({**private.as_dict(private=False), "alg": "ECDH-ES+A256KW"}, EcKey, what="key")
    _opens(encrypt(b"content", public, URI), private, ["ECDH-ES+A256KW", "A256GCM"])


def test_a_flattened_jwe_to_rsa_opens_with_an_independent_reader() -> None:
    private = RSAKey.generate_key(2048)
    public = convert({**private.as_dict(private=False), "alg": "RSA-OAEP-256"}, RsaKey, what="key")
    _opens(encrypt(b"content", public, URI), private, ["RSA-OAEP-256", "A256GCM"])


def _opens(answer: bytes, private: object, algorithms: list[str]) -> None:
    document = json.loads(answer)
    assert set(document) == {"protected", "encrypted_key", "iv", "ciphertext", "tag"}
    registry = jwe.JWERegistry(algorithms=algorithms, strict_check_header=False)
    assert jwe.decrypt_json(document, private, registry=registry).plaintext == b"content"


@pytest.mark.parametrize("curve", ["P-256", "P-384", "P-521", "RSA"])
def test_a_trustee_guest_opens_an_answer_though_it_writes_the_protected_header_anew(curve: str) -> None:
    guest = Guest(curve=curve)
    public = convert(guest.jwk, RsaKey if curve == "RSA" else EcKey, what="key")
    answer = encrypt(b"content", public, URI)
    assert guest.open(answer) == b"content"
    assert set(json.loads(answer)) == {"protected", "encrypted_key", "iv", "ciphertext", "tag"}


def test_the_protected_header_is_written_in_the_order_that_guests_authenticate() -> None:
    header = json.loads(
        base64.urlsafe_b64decode(json.loads(encrypt(b"x", PAIR.public, URI))["protected"] + "==")
    )
    assert list(header) == ["alg", "enc", RESOURCE_HEADER, "epk"]
    assert list(header["epk"]) == ["crv", "kty", "x", "y"]


def test_an_answer_for_another_resource_is_refused() -> None:
    with pytest.raises(AnswerRefused, match="another resource"):
        PAIR.decrypt(encrypt(b"x", PAIR.public, URI), "kbs:///models/key/other")


def test_an_answer_to_another_key_is_refused() -> None:
    with pytest.raises(AnswerRefused):
        TeeKeyPair.generate().decrypt(encrypt(b"x", PAIR.public, URI), URI)


@pytest.mark.parametrize("field", ["protected", "encrypted_key", "iv", "ciphertext", "tag"])
def test_a_flipped_bit_in_any_field_is_refused(field: str) -> None:
    document = json.loads(encrypt(b"x" * 32, PAIR.public, URI))
    raw = bytearray(base64.urlsafe_b64decode(document[field] + "=="))
    for index in range(0, len(raw), 7):
        changed = bytearray(raw)
        changed[index] ^= 1
        altered = {**document, field: base64.urlsafe_b64encode(changed).rstrip(b"=").decode()}
        with pytest.raises(AnswerRefused):
            PAIR.decrypt(json.dumps(altered).encode(), URI)


def _with_header(**changes: object) -> bytes:
    document = json.loads(encrypt(b"x" * 32, PAIR.public, URI))
    header = json.loads(base64.urlsafe_b64decode(document["protected"] + "=="))
    header.update(changes)
    document["protected"] = base64.urlsafe_b64encode(json.dumps(header).encode()).rstrip(b"=").decode()
    return json.dumps(document).encode()


HEADERS: dict[str, dict[str, object]] = {
    "compressed": {"zip": "DEF"},
    "direct": {"alg": "dir"},
    "weaker wrap": {"alg": "ECDH-ES+A128KW"},
    "another content encryption": {"enc": "A128CBC-HS256"},
    "critical": {"crit": ["x"], "x": 1},
    "renamed resource": {RESOURCE_HEADER: "kbs:///models/key/other"},
}


@pytest.mark.parametrize("changes", HEADERS.values(), ids=HEADERS.keys())
def test_another_protected_header_is_refused(changes: dict[str, object]) -> None:
    with pytest.raises(AnswerRefused):
        PAIR.decrypt(_with_header(**changes), URI)


@pytest.mark.parametrize("member", ["header", "unprotected", "aad", "recipients"])
def test_other_members_of_a_jwe_are_refused(member: str) -> None:
    document = {**json.loads(encrypt(b"x", PAIR.public, URI)), member: "e30"}
    with pytest.raises(AnswerRefused):
        PAIR.decrypt(json.dumps(document).encode(), URI)


def test_a_point_off_the_curve_is_refused() -> None:
    public = PAIR.public
    assert isinstance(public, EcKey)
    with pytest.raises(FormatError):
        check_key(EcKey(crv="P-256", x=public.y, y=public.x))


def test_a_pair_shows_no_private_half() -> None:
    assert "_private" not in repr(PAIR)
    assert len(key_digest(PAIR.public)) == 64


@given(st.binary(max_size=100))
def test_reading_an_answer_raises_only_its_own_error(data: bytes) -> None:
    with pytest.raises(AnswerRefused):
        PAIR.decrypt(data, URI)
