"""What NVIDIA signs about devices: reference integrity manifests (RIMs) and OCSP answers.

Carried along or fetched, as one strict JSON document; here it is only bounded and parsed, the verifier judges it.
Also here, for whoever fetches: which manifests a device needs (:func:`rim_ids`) and about which certificates the OCSP
responder is to be asked (:func:`ocsp_targets`). Both read evidence that nobody has verified yet.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from cloister.encoding import Record, decode_json, encode_json
from cloister.endorsements.der import (
    OBJECT_IDENTIFIER,
    PRINTABLE_STRING,
    SEQUENCE,
    SET,
    UTF8_STRING,
    Der,
)
from cloister.endorsements.rim import rim_certificates
from cloister.endorsements.x509 import Certificate, read_certificate
from cloister.errors import EndorsementError, FormatError
from cloister.evidence.nvidia import DeviceEvidence, DeviceKind, DeviceReport
from cloister.evidence.nvidia_fields import DeviceFields, read_fields
from cloister.evidence.spdm import parse_report

FORMAT: Final = "cloister/endorsements/nvidia/v1"
MAX_ENDORSEMENTS = 1 << 20
MAX_RIMS = 32
MAX_OCSP = 64
CHAIN_SIZE: Final = 5
"""Report key, device, provisioner, family, root: NVIDIA's device chains have no other form."""
_SERIAL_NUMBER: Final = "2.5.4.5"
_CHIPS: Final[dict[str, tuple[DeviceKind, str]]] = {
    "GH": ("gpu", "hopper"),
    "GB": ("gpu", "blackwell"),
    "LS": ("nvswitch", "ls10"),
}
_LS10 = ("5612", "0002", "890")
"""Project, project SKU and chip SKU of the one switch there is; its reports do not name them."""


class NvidiaEndorsements(Record, frozen=True, kw_only=True):
    """One document for all devices of a machine; binary fields are standard base64 on the wire."""

    format: Literal["cloister/endorsements/nvidia/v1"] = FORMAT
    rims: tuple[bytes, ...] = ()
    """Signed XML (SWID tags), each once, in any order: the verifier finds each device's by product and version."""
    ocsp: tuple[bytes, ...] = ()
    """OCSP responses (DER, RFC 6960) for certificates of the devices and RIMs; none: revocation was not checked."""


@dataclass(frozen=True, slots=True)
class Chip:
    """What NVIDIA's certificate says a device is."""

    name: str
    """As reference manifests write it: ``GH100``, ``GB100``, ``LS10``."""
    kind: DeviceKind
    architecture: str
    """``hopper``, ``blackwell``, ``ls10``."""
    pdi: str
    """The per-device id, 16 hexadecimal digits, by which GPUs and switches name each other."""


def parse_nvidia_endorsements(data: bytes) -> NvidiaEndorsements:
    """Decode; empty input is a document without anything. Raises :class:`~cloister.errors.EndorsementError`."""
    if not data:
        return NvidiaEndorsements()
    try:
        found = decode_json(data, NvidiaEndorsements, what="NVIDIA endorsements", limit=MAX_ENDORSEMENTS)
    except FormatError as error:
        raise EndorsementError(error.what, todo="fetch them again") from None
    if len(found.rims) > MAX_RIMS or len(found.ocsp) > MAX_OCSP:
        raise EndorsementError(
            f"NVIDIA endorsements hold {len(found.rims)} RIMs and {len(found.ocsp)} OCSP answers, over their bounds"
        )
    return found


def encode_nvidia_endorsements(endorsements: NvidiaEndorsements) -> bytes:
    """The canonical wire form."""
    return encode_json(endorsements)


def chip_of(device: Certificate) -> Chip:
    """The chip that a device certificate (the second of a chain) names, as in ``GH100 A01 GSP BROM``.

    Raises :class:`~cloister.errors.EndorsementError`.
    """
    name = device.common_name
    match = re.match(r"((GH|GB|LS)_?([0-9]{2,3})) ", name)
    if match is None:
        raise EndorsementError(f"a device certificate names {name[:40]!r}, which is no chip known here")
    kind, architecture = _CHIPS[match[2]]
    serial = re.fullmatch(r"[0-9A-F]{2}([0-9A-F]{16})", _serial_number(device.subject))
    if serial is None:
        raise EndorsementError("a device certificate names no per-device id")
    return Chip(match[1].replace("_", ""), kind, architecture, serial[1].lower())


def rim_ids(device: DeviceReport) -> tuple[str, ...]:
    """Ids of the manifests at NVIDIA's service: driver and VBIOS of a GPU, the BIOS alone of a switch.

    From the unverified evidence, by the rule of NVIDIA's SDK. Raises :class:`~cloister.errors.CloisterError`.
    """
    if len(device.certificates) != CHAIN_SIZE:
        raise EndorsementError(
            f"a device's certificate chain has {len(device.certificates)} certificates, not 5"
        )
    chip = chip_of(read_certificate(device.certificates[1]))
    return device_rim_ids(chip, read_fields(parse_report(device.report), chip.kind))


def device_rim_ids(chip: Chip, fields: DeviceFields) -> tuple[str, ...]:
    """The same from parts that were read already."""
    vbios = fields.vbios_version.replace(".", "")
    if chip.kind == "nvswitch":
        return (f"NV_SWITCH_BIOS_{'_'.join(_LS10)}_{vbios}",)
    if chip.architecture == "hopper":
        driver = f"NV_GPU_DRIVER_GH100_{fields.driver_version}"
    else:
        driver = f"NV_GPU_CC_DRIVER_{fields.text('chip_info') or 'GB100'}_{fields.driver_version}"
    board = "_".join(fields.text(name) for name in ("project", "project_sku", "chip_sku"))
    return tuple(_plain(name) for name in (driver, f"NV_GPU_VBIOS_{board}_{vbios}"))


def ocsp_targets(evidence: DeviceEvidence, rims: Iterable[bytes] = ()) -> tuple[tuple[bytes, bytes], ...]:
    """(certificate, issuer) in DER, each pair once, for which an OCSP answer is wanted.

    As NVIDIA's SDK does: of a device's chain all but the report key (the device issues it itself, and nobody answers
    for it) and the root; of a manifest's chain all but the root.
    Raises :class:`~cloister.errors.EndorsementError` where a manifest cannot be read.
    """
    pairs: dict[tuple[bytes, bytes], None] = {}
    for device in evidence.devices:
        pairs.update(dict.fromkeys(chain_targets(device.certificates, first=1)))
    for rim in rims:
        pairs.update(dict.fromkeys(chain_targets(rim_certificates(rim), first=0)))
    return tuple(pairs)


def chain_targets(certificates: Sequence[bytes], *, first: int) -> list[tuple[bytes, bytes]]:
    """The pairs of one chain, from the certificate at ``first`` on."""
    return list(zip(certificates[first:], certificates[first + 1 :], strict=False))


def _serial_number(name: bytes) -> str:
    parts = Der(name, "certificate's name").enter(SEQUENCE)
    found = ""
    while not parts.done:
        attribute = parts.enter(SET).enter(SEQUENCE)
        if attribute.peek() == OBJECT_IDENTIFIER and attribute.oid() == _SERIAL_NUMBER:
            tag = attribute.peek()
            if found or tag not in (UTF8_STRING, PRINTABLE_STRING):
                raise parts.fail("its serial number stands there twice or is no text")
            found = attribute.element(tag)[1].decode("utf-8", "replace")
    return found


def _plain(name: str) -> str:
    # It becomes part of an address: nothing but what NVIDIA's ids are made of.
    if not re.fullmatch(r"[A-Za-z0-9_.-]{1,200}", name):
        raise EndorsementError("a device's report leads to a manifest id that cannot be one")
    return name
