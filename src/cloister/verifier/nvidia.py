"""NVIDIA GPUs and NVSwitches: are these reports genuine, fresh, of different devices, and what do they measure?

Everything is check 16 of an appraisal (docs/spec/nvidia.md): chain, signature, FWID, nonce, one report for a device,
reference manifests, revocation. What a device *is* comes from NVIDIA's certificate and its signed report, never from
what the evidence's JSON says. Measurements that differ are named in the claims, and an appraisal refuses them; there
is no signed field for confidential mode or developer tools, only these measurements.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Literal

from cloister.endorsements.nvidia import (
    CHAIN_SIZE,
    Chip,
    NvidiaEndorsements,
    chain_targets,
    chip_of,
    device_rim_ids,
    parse_nvidia_endorsements,
)
from cloister.endorsements.rim import read_rim
from cloister.endorsements.roots import Root
from cloister.errors import EndorsementError, StaleNonce, VerificationError
from cloister.evidence.nvidia import DeviceReport, parse_device_evidence
from cloister.evidence.nvidia_fields import DeviceFields, read_fields
from cloister.evidence.spdm import SpdmReport, parse_report
from cloister.verifier.claims import DeviceClaims
from cloister.verifier.comparison import Comparison, compare
from cloister.verifier.nvidia_chain import (
    Chain,
    firmware_id,
    key_sha256,
    require_signer,
    require_validity,
    verify_chain,
    verify_report_signature,
)
from cloister.verifier.ocsp import check_revocation
from cloister.verifier.rim import VerifiedRim, verify_rim
from cloister.verifier.trail import Trail

MAX_CANDIDATES = 4
"""Manifests of one product and version: boards differ, and the documents do not say for which they are."""

_log = logging.getLogger("cloister.verifier")


@dataclass(frozen=True, slots=True)
class NvidiaRules:
    """What has to be at hand for devices to be verified at all."""

    revocation_required: bool = True
    """OCSP answers for every certificate; else their absence is reported."""
    rims_required: bool = True
    """Reference measurements for driver and VBIOS; else the comparison is left out and reported."""
    rim_grace: int = 0
    """Seconds that a manifest still counts after its signer's certificate ended."""


@dataclass(frozen=True, slots=True)
class _Genuine:
    """A device whose chain and signature hold."""

    number: int
    chip: Chip
    chain: Chain
    report: SpdmReport
    fields: DeviceFields
    fwid: str

    @property
    def name(self) -> str:
        return f"device {self.number} ({self.chip.name})"


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
    """Verify device evidence (evidence/nvidia.py) made for ``nonce`` (32 bytes; None: whatever one they share).

    Raises :class:`~cloister.errors.CloisterError`: its subclasses of evidence, endorsements and verifier.
    """
    trail = Trail() if trail is None else trail
    with trail.check(16, name="form of device evidence") as found:
        parsed = parse_device_evidence(evidence)
        given = parse_nvidia_endorsements(endorsements)
        found(f"{len(parsed.devices)} reports, {len(given.rims)} manifests, {len(given.ocsp)} OCSP answers")
    with trail.check(16, name="device chains and signatures") as found:
        devices = [
            _verify_device(number, device, device_root, now) for number, device in enumerate(parsed.devices)
        ]
        found(device_root.name)
    with trail.check(16, name="device nonce") as found:
        found(f"{_shared_nonce(devices, nonce).hex()[:16]}…")
    with trail.check(16, name="one report of each device") as found:
        _require_unique(devices)
        found(", ".join(device.chip.pdi for device in devices[:8]))
    with trail.check(16, name="device measurements") as found:
        compared = [_compare(device, given, rim_root, now, rules) for device in devices]
        found(_compared_outcome(compared))
    with trail.check(16, name="device revocation") as found:
        claims = tuple(
            _claims(device, comparison, rims, given, device_root, now, rules)
            for device, (comparison, rims) in zip(devices, compared, strict=True)
        )
        found(", ".join(sorted({one.revocation for one in claims})))
    if device_root.simulated:
        _log.warning(
            "SIMULATED GPUS ACCEPTED: the policy names simulated root %s. No hardware protects this workload; "
            "use this for tests and rehearsals only",
            device_root.sha256,
        )
    return claims


def _verify_device(number: int, device: DeviceReport, root: Root, now: int) -> _Genuine:
    what = f"device {number}"
    if len(device.certificates) != CHAIN_SIZE:
        raise VerificationError(
            f"the chain of {what} has {len(device.certificates)} certificates, not {CHAIN_SIZE}",
            todo="a device's own key may issue certificates, so no other length is accepted",
        )
    chain = verify_chain(device.certificates, root, what=what)
    require_validity(chain, now, what=what)
    leaf, issuer = chain.certificates[:2]
    require_signer(leaf, what=what)
    report = parse_report(device.report)
    verify_report_signature(leaf, report.signature, report.signed, what=f"the report of {what}")
    chip = chip_of(issuer)
    if chip.kind != device.kind:
        raise VerificationError(
            f"{what} is shown as a {device.kind}, and its certificate is of a {chip.kind}"
        )
    fields = read_fields(report, chip.kind)
    fwid = firmware_id(leaf, issuer, what=what)
    if fields.fwid is not None and fields.fwid != fwid:
        raise VerificationError(
            f"the FWID in the report of {what} is not that of its certificate",
            todo="the firmware that signed is not the one that was certified",
        )
    shown_pdi = fields.text("device_pdi")
    if shown_pdi and shown_pdi != chip.pdi:
        raise VerificationError(
            f"the report of {what} is of a switch {shown_pdi}, its certificate of {chip.pdi}"
        )
    return _Genuine(number, chip, chain, report, fields, "" if fwid is None else fwid.hex())


def _shared_nonce(devices: Sequence[_Genuine], nonce: bytes | None) -> bytes:
    expected = devices[0].report.nonce if nonce is None else nonce
    for device in devices:
        if device.report.nonce != expected:
            raise StaleNonce(
                f"{device.name} answers another nonce than "
                + ("the others" if nonce is None else "the one it was asked"),
                todo="the evidence is old, of another machine, or mixed from several",
            )
    return expected


def _require_unique(devices: Sequence[_Genuine]) -> None:
    seen: dict[str, _Genuine] = {}
    for device in devices:
        leaf, own = device.chain.certificates[:2]
        for identity in {key_sha256(leaf), key_sha256(own), device.chip.pdi}:
            if identity in seen:
                raise VerificationError(
                    f"device {seen[identity].number} and device {device.number} are one and the same",
                    todo="each device is shown once",
                )
        seen.update(dict.fromkeys((key_sha256(leaf), key_sha256(own), device.chip.pdi), device))


def _compare(
    device: _Genuine, given: NvidiaEndorsements, root: Root, now: int, rules: NvidiaRules
) -> tuple[Comparison, tuple[VerifiedRim, ...]]:
    """The comparison with the manifests for this device's very driver and VBIOS."""
    versions = {"VBIOS": device.fields.vbios_version}
    if device.chip.kind == "gpu":
        versions = {"driver": device.fields.driver_version.upper(), **versions}
    choices: list[list[VerifiedRim]] = []
    missing: list[str] = []
    for part, identifier in zip(versions, device_rim_ids(device.chip, device.fields), strict=True):
        candidates = list(_candidates(device, versions[part], given.rims, root, now, rules))
        if candidates:
            choices.append(candidates)
        else:
            missing.append(identifier)
    if missing and rules.rims_required:
        raise EndorsementError(
            f"no reference manifest for {device.name}: {' and '.join(missing)}",
            todo='fetch it, or say rims = "unchecked" in the policy and lose the measurements',
        )
    if not choices:
        return Comparison(0, (), ()), ()
    comparisons = [
        (
            compare(device.report, [one.rim for one in rims], nvdec0_disabled=device.fields.nvdec0_disabled),
            rims,
        )
        for rims in product(*choices)
    ]
    nearest, rims = min(comparisons, key=lambda found: len(found[0].differing))
    identifiers = tuple(name for name in device_rim_ids(device.chip, device.fields) if name not in missing)
    return replace(nearest, rims=identifiers), rims


def _candidates(
    device: _Genuine, version: str, rims: Iterable[bytes], root: Root, now: int, rules: NvidiaRules
) -> Iterable[VerifiedRim]:
    edition = "SWITCH" if device.chip.kind == "nvswitch" else "GPU"
    count = 0
    for data in dict.fromkeys(rims):
        shown = read_rim(data)
        # A family's chips share their manifests' product: GB102 is measured by GB100's.
        if (shown.product[:2], shown.edition, shown.version) != (device.chip.name[:2], edition, version):
            continue
        count += 1
        if count > MAX_CANDIDATES:
            raise EndorsementError(f"more than {MAX_CANDIDATES} reference manifests are {shown.label}")
        verified = verify_rim(data, root)
        what = f"the reference manifest {verified.rim.label}"
        require_validity(verified.chain, now, what=what, grace=rules.rim_grace)
        yield verified


def _compared_outcome(compared: Sequence[tuple[Comparison, tuple[VerifiedRim, ...]]]) -> str:
    if not any(rims for _, rims in compared):
        return "not compared"
    differing = sum(len(comparison.differing) for comparison, _ in compared)
    return f"{sum(comparison.matched for comparison, _ in compared)} equal, {differing} differ"


def _claims(
    device: _Genuine,
    comparison: Comparison,
    rims: Sequence[VerifiedRim],
    given: NvidiaEndorsements,
    root: Root,
    now: int,
    rules: NvidiaRules,
) -> DeviceClaims:
    targets = chain_targets(device.chain.ders, first=1)
    for rim in rims:
        targets += chain_targets(rim.chain.ders, first=0)
    revocation = check_revocation(targets, given.ocsp, now=now, required=rules.revocation_required)
    ends = [device.chain.expires, *(rim.chain.expires + rules.rim_grace for rim in rims)]
    starts = [device.chain.issued_at, revocation.issued_at, *(rim.chain.issued_at for rim in rims)]
    kind: Literal["gpu", "nvswitch"] = device.chip.kind
    details = dict(device.fields.details) | {
        "chip": device.chip.name,
        "pdi": device.chip.pdi,
        "neighbours": " ".join(sorted(device.fields.pdis)),
        "leaf_sha256": key_sha256(device.chain.certificates[0]),
        "certified_fwid": device.fwid,
    }
    if device.fields.mode:
        details["mode"] = device.fields.mode
    return DeviceClaims(
        kind=kind,
        architecture=device.chip.architecture,
        identity=key_sha256(device.chain.certificates[1]),
        root_sha256=root.sha256,
        simulated=root.simulated,
        driver_version=device.fields.driver_version,
        vbios_version=device.fields.vbios_version,
        matched=comparison.matched,
        differing=comparison.differing,
        rims=comparison.rims,
        revocation=revocation.status,
        issued_at=max(starts),
        expires=min(ends if revocation.expires is None else [*ends, revocation.expires]),
        details=details,
    )
