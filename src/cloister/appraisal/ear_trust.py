"""AR4SI trustworthiness vectors: what an appraisal can honestly say, and no more (docs/spec/ear.md).

A value of 0 makes no claim. Nothing here claims what was not checked: an appraisal sees a launch, so executables are
3 (approved at boot) and never 2 (approved at run time); file system, storage and sourced data are never claimed. A
simulated TEE is contraindicated, always. Values: draft-ietf-rats-ar4si, section 2.3.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, Literal

from cloister.appraisal.policy import Policy
from cloister.verifier.claims import Claims, DeviceClaims

NAMES: Final = (
    "instance-identity",
    "configuration",
    "executables",
    "file-system",
    "hardware",
    "runtime-opaque",
    "storage-opaque",
    "sourced-data",
)
NO_CLAIM, APPROVED, BOOT_APPROVED, KNOWN_ISSUES, VISIBLE, UNRECOGNISED = 0, 2, 3, 32, 96, 97
VALUES: Final = frozenset({NO_CLAIM, APPROVED, BOOT_APPROVED, KNOWN_ISSUES, VISIBLE, UNRECOGNISED})
"""Every value that Cloister writes, and so every value that it reads."""

Vector = dict[str, int]
Status = Literal["none", "affirming", "warning", "contraindicated"]


def status_of(vector: Mapping[str, int]) -> Status:
    """The tier of the worst value: ``none``, ``affirming``, ``warning`` or ``contraindicated``."""
    worst = max(vector.values(), default=NO_CLAIM)
    if worst >= VISIBLE:
        return "contraindicated"
    if worst >= KNOWN_ISSUES:
        return "warning"
    return "affirming" if worst >= APPROVED else "none"


def cpu_vector(claims: Claims, policy: Policy | None) -> Vector:
    """What is known of a TEE; with ``policy`` None the evidence was verified, and nobody appraised it."""
    vector = dict.fromkeys(NAMES, NO_CLAIM)
    if claims.simulated:
        return {**vector, "hardware": UNRECOGNISED, "runtime-opaque": VISIBLE}
    vector["hardware"] = APPROVED if claims.tcb_status in (None, "UpToDate") else KNOWN_ISSUES
    if claims.tee != "tpm":  # a TPM measures a machine, it does not hide its memory
        vector["runtime-opaque"] = APPROVED
    if policy is not None:
        vector["executables"] = BOOT_APPROVED if _boot_is_pinned(claims, policy) else NO_CLAIM
        vector["configuration"] = APPROVED if _configuration_is_pinned(claims, policy) else NO_CLAIM
        vector["instance-identity"] = APPROVED if _machine_is_listed(claims, policy) else NO_CLAIM
    return vector


def device_vector(device: DeviceClaims, policy: Policy | None) -> Vector:
    """What is known of one GPU or switch."""
    vector = dict.fromkeys(NAMES, NO_CLAIM)
    if device.simulated:
        return {**vector, "hardware": UNRECOGNISED, "runtime-opaque": VISIBLE}
    vector["hardware"] = APPROVED
    if policy is not None:
        if device.matched and device.rims and not device.differing:
            vector["executables"] = BOOT_APPROVED
        if policy.hardware is not None and policy.hardware.device is not None:
            vector["instance-identity"] = APPROVED
    return vector


def _boot_is_pinned(claims: Claims, policy: Policy) -> bool:
    if claims.tee == "tdx" and policy.tdx is not None:
        launched = policy.tdx.rtmr3 != "any" or policy.tdx.events is not None
        return policy.tdx.rtmr1 != "any" and policy.tdx.rtmr2 != "any" and launched
    pcrs = (
        policy.tpm.pcrs if claims.tee == "tpm" and policy.tpm else policy.azure.pcrs if policy.azure else {}
    )
    if claims.tee in ("tpm", "az-snp-vtpm"):
        # PCR 4 holds the boot loader's code (TCG PC Client Platform Firmware Profile, section 3.3.4).
        return pcrs.get("4", "any") != "any"
    return True  # MRENCLAVE, MRSIGNER or the launch measurement: a policy cannot leave them open


def _configuration_is_pinned(claims: Claims, policy: Policy) -> bool:
    if claims.tee == "tdx" and policy.tdx is not None:
        events = policy.tdx.events or {}
        return policy.tdx.rtmr3 != "any" or (bool(events) and "any" not in events.values())
    if claims.tee == "sgx" and policy.sgx is not None:
        return policy.sgx.mrenclave is not None
    return False


def _machine_is_listed(claims: Claims, policy: Policy) -> bool:
    return policy.hardware is not None and any(
        getattr(policy.hardware, name, None) is not None for name in claims.hardware
    )
