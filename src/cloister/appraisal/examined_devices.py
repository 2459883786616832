"""Device evidence under examination: GPUs and switches, with or without a TEE beside them, and reference manifests."""

from __future__ import annotations

from cloister.appraisal.asked import Asked, Found, refuse_nonce, refuse_policy
from cloister.appraisal.given import Given
from cloister.endorsements.roots import NVIDIA_DEVICE_ROOT, NVIDIA_RIM_ROOT
from cloister.endorsements.x509 import read_certificate
from cloister.errors import EvidenceError
from cloister.evidence.nvidia import (
    DeviceEvidence,
    DeviceReport,
    encode_device_evidence,
    parse_device_evidence,
    parse_sdk_evidence,
)
from cloister.evidence.recognise import Recognised
from cloister.verifier import nvidia
from cloister.verifier.claims import DeviceClaims
from cloister.verifier.nvidia import NvidiaRules
from cloister.verifier.nvidia_chain import require_validity
from cloister.verifier.rim import verify_rim
from cloister.verifier.trail import Trail

REPORTED = NvidiaRules(revocation_required=False, rims_required=False)
"""Genuine devices at all: what was not compared or asked is reported."""


def device_form(subject: Recognised, given: Given) -> bytes:
    """``subject`` in the form that the verifier takes. Raises :class:`~cloister.errors.EvidenceError`."""
    if subject.kind == "spdm-report":
        if not given.certificates:
            raise EvidenceError(
                "a report alone does not say whose key signed it",
                todo="give the device's certificate chain (PEM) as --endorsements",
            )
        names = [read_certificate(der).common_name for der in given.certificates]
        switch = any(name.startswith(("LS10", "LS_10")) for name in names)
        device = DeviceReport(
            kind="nvswitch" if switch else "gpu", report=subject.data, certificates=given.certificates
        )
        return encode_device_evidence(DeviceEvidence(devices=(device,)))
    if subject.data.lstrip()[:1] == b"[":
        return encode_device_evidence(parse_sdk_evidence(subject.data))
    return encode_device_evidence(parse_device_evidence(subject.data))


def examine_devices(subject: Recognised, asked: Asked, found: Found) -> None:
    """16. Devices without a TEE: genuine, and over this nonce if one was given; no policy can accept them alone."""
    refuse_policy(subject, asked, found)
    with found.trail.check(3, name="device evidence"):
        evidence = device_form(subject, asked.given)
    found.devices = examine_device_evidence(
        evidence, asked.given.nvidia, nonce=asked.nonce, now=asked.now, trail=found.trail
    )
    if asked.nonce is not None:
        found.trail.found(1, "the devices answer it")


def examine_device_evidence(
    evidence: bytes, endorsements: bytes, *, nonce: bytes | None, now: int, trail: Trail
) -> tuple[DeviceClaims, ...]:
    """16. under NVIDIA's own roots and no policy's rules. Raises the errors of the verifier."""
    with trail.check(16):
        return nvidia.verify(
            evidence,
            endorsements,
            nonce=nonce,
            device_root=NVIDIA_DEVICE_ROOT,
            rim_root=NVIDIA_RIM_ROOT,
            now=now,
            rules=REPORTED,
            trail=trail,
        )


def examine_rim(subject: Recognised, asked: Asked, found: Found) -> None:
    """A reference manifest alone: its signature and chain; what it says are reference values, not evidence."""
    refuse_nonce(asked)
    refuse_policy(subject, asked, found)
    with found.trail.check(7, name="signature and chain") as passed:
        verified = verify_rim(subject.data, NVIDIA_RIM_ROOT)
        passed(f"signed by {verified.chain.certificates[0].common_name or 'NVIDIA'}")
    found.trail.found(3, verified.rim.label, name="manifest")
    found.trail.found(5, f"{NVIDIA_RIM_ROOT.name}, SHA-256 {NVIDIA_RIM_ROOT.sha256[:16]}…")
    with found.trail.check(6) as passed:
        require_validity(verified.chain, asked.now, what=f"the reference manifest {verified.rim.label}")
        passed("its certificates hold")
    found.facts = {
        "manifest": verified.rim.label,
        "product": verified.rim.product,
        "edition": verified.rim.edition,
        "version": verified.rim.version,
        "tag id": verified.rim.tag_id,
        "reference values": str(len(verified.rim.measurements)),
    }
