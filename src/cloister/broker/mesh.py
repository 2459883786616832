"""The mesh's certificates: a root for each application, an intermediate for each manifest, short-lived leaves. Pure.

Of a certificate request only the public key is taken: names come from the manifest, and a request that asks for other
ones is refused. Peers believe the intermediate of the manifest in force alone (mesh_peer.py), so a new manifest ends
what the one before certified, without revocation lists. Format: docs/spec/mesh.md.
"""

from __future__ import annotations

import datetime
import hashlib
from dataclasses import dataclass, field
from typing import Any, Final, Literal, Self

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA384
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_der_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from cloister.broker.mesh_request import dns_name, requested_key, uri_name
from cloister.encoding import Record, decode_json, encode_json
from cloister.errors import BrokerError, FormatError, KeystoreError

BUNDLE_FORMAT: Final = "cloister/mesh-bundle/v1"
STORED_FORMAT: Final = "cloister/mesh-authority/v1"
EVIDENCE_OID: Final = x509.ObjectIdentifier("2.25.264797447231618601764485628909380830866")
"""Non-critical extension of a leaf: SHA-256 of the evidence it was issued on, an OCTET STRING. The arc is a UUID."""
MANIFEST_OID: Final = x509.ObjectIdentifier("2.25.301696902163666200963278971925686094858")
"""Non-critical extension of an intermediate: the manifest's digest, an OCTET STRING."""
ROOT_DAYS: Final = 3650
MAX_LIFETIME: Final = 24 * 3600
SKEW: Final = 60
"""Seconds that a leaf is valid before it was made: clocks of peers differ."""
MAX_BUNDLE: Final = 64 * 1024
MAX_INTERMEDIATES: Final = 4


class _Stored(Record, frozen=True, kw_only=True):
    format: Literal["cloister/mesh-authority/v1"] = STORED_FORMAT
    certificate: bytes
    key: bytes


class TrustBundle(Record, frozen=True, kw_only=True):
    """What peers believe: the intermediates (DER) of the manifest in force. The root signs those, and anchors no leaf."""

    format: Literal["cloister/mesh-bundle/v1"] = BUNDLE_FORMAT
    application: str
    manifest_version: int
    root: bytes
    intermediates: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class MeshRoot:
    """The root of one application's mesh. ``certificate`` is DER."""

    certificate: bytes
    _key: ec.EllipticCurvePrivateKey = field(repr=False)

    @classmethod
    def create(cls, *, application: str, now: int) -> Self:
        """A fresh root (P-384), for ten years."""
        key = ec.generate_private_key(ec.SECP384R1())
        name = mesh_name(application, "mesh root")
        certificate = (
            _builder(name, name, key.public_key(), now - SKEW, ROOT_DAYS * 86400)
            .add_extension(x509.BasicConstraints(ca=True, path_length=1), critical=True)
            .add_extension(_key_usage(ca=True), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .sign(key, SHA384())
        )
        return cls(certificate.public_bytes(Encoding.DER), key)

    @classmethod
    def load(cls, data: bytes) -> Self:
        """Undo :meth:`dump`. Raises :class:`KeystoreError`."""
        return cls(*_load(data))

    def dump(self) -> bytes:
        """Certificate and private key: the caller seals this."""
        return _dump(self.certificate, self._key)

    def sign(self, builder: x509.CertificateBuilder) -> bytes:
        """An intermediate's certificate, DER."""
        return builder.sign(self._key, SHA384()).public_bytes(Encoding.DER)


@dataclass(frozen=True, slots=True)
class MeshGeneration:
    """The intermediate of one manifest. ``certificate`` is DER."""

    certificate: bytes
    _key: ec.EllipticCurvePrivateKey = field(repr=False)

    @classmethod
    def create(cls, root: MeshRoot, *, manifest_version: int, manifest_digest: str, now: int) -> Self:
        """A fresh intermediate (P-384), as long as the root lives. Raises :class:`BrokerError` once it has ended."""
        issuer = x509.load_der_x509_certificate(root.certificate)
        key = ec.generate_private_key(ec.SECP384R1())
        application = issuer.subject.get_attributes_for_oid(NameOID.ORGANIZATION_NAME)[0].value
        subject = mesh_name(str(application), f"mesh of manifest {manifest_version}")
        start = now - SKEW
        left = int(issuer.not_valid_after_utc.timestamp()) - start
        if left <= MAX_LIFETIME:
            raise BrokerError(
                "the mesh's root has ended", todo="begin a new state, and give every peer its root"
            )
        builder = (
            _builder(subject, issuer.subject, key.public_key(), start, left)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_key_usage(ca=True), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .add_extension(_authority(issuer), critical=False)
            .add_extension(
                x509.UnrecognizedExtension(MANIFEST_OID, digest_extension(bytes.fromhex(manifest_digest))),
                critical=False,
            )
        )
        return cls(root.sign(builder), key)

    @classmethod
    def load(cls, data: bytes) -> Self:
        """Undo :meth:`dump`. Raises :class:`KeystoreError`."""
        return cls(*_load(data))

    def dump(self) -> bytes:
        """Certificate and private key: the caller seals this."""
        return _dump(self.certificate, self._key)

    def sign(self, builder: x509.CertificateBuilder) -> bytes:
        """A leaf's certificate, DER."""
        return builder.sign(self._key, SHA384()).public_bytes(Encoding.DER)


def issue(
    generation: MeshGeneration,
    csr: bytes,
    *,
    workload: str,
    application: str,
    evidence_sha256: bytes,
    now: int,
    lifetime: int,
) -> bytes:
    """A leaf (DER) for the public key of ``csr`` (PKCS #10, DER). Raises :class:`CsrRefused`."""
    if not 60 <= lifetime <= MAX_LIFETIME or len(evidence_sha256) != hashlib.sha256().digest_size:
        raise BrokerError(f"a mesh certificate lives 60 to {MAX_LIFETIME} seconds, and names its evidence")
    public_key = requested_key(csr, workload=workload, application=application)
    issuer = x509.load_der_x509_certificate(generation.certificate)
    names = x509.SubjectAlternativeName(
        [
            x509.DNSName(dns_name(workload, application)),
            x509.UniformResourceIdentifier(uri_name(workload, application)),
        ]
    )
    purposes = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
    builder = (
        _builder(mesh_name(application, workload), issuer.subject, public_key, now - SKEW, lifetime + SKEW)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(ca=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage(purposes), critical=False)
        .add_extension(names, critical=False)
        .add_extension(_authority(issuer), critical=False)
        .add_extension(
            x509.UnrecognizedExtension(EVIDENCE_OID, digest_extension(evidence_sha256)), critical=False
        )
    )
    return generation.sign(builder)


def parse_bundle(data: bytes) -> TrustBundle:
    """A trust bundle. Raises :class:`FormatError`."""
    bundle = decode_json(data, TrustBundle, what="mesh bundle", limit=MAX_BUNDLE)
    if not 1 <= len(bundle.intermediates) <= MAX_INTERMEDIATES or encode_json(bundle) != data:
        raise FormatError(f"a mesh bundle has one to {MAX_INTERMEDIATES} intermediates, in canonical JSON")
    if bundle.manifest_version < 1 or not 1 <= len(bundle.application) <= 64:
        raise FormatError("a mesh bundle names an application and the version of its manifest")
    return bundle


def encode_bundle(bundle: TrustBundle) -> bytes:
    """Its canonical bytes."""
    return encode_json(bundle)


def _builder(
    subject: x509.Name, issuer: x509.Name, key: Any, start: int, seconds: int
) -> x509.CertificateBuilder:
    begin = datetime.datetime.fromtimestamp(start, datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(begin)
        .not_valid_after(begin + datetime.timedelta(seconds=seconds))
    )


def digest_extension(digest: bytes) -> bytes:
    """A SHA-256 as the content of an extension: an OCTET STRING, DER."""
    return b"\x04\x20" + digest


def mesh_name(application: str, what: str) -> x509.Name:
    """The distinguished name of ``what`` in the mesh of ``application``."""
    return x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, application),
            x509.NameAttribute(NameOID.COMMON_NAME, what),
        ]
    )


def _key_usage(*, ca: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not ca,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=ca,
        crl_sign=ca,
        encipher_only=False,
        decipher_only=False,
    )


def _authority(issuer: x509.Certificate) -> x509.AuthorityKeyIdentifier:
    identifier = issuer.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    return x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(identifier)


def _dump(certificate: bytes, key: ec.EllipticCurvePrivateKey) -> bytes:
    private = key.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption())
    return encode_json(_Stored(certificate=certificate, key=private))


def _load(data: bytes) -> tuple[bytes, ec.EllipticCurvePrivateKey]:
    try:
        stored = decode_json(data, _Stored, what="mesh authority")
        key = load_der_private_key(stored.key, None)
    except (FormatError, ValueError):
        raise KeystoreError(
            "the mesh's authority in the state is malformed", todo="restore a backup"
        ) from None
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise KeystoreError("the mesh's authority in the state is of another kind", todo="restore a backup")
    return stored.certificate, key
