"""Captured NVIDIA evidence and manifests by name, for every test that needs real ones."""

from __future__ import annotations

from functools import cache

from cloister.encoding import decode_json
from cloister.endorsements.nvidia import NvidiaEndorsements, encode_nvidia_endorsements
from cloister.endorsements.roots import NVIDIA_DEVICE_ROOT, NVIDIA_RIM_ROOT
from cloister.evidence.nvidia import (
    DeviceEvidence,
    encode_device_evidence,
    parse_sdk_evidence,
    read_raw_evidence,
)
from cloister.verifier.claims import DeviceClaims
from cloister.verifier.nvidia import NvidiaRules, verify
from intel_vectors import at
from shared_data import vectors

NVTRUST, SDK, COCO = "nvidia-nvtrust", "nvidia-attestation-sdk", "coco-trustee/nvidia"
NOW = at("2026-11-23")
"""The chains of devices have no end; the driver's manifest holds until 2026-12-30."""
UNCHECKED = NvidiaRules(revocation_required=False, rims_required=False)
DRIVER_RIM = f"{SDK}/NV_GPU_DRIVER_GH100_550.144.03.xml"
VBIOS_RIM = f"{NVTRUST}/1010_0200_882_96005E0001_PROD.swidtag"


@cache
def evidence(name: str) -> DeviceEvidence:
    """Parsed evidence; ``coco`` is the raw report beside its chain."""
    if name == "coco":
        return read_raw_evidence(
            vectors(f"{COCO}/hopperAttestationReport.txt").read_bytes(),
            vectors(f"{COCO}/hopper_cert_chain_case1.txt").read_bytes(),
        )
    return parse_sdk_evidence(vectors(name).read_bytes())


def nonce(name: str) -> bytes:
    """The nonce that the capture itself names."""
    if name == "coco":
        return bytes.fromhex("931d8dd0add203ac3d8b4fbde75e115278eefcdceac5b87671a748f32364dfcb")
    items = decode_json(vectors(name).read_bytes(), list[dict[str, str]], what=name)
    (found,) = {item["nonce"] for item in items}
    return bytes.fromhex(found)


@cache
def rim(name: str) -> bytes:
    return vectors(name).read_bytes()


def verified(
    shown: DeviceEvidence,
    *,
    asked: bytes | None = None,
    rims: tuple[bytes, ...] = (),
    rules: NvidiaRules = UNCHECKED,
    now: int = NOW,
) -> tuple[DeviceClaims, ...]:
    """Under NVIDIA's own roots."""
    return verify(
        encode_device_evidence(shown),
        encode_nvidia_endorsements(NvidiaEndorsements(rims=rims)),
        nonce=asked,
        device_root=NVIDIA_DEVICE_ROOT,
        rim_root=NVIDIA_RIM_ROOT,
        now=now,
        rules=rules,
    )
