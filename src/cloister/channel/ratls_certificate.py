"""Attested certificates (docs/spec/ra-tls.md): a self-signed one that carries the evidence of its own key. Pure.

No nonce is in it, so it says that its key was made in such a TEE within the hour, and no more. It authorises a channel:
verification gives an :class:`AttestedServer`, which is no ``AttestationResult`` and has no key to release anything to.
Refused: another key than the evidence binds, two such extensions, critical extensions that nobody knows, authorities,
lives over an hour, anything over its bound.
"""

from __future__ import annotations

import datetime
import hashlib
from dataclasses import dataclass
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from cloister.appraisal.appraise import appraise
from cloister.appraisal.policy import Policy
from cloister.appraisal.result import AttestationResult
from cloister.endorsements.x509 import BASIC_CONSTRAINTS, KEY_USAGE, Certificate, read_certificate
from cloister.errors import AttesterError, BindingMismatch, EndorsementError, EvidenceError, ResultExpired
from cloister.evidence.binding import RaTlsBinding
from cloister.evidence.bundle import EvidenceBundle, encode_bundle, parse_bundle
from cloister.evidence.cmw import encode_cmw, parse_cmw
from cloister.verifier.certificates import public_key, signature_algorithm, verify_ecdsa
from cloister.verifier.claims import Claims
from cloister.verifier.trail import Check

CMW_OID: Final = "2.23.133.5.4.9"
"""tcg-dice-conceptual-message-wrapper (TCG DICE Attestation Architecture)."""
MEDIA_TYPE: Final = "application/vnd.cloister.evidence+json"
MAX_CERTIFICATE: Final = 96 * 1024
"""Bytes. OpenSSL takes certificate messages of up to 100 KiB unless it is told otherwise, and Python cannot tell it."""
MAX_LIFETIME: Final = 3600
SKEW: Final = 60
"""Seconds that a certificate is valid before it was made: clocks differ."""
_UNDERSTOOD: Final = frozenset((BASIC_CONSTRAINTS, KEY_USAGE))
"""Extensions that may be critical."""
_ALGORITHMS: Final = {"ecdsa-sha256": "sha256", "ecdsa-sha384": "sha384"}
_DIGITAL_SIGNATURE: Final = 0
_BINDING: Final = RaTlsBinding()


@dataclass(frozen=True, slots=True)
class TlsIdentity:
    """The key that a TLS server proved to hold. It signs handshakes; nothing can be encrypted or released to it."""

    spki: bytes
    """SubjectPublicKeyInfo, DER."""
    not_before: int
    not_after: int

    @property
    def spki_sha256(self) -> str:
        """Lower-case hexadecimal, as key material has it."""
        return hashlib.sha256(self.spki).hexdigest()


@dataclass(frozen=True, slots=True)
class AttestedServer:
    """Who is at the other end of a TLS connection, until ``expires``: enough to talk, not to release a key.

    Made by :func:`verify_attested_certificate` from a result whose key is a :class:`TlsIdentity`, and of no other.
    """

    _result: AttestationResult[TlsIdentity]

    def __post_init__(self) -> None:
        result: object = self._result
        if not isinstance(result, AttestationResult) or not isinstance(result.keys, TlsIdentity):
            raise TypeError("an AttestedServer is made by verify_attested_certificate()")

    @property
    def identity(self) -> TlsIdentity:
        return self._result.keys

    @property
    def claims(self) -> Claims:
        return self._result.claims

    @property
    def policy_digest(self) -> str:
        return self._result.policy_digest

    @property
    def verified_at(self) -> int:
        return self._result.verified_at

    @property
    def expires(self) -> int:
        """The earliest of the certificate's end, the collateral's next update and the policy's maximum age."""
        return self._result.expires

    @property
    def checks(self) -> tuple[Check, ...]:
        return self._result.checks

    def require_fresh(self, now: int) -> None:
        """Raise :class:`ResultExpired` once this does not stand any more."""
        if now >= self.expires:
            raise ResultExpired(
                f"the server's attestation ended at {self.expires}",
                todo="connect again: it shows a newer certificate",
            )


def subject_public_key_info(key: ec.EllipticCurvePrivateKey) -> bytes:
    """What the evidence of ``key`` has to bind, DER."""
    return key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def make_attested_certificate(
    key: ec.EllipticCurvePrivateKey, bundle: EvidenceBundle, *, now: int, lifetime: int = MAX_LIFETIME
) -> bytes:
    """A certificate (DER) of ``key`` that carries ``bundle``, valid for ``lifetime`` seconds from ``now``.

    Raises :class:`AttesterError` if the evidence does not fit.
    """
    if not 1 <= lifetime <= MAX_LIFETIME:
        raise AttesterError(f"an attested certificate lives 1 to {MAX_LIFETIME} seconds")
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "attested")])
    start = datetime.datetime.fromtimestamp(now - SKEW, datetime.UTC)
    wrapped = encode_cmw(MEDIA_TYPE, encode_bundle(bundle))
    extension = x509.UnrecognizedExtension(x509.ObjectIdentifier(CMW_OID), wrapped)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(start)
        .not_valid_after(start + datetime.timedelta(seconds=SKEW + lifetime))
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(extension, critical=False)
        .sign(key, SHA256())
        .public_bytes(Encoding.DER)
    )
    if len(certificate) > MAX_CERTIFICATE:
        raise AttesterError(
            f"the attested certificate would be {len(certificate)} bytes long, over its bound of {MAX_CERTIFICATE}",
            todo="let the clients fetch the endorsements themselves",
        )
    return certificate


def verify_attested_certificate(
    der: bytes,
    *,
    policy: Policy,
    now: int,
    collateral: bytes | None = None,
    device_collateral: bytes | None = None,
) -> AttestedServer:
    """Who shows this certificate, if it is what ``policy`` accepts at ``now`` (Unix seconds).

    That whoever shows it has its key is the handshake's to prove. The last two replace the endorsements that it carries.
    Raises :class:`EvidenceError`, and what appraisal raises.
    """
    certificate, wrapped = _read(der)
    _check_own(certificate, now)
    bundle = parse_bundle(parse_cmw(wrapped, media_type=MEDIA_TYPE, limit=MAX_CERTIFICATE))
    if bundle.key_material != certificate.public_key:
        raise BindingMismatch(
            "the evidence in the certificate is of another key than the certificate's",
            todo="do not send anything; the evidence was copied from another server",
        )
    identity = TlsIdentity(certificate.public_key, certificate.not_before, certificate.not_after)
    return AttestedServer(
        appraise(
            bundle,
            nonce=b"",
            policy=policy,
            now=now,
            decode=lambda _spki: identity,
            not_after=lambda found: found.not_after,
            collateral=collateral,
            device_collateral=device_collateral,
            binding=_BINDING,
        )
    )


def _read(der: bytes) -> tuple[Certificate, bytes]:
    """The certificate, and the content of its one extension with evidence."""
    try:
        certificate = read_certificate(der, limit=MAX_CERTIFICATE)
        authority = certificate.is_authority
        signs = certificate.may(_DIGITAL_SIGNATURE)
    except EndorsementError as error:
        raise EvidenceError(f"the server's certificate is malformed ({error.what})") from None
    for name, extension in certificate.extensions.items():
        if extension.critical and name not in _UNDERSTOOD:
            raise EvidenceError(f"critical extension {name} of the server's certificate is not understood")
    if authority or not signs:
        raise EvidenceError("the server's certificate is an authority's, or not one for signing handshakes")
    found = certificate.extensions.get(CMW_OID)
    if found is None:
        raise EvidenceError(
            "the server's certificate carries no evidence",
            todo="this is an ordinary TLS server, or something between answers for it; do not send anything",
        )
    return certificate, found.value


def _check_own(certificate: Certificate, now: int) -> None:
    """It is signed by its own key, on a curve of TLS 1.3, and holds now."""
    hash_name = _ALGORITHMS.get(signature_algorithm(certificate))
    if certificate.issuer != certificate.subject or hash_name is None:
        raise EvidenceError("an attested certificate is signed by its own key, with ECDSA")
    try:
        key = public_key(certificate.public_key)
    except EndorsementError as error:
        raise EvidenceError(error.what) from None
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(
        key.curve, ec.SECP256R1 | ec.SECP384R1
    ):
        raise EvidenceError("the key of an attested certificate is on P-256 or P-384")
    verify_ecdsa(
        key, certificate.signature, certificate.signed, hash_name=hash_name, what="the server's certificate"
    )
    if certificate.not_after - certificate.not_before > MAX_LIFETIME + SKEW:
        raise EvidenceError(f"an attested certificate lives {MAX_LIFETIME} seconds at most")
    if not certificate.not_before <= now < certificate.not_after:
        raise EvidenceError(
            f"the server's certificate holds from {certificate.not_before} to {certificate.not_after}, and now is {now}",
            todo="connect again: the server renews it; or set the clock",
        )
