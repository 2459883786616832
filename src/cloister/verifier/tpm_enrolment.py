"""Enrolment of a TPM's attestation key: prove that it lives in a genuine TPM, then certify it.

An endorsement key decrypts and cannot sign; an attestation key signs and has no certificate. So a secret is encrypted
to the endorsement key and to the *name* of the attestation key (TPM2_MakeCredential, done here in software: TPM 2.0
Library, Part 1, section 24): only the TPM that holds both gives it back, and only if the key has the attributes that
were shown. Then an enrolment authority issues a certificate that names both. Each enrolment takes one answer, in time.

Pure but for the drawing of random numbers: whoever runs the exchange keeps the :class:`Enrolment` in between.
"""

from __future__ import annotations

import datetime
import hashlib
import hmac
import os
import threading
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from cloister.endorsements.roots import Root
from cloister.endorsements.tpm import (
    AK_CERTIFICATE_USAGE,
    AK_IDENTITY,
    EK_CERTIFICATE_USAGE,
    AkIdentity,
    encode_identity,
)
from cloister.errors import EndorsementError, UsageError, VerificationError
from cloister.evidence.tpm_structures import PublicKey, TpmPublic, parse_public
from cloister.verifier.certificates import public_key
from cloister.verifier.credential import Credential, make_credential
from cloister.verifier.tpm_chain import verify_chain
from cloister.verifier.trail import Trail

SECRET_SIZE: Final = 32
ANSWER_SECONDS: Final = 300
"""How long an answer to a challenge is taken."""
MAX_CERTIFICATE_SECONDS: Final = 366 * 24 * 3600
MAX_LIST_SECONDS: Final = 90 * 24 * 3600

Entropy = Callable[[int], bytes]


@dataclass(frozen=True, slots=True)
class Activated:
    """An attestation key that is known to live in the TPM of that endorsement key. Only an enrolment makes one."""

    public: TpmPublic
    identity: AkIdentity
    _made: object = field(repr=False)

    def __post_init__(self) -> None:
        if self._made is not _SEAL:
            raise UsageError("an activated key is made by an enrolment alone")


_SEAL: Final = object()


class Enrolment:
    """One challenge that is waiting for its answer. Takes one, right or wrong; never shows its secret."""

    def __init__(
        self, credential: Credential, secret: bytes, public: TpmPublic, identity: AkIdentity, expires: int
    ) -> None:
        self.credential = credential
        """To be sent to the machine, whose TPM activates it (TPM2_ActivateCredential)."""
        self.expires = expires
        """Unix seconds."""
        self._secret = secret
        self._public = public
        self._identity = identity
        self._lock = threading.Lock()
        self._answered = False

    def __repr__(self) -> str:
        return f"Enrolment(ek_sha256={self._identity.ek_sha256.hex()!r}, expires={self.expires})"

    def answer(self, secret: bytes, *, now: int) -> Activated:
        """The key, if ``secret`` is what was encrypted. Raises :class:`~cloister.errors.VerificationError`."""
        with self._lock:
            answered, self._answered = self._answered, True
        if answered:
            raise VerificationError("this enrolment had its answer already", todo="ask for a new challenge")
        if now >= self.expires:
            raise VerificationError(
                f"the answer came after the challenge ended at {self.expires}", todo="ask for a new challenge"
            )
        if not hmac.compare_digest(secret, self._secret):
            raise VerificationError(
                "the answer is not the secret: the attestation key is not in the TPM of that endorsement key",
                todo="ask for a new challenge",
            )
        return Activated(self._public, self._identity, _SEAL)


def challenge(
    ek_chain: Sequence[bytes],
    ak_public: bytes,
    *,
    roots: Sequence[Root],
    now: int,
    crls: Sequence[bytes] = (),
    revocation_required: bool = False,
    entropy: Entropy = os.urandom,
    trail: Trail | None = None,
) -> Enrolment:
    """Challenge a TPM to show that the key ``ak_public`` (TPMT_PUBLIC) is in it, beside its endorsement key.

    ``ek_chain`` (DER) begins with the endorsement key's certificate and ends in one of ``roots``, the TPM vendors
    that are believed. ``now`` in Unix seconds. Raises :class:`~cloister.errors.EvidenceError` for a key that is no
    restricted signing key, and :class:`~cloister.errors.EndorsementError` or
    :class:`~cloister.errors.VerificationError` for a chain that does not hold.
    """
    trail = Trail() if trail is None else trail
    public = parse_public(ak_public)
    public.require_attestation_key()
    if public.name_algorithm != "sha256":
        raise VerificationError(
            f"the attestation key's name is made with {public.name_algorithm}, not SHA-256",
            todo="make the key with nameAlg SHA-256",
        )
    chain = verify_chain(
        ek_chain,
        crls,
        roots=roots,
        now=now,
        usage=EK_CERTIFICATE_USAGE,
        usage_required=True,
        revocation_required=revocation_required,
        trail=trail,
    )
    ek = public_key(chain.leaf.public_key)
    secret = entropy(SECRET_SIZE)
    credential = make_credential(ek, public.name, secret, entropy=entropy)
    identity = AkIdentity(hashlib.sha256(chain.leaf.public_key).digest(), public.name)
    return Enrolment(credential, secret, public, identity, now + ANSWER_SECONDS)


class EnrolmentAuthority:
    """Who certifies activated keys: a certificate (a root of policies' ``roots.tpm``) and its private key."""

    def __init__(self, certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey) -> None:
        if certificate.public_key() != key.public_key():
            raise UsageError("the enrolment authority's certificate is not its key's")
        self._certificate = certificate
        self._key = key

    def __repr__(self) -> str:
        return f"EnrolmentAuthority({self._certificate.subject.rfc4514_string()!r})"

    @classmethod
    def create(cls, name: str, *, now: int, lifetime: int) -> EnrolmentAuthority:
        """A new self-signed authority (P-384) that lives ``lifetime`` seconds from ``now`` (Unix seconds)."""
        if not 1 <= len(name) <= 64 or lifetime <= 0:
            raise UsageError("an enrolment authority has a name of 1 to 64 characters and a lifetime")
        key = ec.generate_private_key(ec.SECP384R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        builder = _builder(subject, subject, key.public_key(), now, now + lifetime)
        builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        builder = builder.add_extension(_key_usage(authority=True), critical=True)
        return cls(builder.sign(key, hashes.SHA384()), key)

    @property
    def certificate(self) -> bytes:
        """DER."""
        return self._certificate.public_bytes(Encoding.DER)

    @property
    def root_sha256(self) -> str:
        """What a policy names in ``roots.tpm``."""
        return hashlib.sha256(self.certificate).hexdigest()

    def certify(self, activated: Activated, *, now: int, lifetime: int) -> bytes:
        """A certificate (DER) of the activated key, for ``lifetime`` seconds from ``now``.

        Raises :class:`~cloister.errors.UsageError` for a lifetime over a year or beyond the authority's.
        """
        if not 0 < lifetime <= MAX_CERTIFICATE_SECONDS:
            raise UsageError(f"a certificate lives 1 to {MAX_CERTIFICATE_SECONDS} seconds, not {lifetime}")
        if now + lifetime > self._certificate.not_valid_after_utc.timestamp():
            raise UsageError("the certificate would outlive its authority", todo="make a new authority")
        subject = x509.Name(
            [
                x509.NameAttribute(
                    NameOID.COMMON_NAME, f"TPM attestation key {activated.identity.ak_name.hex()[4:36]}"
                )
            ]
        )
        builder = _builder(subject, self._certificate.subject, activated.public.key, now, now + lifetime)
        builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        builder = builder.add_extension(_key_usage(authority=False), critical=True)
        usage = x509.ExtendedKeyUsage([x509.ObjectIdentifier(AK_CERTIFICATE_USAGE)])
        builder = builder.add_extension(usage, critical=False)
        identity = x509.UnrecognizedExtension(
            x509.ObjectIdentifier(AK_IDENTITY), encode_identity(activated.identity)
        )
        builder = builder.add_extension(identity, critical=False)
        return builder.sign(self._key, hashes.SHA384()).public_bytes(Encoding.DER)

    def revocation_list(self, revoked: Collection[int], *, now: int, lifetime: int) -> bytes:
        """A list (DER) over serial numbers, in force for ``lifetime`` seconds from ``now``.

        Raises :class:`~cloister.errors.UsageError`.
        """
        if not 0 < lifetime <= MAX_LIST_SECONDS:
            raise UsageError(f"a revocation list lives 1 to {MAX_LIST_SECONDS} seconds, not {lifetime}")
        builder = (
            x509.CertificateRevocationListBuilder()
            .issuer_name(self._certificate.subject)
            .last_update(_utc(now))
            .next_update(_utc(now + lifetime))
            .add_extension(x509.CRLNumber(now), critical=False)
        )
        for serial in sorted(revoked):
            entry = x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(_utc(now))
            builder = builder.add_revoked_certificate(entry.build())
        return builder.sign(self._key, hashes.SHA384()).public_bytes(Encoding.DER)


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    key: PublicKey,
    start: int,
    end: int,
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(_utc(start))
        .not_valid_after(_utc(end))
    )


def _key_usage(*, authority: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not authority,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=authority,
        crl_sign=authority,
        encipher_only=False,
        decipher_only=False,
    )


def _utc(seconds: int) -> datetime.datetime:
    try:
        return datetime.datetime.fromtimestamp(seconds, datetime.UTC)
    except (OverflowError, ValueError, OSError):
        raise EndorsementError(f"{seconds} is no time", todo="give Unix seconds") from None
