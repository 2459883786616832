"""Tree heads: signed by their log alone, co-signed by each witness once."""

from __future__ import annotations

import json

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

from cloister import merkle
from cloister.broker.tree_head import (
    Cosignature,
    HeadRefused,
    SignedHead,
    TreeHead,
    cosign,
    encode_signed_head,
    log_id,
    parse_head,
    parse_signed_head,
    require_cosignatures,
    sign_head,
    verify_head,
    with_cosignatures,
)
from cloister.encoding import encode_json
from cloister.manifest.owner_key import PublicKey, parse_public_key, ssh_key_text
from cloister.manifest.signers import Ed25519Signer
from cloister.manifest.ssh import ssh_string
from spec_vectors import spec_vectors
from witness_parts import Log, signer, witness_keys

LOG = Log(5)
KEYS = witness_keys("anna", "ben", "cleo")


def cosigned(*names: str, head: SignedHead | None = None) -> SignedHead:
    signed = head or LOG.head()
    return with_cosignatures(signed, tuple(cosign(signed.head, signer(name)) for name in names))


def test_the_page_and_the_code_agree() -> None:
    vector = spec_vectors("tree-head.md")
    key = Ed25519PrivateKey.from_private_bytes(bytes.fromhex(vector["log_seed"]))
    public = key.public_key().public_bytes_raw()
    assert public.hex() == vector["log_key"]
    head = parse_head(vector["head"].encode())
    assert head.log == log_id(public)
    signed = sign_head(head, key)
    assert signed.head.decode() == vector["head"]
    assert signed.signature.hex() == vector["signature"]
    witness = Ed25519Signer(bytes.fromhex(vector["witness_seed"]))
    one = cosign(signed.head, witness)
    assert (one.key, one.signature.hex()) == (vector["witness_key"], vector["cosignature"])
    travelling = encode_signed_head(with_cosignatures(signed, (one,)))
    assert travelling.decode() == vector["signed_head"]
    keys = {"wanda": parse_public_key(witness.key)}
    assert require_cosignatures(parse_signed_head(travelling), keys=keys, threshold=1) == {"wanda"}


def test_a_head_that_its_log_signed_is_read_back() -> None:
    head = verify_head(LOG.head(), log_key=LOG.public)
    assert (head.log, head.size, head.root) == (LOG.id, 5, LOG.tree.root().hex())


def test_a_signed_head_travels_and_arrives() -> None:
    signed = cosigned("anna", "ben")
    assert parse_signed_head(encode_signed_head(signed)) == signed


@pytest.mark.parametrize("field", ["log", "size", "root", "state", "time"])
def test_no_field_of_a_head_can_be_exchanged(field: str) -> None:
    other: dict[str, object] = {"log": "0" * 64, "size": 6, "root": "0" * 64, "state": "0" * 64, "time": 1}
    signed = LOG.head()
    altered = structs.replace(parse_head(signed.head), **{field: other[field]})
    with pytest.raises(HeadRefused):
        verify_head(SignedHead(head=encode_json(altered), signature=signed.signature), log_key=LOG.public)


@given(st.integers(0, 64 * 8 - 1))
def test_no_bit_of_a_heads_signature_can_be_flipped(bit: int) -> None:
    signed = LOG.head()
    altered = bytearray(signed.signature)
    altered[bit // 8] ^= 1 << (bit % 8)
    with pytest.raises(HeadRefused, match="does not hold"):
        verify_head(structs.replace(signed, signature=bytes(altered)), log_key=LOG.public)


@given(st.data())
def test_no_bit_of_a_head_can_be_flipped(data: st.DataObject) -> None:
    signed = cosigned("anna", "ben")
    altered = bytearray(signed.head)
    bit = data.draw(st.integers(0, len(altered) * 8 - 1))
    altered[bit // 8] ^= 1 << (bit % 8)
    damaged = structs.replace(signed, head=bytes(altered))
    with pytest.raises(HeadRefused):
        verify_head(damaged, log_key=LOG.public)
    with pytest.raises(HeadRefused):
        require_cosignatures(damaged, keys=KEYS, threshold=2)


def test_a_head_of_another_log_is_refused() -> None:
    other = Log(5, name="another log")
    with pytest.raises(HeadRefused, match="another log"):
        verify_head(other.head(), log_key=LOG.public)
    # … also when it takes the name of ours:
    named = structs.replace(parse_head(other.head().head), log=LOG.id)
    with pytest.raises(HeadRefused, match="does not hold"):
        verify_head(sign_head(named, other.key), log_key=LOG.public)


def test_a_witnesss_signature_is_not_the_logs() -> None:
    # The log's own key used as a witness's: the message says what a signature is for.
    seed = LOG.key.private_bytes_raw()
    as_witness = cosign(LOG.head().head, Ed25519Signer(seed))
    with pytest.raises(HeadRefused, match="does not hold"):
        verify_head(structs.replace(LOG.head(), signature=as_witness.signature), log_key=LOG.public)


def test_a_log_key_that_is_none_is_refused() -> None:
    with pytest.raises(HeadRefused):
        verify_head(LOG.head(), log_key=b"short")


GOOD = json.loads(LOG.head().head)
FORMS: dict[str, bytes] = {
    "nothing": b"",
    "no JSON": b"{",
    "a list": b"[]",
    "white space": json.dumps(GOOD, sort_keys=True).encode(),
    "another order": json.dumps(dict(reversed(GOOD.items())), separators=(",", ":")).encode(),
    "a field more": encode_json({**GOOD, "more": 1}),
    "a field less": encode_json({name: value for name, value in GOOD.items() if name != "state"}),
    "another format": encode_json({**GOOD, "format": "cloister/tree-head/v2"}),
    "a size below nothing": encode_json({**GOOD, "size": -1}),
    "a size beyond every log": encode_json({**GOOD, "size": merkle.MAX_TREE + 1}),
    "a size in words": encode_json({**GOOD, "size": "5"}),
    "a time before all time": encode_json({**GOOD, "time": -1}),
    "a root in capitals": encode_json({**GOOD, "root": GOOD["root"].upper()}),
    "a short root": encode_json({**GOOD, "root": GOOD["root"][:-2]}),
    "no state": encode_json({**GOOD, "state": ""}),
    "no entries, and a root": encode_json({**GOOD, "size": 0}),
    "endless": encode_json({**GOOD, "root": "0" * 2000}),
}


@pytest.mark.parametrize("form", FORMS)
def test_a_head_in_another_form_is_refused(form: str) -> None:
    with pytest.raises(HeadRefused):
        parse_head(FORMS[form])


def test_the_head_of_no_entries_has_the_root_of_nothing() -> None:
    assert verify_head(Log().head(), log_key=LOG.public).root == merkle.EMPTY_ROOT.hex()


@given(st.binary(max_size=300))
def test_any_bytes_are_a_signed_head_or_our_own_error(data: bytes) -> None:
    with pytest.raises(HeadRefused):
        parse_signed_head(data)


# -- witnesses ----------------------------------------------------------------------------------------------------------


def test_witnesses_are_told_by_name() -> None:
    assert require_cosignatures(cosigned("anna", "cleo"), keys=KEYS, threshold=2) == {"anna", "cleo"}
    assert require_cosignatures(cosigned("anna", "ben", "cleo"), keys=KEYS, threshold=2) == set(KEYS)


def test_too_few_witnesses_are_not_enough() -> None:
    with pytest.raises(HeadRefused, match="1 witnesses co-signed the tree head, and 2 must"):
        require_cosignatures(cosigned("ben"), keys=KEYS, threshold=2)


def test_one_witness_is_not_counted_twice() -> None:
    with pytest.raises(HeadRefused, match="twice"):
        require_cosignatures(cosigned("ben", "ben"), keys=KEYS, threshold=2)


def test_one_witness_is_not_two_by_its_key_in_two_forms() -> None:
    point = bytes.fromhex(signer("ben").key.removeprefix("ed25519:"))
    keys = {
        **KEYS,
        "ben-again": parse_public_key(ssh_key_text(ssh_string(b"ssh-ed25519") + ssh_string(point))),
    }
    with pytest.raises(HeadRefused, match="one key"):
        require_cosignatures(cosigned("ben"), keys=keys, threshold=1)


def test_a_stranger_among_the_witnesses_refuses_the_whole() -> None:
    with pytest.raises(HeadRefused, match="stranger"):
        require_cosignatures(cosigned("anna", "ben", "mallory"), keys=KEYS, threshold=2)


def test_a_cosignature_of_another_head_does_not_count() -> None:
    other = cosign(LOG.head(4).head, signer("ben"))
    signed = with_cosignatures(LOG.head(), (cosign(LOG.head().head, signer("anna")), other))
    with pytest.raises(HeadRefused, match="does not hold"):
        require_cosignatures(signed, keys=KEYS, threshold=1)


def test_a_cosignature_under_another_witnesss_name_does_not_count() -> None:
    ben = cosign(LOG.head().head, signer("ben"))
    signed = with_cosignatures(LOG.head(), (Cosignature(key=signer("anna").key, signature=ben.signature),))
    with pytest.raises(HeadRefused, match="does not hold"):
        require_cosignatures(signed, keys=KEYS, threshold=1)


def test_more_cosignatures_than_any_manifest_has_witnesses_are_refused() -> None:
    with pytest.raises(HeadRefused, match="at most 64"):
        require_cosignatures(cosigned(*["anna"] * 65), keys=KEYS, threshold=1)


@pytest.mark.parametrize(("threshold", "keys"), [(0, KEYS), (-1, KEYS), (4, KEYS), (0, {}), (1, {})])
def test_a_threshold_that_asks_for_nobody_or_for_more_than_there_are_is_refused(
    threshold: int, keys: dict[str, PublicKey]
) -> None:
    with pytest.raises(HeadRefused, match="threshold"):
        require_cosignatures(cosigned("anna"), keys=keys, threshold=threshold)


def test_what_is_signed_is_small_enough_for_its_own_bound() -> None:
    largest = TreeHead(log="f" * 64, size=merkle.MAX_TREE, root="f" * 64, state="f" * 64, time=2**53 - 1)
    assert parse_head(encode_json(largest)) == largest
