"""Which vendor's questions belong to a kind of evidence, and when the answers end. One table over the vendor modules.

Pure: evidence is parsed to learn whom to ask about, and is trusted for nothing else. A forged quote makes us ask about
a platform that it names, at the configured services only; what comes back is checked against the quote later.
"""

from __future__ import annotations

from functools import partial
from hashlib import sha256

from cloister.endorsements.amd_kds import amd_document_ends, amd_part_ends, ask_amd, products_of
from cloister.endorsements.asking import Asking, Vendor
from cloister.endorsements.intel_pcs import ask_intel, identify, intel_document_ends, intel_part_ends
from cloister.endorsements.nvidia import ocsp_targets, rim_ids
from cloister.endorsements.nvidia_services import (
    ask_nvidia,
    nvidia_document_ends,
    nvidia_part_ends,
)
from cloister.endorsements.services import Services
from cloister.errors import EndorsementError
from cloister.evidence.bundle import TeeKind
from cloister.evidence.hcl import parse_evidence
from cloister.evidence.nvidia import parse_device_evidence
from cloister.evidence.snp import SnpReport, parse_report

_NO_VENDOR = "nobody publishes endorsements of a TPM's attestation key"


def ask(tee: TeeKind, evidence: bytes, services: Services) -> Asking:
    """What the quote or report ``evidence`` needs. Raises :class:`~cloister.errors.CloisterError`."""
    if tee in ("tdx", "sgx"):
        return ask_intel(evidence, services)
    return ask_amd(_snp_report(tee, evidence), services)


def ask_devices(evidence: bytes, services: Services) -> Asking:
    """What the devices in ``evidence`` (evidence/nvidia.py) need. Raises :class:`~cloister.errors.CloisterError`."""
    devices = parse_device_evidence(evidence)
    ids = tuple(dict.fromkeys(one for device in devices.devices for one in rim_ids(device)))
    return ask_nvidia(ids, partial(ocsp_targets, devices), services)


def subject(tee: TeeKind, evidence: bytes) -> str:
    """Whom the endorsements of ``evidence`` are about: equal where one document serves both.

    Raises :class:`~cloister.errors.CloisterError`.
    """
    if tee in ("tdx", "sgx"):
        kind, pck = identify(evidence)
        return f"{kind}/{pck.fmspc}/{pck.ca}"
    report = _snp_report(tee, evidence)
    tcb = report.reported_tcb
    return f"{'/'.join(products_of(report))}/{report.chip_id.hex()}/{tcb!r}"


def device_subject(evidence: bytes) -> str:
    """The same for devices: their manifests and the certificates that stay when a report is made anew."""
    devices = parse_device_evidence(evidence)
    ids = sorted({one for device in devices.devices for one in rim_ids(device)})
    pairs = sorted(sha256(b"".join(pair)).hexdigest() for pair in ocsp_targets(devices))
    return "/".join([*ids, *pairs])


def part_ends(vendor: Vendor, key: str, content: bytes) -> int:
    """Unix seconds at which a part stops to hold, by its own content.

    Raises :class:`~cloister.errors.EndorsementError` if it is not what its key says.
    """
    match vendor:
        case "intel":
            return intel_part_ends(key, content)
        case "amd":
            return amd_part_ends(key, content)
        case "nvidia":
            return nvidia_part_ends(key, content)


def document_ends(tee: TeeKind, document: bytes) -> int:
    """Unix seconds of the earliest end in a bundle's ``endorsements``. Raises :class:`EndorsementError`."""
    if tee == "tpm":
        raise EndorsementError(_NO_VENDOR)
    return intel_document_ends(document) if tee in ("tdx", "sgx") else amd_document_ends(document)


def device_document_ends(document: bytes) -> int:
    """Unix seconds of the earliest end in a bundle's ``device_endorsements``. Raises :class:`EndorsementError`."""
    return nvidia_document_ends(document)


def _snp_report(tee: TeeKind, evidence: bytes) -> SnpReport:
    if tee == "tpm":
        raise EndorsementError(_NO_VENDOR, todo="enrol the attestation key, and carry its certificate")
    return parse_report(evidence if tee == "snp" else parse_evidence(evidence)[0].snp_report)
