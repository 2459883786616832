"""The simulated GPU vendor's certificates and OCSP answers: P-384 and SHA-384, shaped like NVIDIA's, and nobody's.

Device root → family → provisioner → device → report key (with the FWID), and RIM root → family → issuer → signer.
Every name says that it is simulated. Refuses nothing: what a chain proves is the verifier's to say.
"""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, utils
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509 import ocsp
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from cloister.attester.simulation.chain import DAY, Signer, Window
from cloister.attester.simulation.hardware import Entropy

LIFE_DAYS: Final = 30 * 365
COMPOSITE_DEVICE_ID: Final = x509.ObjectIdentifier("2.23.133.5.4.1")
_P384_ORDER: Final = (
    0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFC7634D81F4372DDF581A0DB248B0A77AECEC196ACCC52973
)
_ECDSA: Final = ec.ECDSA(hashes.SHA384(), deterministic_signing=True)
_SHA384_ID: Final = bytes.fromhex("0609608648016503040202")


@dataclass(frozen=True, slots=True)
class DeviceAuthority:
    """Who certifies devices."""

    root: Signer
    family: Signer
    provisioner: Signer


@dataclass(frozen=True, slots=True)
class RimAuthority:
    """Who signs reference manifests."""

    root: Signer
    family: Signer
    issuer: Signer
    signer: Signer

    @property
    def chain(self) -> tuple[Signer, ...]:
        return self.signer, self.issuer, self.family, self.root


def draw_p384(entropy: Entropy) -> ec.EllipticCurvePrivateKey:
    """A P-384 private key from 64 random bytes (FIPS 186-5, A.2.1)."""
    scalar = int.from_bytes(entropy(64), "big") % (_P384_ORDER - 1) + 1
    return ec.derive_private_key(scalar, ec.SECP384R1())


def sign_report(key: ec.EllipticCurvePrivateKey, data: bytes) -> bytes:
    """ECDSA-SHA384 as r ‖ s, 48 bytes each."""
    r, s = utils.decode_dss_signature(key.sign(data, _ECDSA))
    return r.to_bytes(48, "big") + s.to_bytes(48, "big")


def issue_device_authority(entropy: Entropy, issued: int, *, chip: str = "GH100") -> DeviceAuthority:
    root = issue(entropy, "Device Identity CA", None, issued)
    family = issue(entropy, f"{chip} Identity", root, issued)
    return DeviceAuthority(root, family, issue(entropy, f"{chip} Provisioner ICA 1", family, issued))


def issue_rim_authority(entropy: Entropy, issued: int, *, signer_days: int = 2 * 365) -> RimAuthority:
    root = issue(entropy, "RIM signing Root CA", None, issued)
    family = issue(entropy, "Reference Value CA", root, issued)
    issuer = issue(entropy, "Reference Value L3", family, issued, path_length=0)
    signer = issue(entropy, "RIM L4 Signer", issuer, issued, authority=False, days=signer_days)
    return RimAuthority(root, family, issuer, signer)


def issue_device(entropy: Entropy, provisioner: Signer, issued: int, *, chip: str, pdi: bytes) -> Signer:
    """A device's own certificate, which may issue report keys. ``pdi`` is its id, 8 bytes."""
    serial = f"{'50' if chip.startswith('LS') else '41'}{pdi.hex().upper()}"
    return issue(entropy, "", provisioner, issued, name=_name(f"{chip} A01 SIMULATED BROM", serial))


def issue_report_key(entropy: Entropy, device: Signer, issued: int, *, chip: str, fwid: bytes) -> Signer:
    """The key that signs reports while the firmware with digest ``fwid`` (48 bytes) runs."""
    extension = x509.UnrecognizedExtension(COMPOSITE_DEVICE_ID, composite_device_id(device, fwid))
    name = _name(f"{chip} A01 SIMULATED FMC LF", entropy(20).hex().upper())
    return issue(entropy, "", device, issued, authority=False, name=name, extensions={extension: False})


def composite_device_id(device: Signer, fwid: bytes) -> bytes:
    """The content of the extension that binds report key, device key and firmware, DER."""
    spki = device.key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    body = b"\x02\x01\x01" + spki + _der(0x30, _SHA384_ID + _der(0x04, fwid))
    return _der(0x30, body)


def issue(
    entropy: Entropy,
    common: str,
    issuer: Signer | None,
    issued: int,
    *,
    authority: bool = True,
    path_length: int | None = None,
    days: int = LIFE_DAYS,
    name: x509.Name | None = None,
    extensions: Mapping[x509.ExtensionType, bool] | None = None,
) -> Signer:
    """One certificate with its new key; self-signed without ``issuer``. ``extensions`` by whether they are critical."""
    key = draw_p384(entropy)
    subject = name or _name(common)
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject if issuer is None else issuer.certificate.subject)
        .public_key(key.public_key())
        .serial_number(int.from_bytes(b"\x40" + entropy(19), "big"))
        .not_valid_before(_utc(issued))
        .not_valid_after(_utc(issued + days * DAY))
        .add_extension(_key_usage(authority=authority), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )
    if authority:
        builder = builder.add_extension(
            x509.BasicConstraints(ca=True, path_length=path_length), critical=True
        )
    for extension, critical in (extensions or {}).items():
        builder = builder.add_extension(extension, critical=critical)
    signing_key = key if issuer is None else issuer.key
    return Signer(builder.sign(signing_key, hashes.SHA384(), ecdsa_deterministic=True), key)


def issue_responder(entropy: Entropy, issuer: Signer, issued: int) -> Signer:
    """A responder that may answer for what ``issuer`` issued."""
    purpose = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.OCSP_SIGNING])
    return issue(entropy, "OCSP responder", issuer, issued, authority=False, extensions={purpose: False})


def answer_ocsp(
    certificate: x509.Certificate,
    issuer: Signer,
    window: Window,
    *,
    responder: Signer | None = None,
    revoked: bool = False,
) -> bytes:
    """One OCSP response (DER), signed by ``issuer`` itself or by a ``responder`` of its."""
    signer = responder or issuer
    status = ocsp.OCSPCertStatus.REVOKED if revoked else ocsp.OCSPCertStatus.GOOD
    builder = (
        ocsp.OCSPResponseBuilder()
        .add_response(
            cert=certificate,
            issuer=issuer.certificate,
            algorithm=hashes.SHA256(),
            cert_status=status,
            this_update=_utc(window.issued),
            next_update=_utc(window.next_update),
            revocation_time=_utc(window.issued) if revoked else None,
            revocation_reason=x509.ReasonFlags.key_compromise if revoked else None,
        )
        .responder_id(ocsp.OCSPResponderEncoding.HASH, signer.certificate)
    )
    if responder is not None:
        builder = builder.certificates([responder.certificate])
    return builder.sign(signer.key, hashes.SHA384()).public_bytes(Encoding.DER)


def chain_ders(chain: Sequence[Signer]) -> tuple[bytes, ...]:
    """The certificates alone, DER."""
    return tuple(signer.der for signer in chain)


def _der(tag: int, content: bytes) -> bytes:
    length = len(content)
    if length < 0x80:
        return bytes([tag, length]) + content
    return bytes([tag, 0x81, length]) + content


def _name(common: str, serial: str = "") -> x509.Name:
    attributes = [
        x509.NameAttribute(
            NameOID.COMMON_NAME, common if "SIMULATED" in common else f"Cloister SIMULATED {common}"
        ),
        x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Cloister simulated GPUs, nothing is protected"),
    ]
    if serial:
        attributes.append(x509.NameAttribute(NameOID.SERIAL_NUMBER, serial))
    return x509.Name(attributes)


def _utc(seconds: int) -> datetime.datetime:
    return datetime.datetime.fromtimestamp(seconds, datetime.UTC)


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
