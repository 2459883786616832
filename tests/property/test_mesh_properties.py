"""Mesh certificates, requests and bundles under flipped bits, cuts and random bytes: refused by our own errors alone."""

from __future__ import annotations

import string

import pytest
from cryptography import x509
from hypothesis import given
from hypothesis import strategies as st

import mesh_parts as mesh
from cloister.broker.mesh import encode_bundle, issue, parse_bundle
from cloister.broker.mesh_peer import MeshRefused, verify_bundle, verify_peer
from cloister.broker.mesh_request import CsrRefused, dns_name, make_request
from cloister.errors import CloisterError
from mesh_parts import APPLICATION, EVIDENCE, NOW

KEY = mesh.new_key()
CSR = make_request(KEY, workload="scorer", application=APPLICATION)
LEAF = mesh.member().chain[0]
BUNDLE = encode_bundle(mesh.bundle())
labels = st.text(string.ascii_lowercase + string.digits + "-_", min_size=1, max_size=20)
names = st.lists(labels, min_size=1, max_size=3).map(".".join)


def certified(csr: bytes, workload: str = "scorer") -> bytes:
    return issue(
        mesh.generation(), csr, workload=workload, application=APPLICATION,
        evidence_sha256=EVIDENCE, now=NOW, lifetime=3600,
    )  # fmt: skip


def flipped(data: bytes, at: int) -> bytes:
    altered = bytearray(data)
    altered[at // 8] ^= 1 << at % 8
    return bytes(altered)


@given(at=st.integers(0, len(LEAF) * 8 - 1))
def test_any_flipped_bit_of_a_certificate_is_refused(at: int) -> None:
    with pytest.raises(MeshRefused):
        verify_peer((flipped(LEAF, at),), bundle=mesh.bundle(), now=NOW)


@given(length=st.integers(0, len(LEAF) - 1), tail=st.binary(min_size=1, max_size=9))
def test_any_prefix_of_a_certificate_and_any_tail_is_refused(length: int, tail: bytes) -> None:
    for wrong in (LEAF[:length], LEAF + tail):
        with pytest.raises(MeshRefused):
            verify_peer((wrong,), bundle=mesh.bundle(), now=NOW)


@given(at=st.integers(0, len(CSR) * 8 - 1))
def test_any_flipped_bit_of_a_request_is_refused(at: int) -> None:
    with pytest.raises(CsrRefused):
        certified(flipped(CSR, at))


@given(data=st.binary(max_size=300))
def test_random_bytes_get_no_certificate(data: bytes) -> None:
    with pytest.raises(CsrRefused):
        certified(data)


@given(at=st.integers(0, len(BUNDLE) * 8 - 1))
def test_any_flipped_bit_of_a_bundle_is_refused(at: int) -> None:
    with pytest.raises(CloisterError):
        verify_bundle(parse_bundle(flipped(BUNDLE, at)), root_sha256=mesh.root_sha256(), now=NOW)


@given(workload=names, other=names)
def test_a_workload_gets_its_own_name_and_no_other(workload: str, other: str) -> None:
    leaf = certified(make_request(KEY, workload=workload, application=APPLICATION), workload)
    assert verify_peer((leaf,), bundle=mesh.bundle(), now=NOW, workload=workload).workload == workload
    shown = x509.load_der_x509_certificate(leaf).extensions.get_extension_for_class(
        x509.SubjectAlternativeName
    )
    assert shown.value.get_values_for_type(x509.DNSName) == [dns_name(workload, APPLICATION)]
    if other != workload:
        with pytest.raises(MeshRefused):
            verify_peer((leaf,), bundle=mesh.bundle(), now=NOW, workload=other)
        with pytest.raises(CsrRefused):
            certified(make_request(KEY, workload=other, application=APPLICATION), workload)


@given(text=st.text(max_size=80))
def test_whatever_a_workload_is_called_its_name_is_one_that_dns_can_say_or_none(text: str) -> None:
    try:
        name = dns_name(text, APPLICATION)
    except CsrRefused:
        return
    assert name == name.lower()
    assert all(0 < len(label) < 64 for label in name.split("."))
    assert len(name) < 254
