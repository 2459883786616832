"""Trust roots: the shipped one is what its name says, and no other certificate passes for it."""

from __future__ import annotations

import hashlib
from importlib import resources

import pytest

from cloister.endorsements.roots import (
    INTEL_ROOT,
    INTEL_SGX_ROOT_SHA256,
    simulated_root,
    vendor_certificate,
)
from cloister.errors import VerificationError


def test_the_shipped_root_has_its_digest_and_its_origin_is_written_down() -> None:
    assert (
        hashlib.sha256(vendor_certificate(INTEL_ROOT)).hexdigest()
        == INTEL_SGX_ROOT_SHA256
        == INTEL_ROOT.sha256
    )
    origin = resources.files("cloister.endorsements").joinpath("vendors/README.md").read_text()
    assert INTEL_SGX_ROOT_SHA256 in origin


def test_the_shipped_root_signed_itself_and_names_intel() -> None:
    from cryptography import x509

    certificate = x509.load_der_x509_certificate(vendor_certificate(INTEL_ROOT))
    certificate.verify_directly_issued_by(certificate)
    names = {attribute.rfc4514_string() for attribute in certificate.subject}
    assert {"CN=Intel SGX Root CA", "O=Intel Corporation"} <= names


def test_only_the_named_certificate_is_a_root() -> None:
    der = vendor_certificate(INTEL_ROOT)
    assert INTEL_ROOT.require(der) == der
    for other in (b"", der[:-1], der + b"\0", bytes([der[0] ^ 1]) + der[1:]):
        with pytest.raises(VerificationError, match="not in Intel SGX Root CA"):
            INTEL_ROOT.require(other)
    mine = simulated_root(hashlib.sha256(b"mine").hexdigest())
    assert (mine.simulated, INTEL_ROOT.simulated) == (True, False)
    assert mine.require(b"mine") == b"mine"
    with pytest.raises(VerificationError, match="not in simulated root"):
        mine.require(der)
