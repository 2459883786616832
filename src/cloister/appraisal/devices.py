"""Check 16: the GPUs and switches beside the TEE, as the policy wants them and bound to the same quote."""

from __future__ import annotations

from dataclasses import replace

from cloister.appraisal.hardware import judge_device_hardware
from cloister.appraisal.judge_nvidia import judge_nvidia
from cloister.appraisal.policy import Policy
from cloister.appraisal.reference_nvidia import nvidia_rules
from cloister.errors import AppraisalRefused
from cloister.verifier import nvidia
from cloister.verifier.claims import Claims
from cloister.verifier.trail import Trail


def appraise_devices(
    claims: Claims,
    evidence: bytes,
    endorsements: bytes,
    *,
    nonce: bytes | None,
    policy: Policy,
    now: int,
    trail: Trail,
) -> Claims:
    """``claims`` with those of its devices. ``evidence`` is empty for none; ``nonce`` is the device nonce.

    Raises :class:`~cloister.errors.AppraisalRefused` where evidence and policy do not agree whether there are
    devices, and the errors of the verifier and the judge.
    """
    with trail.check(16) as found:
        if policy.nvidia is None:
            if evidence:
                raise AppraisalRefused(
                    "the bundle carries device evidence, and the policy says nothing of devices",
                    todo="add an [nvidia] table, or attest without the devices",
                )
            found("none")
            return claims
        if not evidence:
            raise AppraisalRefused(
                "the policy requires device evidence, and the bundle carries none",
                todo="attest the GPUs, or leave [nvidia] out",
            )
        if policy.device_root.simulated != claims.simulated:
            raise AppraisalRefused(
                "simulated and hardware evidence stand in one bundle",
                todo="hardware and simulation are never mixed",
            )
        devices = nvidia.verify(
            evidence,
            endorsements,
            nonce=nonce,
            device_root=policy.device_root,
            rim_root=policy.rim_root,
            now=now,
            rules=nvidia_rules(policy.nvidia),
            trail=trail,
        )
        claims = replace(
            claims,
            devices=devices,
            issued_at=max([claims.issued_at, *(device.issued_at for device in devices)]),
            collateral_expires=min([claims.collateral_expires, *(device.expires for device in devices)]),
        )
        judge_nvidia(claims, policy.nvidia, trail)
        judge_device_hardware(claims, policy.hardware, trail)
        return claims
