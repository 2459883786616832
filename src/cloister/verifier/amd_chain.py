"""AMD's chain from the ARK to the key that signed a report, and what that key's certificate says of its chip.

ARK and ASK (or ASVK) are RSA-4096 with PSS and SHA-384, the VCEK or VLEK is a P-384 key (AMD, "VCEK Certificate and KDS
Interface Specification", 57230). Names and key types are required as AMD has them: a chain that verifies but is shaped
otherwise is nobody's. AMD gives every VCEK serial number zero and revokes old ones by TCB, so its list names ASKs and
ASVKs; a serial of ours on it is refused at either place.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

from cryptography.hazmat.primitives.asymmetric import ec, rsa

from cloister.endorsements.amd import SnpEndorsements
from cloister.endorsements.der import IA5_STRING, OCTET_STRING, Der
from cloister.endorsements.roots import Root, require_root
from cloister.endorsements.x509 import BASIC_CONSTRAINTS, KEY_USAGE, Certificate, read_certificate
from cloister.errors import EndorsementError, VerificationError
from cloister.evidence.snp import SignerName, TcbVersion
from cloister.verifier.certificates import (
    check_validity,
    public_key,
    signature_algorithm,
    verify_issued,
    verify_revocation_list,
)

PRODUCT_NAMES: Final = {
    "Milan": "milan",
    "Genoa": "genoa",
    "Bergamo": "genoa",
    "Siena": "genoa",
    "Turin": "turin",
}
"""As certificates spell them, in front of a stepping; Bergamo and Siena have Genoa's chain."""
HWID_SIZES: Final = {"milan": 64, "genoa": 64, "turin": 8}
_CHAINS: Final = ("Milan", "Genoa", "Turin")

_ARC: Final = "1.3.6.1.4.1.3704.1."
_SPLS: Final = {"bootloader": "3.1", "tee": "3.2", "snp": "3.3", "microcode": "3.8"}
_RESERVED_SPLS: Final = ("3.4", "3.5", "3.6", "3.7")
_FMC_SPL: Final = "3.9"
_UNDERSTOOD: Final = frozenset({BASIC_CONSTRAINTS, KEY_USAGE})


@dataclass(frozen=True, slots=True)
class SigningKey:
    """What a VCEK's or VLEK's certificate says."""

    kind: SignerName
    product: str
    product_name: str
    """As AMD wrote it, such as ``Milan-B0``."""
    tcb: TcbVersion
    hwid: bytes | None
    """The chip of a VCEK: 64 bytes, 8 for Turin."""
    csp_id: str | None
    """The cloud that a VLEK was made for."""


@dataclass(frozen=True, slots=True)
class AmdChain:
    """Three certificates and a list, read; nothing is verified until :func:`verify_chain` did."""

    root: Certificate
    intermediate: Certificate
    signing_key: Certificate
    crl: bytes
    product: str
    """By the names of root and intermediate, which must agree."""
    kind: SignerName
    """By the intermediate's name: an ASK signs VCEKs, an ASVK signs VLEKs."""


def read_chain(endorsements: SnpEndorsements) -> AmdChain:
    """Read the certificates and their names. Raises :class:`~cloister.errors.EndorsementError`."""
    root, intermediate = read_certificate(endorsements.root), read_certificate(endorsements.intermediate)
    signing_key = read_certificate(endorsements.signing_key)
    product = next((name for name in _CHAINS if root.common_name == f"ARK-{name}"), None)
    if product is None:
        raise EndorsementError(
            f"the chain ends in {root.common_name or 'a nameless certificate'}, which is no ARK that is known",
            todo=f"the products are {', '.join(_CHAINS)}",
        )
    kinds: dict[str, SignerName] = {f"SEV-{product}": "vcek", f"SEV-VLEK-{product}": "vlek"}
    kind = kinds.get(intermediate.common_name)
    if kind is None:
        raise EndorsementError(
            f"{intermediate.common_name or 'a nameless certificate'} is no intermediate of ARK-{product}",
            todo="ASK and ARK are of one product; fetch the chain again",
        )
    if signing_key.common_name != f"SEV-{kind.upper()}":
        raise EndorsementError(
            f"{signing_key.common_name or 'a nameless certificate'} stands where a SEV-{kind.upper()} should"
        )
    return AmdChain(root, intermediate, signing_key, endorsements.crl, product.lower(), kind)


def check_dates(chain: AmdChain, *, now: int) -> tuple[int, int]:
    """The newest start and earliest end of the certificates. Raises :class:`~cloister.errors.EndorsementError`."""
    return check_validity((chain.root, chain.intermediate, chain.signing_key), now=now)


def verify_chain(chain: AmdChain, roots: Sequence[Root]) -> None:
    """Signatures from the ARK, one of ``roots``, to the signing key, and the shape of each.

    Raises :class:`~cloister.errors.VerificationError`.
    """
    require_root(chain.root.der, roots)
    for certificate, issuer in (
        (chain.root, chain.root),
        (chain.intermediate, chain.root),
        (chain.signing_key, chain.intermediate),
    ):
        name = certificate.common_name
        verify_issued(certificate.der, issuer.der)
        if signature_algorithm(certificate) != "rsa-pss-sha384":
            raise VerificationError(f"{name} is not signed with RSA-PSS and SHA-384, as AMD's are")
        for oid, extension in certificate.extensions.items():
            if extension.critical and oid not in _UNDERSTOOD:
                raise VerificationError(f"{name} has the critical extension {oid}, which is not understood")
        key = public_key(certificate.public_key)
        if certificate is not chain.signing_key:
            if not isinstance(key, rsa.RSAPublicKey) or key.key_size != 4096:
                raise VerificationError(f"{name} has no RSA key of 4096 bits, as AMD's have")
        elif certificate.is_authority or not isinstance(key, ec.EllipticCurvePublicKey):
            raise VerificationError(f"{name} is not the certificate of an elliptic-curve signing key")
        elif not isinstance(key.curve, ec.SECP384R1):
            raise VerificationError(f"{name} has a key on {key.curve.name}, not P-384")


def check_revocation(chain: AmdChain, *, now: int, required: bool) -> tuple[int, int] | None:
    """When the list was issued and ends, or None where there is none and none is ``required``.

    Raises :class:`~cloister.errors.EndorsementError` (missing, out of its time, not the ARK's) or
    :class:`~cloister.errors.VerificationError` (revoked).
    """
    if not chain.crl:
        if required:
            raise EndorsementError(
                "no revocation list came with the SEV-SNP endorsements",
                todo='fetch it (AMD KDS), or say revocation = "unchecked" in the policy',
            )
        return None
    found = verify_revocation_list(chain.crl, chain.root.der, now=now)
    for certificate in (chain.intermediate, chain.signing_key):
        if certificate.serial in found.revoked:
            raise VerificationError(
                f"{certificate.common_name} (serial {certificate.serial}) was revoked by AMD",
                todo="nothing below it can be trusted",
            )
    return found.this_update, found.next_update


def read_signing_key(chain: AmdChain) -> SigningKey:
    """What the signing key's certificate says of its chip and firmware.

    Raises :class:`~cloister.errors.EndorsementError`, also where it speaks of another product than its chain.
    """
    return _read_signing_key(chain.signing_key.der, chain.product, chain.kind)


@lru_cache(maxsize=64)
def _read_signing_key(der: bytes, chain_product: str, kind: SignerName) -> SigningKey:
    certificate = read_certificate(der)
    name = certificate.common_name
    product_name = _text(certificate, "2", "product name")
    product = PRODUCT_NAMES.get(product_name.partition("-")[0])
    if product != chain_product:
        raise EndorsementError(
            f"{name} is of product {product_name}, its chain is of {chain_product}",
            todo="this is the chain of another family of processors",
        )
    levels = {field: _level(certificate, oid, field) for field, oid in _SPLS.items()}
    fmc = _level(certificate, _FMC_SPL, "fmc") if product == "turin" else None
    for oid in (*_RESERVED_SPLS, *(() if product == "turin" else (_FMC_SPL,))):
        if _ARC + oid in certificate.extensions and _level(certificate, oid, "reserved") != 0:
            raise EndorsementError(f"{name} has a security level ({oid}) that {product} does not have")
    hwid, csp_id = None, None
    if kind == "vcek":
        _none(certificate, "5", "a cloud's name")
        hwid = _hwid(certificate, HWID_SIZES[product])
    else:
        _none(certificate, "4", "a chip's identity")
        csp_id = _text(certificate, "5", "cloud's name")
    return SigningKey(
        kind=kind,
        product=product,
        product_name=product_name,
        tcb=TcbVersion(**levels, fmc=fmc),
        hwid=hwid,
        csp_id=csp_id,
    )


def _value(certificate: Certificate, oid: str, what: str) -> bytes:
    extension = certificate.extensions.get(_ARC + oid)
    if extension is None:
        raise EndorsementError(f"{certificate.common_name} does not state its {what}")
    return extension.value


def _none(certificate: Certificate, oid: str, what: str) -> None:
    if _ARC + oid in certificate.extensions:
        raise EndorsementError(f"{certificate.common_name} states {what}, which is for the other kind of key")


def _level(certificate: Certificate, oid: str, what: str) -> int:
    content = Der(_value(certificate, oid, f"{what} level"), f"{certificate.common_name}'s {what} level")
    level = content.integer()
    content.end()
    if not 0 <= level <= 0xFF:
        raise content.fail(f"{level} is not one byte")
    return level


def _text(certificate: Certificate, oid: str, what: str) -> str:
    content = Der(_value(certificate, oid, what), f"{certificate.common_name}'s {what}")
    text = content.element(IA5_STRING)[1]
    content.end()
    if not 1 <= len(text) <= 128 or not all(0x20 <= byte < 0x7F for byte in text):
        raise content.fail("it is not 1 to 128 printable characters")
    return text.decode("ascii")


def _hwid(certificate: Certificate, size: int) -> bytes:
    """AMD puts the bytes there bare; as an OCTET STRING they would say the same."""
    value = _value(certificate, "4", "chip's identity")
    if len(value) == size + 2:
        content = Der(value, f"{certificate.common_name}'s chip identity")
        value = content.element(OCTET_STRING)[1]
    if len(value) != size:
        raise EndorsementError(
            f"{certificate.common_name} has a chip identity of {len(value)} bytes, not {size}"
        )
    return value
