"""The binding of nonce, keys and devices to a quote: the specification's vectors, and nothing else fits."""

from __future__ import annotations

import hashlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloister import merkle
from cloister.encoding import labelled_hash
from cloister.errors import BindingMismatch, FormatError, StaleNonce
from cloister.evidence.binding import check_binding, check_nonce, device_nonce, quoted_form, report_data
from cloister.evidence.bundle import (
    MAX_BUNDLE,
    EvidenceBundle,
    NonceProof,
    TeeKind,
    encode_bundle,
    parse_bundle,
)
from cloister.evidence.key_material import KeyMaterial, encode_key_material, parse_key_material
from spec_vectors import spec_vectors


def bundle(
    nonces: list[bytes], index: int, keys: bytes = b"keys", devices: bytes = b"", **changes: object
) -> EvidenceBundle:
    proof = NonceProof(index=index, size=len(nonces), path=merkle.inclusion_proof(nonces, index))
    fields = {"tee": "tdx", "quote": b"q", "key_material": keys, "device_evidence": devices}
    return EvidenceBundle(**{**fields, "nonce_proof": proof, **changes})  # type: ignore[arg-type]


def test_the_binding_is_the_specified_one() -> None:
    vectors = spec_vectors("binding.md")
    nonce, keys, devices = (bytes.fromhex(vectors[k]) for k in ("nonce", "key_material", "device_evidence"))
    root = merkle.root([nonce])
    assert root.hex() == vectors["nonce_root"]
    assert report_data(root, keys).hex() == vectors["report_data"]
    assert report_data(root, keys, devices).hex() == vectors["report_data_with_devices"]
    assert device_nonce(root, keys).hex() == vectors["device_nonce"]
    data = report_data(root, keys)
    assert quoted_form("tpm", data).hex() == quoted_form("az-snp-vtpm", data).hex() == vectors["qualifying"]
    assert quoted_form("tdx", data) == quoted_form("sgx", data) == quoted_form("snp", data) == data
    two = merkle.root([nonce, bytes(32)])
    assert two.hex() == vectors["nonce_root_of_two"]
    assert report_data(two, keys).hex() == vectors["report_data_of_two"]


def test_the_binding_is_one_hash_over_label_and_lengths() -> None:
    root = b"\1" * 32
    parts = (b"cloister/evidence-binding/v1", root, hashlib.sha256(b"keys").digest(), b"")
    whole = b"".join(len(part).to_bytes(8, "big") + part for part in parts)
    assert report_data(root, b"keys") == hashlib.sha512(whole).digest()
    assert report_data(root, b"keys") != report_data(root, b"keys", b"\0")


NONCES = st.lists(st.binary(min_size=32, max_size=32), min_size=1, max_size=9, unique=True)


@given(NONCES, st.data())
def test_every_client_of_a_window_checks_the_same_quote(nonces: list[bytes], data: st.DataObject) -> None:
    index = data.draw(st.integers(0, len(nonces) - 1))
    keys, devices = data.draw(st.binary(max_size=40)), data.draw(st.binary(max_size=40))
    quoted = report_data(merkle.root(nonces), keys, devices)
    evidence = bundle(nonces, index, keys, devices)
    check_binding(evidence, check_nonce(evidence, nonces[index]), quoted)


@given(NONCES, st.data())
def test_another_nonce_key_device_or_quote_does_not_fit(nonces: list[bytes], data: st.DataObject) -> None:
    index = data.draw(st.integers(0, len(nonces) - 1))
    quoted = report_data(merkle.root(nonces), b"keys", b"gpu")
    honest = bundle(nonces, index, b"keys", b"gpu")
    other = data.draw(st.binary(min_size=32, max_size=32).filter(lambda nonce: nonce != nonces[index]))
    altered = bytearray(quoted)
    altered[data.draw(st.integers(0, 63))] ^= 1 << data.draw(st.integers(0, 7))
    for evidence, nonce, report in (
        (honest, other, quoted),
        (bundle(nonces, index, b"keys2", b"gpu"), nonces[index], quoted),
        (bundle(nonces, index, b"keys", b""), nonces[index], quoted),
        (bundle(nonces, index, b"keys", b"gpu2"), nonces[index], quoted),
        (bundle([*nonces, bytes(32)], index, b"keys", b"gpu"), nonces[index], quoted),
        (honest, nonces[index], bytes(altered)),
        (honest, nonces[index], quoted[:63]),
    ):
        with pytest.raises(BindingMismatch):
            check_binding(evidence, check_nonce(evidence, nonce), report)


@pytest.mark.parametrize("size", [0, 1, 31, 33, 64])
def test_a_nonce_has_thirty_two_bytes(size: int) -> None:
    with pytest.raises(StaleNonce, match="32 bytes"):
        check_nonce(bundle([bytes(32)], 0), bytes(size))


PROOFS = {
    "no-tree": NonceProof(index=0, size=0, path=()),
    "negative": NonceProof(index=-1, size=1, path=()),
    "outside": NonceProof(index=1, size=1, path=()),
    "too-short": NonceProof(index=0, size=2, path=()),
    "too-long": NonceProof(index=0, size=1, path=(bytes(32),)),
    "digest-of-31": NonceProof(index=0, size=2, path=(bytes(31),)),
    "huge": NonceProof(index=0, size=1 << 52, path=(bytes(32),) * 52),
}


@pytest.mark.parametrize("case", PROOFS)
def test_a_proof_that_cannot_be_is_refused(case: str) -> None:
    with pytest.raises(StaleNonce, match="malformed"):
        check_nonce(bundle([bytes(32)], 0, nonce_proof=PROOFS[case]), bytes(32))


@pytest.mark.parametrize("tee", ["tdx", "sgx", "snp", "az-snp-vtpm", "tpm"])
def test_the_form_of_report_data_follows_from_the_kind_and_is_never_guessed(tee: TeeKind) -> None:
    nonce = bytes(32)
    data = report_data(merkle.root([nonce]), b"keys")
    honest = bundle([nonce], 0, tee=tee)
    check_binding(honest, check_nonce(honest, nonce), quoted_form(tee, data))
    other = data if tee in ("tpm", "az-snp-vtpm") else quoted_form("tpm", data)
    with pytest.raises(BindingMismatch):
        check_binding(honest, check_nonce(honest, nonce), other)


def test_a_window_cannot_be_passed_off_as_one_nonce() -> None:
    # A tree head is 32 bytes like a nonce: hashing leaves and nodes apart keeps them from standing for each other.
    nonces = [bytes([number]) * 32 for number in (1, 2)]
    head = merkle.root(nonces)
    lone = bundle([head], 0)
    with pytest.raises(BindingMismatch):
        check_binding(lone, check_nonce(lone, head), report_data(head, b"keys"))


def test_the_nonce_for_devices_depends_on_window_and_keys() -> None:
    assert device_nonce(b"r", b"k") == labelled_hash(
        "cloister/device-nonce/v1", b"r", hashlib.sha256(b"k").digest()
    )
    assert len({device_nonce(b"r", b"k"), device_nonce(b"s", b"k"), device_nonce(b"r", b"l")}) == 3


@given(st.binary(max_size=30), st.binary(max_size=30), st.binary(max_size=30), NONCES)
def test_a_bundle_is_read_back_as_it_was(
    quote: bytes, log: bytes, endorsements: bytes, nonces: list[bytes]
) -> None:
    evidence = bundle(nonces, 0, event_log=log, endorsements=endorsements, quote=quote)
    assert parse_bundle(encode_bundle(evidence)) == evidence


def test_a_bundle_is_the_specified_json() -> None:
    vectors = spec_vectors("evidence.md")
    text = json.dumps(vectors, sort_keys=True, separators=(",", ":")).encode()
    evidence = parse_bundle(text)
    assert encode_bundle(evidence) == text
    assert evidence.tee == "tdx"
    older = {
        name: value for name, value in vectors.items() if name not in ("firmware_log", "device_endorsements")
    }
    assert parse_bundle(json.dumps(older).encode()) == evidence


BUNDLES = {
    "empty": b"",
    "another-format": b'"format":"cloister/evidence/v2"',
    "another-tee": b'"tee":"sev"',
    "unknown-field": b'"verified":true',
    "quote-as-number": b'"quote":1',
}


@pytest.mark.parametrize("case", BUNDLES)
def test_another_bundle_is_refused(case: str) -> None:
    honest = json.loads(encode_bundle(bundle([bytes(32)], 0)))
    document = (
        b"" if case == "empty" else json.dumps({**honest, **json.loads(b"{" + BUNDLES[case] + b"}")}).encode()
    )
    with pytest.raises(FormatError, match="evidence bundle"):
        parse_bundle(document)
    with pytest.raises(FormatError, match="over its bound"):
        parse_bundle(b" " * (MAX_BUNDLE + 1))


def test_key_material_is_the_specified_json() -> None:
    vectors = spec_vectors("key-material.md")
    text = json.dumps(vectors, sort_keys=True, separators=(",", ":")).encode()
    material = parse_key_material(text)
    assert encode_key_material(material) == text
    assert material.not_after == vectors["not_after"]


@pytest.mark.parametrize(
    "change",
    [
        {"ohttp_keys": ""},
        {"replica": ""},
        {"replica": "r" * 129},
        {"not_after": "1"},
        {"extra": 1},
        {"tls_spki_sha256": "AB"},
        {"format": "x"},
    ],
    ids=[
        "no-key",
        "no-replica",
        "long-replica",
        "time-as-text",
        "unknown-field",
        "bad-tls-digest",
        "another-format",
    ],
)
def test_other_key_material_is_refused(change: dict[str, object]) -> None:
    honest = json.loads(encode_key_material(KeyMaterial(ohttp_keys=b"k", not_after=1, replica="r")))
    with pytest.raises(FormatError, match="key material"):
        parse_key_material(json.dumps({**honest, **change}).encode())


@given(st.binary(max_size=200))
def test_arbitrary_bytes_raise_only_our_error(data: bytes) -> None:
    for parse in (parse_bundle, parse_key_material):
        with pytest.raises(FormatError):
            parse(data)
