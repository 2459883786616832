"""The simulated vendor's certificates: root CA → PCK CA → PCK certificate, root CA → TCB signing, and CRLs.

Names are shaped like Intel's (a verifier tells platform from processor CA by them) and say that they are
simulated. Keys are P-256; signatures are deterministic (RFC 6979), so equal inputs give equal certificates.
Refuses nothing: what a chain proves is the verifier's to say.
"""

from __future__ import annotations

import datetime
from collections.abc import Collection
from dataclasses import dataclass
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, utils
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import NameOID

from cloister.attester.simulation.hardware import Entropy, Hardware
from cloister.attester.simulation.sgx_extension import SGX_EXTENSION, sgx_extension

DAY: Final = 86_400
CA_DAYS: Final = 30 * 365
LEAF_DAYS: Final = 7 * 365
_ECDSA: Final = ec.ECDSA(hashes.SHA256(), deterministic_signing=True)
_P256_ORDER: Final = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551


@dataclass(frozen=True, slots=True)
class Window:
    """From when to when something signed holds; Unix seconds."""

    issued: int
    next_update: int


@dataclass(frozen=True, slots=True)
class Signer:
    """A certificate with its private key. The key never shows in ``repr``."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey

    def __repr__(self) -> str:
        return f"Signer({self.certificate.subject.rfc4514_string()})"

    @property
    def pem(self) -> str:
        """The certificate in PEM."""
        return self.certificate.public_bytes(Encoding.PEM).decode("ascii")

    @property
    def der(self) -> bytes:
        """The certificate in DER."""
        return self.certificate.public_bytes(Encoding.DER)


@dataclass(frozen=True, slots=True)
class Chain:
    """The four certificates of one simulated vendor and one simulated processor."""

    root: Signer
    pck_ca: Signer
    tcb_signing: Signer
    pck: Signer

    @property
    def pck_pem(self) -> bytes:
        """PCK certificate, PCK CA, root: the chain that travels in a quote (certification data type 5)."""
        return (self.pck.pem + self.pck_ca.pem + self.root.pem).encode("ascii")


def draw_key(entropy: Entropy) -> ec.EllipticCurvePrivateKey:
    """A P-256 private key from 48 random bytes (FIPS 186-5, A.2.1: extra bits, so the bias is negligible)."""
    scalar = int.from_bytes(entropy(48), "big") % (_P256_ORDER - 1) + 1
    return ec.derive_private_key(scalar, ec.SECP256R1())


def public_point(key: ec.EllipticCurvePrivateKey) -> bytes:
    """x ‖ y of the public key, 64 bytes, as quotes carry it."""
    return key.public_key().public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)[1:]


def sign_raw(key: ec.EllipticCurvePrivateKey, data: bytes) -> bytes:
    """ECDSA-SHA256 as r ‖ s, 32 bytes each and big-endian: the form of quotes and of signed collateral."""
    r, s = utils.decode_dss_signature(key.sign(data, _ECDSA))
    return r.to_bytes(32, "big") + s.to_bytes(32, "big")


def issue_root(entropy: Entropy, issued: int) -> Signer:
    """A self-signed root, valid for thirty years from ``issued``."""
    key = draw_key(entropy)
    name = _name("SGX Root CA")
    builder = _builder(entropy, name, name, key.public_key(), issued, CA_DAYS)
    return Signer(_sign(_authority(builder, key.public_key(), path_length=1), key, key.public_key()), key)


def issue_pck_ca(entropy: Entropy, root: Signer, issued: int) -> Signer:
    """The CA of processors, under ``root``."""
    key = draw_key(entropy)
    builder = _builder(
        entropy, _name("SGX PCK Platform CA"), root.certificate.subject, key.public_key(), issued, CA_DAYS
    )
    builder = _authority(builder, key.public_key(), path_length=0)
    return Signer(_sign(builder, root.key, root.key.public_key()), key)


def issue_tcb_signing(entropy: Entropy, root: Signer, issued: int) -> Signer:
    """Who signs TCB info and QE identity, under ``root``."""
    key = draw_key(entropy)
    builder = _builder(
        entropy, _name("SGX TCB Signing"), root.certificate.subject, key.public_key(), issued, LEAF_DAYS
    )
    return Signer(_sign(_leaf(builder, key.public_key()), root.key, root.key.public_key()), key)


def issue_pck(entropy: Entropy, pck_ca: Signer, hardware: Hardware, issued: int) -> Signer:
    """The certificate of one processor, with the SGX extensions that state ``hardware``."""
    key = draw_key(entropy)
    builder = _builder(
        entropy,
        _name("SGX PCK Certificate"),
        pck_ca.certificate.subject,
        key.public_key(),
        issued,
        LEAF_DAYS,
    )
    builder = _leaf(builder, key.public_key()).add_extension(
        x509.UnrecognizedExtension(SGX_EXTENSION, sgx_extension(hardware)), critical=False
    )
    return Signer(_sign(builder, pck_ca.key, pck_ca.key.public_key()), key)


def issue_chain(entropy: Entropy, hardware: Hardware, issued: int) -> Chain:
    """A whole new vendor with one processor."""
    root = issue_root(entropy, issued)
    pck_ca = issue_pck_ca(entropy, root, issued)
    tcb_signing = issue_tcb_signing(entropy, root, issued)
    return Chain(root, pck_ca, tcb_signing, issue_pck(entropy, pck_ca, hardware, issued))


def issue_crl(authority: Signer, window: Window, revoked: Collection[int] = ()) -> bytes:
    """A DER revocation list of ``authority`` over the serial numbers ``revoked``."""
    builder = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(authority.certificate.subject)
        .last_update(_utc(window.issued))
        .next_update(_utc(window.next_update))
        .add_extension(x509.CRLNumber(window.issued // DAY), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(authority.key.public_key()), critical=False
        )
    )
    for serial in sorted(revoked):
        builder = builder.add_revoked_certificate(
            x509.RevokedCertificateBuilder()
            .serial_number(serial)
            .revocation_date(_utc(window.issued))
            .add_extension(x509.CRLReason(x509.ReasonFlags.key_compromise), critical=False)
            .build()
        )
    crl = builder.sign(authority.key, hashes.SHA256(), ecdsa_deterministic=True)
    return crl.public_bytes(Encoding.DER)


def _name(common: str) -> x509.Name:
    return x509.Name(
        [
            x509.NameAttribute(NameOID.COMMON_NAME, f"Cloister SIMULATED {common}"),
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Cloister simulated TEE, nothing is protected"),
        ]
    )


def _utc(seconds: int) -> datetime.datetime:
    return datetime.datetime.fromtimestamp(seconds, datetime.UTC)


def _builder(
    entropy: Entropy,
    subject: x509.Name,
    issuer: x509.Name,
    public_key: ec.EllipticCurvePublicKey,
    issued: int,
    days: int,
) -> x509.CertificateBuilder:
    # RFC 5280, 4.1.2.2: positive and at most 20 bytes; the top bits are fixed so that it is both.
    serial = int.from_bytes(b"\x40" + entropy(19), "big")
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public_key)
        .serial_number(serial)
        .not_valid_before(_utc(issued))
        .not_valid_after(_utc(issued + days * DAY))
    )


def _authority(
    builder: x509.CertificateBuilder, public_key: ec.EllipticCurvePublicKey, *, path_length: int
) -> x509.CertificateBuilder:
    return (
        builder.add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False)
        .add_extension(_key_usage(authority=True), critical=True)
        .add_extension(x509.BasicConstraints(ca=True, path_length=path_length), critical=True)
    )


def _leaf(builder: x509.CertificateBuilder, public_key: ec.EllipticCurvePublicKey) -> x509.CertificateBuilder:
    return (
        builder.add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False)
        .add_extension(_key_usage(authority=False), critical=True)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
    )


def _key_usage(*, authority: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not authority,
        content_commitment=not authority,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=authority,
        crl_sign=authority,
        encipher_only=False,
        decipher_only=False,
    )


def _sign(
    builder: x509.CertificateBuilder, key: ec.EllipticCurvePrivateKey, issuer: ec.EllipticCurvePublicKey
) -> x509.Certificate:
    builder = builder.add_extension(
        x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer), critical=False
    )
    return builder.sign(key, hashes.SHA256(), ecdsa_deterministic=True)
