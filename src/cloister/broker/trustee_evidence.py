"""The evidence that guests of the Confidential Containers send: JSON of each attester, into our own forms. Pure.

Which form it must have was announced; nothing is recognised. Nothing here is verified either: a quote, a report, a log
and certificates come out, for the verifier. Refused by name: devices of other makers, and evidence beside the known.
"""

from __future__ import annotations

import base64
import binascii
from dataclasses import dataclass
from typing import Any, Final, Literal

from cloister.broker.trustee_snp import ReportFields, encode_report
from cloister.encoding import Record, convert, parse_json
from cloister.endorsements.amd import encode_snp_endorsements, endorsements_for
from cloister.errors import EvidenceError, FormatError
from cloister.evidence.bundle import TeeKind
from cloister.evidence.nvidia import (
    MAX_DEVICES,
    MAX_EVIDENCE,
    DeviceEvidence,
    DeviceKind,
    DeviceReport,
    encode_device_evidence,
    parse_device_evidence,
    split_pem,
)

MAX_ENTRIES: Final = 16
"""Certificates of one guest's table."""
NVIDIA: Final = "nvidia"
_KINDS: Final[dict[str, DeviceKind]] = {"HOPPER": "gpu", "BLACKWELL": "gpu", "LS10": "nvswitch"}


@dataclass(frozen=True, slots=True)
class Primary:
    """What was found in the evidence of a TEE."""

    quote: bytes
    firmware_log: bytes = b""
    endorsements: bytes = b""
    """What the guest's host gave it, which is less than a policy may want; empty for most."""
    signed_by_vlek: bool = False


class TdxEvidence(Record, frozen=True, kw_only=True):
    """Base64 each."""

    quote: str
    cc_eventlog: str | None = None


class SgxEvidence(Record, frozen=True, kw_only=True):
    """Base64."""

    quote: str


class CertificateEntry(Record, frozen=True, kw_only=True):
    """One entry of the host's certificate table; ``data`` are bytes as numbers."""

    cert_type: Literal["Empty", "ARK", "ASK", "VCEK", "VLEK", "CRL"] | dict[str, str]
    data: list[int]


class SnpEvidence(Record, frozen=True, kw_only=True):
    """The report member by member, and the host's table if it has one."""

    attestation_report: ReportFields
    cert_chain: list[CertificateEntry] | None = None


class NvidiaDevice(Record, frozen=True, kw_only=True):
    """One device. ``evidence`` is a report in base64, ``certificate`` its chain as PEM in base64."""

    arch: str
    evidence: str
    certificate: str
    uuid: str = ""


class NvidiaEvidence(Record, frozen=True, kw_only=True):
    """All of a machine's."""

    device_evidence_list: list[NvidiaDevice]


def read_primary(tee: TeeKind, evidence: dict[str, Any]) -> Primary:
    """The evidence of a TEE of kind ``tee``. Raises :class:`~cloister.errors.FormatError` or ``EvidenceError``."""
    if tee == "tdx":
        tdx = convert(evidence, TdxEvidence, what="TDX evidence")
        log = _base64(tdx.cc_eventlog, "cc_eventlog") if tdx.cc_eventlog else b""
        return Primary(_base64(tdx.quote, "TDX quote"), firmware_log=log)
    if tee == "sgx":
        return Primary(_base64(convert(evidence, SgxEvidence, what="SGX evidence").quote, "SGX quote"))
    if tee == "snp":
        snp = convert(evidence, SnpEvidence, what="SEV-SNP evidence")
        return Primary(
            encode_report(snp.attestation_report),
            endorsements=_endorsements(snp.cert_chain or [], snp.attestation_report.signing_key),
            signed_by_vlek=snp.attestation_report.signing_key == "VLEK",
        )
    raise EvidenceError(f"evidence of kind {tee} is not read in Trustee's form")


def read_additional(text: str) -> bytes:
    """Evidence of NVIDIA devices in our own form, or nothing. Raises as :func:`read_primary` does."""
    if not text:
        return b""
    table = parse_json(text, what="additional evidence", limit=2 * MAX_EVIDENCE)
    if not isinstance(table, dict):
        raise FormatError("additional evidence is not an object")
    if other := sorted(set(table) - {NVIDIA}):
        raise EvidenceError(f"additional evidence of kind {_shown(other[0])} is not verified here")
    if not table:
        return b""
    found = convert(table[NVIDIA], NvidiaEvidence, what="NVIDIA evidence").device_evidence_list
    devices = DeviceEvidence(devices=tuple(_device(device) for device in found[: MAX_DEVICES + 1]))
    evidence = encode_device_evidence(devices)
    parse_device_evidence(evidence)  # its bounds
    return evidence


def _device(device: NvidiaDevice) -> DeviceReport:
    kind = _KINDS.get(device.arch.upper())
    if kind is None:
        raise EvidenceError(f"NVIDIA evidence of an architecture {_shown(device.arch)} is not verified here")
    chain = _base64(device.certificate, "NVIDIA certificate chain")
    return DeviceReport(
        kind=kind, report=_base64(device.evidence, "NVIDIA report"), certificates=split_pem(chain)
    )


def _endorsements(entries: list[CertificateEntry], signer: str) -> bytes:
    """The certificate of the report's own signing key with AMD's chain, where the host's table has it."""
    if len(entries) > MAX_ENTRIES:
        raise EvidenceError(f"the certificate table has more than {MAX_ENTRIES} entries")
    keys = [entry for entry in entries if entry.cert_type == signer]
    lists = [entry for entry in entries if entry.cert_type == "CRL"]
    if len(keys) > 1 or len(lists) > 1:
        raise EvidenceError(f"the certificate table has two entries of type {signer} or CRL")
    if not keys:
        return b""
    crl = _bytes(lists[0]) if lists else b""
    return encode_snp_endorsements(endorsements_for(_bytes(keys[0]), crl=crl))


def _bytes(entry: CertificateEntry) -> bytes:
    try:
        return bytes(entry.data)
    except ValueError:
        raise FormatError("a certificate of the table has a number over a byte") from None


def _base64(text: str, what: str) -> bytes:
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise FormatError(f"the {what} is not base64") from None
    if not data or base64.b64encode(data).decode() != text:
        raise FormatError(f"the {what} is empty, or not canonical base64")
    return data


def _shown(text: str) -> str:
    return repr(text[:40])
