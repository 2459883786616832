"""Signed documents: who signed is whoever is named, once each, under the kind that was asked for."""

from __future__ import annotations

import hashlib

import pytest
from msgspec import structs

import manifest_parts as parts
from cloister.encoding import encode_json
from cloister.errors import ManifestError, QuorumMissing, SignatureRefused
from cloister.manifest.owner_key import parse_public_key, ssh_key_text
from cloister.manifest.quorum import Quorum, require_quorum
from cloister.manifest.signed import (
    MAX_DOCUMENT,
    Signature,
    Signed,
    encode_signed,
    parse_signed,
    sign,
    signed_message,
    verified_signers,
)
from cloister.manifest.signers import Ed25519Signer
from cloister.manifest.ssh import ssh_string
from spec_vectors import spec_vectors

DOCUMENT = b'{"format":"cloister/rule/v1"}'
NAMED = {name: parse_public_key(parts.owner(name).key) for name in ("alice", "bob")}


def signed_by(*names: str, document: bytes = DOCUMENT) -> Signed:
    return sign("rule", document, [parts.owner(name) for name in names])


def test_the_page_and_the_code_agree() -> None:
    vector = spec_vectors("signed-document.md")
    signer = Ed25519Signer(bytes.fromhex(vector["ed25519_seed"]))
    document = vector["document"].encode()
    signed = sign("rule", document, [signer])
    assert signer.key == vector["key"]
    assert signed.digest == vector["digest"]
    assert signed_message("rule", document).decode() == vector["message"]
    assert signed.signatures[0].signature.hex() == vector["signature"]
    assert hashlib.sha256(encode_signed(signed)).hexdigest() == vector["signed_sha256"]


def test_who_signed_is_told_by_name() -> None:
    assert verified_signers("rule", signed_by("alice"), NAMED) == {"alice"}
    assert verified_signers("rule", signed_by("bob", "alice"), NAMED) == {"alice", "bob"}
    assert verified_signers("rule", signed_by(), NAMED) == frozenset()


def test_a_rules_signature_is_no_manifests() -> None:
    with pytest.raises(SignatureRefused, match="alice does not hold"):
        verified_signers("manifest", signed_by("alice"), NAMED)


def test_a_signature_of_somebody_else_refuses_the_whole() -> None:
    with pytest.raises(SignatureRefused, match="may not sign"):
        verified_signers("rule", signed_by("alice", "bob", "mallory"), NAMED)


def test_one_altered_signature_refuses_the_whole() -> None:
    signed = signed_by("alice", "bob")
    first = signed.signatures[0]
    altered = structs.replace(first, signature=first.signature[:-1] + bytes([first.signature[-1] ^ 1]))
    with pytest.raises(SignatureRefused, match="does not hold"):
        verified_signers("rule", structs.replace(signed, signatures=(altered, signed.signatures[1])), NAMED)


def test_the_signature_of_one_under_the_key_of_another_is_refused() -> None:
    by_bob = signed_by("bob").signatures[0].signature
    forged = Signed(document=DOCUMENT, signatures=(Signature(key=NAMED["alice"].text, signature=by_bob),))
    with pytest.raises(SignatureRefused, match="alice does not hold"):
        verified_signers("rule", forged, NAMED)


def test_a_key_that_signed_twice_refuses_the_whole() -> None:
    signed = signed_by("alice")
    with pytest.raises(SignatureRefused, match="alice signed twice"):
        verified_signers("rule", structs.replace(signed, signatures=signed.signatures * 2), NAMED)


def test_a_key_does_not_sign_twice_by_being_written_in_two_forms() -> None:
    point = bytes.fromhex(NAMED["alice"].text.removeprefix("ed25519:"))
    by_ssh = ssh_key_text(ssh_string(b"ssh-ed25519") + ssh_string(point))
    with pytest.raises(SignatureRefused, match="one key"):
        verified_signers("rule", signed_by("alice"), {**NAMED, "alice2": parse_public_key(by_ssh)})
    signed = signed_by("alice")
    second = structs.replace(signed.signatures[0], key=by_ssh)
    with pytest.raises(SignatureRefused, match="may not sign"):
        verified_signers("rule", structs.replace(signed, signatures=(*signed.signatures, second)), NAMED)


def test_more_than_64_signatures_are_refused_before_any_is_checked() -> None:
    many = tuple(Signature(key=f"ed25519:{number:064x}", signature=bytes(64)) for number in range(65))
    with pytest.raises(SignatureRefused, match="more than 64"):
        verified_signers("rule", Signed(document=DOCUMENT, signatures=many), NAMED)
    with pytest.raises(ManifestError, match="more than 64"):
        parse_signed(encode_signed(Signed(document=DOCUMENT, signatures=many)))


def test_a_document_over_its_bound_is_refused() -> None:
    signed = signed_by("alice", document=bytes(MAX_DOCUMENT + 1))
    with pytest.raises(SignatureRefused, match="longer"):
        verified_signers("rule", signed, NAMED)
    with pytest.raises(ManifestError):
        parse_signed(encode_signed(signed))


def test_the_largest_document_travels_with_64_signatures() -> None:
    signers = [parts.owner(f"owner {number}") for number in range(64)]
    signed = sign("rule", bytes(MAX_DOCUMENT), signers)
    assert parse_signed(encode_signed(signed)) == signed


def test_signatures_are_collected_one_after_the_other() -> None:
    first = signed_by("alice")
    both = sign("rule", first.document, [parts.owner("bob")], existing=first.signatures)
    assert both == signed_by("alice", "bob")
    assert sign("rule", DOCUMENT, [parts.owner("bob")], existing=both.signatures) == both


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{}",
        b"[]",
        encode_signed(signed_by("alice")) + b"\n",
        b" " + encode_signed(signed_by("alice")),
        encode_signed(signed_by("alice")).replace(b"cloister/signed/v1", b"cloister/signed/v2"),
        encode_signed(signed_by("alice"))[:-1] + b',"note":""}',
        encode_json({"document": "e30", "format": "cloister/signed/v1", "signatures": []}),
        encode_json({"document": "e30=", "signatures": []}),
    ],
)
def test_other_bytes_are_no_signed_document(data: bytes) -> None:
    with pytest.raises(ManifestError):
        parse_signed(data)


class TestQuorum:
    TWO = Quorum(owners=("alice", "bob", "carol"), threshold=2)

    def test_enough_of_the_owners_are_enough(self) -> None:
        require_quorum(self.TWO, {"alice", "carol"}, "it")
        require_quorum(self.TWO, {"alice", "bob", "carol", "somebody"}, "it")

    @pytest.mark.parametrize("signers", [set(), {"alice"}, {"alice", "mallory"}, {"mallory", "malice"}])
    def test_others_do_not_count(self, signers: set[str]) -> None:
        with pytest.raises(QuorumMissing):
            require_quorum(self.TWO, signers, "it")

    def test_the_error_names_who_is_missing(self) -> None:
        with pytest.raises(QuorumMissing) as caught:
            require_quorum(self.TWO, {"bob"}, "version 2")
        assert "version 2 must be signed by 2 of alice, bob, carol, and only bob signed" in str(caught.value)
        assert "1 more of alice, carol" in str(caught.value)
