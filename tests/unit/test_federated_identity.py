"""The one key of a process: what it signs, under which name, and which other keys pass for it (none)."""

from __future__ import annotations

import hashlib
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_ssh_private_key,
    load_ssh_public_key,
)
from hypothesis import given
from hypothesis import strategies as st

from cloister.errors import FederationError
from cloister.federated.identity import MAX_SPKI, Identity, check_signature, public_openssh, read_spki
from federation_parts import identity

OWN, OTHER = identity("north agent"), identity("south agent")
PARTS = (b"one", b"two")


def spki_of(key: Any) -> bytes:
    return key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def digest_of(spki: bytes) -> str:
    return hashlib.sha256(spki).hexdigest()


def compressed(found: Identity) -> bytes:
    """The same key in the shorter spelling that X9.62 has."""
    point = found.key.public_key().public_bytes(Encoding.X962, PublicFormat.CompressedPoint)
    algorithm = bytes.fromhex("301006072a8648ce3d020106052b81040022")
    assert algorithm in found.spki
    inner = algorithm + bytes([3, len(point) + 1, 0]) + point
    return bytes([0x30, len(inner)]) + inner


def unsupported() -> bytes:
    """A key of a curve that no library here knows."""
    algorithm = bytes.fromhex("300e06072a8648ce3d020106032b0599")
    inner = algorithm + bytes([3, 3, 0, 4, 4])
    return bytes([0x30, len(inner)]) + inner


def test_a_key_that_evidence_binds_is_read_and_checks_what_its_process_signed() -> None:
    key = read_spki(OWN.spki, digest=OWN.digest)
    check_signature(key, OWN.sign("admission", *PARTS), "admission", *PARTS)


@given(parts=st.lists(st.binary(max_size=40), max_size=4), what=st.sampled_from(("admission", "statement")))
def test_whatever_is_signed_is_checked(parts: list[bytes], what: str) -> None:
    check_signature(OWN.key.public_key(), OWN.sign(what, *parts), what, *parts)


def flipped(signature: bytes) -> bytes:
    return signature[:-1] + bytes([signature[-1] ^ 1])


@pytest.mark.parametrize(
    "signature",
    [
        pytest.param(OTHER.sign("admission", *PARTS), id="of another process"),
        pytest.param(OWN.sign("statement", *PARTS), id="signed as something else"),
        pytest.param(OWN.sign("admission", b"on", b"etwo"), id="the same bytes, cut elsewhere"),
        pytest.param(OWN.sign("admission", *PARTS, b""), id="with an empty part more"),
        pytest.param(OWN.sign("admission", *PARTS[::-1]), id="in another order"),
        pytest.param(flipped(OWN.sign("admission", *PARTS)), id="a flipped bit"),
        pytest.param(OWN.key.sign(b"onetwo", ec.ECDSA(ec.hashes.SHA384())), id="without the label"),
        pytest.param(OWN.sign("admission", *PARTS)[:-3], id="cut"),
        pytest.param(b"", id="empty"),
    ],
)
def test_a_signature_for_anything_else_is_refused(signature: bytes) -> None:
    with pytest.raises(FederationError, match="not of the key that the evidence binds"):
        check_signature(OWN.key.public_key(), signature, "admission", *PARTS)


RSA = rsa.generate_private_key(public_exponent=65537, key_size=2048)


@pytest.mark.parametrize(
    ("spki", "words"),
    [
        pytest.param(spki_of(ec.generate_private_key(ec.SECP256R1())), "not of P-384", id="P-256"),
        pytest.param(spki_of(ed25519.Ed25519PrivateKey.generate()), "not of P-384", id="Ed25519"),
        pytest.param(spki_of(RSA), "cannot be read", id="RSA, too long"),
        pytest.param(compressed(OWN), "another spelling", id="the same key in another spelling"),
        pytest.param(OWN.spki + b"\x00", "cannot be read", id="with a byte behind it"),
        pytest.param(OWN.spki[:-1], "cannot be read", id="cut"),
        pytest.param(OWN.spki + bytes(MAX_SPKI), "cannot be read", id="over its bound"),
        pytest.param(unsupported(), "cannot be read", id="of a curve that is none"),
        pytest.param(b"", "cannot be read", id="empty"),
    ],
)
def test_what_no_process_has_as_its_key_is_refused_though_evidence_binds_it(spki: bytes, words: str) -> None:
    with pytest.raises(FederationError, match=words):
        read_spki(spki, digest=digest_of(spki))


@pytest.mark.parametrize(
    "digest",
    [
        pytest.param(None, id="evidence that binds no key"),
        pytest.param(OTHER.digest, id="another process's evidence"),
        pytest.param(OWN.digest.upper(), id="another spelling"),
    ],
)
def test_a_key_that_evidence_does_not_bind_is_refused(digest: str | None) -> None:
    with pytest.raises(FederationError, match="not the one that the evidence binds"):
        read_spki(OWN.spki, digest=digest)


def test_flower_is_given_the_same_key() -> None:
    private = load_ssh_private_key(OWN.openssh(), None)
    assert spki_of(private) == OWN.spki
    public = load_ssh_public_key(public_openssh(OWN.spki))
    assert public.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo) == OWN.spki


def test_a_key_is_fresh_and_shown_nowhere() -> None:
    assert Identity.generate().digest != Identity.generate().digest
    assert repr(OWN) == "Identity()"
