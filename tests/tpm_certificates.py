"""Certificates of TPM vendors and enrolments made by hand, and what a TPM does with a credential, in software."""

from __future__ import annotations

import datetime
import hashlib
import hmac
from collections.abc import Collection
from dataclasses import dataclass

from cryptography import x509
from cryptography.hazmat.decrepit.ciphers.modes import CFB
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from cloister.endorsements.tpm import EK_CERTIFICATE_USAGE
from cloister.verifier.credential import Credential
from handmade_tpm import NOW, Key, ec_key

DAY = 86_400


@dataclass(frozen=True)
class Authority:
    """A CA with its key."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey

    @property
    def der(self) -> bytes:
        return self.certificate.public_bytes(Encoding.DER)

    def list(self, revoked: Collection[int] = (), *, start: int = NOW - DAY, end: int = NOW + DAY) -> bytes:
        builder = (
            x509.CertificateRevocationListBuilder()
            .issuer_name(self.certificate.subject)
            .last_update(utc(start))
            .next_update(utc(end))
        )
        for serial in revoked:
            entry = x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(utc(start))
            builder = builder.add_revoked_certificate(entry.build())
        return builder.sign(self.key, hashes.SHA256()).public_bytes(Encoding.DER)


def utc(seconds: int) -> datetime.datetime:
    return datetime.datetime.fromtimestamp(seconds, datetime.UTC)


def authority(
    name: str,
    issuer: Authority | None = None,
    *,
    ca: bool = True,
    path_length: int | None = None,
    start: int = NOW - DAY,
    end: int = NOW + 1000 * DAY,
    may_sign: bool = True,
    critical: x509.ObjectIdentifier | None = None,
) -> Authority:
    key = ec_key(name)
    builder = _builder(name, issuer.certificate.subject if issuer else None, key, start, end)
    builder = builder.add_extension(x509.BasicConstraints(ca, path_length if ca else None), critical=True)
    builder = builder.add_extension(usage(sign=may_sign), critical=True)
    if critical is not None:
        builder = builder.add_extension(x509.UnrecognizedExtension(critical, b"\x05\x00"), critical=True)
    signer = issuer.key if issuer else key
    return Authority(builder.sign(signer, hashes.SHA256()), key)


def leaf(
    key: Key,
    issuer: Authority,
    *,
    purpose: str | None = EK_CERTIFICATE_USAGE,
    start: int = NOW - DAY,
    end: int = NOW + 1000 * DAY,
    critical: x509.ObjectIdentifier | None = None,
    extension: tuple[str, bytes] | None = None,
    name: str = "",
) -> bytes:
    """A key's certificate (DER); by default an endorsement key's."""
    builder = _builder(name, issuer.certificate.subject, key, start, end)
    builder = builder.add_extension(x509.BasicConstraints(False, None), critical=True)
    if purpose is not None:
        builder = builder.add_extension(
            x509.ExtendedKeyUsage([x509.ObjectIdentifier(purpose)]), critical=False
        )
    if critical is not None:
        builder = builder.add_extension(x509.UnrecognizedExtension(critical, b"\x05\x00"), critical=True)
    if extension is not None:
        oid, value = extension
        builder = builder.add_extension(
            x509.UnrecognizedExtension(x509.ObjectIdentifier(oid), value), critical=False
        )
    return builder.sign(issuer.key, hashes.SHA256()).public_bytes(Encoding.DER)


def usage(*, sign: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not sign,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=sign,
        crl_sign=sign,
        encipher_only=False,
        decipher_only=False,
    )


def serial(der: bytes) -> int:
    return x509.load_der_x509_certificate(der).serial_number


def open_credential(ek: Key, credential: Credential, name: bytes) -> bytes:
    """What a TPM does in TPM2_ActivateCredential, written down once more from Part 1, section 24.

    Asserts what a TPM refuses.
    """
    high = ek.key_size == 384 if isinstance(ek, ec.EllipticCurvePrivateKey) else ek.key_size > 2048
    algorithm, bits = (hashes.SHA384(), 256) if high else (hashes.SHA256(), 128)
    if isinstance(ek, rsa.RSAPrivateKey):
        seed = ek.decrypt(
            credential.encrypted_secret, padding.OAEP(padding.MGF1(algorithm), algorithm, label=b"IDENTITY\0")
        )
    else:
        size = ek.key_size // 8
        secret = credential.encrypted_secret
        x, y = secret[2 : 2 + size], secret[4 + size :]
        point = ec.EllipticCurvePublicNumbers(
            int.from_bytes(x, "big"), int.from_bytes(y, "big"), ek.curve
        ).public_key()
        own = ek.public_key().public_numbers().x.to_bytes(size, "big")
        z = ek.exchange(ec.ECDH(), point)
        seed = hashlib.new(algorithm.name, b"\0\0\0\1" + z + b"IDENTITY\0" + x + own).digest()
    blob = credential.credential_blob
    digest = algorithm.digest_size
    assert blob[:2] == digest.to_bytes(2, "big")
    outer, encrypted = blob[2 : 2 + digest], blob[2 + digest :]
    integrity = _derive(algorithm.name, seed, b"INTEGRITY\0", b"", digest * 8)
    assert hmac.compare_digest(outer, hmac.digest(integrity, encrypted + name, algorithm.name)), "integrity"
    cipher = Cipher(AES(_derive(algorithm.name, seed, b"STORAGE\0", name, bits)), CFB(bytes(16))).decryptor()
    identity = cipher.update(encrypted) + cipher.finalize()
    assert len(identity) == 2 + int.from_bytes(identity[:2], "big")
    return identity[2:]


def _derive(algorithm: str, key: bytes, label: bytes, context: bytes, bits: int) -> bytes:
    block = b"\0\0\0\1" + label + context + bits.to_bytes(4, "big")
    return hmac.digest(key, block, algorithm)[: bits // 8]


def _builder(name: str, issuer: x509.Name | None, key: Key, start: int, end: int) -> x509.CertificateBuilder:
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)] if name else [])
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject if issuer is None else issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(utc(start))
        .not_valid_after(utc(end))
    )
