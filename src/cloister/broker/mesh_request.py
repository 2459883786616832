"""What a certificate request for the mesh may ask, and the names that it gets. Pure.

A request brings a public key and the proof that its sender has the private one. It may name itself as the manifest does,
or not at all; a request that asks for another name, or for more than a key, is refused.
"""

from __future__ import annotations

import re
from typing import Any, Final

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from cloister.endorsements.der import SEQUENCE, Der
from cloister.errors import EndorsementError, FormatError

DOMAIN: Final = "mesh.cloister"
MAX_CSR: Final = 16 * 1024
MIN_RSA: Final = 3072
_WORKLOAD: Final = re.compile(r"[a-z0-9._-]+")
"""Lower case: DNS does not tell cases apart, and TLS libraries compare as DNS does."""
_NAME: Final = re.compile(r"[A-Za-z0-9_-]{1,63}(\.[A-Za-z0-9_-]{1,63})*")


class CsrRefused(FormatError):
    """A certificate request that is malformed, not signed by its own key, or asks for a name that is not its own."""

    layer = "broker"


def dns_name(workload: str, application: str) -> str:
    """A workload's name in its certificate. Raises :class:`CsrRefused` for a name that DNS does not tell from others."""
    name = f"{workload}.{application}.{DOMAIN}"
    if not _WORKLOAD.fullmatch(workload) or not _NAME.fullmatch(name) or len(name) > 253:
        raise CsrRefused(
            f"the workload {workload[:80]!r} of {application[:80]!r} cannot have a name in the mesh",
            todo="name it in the manifest with a-z 0-9 _ - and single dots, at most 63 between two dots",
        )
    return name


def uri_name(workload: str, application: str) -> str:
    """The same as a URI, for those who read URIs."""
    return f"cloister://{application}/{workload}"


def make_request(key: ec.EllipticCurvePrivateKey, *, workload: str, application: str) -> bytes:
    """A request (PKCS #10, DER) for ``key``."""
    names = [
        x509.DNSName(dns_name(workload, application)),
        x509.UniformResourceIdentifier(uri_name(workload, application)),
    ]
    return (
        x509.CertificateSigningRequestBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, workload)]))
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .sign(key, SHA256())
        .public_bytes(Encoding.DER)
    )


def requested_key(csr: bytes, *, workload: str, application: str) -> Any:
    """The public key of ``csr``, if it asks for nothing that is not the workload's. Raises :class:`CsrRefused`."""
    wanted = {dns_name(workload, application), uri_name(workload, application)}
    if len(csr) > MAX_CSR:
        raise CsrRefused(f"a certificate request is at most {MAX_CSR} bytes long")
    try:
        _check_envelope(csr)
        request = x509.load_der_x509_csr(csr)
        valid = request.is_signature_valid
        key = request.public_key()
        extensions = list(request.extensions)
        subject = list(request.subject)
    except _MALFORMED:
        raise CsrRefused("this is no certificate request", todo="send PKCS #10 in DER") from None
    if not valid:
        raise CsrRefused("a certificate request is not signed by its own key")
    _check_key(key)
    for one in extensions:
        if not isinstance(one.value, x509.SubjectAlternativeName):
            raise CsrRefused(
                "a certificate request asks for more than a key: names and uses come from the manifest"
            )
        for name in one.value:
            known = isinstance(name, x509.DNSName | x509.UniformResourceIdentifier)
            if not known or name.value not in wanted:
                raise CsrRefused("a certificate request asks for a name that is not the workload's own")
    for attribute in subject:
        if attribute.oid != NameOID.COMMON_NAME or attribute.value != workload:
            raise CsrRefused("a certificate request asks for a subject that is not the workload's own")
    return key


def _check_envelope(csr: bytes) -> None:
    """What stands around what is signed has one spelling too. Raises ``EndorsementError``."""
    outer = Der(csr, "certificate request")
    inner = outer.enter(SEQUENCE)
    outer.end()
    inner.element(SEQUENCE)
    inner.element(SEQUENCE)
    inner.bits()
    inner.end()


_MALFORMED: Final = (
    EndorsementError,
    ValueError,
    TypeError,
    UnsupportedAlgorithm,
    x509.DuplicateExtension,
    x509.InvalidVersion,
    x509.UnsupportedGeneralNameType,
)
"""What is raised for a request that cannot be read."""


def _check_key(key: object) -> None:
    if isinstance(key, ed25519.Ed25519PublicKey):
        return
    if isinstance(key, ec.EllipticCurvePublicKey) and isinstance(key.curve, ec.SECP256R1 | ec.SECP384R1):
        return
    if (
        isinstance(key, rsa.RSAPublicKey)
        and MIN_RSA <= key.key_size <= 8192
        and key.public_numbers().e == 65537
    ):
        return
    raise CsrRefused("a mesh key is P-256, P-384, Ed25519, or RSA from 3,072 bits on")
