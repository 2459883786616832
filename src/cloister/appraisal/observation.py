"""What genuine evidence shows, for a draft policy: verified under a root that a person named, and appraised by nobody.

Everything that a policy could accept is accepted here (any TCB status but Revoked, unchecked revocation), because the
draft asks the person about it. Debug, other roots and forged evidence are refused as ever. A simulated TEE is observed
only under the root that was named for it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from cloister.appraisal.examined_cpu import REPORTED
from cloister.appraisal.examined_devices import REPORTED as REPORTED_DEVICES
from cloister.appraisal.given import Given
from cloister.encoding import from_hex
from cloister.endorsements.roots import (
    AMD_ROOTS,
    INTEL_ROOT,
    NVIDIA_DEVICE_ROOT,
    NVIDIA_RIM_ROOT,
    Root,
    named_root,
    simulated_root,
)
from cloister.errors import EvidenceError, UsageError
from cloister.evidence.binding import check_binding, check_nonce, device_nonce
from cloister.evidence.bundle import EvidenceBundle, TeeKind, parse_bundle
from cloister.evidence.quote import parse_quote
from cloister.evidence.recognise import Recognised
from cloister.verifier import azure, intel, nvidia, snp, tpm
from cloister.verifier.claims import Claims
from cloister.verifier.logs import replay_logs
from cloister.verifier.trail import Trail


@dataclass(frozen=True, slots=True)
class NamedRoots:
    """Roots beyond the vendors', by SHA-256 (hexadecimal), as a person names them."""

    simulated: str | None = None
    simulated_device: str | None = None
    simulated_rim: str | None = None
    tpm: str | None = None

    def check(self) -> None:
        """Raise :class:`~cloister.errors.FormatError` for what is no digest, :class:`UsageError` for half a simulation."""
        for name in ("simulated", "simulated_device", "simulated_rim", "tpm"):
            digest = getattr(self, name)
            if digest is not None:
                from_hex(digest, 32, what=f"the {name.replace('_', ' ')} root")
        if self.simulated is None and (self.simulated_device or self.simulated_rim):
            raise UsageError(
                "a simulated device root is named without a simulated root",
                todo="hardware and simulation are never mixed",
            )

    def of(self, tee: TeeKind) -> tuple[Root, ...]:
        """Where chains of evidence of this kind may end."""
        if tee == "tpm":
            if self.tpm is None:
                raise UsageError(
                    "no vendor's root vouches for every TPM", todo="name the root of its key: --tpm-root"
                )
            return (named_root("the named TPM root", self.tpm),)
        if self.simulated is not None:
            return (simulated_root(self.simulated),)
        return (INTEL_ROOT,) if tee in ("tdx", "sgx") else AMD_ROOTS


def observe(
    subject: Recognised,
    *,
    roots: NamedRoots,
    now: int,
    given: Given | None = None,
    nonce: bytes | None = None,
    event_log: bytes = b"",
    firmware_log: bytes = b"",
) -> Claims:
    """Verify ``subject`` and say what it shows. ``nonce`` is the one that a bundle answers, if it is known.

    Raises the errors of the verifiers, and :class:`~cloister.errors.UsageError` for what is no evidence of a TEE.
    """
    roots.check()
    given = given or Given()
    if subject.kind == "bundle":
        return _bundle(parse_bundle(subject.data), given, roots=roots, now=now, nonce=nonce)
    if nonce is not None:
        raise UsageError(
            "a nonce is given, and only a bundle says what its nonce means", todo="leave --nonce out"
        )
    kinds: dict[str, TeeKind] = {"snp-report": "snp", "azure-evidence": "az-snp-vtpm", "tpm-quote": "tpm"}
    if subject.kind == "intel-quote":
        tee = parse_quote(subject.data).tee
    elif subject.kind in kinds:
        tee = kinds[subject.kind]
    else:
        raise UsageError(f"{subject.what} is no evidence of a TEE", todo="give a quote, a report or a bundle")
    claims = _verify(tee, subject.data, given.of(tee), roots=roots.of(tee), now=now)
    log = event_log or subject.parts.get("event_log", b"")
    return replay_logs(claims, event_log=log, firmware_log=firmware_log)


def _bundle(
    bundle: EvidenceBundle, given: Given, *, roots: NamedRoots, now: int, nonce: bytes | None
) -> Claims:
    endorsements = given.of(bundle.tee) or bundle.endorsements
    claims = _verify(bundle.tee, bundle.quote, endorsements, roots=roots.of(bundle.tee), now=now)
    if claims.tee != bundle.tee:
        raise EvidenceError(f"the bundle says {bundle.tee}, its quote is {claims.tee}")
    asked = None
    if nonce is not None:
        root = check_nonce(bundle, nonce)
        check_binding(bundle, root, claims.report_data)
        asked = device_nonce(root, bundle.key_material)
    elif bundle.device_evidence:
        raise UsageError(
            "without its nonce nobody can tell whether the devices belong to this quote", todo="give --nonce"
        )
    claims = replay_logs(claims, event_log=bundle.event_log, firmware_log=bundle.firmware_log)
    if not bundle.device_evidence:
        return claims
    devices = nvidia.verify(
        bundle.device_evidence,
        given.nvidia or bundle.device_endorsements,
        nonce=asked,
        device_root=simulated_root(roots.simulated_device) if roots.simulated_device else NVIDIA_DEVICE_ROOT,
        rim_root=simulated_root(roots.simulated_rim) if roots.simulated_rim else NVIDIA_RIM_ROOT,
        now=now,
        rules=REPORTED_DEVICES,
        trail=Trail(),
    )
    if any(device.simulated != claims.simulated for device in devices):
        raise EvidenceError("simulated and hardware evidence stand in one bundle", todo="never mix them")
    return replace(claims, devices=devices)


def _verify(
    tee: TeeKind, evidence: bytes, endorsements: bytes, *, roots: tuple[Root, ...], now: int
) -> Claims:
    if tee in ("tdx", "sgx"):
        return intel.verify(evidence, endorsements, root=roots[0], now=now, rules=REPORTED)
    if tee == "tpm":
        return tpm.verify(evidence, endorsements, roots=roots, now=now, revocation_required=False)
    verify = snp.verify if tee == "snp" else azure.verify
    return verify(evidence, endorsements, roots=roots, now=now, revocation_required=False)
