"""NVIDIA devices. SKELETON: signature and types are the contract."""

from __future__ import annotations

from dataclasses import dataclass

from cloister.endorsements.roots import Root
from cloister.verifier.claims import DeviceClaims
from cloister.verifier.trail import Trail


@dataclass(frozen=True, slots=True)
class NvidiaRules:
    """What has to be at hand for devices to be verified at all."""

    revocation_required: bool = True
    """OCSP answers for every certificate; else their absence is reported."""
    rims_required: bool = True
    """Reference measurements for driver and VBIOS; else the comparison is left out and reported."""


def verify(
    evidence: bytes,
    endorsements: bytes,
    *,
    nonce: bytes | None,
    device_root: Root,
    rim_root: Root,
    now: int,
    rules: NvidiaRules,
    trail: Trail | None = None,
) -> tuple[DeviceClaims, ...]:
    """Verify device evidence (evidence/nvidia.py) made for ``nonce`` (32 bytes; None: whatever one they share)."""
    raise NotImplementedError
