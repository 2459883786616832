"""Simulated GPUs and switches for the tests: honest, or genuine but for one thing. No production path reaches it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache

from cloister.attester.simulation.chain import DAY, Window
from cloister.attester.simulation.nvidia import (
    SimulatedDevice,
    SimulatedGpus,
    answer_ocsp,
    issue_report_key,
    make_gpu,
)
from cloister.attester.simulation.nvidia_chain import DeviceAuthority, RimAuthority, issue_rim_authority
from cloister.attester.simulation.nvidia_report import rim_documents
from cloister.endorsements.nvidia import NvidiaEndorsements, encode_nvidia_endorsements
from cloister.endorsements.roots import simulated_root
from cloister.evidence.nvidia import DeviceEvidence, DeviceReport, encode_device_evidence
from cloister.verifier.claims import DeviceClaims
from cloister.verifier.nvidia import NvidiaRules, verify
from cloister.verifier.trail import Trail
from simulated_evidence import NOW, seeded

NONCE = bytes(range(32, 64))
ISSUED = (NOW - 3600) // DAY * DAY
TODAY = Window(ISSUED, ISSUED + 7 * DAY)


@cache
def machine(seed: str = "honest", *, count: int = 2, switches: int = 0) -> SimulatedGpus:
    """A machine with its own vendor; another seed is another vendor."""
    return SimulatedGpus.generate(
        now=NOW, count=count, switches=switches, entropy=seeded(f"gpus {seed}"), clock=lambda: NOW
    )


@cache
def authority(seed: str = "honest") -> DeviceAuthority:
    """Who certified the devices of ``machine(seed)``."""
    _, _, provisioner, family, root = machine(seed).devices[0].chain
    return DeviceAuthority(root, family, provisioner)


@cache
def neighbour() -> SimulatedDevice:
    """A genuine GPU of the same vendor in another machine."""
    return make_gpu(seeded("neighbour"), authority(), ISSUED, pdi=b"neighbor")


def with_firmware(device: SimulatedDevice, fwid: bytes, seed: str = "firmware") -> SimulatedDevice:
    """The same device after another firmware was started: another report key, certified by the device itself."""
    leaf = issue_report_key(seeded(seed), device.chain[1], ISSUED, chip="GH100", fwid=fwid)
    return replace(device, chain=(leaf, *device.chain[1:]), fields={**device.fields, 20: fwid})


def with_values(device: SimulatedDevice, changes: Mapping[int, bytes]) -> SimulatedDevice:
    """The same device measuring something else."""
    return replace(device, values={**device.values, **changes})


def with_fields(device: SimulatedDevice, changes: Mapping[int, bytes | None]) -> SimulatedDevice:
    """The same device with other opaque fields; None leaves one out."""
    fields = {**device.fields, **changes}
    return replace(device, fields={number: value for number, value in fields.items() if value is not None})


@cache
def other_rims() -> RimAuthority:
    """Another vendor's manifests."""
    return issue_rim_authority(seeded("other rims"), ISSUED)


@cache
def short_lived_rims() -> tuple[RimAuthority, tuple[bytes, ...]]:
    """A RIM root of its own, and manifests whose signer's certificate ended 170 days ago."""
    old = issue_rim_authority(seeded("old rims"), ISSUED - 900 * DAY, signer_days=730)
    return old, rim_documents(old, switches=False)


def revoked(number: int = 0, *, depth: int = 1, window: Window = TODAY) -> bytes:
    """An OCSP answer that revokes certificate ``depth`` of the chain of device ``number``."""
    subject, issuer = machine().devices[number].chain[depth : depth + 2]
    return answer_ocsp(subject.certificate, issuer, window, revoked=True)


@dataclass(frozen=True)
class Shown:
    """What an attacker presents."""

    evidence: bytes
    rims: tuple[bytes, ...]
    ocsp: tuple[bytes, ...]

    @property
    def endorsements(self) -> bytes:
        return encode_nvidia_endorsements(NvidiaEndorsements(rims=self.rims, ocsp=self.ocsp))


def reports(devices: Sequence[SimulatedDevice], nonce: bytes = NONCE) -> tuple[DeviceReport, ...]:
    return tuple(device.report(nonce, response_nonce=bytes(32)) for device in devices)


def encoded(*shown: DeviceReport) -> bytes:
    return encode_device_evidence(DeviceEvidence(devices=tuple(shown)))


def show(
    *devices: DeviceReport,
    of: SimulatedGpus | None = None,
    nonce: bytes = NONCE,
    rims: tuple[bytes, ...] | None = None,
    ocsp: tuple[bytes, ...] | None = None,
) -> Shown:
    """The honest machine's devices, manifests and answers, with what is given in their place."""
    source = of or machine()
    return Shown(
        evidence=encoded(*(devices or reports(source.devices, nonce))),
        rims=source.rims if rims is None else rims,
        ocsp=source.ocsp(TODAY) if ocsp is None else ocsp,
    )


def judge(
    shown: Shown,
    *,
    nonce: bytes | None = NONCE,
    now: int = NOW,
    rules: NvidiaRules | None = None,
    of: SimulatedGpus | None = None,
    device_root: str | None = None,
    rim_root: str | None = None,
    trail: Trail | None = None,
) -> tuple[DeviceClaims, ...]:
    """Verify under the honest machine's roots and the strictest rules."""
    source = of or machine()
    return verify(
        shown.evidence,
        shown.endorsements,
        nonce=nonce,
        device_root=simulated_root(device_root or source.device_root_sha256),
        rim_root=simulated_root(rim_root or source.rim_root_sha256),
        now=now,
        rules=rules or NvidiaRules(),
        trail=trail,
    )


def altered(report: DeviceReport, change: Callable[[bytearray], None]) -> DeviceReport:
    """``report`` with its bytes changed and its signature left as it was."""
    data = bytearray(report.report)
    change(data)
    return DeviceReport(kind=report.kind, report=bytes(data), certificates=report.certificates)
