"""Named attacks on GPU evidence, put to the whole appraisal: a simulated TD that binds simulated GPUs."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable
from functools import cache
from typing import Any

import pytest

from cloister import merkle
from cloister.appraisal.appraise import appraise
from cloister.appraisal.draft import draft_policy
from cloister.appraisal.policy import Policy, load_policy
from cloister.appraisal.result import AttestationResult
from cloister.attester.simulation.chain import DAY, Window
from cloister.attester.simulation.nvidia_report import (
    DRIVER_VERSION,
    firmware_digest,
    golden,
    rim_document,
    rim_documents,
    sign_rim,
)
from cloister.endorsements.nvidia import NvidiaEndorsements, encode_nvidia_endorsements
from cloister.errors import (
    AppraisalRefused,
    BindingMismatch,
    CloisterError,
    EndorsementError,
    EvidenceError,
    PolicyError,
    StaleNonce,
    VerificationError,
)
from cloister.evidence.binding import device_nonce, report_data
from cloister.evidence.bundle import EvidenceBundle, NonceProof
from cloister.evidence.nvidia import DeviceReport
from simulated_evidence import KEYS, LAUNCH, NOW, platform
from simulated_evidence import NONCE as CLIENT_NONCE
from simulated_nvidia import (
    ISSUED,
    TODAY,
    altered,
    encoded,
    machine,
    neighbour,
    other_rims,
    reports,
    revoked,
    short_lived_rims,
    with_fields,
    with_firmware,
    with_values,
)

ROOT = merkle.root([CLIENT_NONCE])
NONCE = device_nonce(ROOT, KEYS)
"""What the devices have to answer: it ties them to the client's nonce and to the keys."""
HONEST = machine()
FIRST, SECOND = HONEST.devices

TABLE = """
[nvidia]
gpus = 2
architectures = ["hopper"]
modes = ["cc"]
revocation = "required"
rims = "required"
driver_versions = ["000.00.01"]
vbios_versions = ["00.00.00.00.01"]
"""


@cache
def text(table: str = TABLE) -> str:
    source = platform()
    drafted = draft_policy(
        tee="tdx",
        measurements=source.tee("tdx", launch=LAUNCH).measurements,
        events=LAUNCH,
        min_tcb_evaluation_number=1,
        simulated_root=source.root_sha256,
    )
    roots = (
        f'simulated_device = "{HONEST.device_root_sha256}"\nsimulated_rim = "{HONEST.rim_root_sha256}"\n'
        if table
        else ""
    )
    named = f'simulated = "{source.root_sha256}"\n'
    assert named in drafted
    return drafted.replace(named, named + roots) + table


@cache
def policy(table: str = TABLE) -> Policy:
    return load_policy(text(table), name="p.toml")


@dataclasses.dataclass(frozen=True)
class Travelled:
    """What arrives: by default the honest machine's devices, bound by the quote."""

    devices: bytes = encoded(*reports(HONEST.devices, NONCE))
    rims: tuple[bytes, ...] = HONEST.rims
    ocsp: tuple[bytes, ...] = HONEST.ocsp(TODAY)
    quoted: bytes | None = None
    """The device evidence that the quote binds, where it is not the one that arrives."""


def judge(travelled: Travelled, *, now: int = NOW, rules: Policy | None = None) -> AttestationResult[bytes]:
    bound = travelled.devices if travelled.quoted is None else travelled.quoted
    tee = platform().tee("tdx", launch=LAUNCH, clock=lambda: NOW)
    raw = tee.quote(report_data(ROOT, KEYS, bound))
    bundle = EvidenceBundle(
        tee="tdx",
        quote=raw.quote,
        key_material=KEYS,
        nonce_proof=NonceProof(index=0, size=1, path=()),
        event_log=raw.event_log,
        device_evidence=travelled.devices,
        endorsements=raw.endorsements,
        device_endorsements=encode_nvidia_endorsements(
            NvidiaEndorsements(rims=travelled.rims, ocsp=travelled.ocsp)
        ),
    )
    return appraise(
        bundle,
        nonce=CLIENT_NONCE,
        policy=rules or policy(),
        now=now,
        decode=lambda keys: keys,
        not_after=lambda _: None,
    )


def test_an_honest_machine_is_accepted_and_its_devices_are_in_the_result() -> None:
    result = judge(Travelled())
    assert [device.kind for device in result.claims.devices] == ["gpu", "gpu"]
    assert all(device.simulated for device in result.claims.devices)
    assert result.claims.collateral_expires <= TODAY.next_update
    assert sum(check.number == 16 for check in result.checks) >= 10


def show(*devices: DeviceReport, **changes: Any) -> Travelled:
    return Travelled(devices=encoded(*devices), **changes)


def _reports(*devices: Any, nonce: bytes = NONCE) -> tuple[DeviceReport, ...]:
    return reports(devices, nonce)


def _with_chain_of(report: DeviceReport, other: DeviceReport) -> DeviceReport:
    return DeviceReport(kind=report.kind, report=report.report, certificates=other.certificates)


def _mixed_chain(report: DeviceReport, other: DeviceReport) -> DeviceReport:
    return DeviceReport(
        kind=report.kind, report=report.report, certificates=report.certificates[:1] + other.certificates[1:]
    )


def _flip(offset: int) -> Callable[[bytearray], None]:
    def change(data: bytearray) -> None:
        data[offset] ^= 1

    return change


def _rim(values: dict[int, tuple[bytes, ...]], version: str = DRIVER_VERSION) -> bytes:
    return sign_rim(rim_document("GH100", "GPU", version, values), HONEST.rim_authority.chain)


R1, R2 = _reports(FIRST, SECOND)
STRANGER = machine("stranger")
OLD = Window(ISSUED - 9 * DAY, ISSUED - 2 * DAY)
VBIOS_RIM = HONEST.rims[1]
TAMPERED = HONEST.rims[0].replace(b'index="7" active="True"', b'index="7" active="False"')


def _pass_for_another() -> Travelled:
    """A GPU whose own key certifies a second report key: the same device under two identities."""
    again = with_firmware(FIRST, firmware_digest("GH100"), "second key")
    return show(R1, *_reports(again))


ATTACKS: dict[str, tuple[Travelled, type[CloisterError], str]] = {
    # Whose devices, and when.
    "device evidence exchanged after quoting": (
        Travelled(quoted=encoded(*_reports(FIRST, neighbour()))), BindingMismatch, "binds other keys, devices"
    ),
    "devices added after quoting": (Travelled(quoted=b""), BindingMismatch, "binds other keys, devices"),
    "devices removed after quoting": (
        Travelled(devices=b"", quoted=Travelled().devices), BindingMismatch, "binds other keys, devices"
    ),
    "old device evidence, quoted again": (
        show(*_reports(FIRST, SECOND, nonce=bytes(32))), StaleNonce, "device 0 .* answers another nonce"
    ),
    "devices that answer the client's nonce instead of the machine's": (
        show(*_reports(FIRST, SECOND, nonce=CLIENT_NONCE)), StaleNonce, "answers another nonce"
    ),
    "mixed evidence: one of two answers another nonce": (
        show(R1, *_reports(SECOND, nonce=bytes(32))), StaleNonce, "device 1 .* answers another nonce"
    ),
    "mixed evidence: a GPU of another machine, asked by its own host": (
        show(R1, *_reports(neighbour(), nonce=bytes(32))), StaleNonce, "device 1 .* answers another nonce"
    ),
    "mixed evidence: a GPU of another vendor": (
        show(R1, *_reports(STRANGER.devices[0])), VerificationError, "not in simulated root"
    ),
    "one GPU shown twice": (show(R1, R1), VerificationError, "one and the same"),
    "one GPU shown twice, by two reports": (
        show(R1, *reports([FIRST], NONCE)), VerificationError, "one and the same"
    ),
    "one GPU shown twice, with two report keys": (_pass_for_another(), VerificationError, "one and the same"),
    "a GPU too few": (show(R1), AppraisalRefused, "1 GPU reports, and the policy wants exactly 2"),
    "a GPU too many": (
        show(R1, R2, *_reports(neighbour())), EndorsementError, "no OCSP answer"
    ),
    # Genuine at all.
    "another vendor's machine": (
        show(*_reports(*STRANGER.devices)), VerificationError, "not in simulated root"
    ),
    "the certificates of another GPU": (
        show(_with_chain_of(R1, R2), R2), VerificationError, "was not signed by the key of its certificate"
    ),
    "a chain put together from two GPUs": (
        show(_mixed_chain(R1, R2), R2), VerificationError, "does not verify|was not issued by"
    ),
    "a report key that the vendor's other branch issued": (
        show(DeviceReport(kind="gpu", report=R1.report, certificates=(*R1.certificates[:3], *R1.certificates[4:])), R2),
        VerificationError, "has 4 certificates, not 5"),
    "a measurement altered": (show(altered(R1, _flip(60)), R2), VerificationError, "was not signed by the key"),
    "a nonce altered": (show(altered(R1, _flip(10)), R2), VerificationError, "was not signed by the key"),
    "a signature altered": (show(altered(R1, _flip(-1)), R2), VerificationError, "was not signed by the key"),
    "a signature of zeros": (
        show(DeviceReport(kind="gpu", report=R1.report[:-96] + bytes(96), certificates=R1.certificates), R2),
        VerificationError, "was not signed by the key"),
    "a GPU that claims to be a switch": (
        show(DeviceReport(kind="nvswitch", report=R1.report, certificates=R1.certificates), R2),
        VerificationError, "shown as a nvswitch"),
    "firmware that is not the certified one": (
        show(*_reports(with_fields(FIRST, {20: bytes(48)})), R2), VerificationError, "FWID in the report"
    ),
    # What it measures.
    "another measurement": (
        show(*_reports(with_values(FIRST, {9: bytes(48)})), R2), AppraisalRefused,
        r"gpu 0 differ from NVIDIA's reference values: index 9 \(VBIOS Measurement_9\)"),
    "another measurement of the driver": (
        show(R1, *_reports(with_values(SECOND, {22: bytes(48)}))), AppraisalRefused,
        r"gpu 1 differ from NVIDIA's reference values: index 22 \(driver Measurement_22\)"),
    "another driver": (
        show(*_reports(with_fields(FIRST, {3: b"000.00.02\0"})), R2), EndorsementError,
        "no reference manifest for device 0 .*NV_GPU_DRIVER_GH100_000.00.02"),
    "another driver, with its own genuine manifest": (
        show(*_reports(with_fields(FIRST, {3: b"000.00.02\0"})), R2,
             rims=(*HONEST.rims, _rim(golden("GH100", (7, 21)), "000.00.02"))),
        AppraisalRefused, "driver_versions is 000.00.02"),
    "protected PCIe without its switches": (
        show(*_reports(with_fields(FIRST, {21: b"\xaa", 36: b"\x02\x00"})), R2), AppraisalRefused, "mode is ppcie"
    ),
    # Its manifests.
    "no manifests": (Travelled(rims=()), EndorsementError, "no reference manifest for device 0"),
    "a manifest of another driver alone": (
        Travelled(rims=(_rim(golden("GH100", (7,)), "000.00.02"), VBIOS_RIM)),
        EndorsementError, "no reference manifest for device 0"),
    "a manifest tampered with": (Travelled(rims=(TAMPERED, VBIOS_RIM)), VerificationError, "does not hold"),
    "a manifest of another root": (
        Travelled(rims=rim_documents(other_rims(), switches=False)), VerificationError, "the chain ends in root"
    ),
    "a manifest signed by a GPU's key": (
        Travelled(rims=(sign_rim(rim_document("GH100", "GPU", DRIVER_VERSION, {7: (bytes(48),)}), FIRST.chain), VBIOS_RIM)),
        VerificationError, "the chain ends in root"),
    "driver and VBIOS manifests of one index": (
        Travelled(rims=(_rim(golden("GH100", (9, 7))), VBIOS_RIM)),
        VerificationError, "two reference manifests have a measurement at index 9"),
    "a bomb for a manifest": (
        Travelled(rims=(b"<!DOCTYPE x [<!ENTITY a 'aaaa'>]><x>&a;</x>", *HONEST.rims)),
        EndorsementError, "document type, entities"),
    # Revocation.
    "no OCSP answers": (Travelled(ocsp=()), EndorsementError, "no OCSP answer says whether"),
    "a revoked GPU": (Travelled(ocsp=(*Travelled().ocsp, revoked(1))), VerificationError, "is revoked by its issuer"),
    "a revoked GPU, the answer long over": (
        Travelled(ocsp=(*Travelled().ocsp, revoked(0, window=OLD))), VerificationError, "is revoked by its issuer"
    ),
    "a revoked provisioner": (
        Travelled(ocsp=(revoked(0, depth=2), *Travelled().ocsp)), VerificationError, "is revoked by its issuer"
    ),
    "OCSP answers that ended": (Travelled(ocsp=HONEST.ocsp(OLD)), EndorsementError, "the OCSP answer for .* holds from"),
    "OCSP answers of another machine": (
        Travelled(ocsp=STRANGER.ocsp(TODAY)), EndorsementError, "no OCSP answer says whether"
    ),
    # Form.
    "evidence that is none": (Travelled(devices=b"{}"), EvidenceError, "form it should"),
    "evidence beyond every bound": (Travelled(devices=b" " * ((1 << 20) + 1)), EvidenceError, "over its bound"),
}  # fmt: skip


@pytest.mark.parametrize("name", ATTACKS)
def test_an_attack_on_the_devices_is_refused_by_our_own_error(name: str) -> None:
    travelled, error, message = ATTACKS[name]
    with pytest.raises(error, match=message):
        judge(travelled)


def test_a_manifest_whose_signer_ended_is_refused() -> None:
    old, documents = short_lived_rims()
    rules = text().replace(HONEST.rim_root_sha256, hashlib.sha256(old.root.der).hexdigest())
    with pytest.raises(EndorsementError, match=r"reference manifest .* ended at"):
        judge(Travelled(rims=documents), rules=load_policy(rules, name="p.toml"))


def test_devices_that_the_policy_says_nothing_of_are_refused() -> None:
    with pytest.raises(AppraisalRefused, match="the policy says nothing of devices"):
        judge(Travelled(), rules=policy(""))


def test_a_workload_without_the_devices_that_the_policy_wants_is_refused() -> None:
    with pytest.raises(AppraisalRefused, match="requires device evidence"):
        judge(Travelled(devices=b""))


def test_a_policy_for_hardware_never_accepts_simulated_gpus() -> None:
    hardware = text().replace(f'simulated_device = "{HONEST.device_root_sha256}"\n', "")
    with pytest.raises(PolicyError, match="hardware and simulation are never mixed"):
        load_policy(hardware, name="p.toml")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("gpus = 2", "gpus = 65", r"p\.toml:\d+: gpus must be 0 to 64"),
        ('rims = "required"', 'rims = "maybe"', r"p\.toml:\d+: .*rims"),
        ('["cc"]', '["devtools"]', r"p\.toml:\d+: modes names 'devtools'"),
        ("gpus = 2", "gpus = 2\ndevtools = false", r"p\.toml.*devtools"),
    ],
)
def test_a_policys_mistake_is_named_with_its_line(old: str, new: str, message: str) -> None:
    with pytest.raises(PolicyError, match=message):
        load_policy(text().replace(old, new), name="p.toml")


def test_another_machine_under_an_allow_list_of_devices_is_refused() -> None:
    identities = [device.identity for device in judge(Travelled()).claims.devices]

    def listed(*names: str) -> Policy:
        lines = ", ".join(f'"{name}"' for name in names)
        return load_policy(f"{text()}\n[hardware]\ndevice = [{lines}]\n", name="p.toml")

    assert judge(Travelled(), rules=listed(*identities))
    with pytest.raises(AppraisalRefused, match=r"gpu 1 is \w+, which the policy does not list"):
        judge(Travelled(), rules=listed(identities[0]))
