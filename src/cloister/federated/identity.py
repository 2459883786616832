"""The key that is a process in a federation: made in its TEE, shown under its evidence, the same towards TLS and Flower.

A P-384 key, since Flower's SuperNodes take no other kind. Evidence binds it as ``tls_spki_sha256`` of the key material; the
certificate of the federation's mesh, the SuperNode's signatures and an agent's requests are all of this one key, so who is
admitted and who sends can only be one.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import Any, Final

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA384
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_der_public_key,
)

from cloister.encoding import labelled_hash
from cloister.errors import FederationError

LABEL: Final = "cloister/federation-request/v1"
MAX_SPKI: Final = 256


@dataclass(frozen=True, slots=True)
class Identity:
    """A private key, in the memory of one process."""

    key: ec.EllipticCurvePrivateKey = field(repr=False)

    @classmethod
    def generate(cls) -> Identity:
        """A fresh one."""
        return cls(ec.generate_private_key(ec.SECP384R1()))

    @property
    def spki(self) -> bytes:
        """SubjectPublicKeyInfo, DER."""
        return self.key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)

    @property
    def digest(self) -> str:
        """SHA-256 of :attr:`spki`, hexadecimal: what key material shows."""
        return hashlib.sha256(self.spki).hexdigest()

    def sign(self, what: str, *parts: bytes) -> bytes:
        """ECDSA with SHA-384 over ``parts``, each with its length, under the label and ``what``."""
        return self.key.sign(_message(what, parts), ec.ECDSA(SHA384()))

    def openssh(self) -> bytes:
        """The private key as Flower's SuperNode reads it. For a private file in memory, and nothing else."""
        return self.key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption())


def read_spki(spki: bytes, *, digest: str | None) -> Any:
    """The P-384 public key in ``spki`` (DER), which evidence showed as ``digest``. Raises FederationError."""
    if digest is None or hashlib.sha256(spki).hexdigest() != digest:
        raise FederationError("the key is not the one that the evidence binds", todo="attest anew")
    try:
        key = load_der_public_key(spki[: MAX_SPKI + 1])
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise FederationError("the key that the evidence binds cannot be read") from None
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP384R1):
        raise FederationError("the key that the evidence binds is not of P-384")
    # A point can be written shorter too: one key, one spelling, or two keys that are one would not be told.
    if key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo) != spki:
        raise FederationError("the key that the evidence binds is in another spelling")
    return key


def public_openssh(spki: bytes) -> bytes:
    """The public key as ``flwr supernode register`` reads it. ``spki`` was read by :func:`read_spki`."""
    key = load_der_public_key(spki)
    return key.public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH)


def check_signature(key: Any, signature: bytes, what: str, *parts: bytes) -> None:
    """Raise FederationError unless ``key`` signed ``parts`` as ``what``."""
    try:
        key.verify(signature, _message(what, parts), ec.ECDSA(SHA384()))
    except InvalidSignature:
        raise FederationError("a signature is not of the key that the evidence binds") from None


def _message(what: str, parts: tuple[bytes, ...]) -> bytes:
    return labelled_hash(LABEL, what.encode("ascii"), *parts)
