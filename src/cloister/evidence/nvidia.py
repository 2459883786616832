"""Evidence of NVIDIA GPUs and NVSwitches: how it travels, and what the fields in it mean (docs/spec/nvidia.md).

Nothing is trusted here. Read are our own form, the JSON of NVIDIA's attestation SDK, and a raw report beside its
certificates. What such a file *claims* about a device (architecture, versions) is not kept: the signed report and
the certificate chain say it, and the verifier believes only them. Refused: more than 1 MiB or 64 devices, PEM with
anything between its blocks, a nonce beside a report that is not the report's own.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Sequence
from typing import Any, Final, Literal

from cloister.encoding import Record, decode_json, encode_json, parse_json
from cloister.errors import EvidenceError, FormatError
from cloister.evidence.spdm import MAX_REPORT, parse_report

FORMAT: Final = "cloister/device-evidence/v1"
MAX_EVIDENCE: Final = 1 << 20
"""Upper bound of the evidence of all devices of a machine, bytes."""
MAX_DEVICES: Final = 64
MAX_CHAIN: Final = 8
"""Certificates of one device; NVIDIA's chains have five."""
MAX_CERTIFICATE: Final = 8 * 1024

DeviceKind = Literal["gpu", "nvswitch"]

_PEM = re.compile(
    r"\s*-----BEGIN CERTIFICATE-----\s*\n([A-Za-z0-9+/=\r\n]{1,16384}?)-----END CERTIFICATE-----\s*"
)
_SDK_KINDS: Final[dict[str, DeviceKind]] = {"HOPPER": "gpu", "BLACKWELL": "gpu", "LS10": "nvswitch"}


class DeviceReport(Record, frozen=True, kw_only=True):
    """One device; binary fields are standard base64 on the wire."""

    kind: DeviceKind
    """A claim until the certificate chain says the same."""
    report: bytes
    """SPDM request and response (evidence/spdm.py)."""
    certificates: tuple[bytes, ...]
    """DER, the key that signed the report first, the root last."""


class DeviceEvidence(Record, frozen=True, kw_only=True):
    """Every device of a machine, over one nonce."""

    format: Literal["cloister/device-evidence/v1"] = FORMAT
    devices: tuple[DeviceReport, ...]


def encode_device_evidence(evidence: DeviceEvidence) -> bytes:
    """The canonical wire form, whose SHA-256 a quote binds."""
    return encode_json(evidence)


def parse_device_evidence(data: bytes) -> DeviceEvidence:
    """Decode our own form. Raises :class:`~cloister.errors.EvidenceError`."""
    try:
        return _bounded(decode_json(data, DeviceEvidence, what="device evidence", limit=MAX_EVIDENCE))
    except FormatError as error:
        raise EvidenceError(error.what, todo="ask for evidence again") from None


def parse_sdk_evidence(data: bytes) -> DeviceEvidence:
    """Decode what NVIDIA's attestation SDK writes: a list of ``{arch, certificate, evidence, nonce, …}``.

    Its further fields are claims and are dropped; ``arch`` only says whether it is a GPU or a switch.
    Raises :class:`~cloister.errors.EvidenceError`.
    """
    try:
        items = parse_json(data, what="NVIDIA SDK evidence", limit=MAX_EVIDENCE)
    except FormatError as error:
        raise EvidenceError(error.what) from None
    if not isinstance(items, list):
        raise EvidenceError("NVIDIA SDK evidence is a list of devices")
    return _bounded(DeviceEvidence(devices=tuple(_sdk_device(item) for item in items[: MAX_DEVICES + 1])))


def read_raw_evidence(report: bytes, chain: bytes, *, kind: DeviceKind = "gpu") -> DeviceEvidence:
    """One device's report (binary, or as hexadecimal text) beside its certificate chain in PEM, leaf first.

    Raises :class:`~cloister.errors.EvidenceError`.
    """
    if len(report) > 2 * MAX_REPORT + 16 or len(chain) > MAX_EVIDENCE:
        raise EvidenceError("the report or its certificate chain is over its bound")
    text = report.strip()
    if re.fullmatch(rb"(?:[0-9a-fA-F]{2})+", text):
        report = binascii.unhexlify(text)
    device = DeviceReport(kind=kind, report=report, certificates=split_pem(chain))
    return _bounded(DeviceEvidence(devices=(device,)))


def split_pem(data: bytes) -> tuple[bytes, ...]:
    """The DER certificates of a PEM chain, with white space alone between its blocks.

    Raises :class:`~cloister.errors.EvidenceError`.
    """
    try:
        text = data.removesuffix(b"\0").decode("ascii")
    except UnicodeDecodeError:
        raise EvidenceError("the certificate chain is not PEM") from None
    found: list[bytes] = []
    position = 0
    while position < len(text):
        match = _PEM.match(text, position)
        if match is None or len(found) >= MAX_CHAIN:
            raise EvidenceError(
                f"the certificate chain is not PEM, or longer than {MAX_CHAIN} certificates",
                todo="give the chain of one device, its own certificate first",
            )
        found.append(_base64("".join(match[1].split()), "a PEM certificate"))
        position = match.end()
    return tuple(found)


def _sdk_device(item: Any) -> DeviceReport:
    if not isinstance(item, dict):
        raise EvidenceError("a device of NVIDIA SDK evidence is an object")
    texts: dict[str, str] = {}
    for name in ("arch", "certificate", "evidence", "nonce"):
        value = item.get(name)
        if not isinstance(value, str):
            raise EvidenceError(f"a device of NVIDIA SDK evidence has no text {name!r}")
        texts[name] = value
    kind = _SDK_KINDS.get(texts["arch"].upper())
    if kind is None:
        raise EvidenceError(
            f"NVIDIA SDK evidence of an architecture {texts['arch'][:32]!r}, which is not known here",
            todo=f"known are: {', '.join(_SDK_KINDS)}",
        )
    report = _base64(texts["evidence"], "a report of NVIDIA SDK evidence")
    if parse_report(report).nonce.hex() != texts["nonce"].lower():
        raise EvidenceError("NVIDIA SDK evidence names another nonce than its report holds")
    certificates = split_pem(_base64(texts["certificate"], "a chain of NVIDIA SDK evidence"))
    return DeviceReport(kind=kind, report=report, certificates=certificates)


def _bounded(evidence: DeviceEvidence) -> DeviceEvidence:
    if not 1 <= len(evidence.devices) <= MAX_DEVICES:
        raise EvidenceError(f"device evidence holds {len(evidence.devices)} devices, not 1 to {MAX_DEVICES}")
    for device in evidence.devices:
        if len(device.report) > MAX_REPORT:
            raise EvidenceError(f"a device's report is over its bound of {MAX_REPORT} bytes")
        check_chain_size(device.certificates)
    return evidence


def check_chain_size(certificates: Sequence[bytes]) -> None:
    """2 to 8 certificates of at most 8 KiB. Raises :class:`~cloister.errors.EvidenceError`."""
    if not 2 <= len(certificates) <= MAX_CHAIN:
        raise EvidenceError(
            f"a device's certificate chain has {len(certificates)} certificates, not 2 to {MAX_CHAIN}",
            todo="collect the whole chain, from the key that signs reports to NVIDIA's root",
        )
    if any(len(certificate) > MAX_CERTIFICATE for certificate in certificates):
        raise EvidenceError(f"a device's certificate is over its bound of {MAX_CERTIFICATE} bytes")


def _base64(text: str, what: str) -> bytes:
    try:
        return base64.b64decode(text.encode("ascii"), validate=True)
    except (UnicodeEncodeError, binascii.Error, ValueError):
        raise EvidenceError(f"{what} is not base64") from None
