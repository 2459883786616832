"""Keys of verifiers that sign EAR tokens: P-384 (ES384) or Ed25519, nothing else.

A key's algorithm follows from its curve and its name (``kid``) from its value (RFC 7638), so a token can choose
neither. Files are read by the command line; here are PEM bytes.
"""

from __future__ import annotations

from typing import Any

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import (
    SECP384R1,
    EllipticCurvePrivateKey,
    EllipticCurvePublicKey,
    generate_private_key,
)
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
    load_pem_public_key,
)
from joserfc.jwk import ECKey, OKPKey

from cloister.appraisal.ear_form import Algorithm
from cloister.errors import UsageError

MAX_PEM = 8 * 1024

PublicKey = EllipticCurvePublicKey | Ed25519PublicKey


class EarSigner:
    """A verifier's private key; ``repr`` shows its ``kid`` only."""

    def __init__(self, private: EllipticCurvePrivateKey | Ed25519PrivateKey) -> None:
        public = private.public_key()
        self.algorithm: Algorithm = _algorithm(public)
        pem = private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        self.key: Any = (ECKey if self.algorithm == "ES384" else OKPKey).import_key(pem)
        self.kid = _kid(public)
        self.public_pem = _pem(public)
        """SubjectPublicKeyInfo, for whoever will trust this verifier."""

    def __repr__(self) -> str:
        return f"EarSigner(kid={self.kid!r})"

    @classmethod
    def from_pem(cls, pem: bytes) -> EarSigner:
        """Read PKCS#8. Raises :class:`~cloister.errors.UsageError`, which shows nothing of the key."""
        refusal = UsageError(
            "the signing key is not an unencrypted PKCS#8 key in PEM for P-384 or Ed25519",
            todo="make one with `openssl genpkey -algorithm ed25519`",
        )
        if len(pem) > MAX_PEM:
            raise refusal
        try:
            private = load_pem_private_key(pem, None)
        except (ValueError, TypeError, UnsupportedAlgorithm):
            raise refusal from None
        if not isinstance(private, EllipticCurvePrivateKey | Ed25519PrivateKey):
            raise refusal
        return cls(private)

    @classmethod
    def generate(cls, algorithm: Algorithm = "ES384") -> EarSigner:
        """A fresh key, which lives as long as the process."""
        return cls(
            generate_private_key(SECP384R1()) if algorithm == "ES384" else Ed25519PrivateKey.generate()
        )


class TrustedVerifier:
    """A verifier whose tokens a relying party accepts: its name (``ear.verifier-id``) and its public key."""

    def __init__(self, name: str, public: PublicKey) -> None:
        if not name:
            raise UsageError("a trusted verifier needs a name", todo="the developer of its ear.verifier-id")
        self.name = name
        self.algorithm: Algorithm = _algorithm(public)
        self.key: Any = (ECKey if self.algorithm == "ES384" else OKPKey).import_key(_pem(public))
        self.kid = _kid(public)

    def __repr__(self) -> str:
        return f"TrustedVerifier({self.name!r}, kid={self.kid!r})"

    @classmethod
    def from_pem(cls, name: str, pem: bytes) -> TrustedVerifier:
        """Read a SubjectPublicKeyInfo. Raises :class:`~cloister.errors.UsageError`."""
        refusal = UsageError(
            "the verifier's key is not a public key in PEM for P-384 or Ed25519",
            todo="ask the verifier for its key",
        )
        if len(pem) > MAX_PEM:
            raise refusal
        try:
            public = load_pem_public_key(pem)
        except (ValueError, TypeError, UnsupportedAlgorithm):
            raise refusal from None
        if not isinstance(public, EllipticCurvePublicKey | Ed25519PublicKey):
            raise refusal
        return cls(name, public)


def _algorithm(public: PublicKey) -> Algorithm:
    if isinstance(public, Ed25519PublicKey):
        return "Ed25519"
    if isinstance(public.curve, SECP384R1):
        return "ES384"
    raise UsageError(
        f"tokens are signed with P-384 or Ed25519, not {public.curve.name}", todo="make another key"
    )


def _pem(public: PublicKey) -> bytes:
    return public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


def _kid(public: PublicKey) -> str:
    kind = OKPKey if isinstance(public, Ed25519PublicKey) else ECKey
    return kind.import_key(_pem(public)).thumbprint()
