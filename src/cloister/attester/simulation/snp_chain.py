"""The simulated vendor's certificates in AMD's shape: ARK → ASK → VCEK, ARK → ASVK → VLEK, and the ARK's list.

RSA-4096 with PSS and SHA-384 above, P-384 below, AMD's extensions in the leaves. Common names are AMD's, because they
say a certificate's place; the organisation says that it is simulated. Refuses nothing: the verifier does.
"""

from __future__ import annotations

import datetime
from collections.abc import Collection
from dataclasses import dataclass
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from cloister.attester.simulation.chain import CA_DAYS, LEAF_DAYS, Window
from cloister.evidence.snp import SignerName, TcbVersion

_ARC: Final = "1.3.6.1.4.1.3704.1."
_SHA384: Final = hashes.SHA384()
_PSS: Final = padding.PSS(mgf=padding.MGF1(_SHA384), salt_length=48)
CSP_ID: Final = "CN=simulated.cloister.invalid"


@dataclass(frozen=True, slots=True, repr=False)
class VendorKeys:
    """RSA-4096 keys of ARK, ASK and ASVK. Never shown."""

    ark: rsa.RSAPrivateKey
    ask: rsa.RSAPrivateKey
    asvk: rsa.RSAPrivateKey

    @classmethod
    def generate(cls) -> VendorKeys:
        """New keys; takes seconds."""
        return cls(*(rsa.generate_private_key(public_exponent=65537, key_size=4096) for _ in range(3)))


@dataclass(frozen=True, slots=True)
class Chip:
    """One simulated processor."""

    product: str
    """``milan``, ``genoa``, ``turin``."""
    hwid: bytes
    """64 bytes; 8 for Turin."""
    tcb: TcbVersion
    cpuid: tuple[int, int, int]
    firmware: tuple[int, int, int] = (1, 55, 40)

    @property
    def chip_id(self) -> bytes:
        """As reports have it: 64 bytes."""
        return self.hwid.ljust(64, b"\0")


@dataclass(frozen=True, slots=True, repr=False)
class Vendor:
    """Three authorities, DER, and their keys."""

    product: str
    keys: VendorKeys
    ark: bytes
    ask: bytes
    asvk: bytes


def issue_vendor(keys: VendorKeys, product: str, issued: int) -> Vendor:
    """The authorities of one product, from ``issued`` (Unix seconds) on."""
    name = product.capitalize()
    ark = _name(f"ARK-{name}")

    def authority(common_name: str, key: rsa.RSAPrivateKey, path_length: int | None) -> bytes:
        return (
            _builder(_name(common_name), ark, key.public_key(), issued, CA_DAYS)
            .add_extension(x509.BasicConstraints(ca=True, path_length=path_length), critical=True)
            .add_extension(_usage(lists=path_length is None), critical=True)
            .sign(keys.ark, _SHA384, rsa_padding=_PSS)
            .public_bytes(Encoding.DER)
        )

    return Vendor(
        product=product,
        keys=keys,
        ark=authority(f"ARK-{name}", keys.ark, None),
        ask=authority(f"SEV-{name}", keys.ask, 0),
        asvk=authority(f"SEV-VLEK-{name}", keys.asvk, 0),
    )


def issue_signing_key(
    vendor: Vendor, kind: SignerName, chip: Chip, key: ec.EllipticCurvePublicKey, issued: int
) -> bytes:
    """The VCEK or VLEK (DER) that states ``chip``'s product and TCB, and its identity or a cloud's."""
    product = chip.product.capitalize()
    common_name = (
        f"SEV-VLEK-{vendor.product.capitalize()}" if kind == "vlek" else f"SEV-{vendor.product.capitalize()}"
    )
    builder = _builder(_name(f"SEV-{kind.upper()}"), _name(common_name), key, issued, LEAF_DAYS)
    for oid, value in signing_key_extensions(kind, chip, product).items():
        builder = builder.add_extension(
            x509.UnrecognizedExtension(x509.ObjectIdentifier(_ARC + oid), value), critical=False
        )
    signer = vendor.keys.asvk if kind == "vlek" else vendor.keys.ask
    return builder.sign(signer, _SHA384, rsa_padding=_PSS).public_bytes(Encoding.DER)


def signing_key_extensions(kind: SignerName, chip: Chip, product: str) -> dict[str, bytes]:
    """AMD's extensions by the end of their object identifiers; values as AMD encodes them."""
    tcb = chip.tcb
    text = product if kind == "vlek" or chip.product == "turin" else f"{product}-B1"
    found = {"1": _integer(0 if tcb.fmc is None else 1), "2": _ia5(text)}
    levels = {"3.1": tcb.bootloader, "3.2": tcb.tee, "3.3": tcb.snp, "3.8": tcb.microcode}
    levels |= {"3.5": 0, "3.6": 0, "3.7": 0}
    levels |= {"3.4": 0} if tcb.fmc is None else {"3.9": tcb.fmc}
    found |= {oid: _integer(level) for oid, level in levels.items()}
    # AMD puts the identity there without any encoding of its own.
    return found | ({"4": chip.hwid} if kind == "vcek" else {"5": _ia5(CSP_ID)})


def issue_list(vendor: Vendor, window: Window, revoked: Collection[int] = ()) -> bytes:
    """The ARK's revocation list, DER, naming the serials ``revoked``."""
    issued, following = _moment(window.issued), _moment(window.next_update)
    builder = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(_name(f"ARK-{vendor.product.capitalize()}"))
        .last_update(issued)
        .next_update(following)
        .add_extension(x509.CRLNumber(1), critical=False)
    )
    for serial in revoked:
        entry = x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(issued).build()
        builder = builder.add_revoked_certificate(entry)
    return builder.sign(vendor.keys.ark, _SHA384, rsa_padding=_PSS).public_bytes(Encoding.DER)


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    key: rsa.RSAPublicKey | ec.EllipticCurvePublicKey,
    issued: int,
    days: int,
) -> x509.CertificateBuilder:
    start = _moment(issued)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(start)
        .not_valid_after(start + datetime.timedelta(days=days))
    )


def _usage(*, lists: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=False,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=True,
        crl_sign=lists,
        encipher_only=False,
        decipher_only=False,
    )


def _name(common_name: str) -> x509.Name:
    return x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Cloister SIMULATED"),
            x509.NameAttribute(NameOID.COMMON_NAME, common_name),
        ]
    )


def _moment(seconds: int) -> datetime.datetime:
    return datetime.datetime.fromtimestamp(seconds, tz=datetime.UTC)


def _integer(value: int) -> bytes:
    content = value.to_bytes(value.bit_length() // 8 + 1, "big")
    return bytes([0x02, len(content)]) + content


def _ia5(text: str) -> bytes:
    return bytes([0x16, len(text)]) + text.encode("ascii")
