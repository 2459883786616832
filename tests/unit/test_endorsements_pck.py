"""PCK certificates: the platform's identity is read strictly, from real ones and from altered ones."""

from __future__ import annotations

import hashlib
from functools import cache

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import NameOID
from hypothesis import given
from hypothesis import strategies as st

import simulated_evidence as attacks
from cloister.attester.simulation.chain import draw_key
from cloister.attester.simulation.sgx_extension import sgx_extension
from cloister.endorsements.pck import MAX_CERTIFICATE, SGX_EXTENSION, read_pck
from cloister.errors import EndorsementError
from cloister.evidence.quote import parse_quote
from intel_vectors import at, quote

HARDWARE = attacks.platform().hardware
EXTENSION = sgx_extension(HARDWARE)

REAL = {
    # captured quote: (fmspc, ppid, ca)
    "phala-dcap-qvl/sgx_quote": ("00a067110000", "d04ec06d4e6d92dc90d0ad3cf5ee2ddf", "processor"),
    "phala-dcap-qvl/tdx_quote": ("b0c06f000000", "811dca2a26b952e85bb6448b097ba4fd", "platform"),
    "phala-dcap-qvl/quote_hex.txt": ("20a06f000000", "354e2a1c79c98e81723eab4b78b990a7", "platform"),
    "coco-trustee/occlum_quote.dat": ("00606a000000", "b9c92eb5053cb158956f4e68b6d82f52", "platform"),
    "google-go-tdx-guest/without-extra-bytes": (
        "50806f000000",
        "089ddfdb9c0359c82a3bc7719239574e",
        "platform",
    ),
    "dstack/quote-report.json": ("90c06f000000", "897d3eb76ea887b783f9ad3d0771034b", "platform"),
}


@pytest.mark.parametrize("name", REAL)
def test_a_real_pck_certificate_names_its_platform(name: str) -> None:
    der = parse_quote(quote(name)).signature.certificates[0]
    identity = read_pck(der)
    assert (identity.fmspc, identity.ppid, identity.ca) == REAL[name]
    assert identity.pce_id == "0000"
    spki = x509.load_der_x509_certificate(der).public_key()
    encoded = spki.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    assert identity.spki_sha256 == hashlib.sha256(encoded).hexdigest()


def test_a_simulated_pck_certificate_is_read_alike() -> None:
    identity = read_pck(attacks.platform().chain.pck.der)
    assert identity.ppid == HARDWARE.ppid.hex()
    assert identity.fmspc == HARDWARE.fmspc.hex()
    assert identity.ca == "platform"


@cache
def certificate(extension: bytes | None, issuer: str = "Intel SGX PCK Platform CA") -> bytes:
    key = draw_key(attacks.seeded("pck"))
    names = [x509.NameAttribute(NameOID.COMMON_NAME, part) for part in issuer.split("|")]
    builder = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Intel SGX PCK Certificate")]))
        .issuer_name(x509.Name(names))
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(_utc("2025-01-01"))
        .not_valid_after(_utc("2032-01-01"))
    )
    if extension is not None:
        builder = builder.add_extension(x509.UnrecognizedExtension(SGX_EXTENSION, extension), critical=False)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    return builder.sign(key, hashes.SHA256()).public_bytes(Encoding.DER)


def _utc(day: str) -> object:
    from datetime import UTC, datetime

    return datetime.fromtimestamp(at(day), UTC)


def value(tag: int, content: bytes) -> bytes:
    """DER with the shortest length."""
    size = len(content)
    if size < 0x80:
        head = bytes([size])
    elif size < 0x100:
        head = bytes([0x81, size])
    else:
        head = b"\x82" + size.to_bytes(2, "big")
    return bytes([tag]) + head + content


def field(number: int, content: bytes, tag: int = 0x04) -> bytes:
    return value(
        0x30, value(0x06, bytes.fromhex("2a864886f84d010d01") + bytes([number])) + value(tag, content)
    )


PPID, PCE, FMSPC = field(1, bytes(16)), field(3, bytes(2)), field(4, bytes(6))

EXTENSIONS = {
    # name: (extension, part of the text)
    "empty": (b"", "another structure"),
    "no-fields": (value(0x30, b""), "no ppid"),
    "no-fmspc": (value(0x30, PPID + PCE), "no fmspc"),
    "fmspc-twice": (value(0x30, PPID + PCE + FMSPC + FMSPC), "a field twice"),
    "ppid-short": (value(0x30, field(1, bytes(15)) + PCE + FMSPC), "ppid is not 16 bytes"),
    "ppid-long": (value(0x30, field(1, bytes(17)) + PCE + FMSPC), "ppid is not 16 bytes"),
    "ppid-an-integer": (value(0x30, field(1, bytes(16), 0x02) + PCE + FMSPC), "ppid is not 16 bytes"),
    "two-values": (value(0x30, PPID + PCE + FMSPC) * 2, "another structure"),
    "a-set": (value(0x31, PPID + PCE + FMSPC), "another structure"),
    "a-field-of-one-part": (value(0x30, value(0x30, value(0x06, b"\x2a"))), "not an identifier"),
    "an-identifier-of-another-type": (
        value(0x30, value(0x30, value(0x04, b"\x2a") + value(0x04, b""))),
        "not an identifier",
    ),
    "bytes-behind": (value(0x30, PPID + PCE + FMSPC) + b"\0", "not DER"),
    "a-long-form-of-a-short-length": (
        b"\x30\x82\x00" + value(0x30, PPID + PCE + FMSPC)[1:],
        "not DER",
    ),
    "indefinite-length": (b"\x30\x80" + PPID + PCE + FMSPC + b"\0\0", "not DER"),
    "a-length-of-three-bytes": (b"\x30\x83\x00\x00\x40" + bytes(64), "not DER"),
    "a-high-tag": (b"\x3f\x81\x01\x00", "not DER"),
    "over-its-end": (value(0x30, PPID + PCE + FMSPC)[:-1], "not DER"),
    "too-many-fields": (value(0x30, b"".join(field(n, b"") for n in range(10, 60))), "not DER"),
}


@pytest.mark.parametrize("case", EXTENSIONS)
def test_an_extension_of_another_form_is_refused(case: str) -> None:
    assert read_pck(certificate(value(0x30, PPID + PCE + FMSPC + field(9, b"new")))).fmspc == "00" * 6
    extension, text = EXTENSIONS[case]
    with pytest.raises(EndorsementError, match=text):
        read_pck(certificate(extension))


CERTIFICATES = {
    "empty": (b"", "cannot be read"),
    "not-der": (b"certificate", "cannot be read"),
    "too-large": (bytes(MAX_CERTIFICATE + 1), "over its bound"),
    "another-issuer": (certificate(EXTENSION, "Intel SGX Root CA"), "none of Intel's PCK authorities"),
    "two-issuers": (
        certificate(EXTENSION, "Intel SGX PCK Platform CA|Intel SGX PCK Processor CA"),
        "none of Intel's PCK authorities",
    ),
    "no-extension": (certificate(None), "no SGX extension"),
    "a-ca": (attacks.platform().chain.pck_ca.der, "no SGX extension"),
}


@pytest.mark.parametrize("case", CERTIFICATES)
def test_another_certificate_is_refused(case: str) -> None:
    der, text = CERTIFICATES[case]
    with pytest.raises(EndorsementError, match=text):
        read_pck(der)


def test_the_processor_authority_is_told_apart() -> None:
    assert read_pck(certificate(EXTENSION, "Intel SGX PCK Processor CA")).ca == "processor"


@given(st.integers(min_value=0, max_value=1 << 13), st.integers(min_value=0, max_value=7))
def test_a_flipped_bit_raises_only_our_error(place: int, bit: int) -> None:
    der = bytearray(attacks.platform().chain.pck.der)
    der[place % len(der)] ^= 1 << bit
    try:
        read_pck(bytes(der))
    except EndorsementError:
        return


@given(st.binary(max_size=256))
def test_arbitrary_extensions_raise_only_our_error(extension: bytes) -> None:
    try:
        read_pck(certificate.__wrapped__(extension))
    except EndorsementError:
        return
