"""The diagnosis: which link it names for what is broken, and what it does not ask then. Pure: no machine is touched."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

import pytest

from cloister.attester import RawDeviceEvidence, RawEvidence
from cloister.attester.diagnosis import (
    CLOCK_TOLERANCE,
    Facts,
    Finding,
    Probes,
    diagnose_attestation,
    exit_code,
)
from cloister.attester.local import Places
from cloister.attester.probes import gather
from cloister.errors import (
    EXIT_INTERNAL,
    EXIT_NETWORK,
    EXIT_VERIFICATION,
    AttesterError,
    CloisterError,
    EndorsementError,
    NetworkError,
    VerificationError,
)
from cloister.verifier import intel
from cloister.verifier.claims import Claims
from cloister.verifier.rules import IntelRules
from simulated_evidence import NOW, REPORT_DATA, platform

CHECKS = [
    "confidential machine",
    "configfs",
    "TSM reports",
    "report provider",
    "quote",
    "measurement registers",
    "firmware log",
    "vendor's service",
    "clock",
    "endorsements",
    "verification",
    "GPUs",
]
FACTS = Facts(
    gramine=False,
    tdx_guest=True,
    snp_guest=False,
    configfs=True,
    reports=True,
    kernel="6.16.3-cloud-amd64",
    user=0,
    gpus=True,
)


def _claims() -> Claims:
    tee = platform().tee("tdx", clock=lambda: float(NOW))
    evidence = tee.quote(REPORT_DATA)
    from cloister.endorsements.roots import simulated_root

    return intel.verify(
        evidence.quote,
        evidence.endorsements,
        root=simulated_root(platform().root_sha256),
        now=NOW,
        rules=IntelRules(min_tcb_evaluation_number=1),
    )


CLAIMS = _claims()
SOUND = Probes(
    kind=lambda: "tdx",
    quote=lambda: (RawEvidence(tee="tdx", quote=bytes(4492)), 0.031),
    registers=lambda: "readable and writable, RTMR3 is fresh",
    firmware_log=lambda: 20_349,
    service=lambda kind: ("https://api.trustedservices.intel.com", NOW + 1),
    endorse=lambda evidence: b"endorsements",
    verify=lambda evidence, endorsements: CLAIMS,
    devices=lambda: RawDeviceEvidence(evidence=bytes(9000)),
)


def broken(error: CloisterError) -> Callable[..., NoReturn]:
    def probe(*_: Any) -> NoReturn:
        raise error

    return probe


def states(findings: tuple[Finding, ...]) -> dict[str, str]:
    return {finding.check: finding.state for finding in findings}


def test_a_sound_machine_has_every_link() -> None:
    findings = diagnose_attestation(FACTS, SOUND, now=NOW)
    assert [finding.check for finding in findings] == CHECKS
    assert set(states(findings).values()) == {"ok"}
    assert exit_code(findings) == 0
    assert all(finding.found and "\n" not in finding.found for finding in findings)


BREAKS: dict[str, tuple[dict[str, Any], dict[str, Any], str, int, str]] = {
    "no TEE at all": (
        {"tdx_guest": False, "reports": False, "configfs": False}, {},
        "confidential machine", EXIT_INTERNAL, "modprobe tdx_guest",
    ),
    "configfs is not mounted": (
        {"configfs": False, "reports": False}, {}, "configfs", EXIT_INTERNAL, "mount -t configfs",
    ),
    "the guest driver is not loaded": ({"reports": False}, {}, "TSM reports", EXIT_INTERNAL, "modprobe"),
    "the kernel is too old": (
        {"reports": False, "kernel": "6.1.0-31-amd64"}, {}, "TSM reports", EXIT_INTERNAL, "6.7 or later",
    ),
    "the wrong user": (
        {"user": 1000}, {"kind": broken(AttesterError("this user may not", todo="run as root"))},
        "report provider", EXIT_INTERNAL, "run as root",
    ),
    "QGS does not answer": (
        {}, {"quote": broken(AttesterError("the host did not make a quote", todo="ask whether the QGS runs"))},
        "quote", EXIT_INTERNAL, "QGS",
    ),
    "no registers": (
        {}, {"registers": broken(AttesterError("no measurement registers", todo="kernel 6.16"))},
        "measurement registers", EXIT_INTERNAL, "6.16",
    ),
    "the firmware log does not replay": (
        {}, {"firmware_log": broken(AttesterError("does not replay", todo="without it"))},
        "firmware log", EXIT_INTERNAL, "without it",
    ),
    "the PCCS is unreachable": (
        {}, {"service": broken(NetworkError("cannot be reached", todo="--pccs"))},
        "vendor's service", EXIT_NETWORK, "--pccs",
    ),
    "the clock is behind": ({}, {"service": lambda kind: ("url", NOW + 301)}, "clock", EXIT_VERIFICATION, "chrony"),
    "the clock is ahead": ({}, {"service": lambda kind: ("url", NOW - 301)}, "clock", EXIT_VERIFICATION, "chrony"),
    "the clock is behind the newest endorsement": (
        {},
        {
            "service": broken(NetworkError("cannot be reached")),
            "verify": lambda *_: replace(CLAIMS, issued_at=NOW + CLOCK_TOLERANCE + 1),
        },
        "vendor's service", EXIT_NETWORK, "",
    ),
    "no endorsements": (
        {}, {"endorse": broken(EndorsementError("the PCCS knows no such platform", todo="register it"))},
        "endorsements", EXIT_VERIFICATION, "register it",
    ),
    "the quote does not verify": (
        {}, {"verify": broken(VerificationError("the platform is revoked", todo="use another"))},
        "verification", EXIT_VERIFICATION, "use another",
    ),
    "a GPU without confidential mode": (
        {}, {"devices": broken(AttesterError("confidential mode is off", todo="switch it on"))},
        "GPUs", EXIT_INTERNAL, "switch it on",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("facts", "probes", "check", "code", "todo"), BREAKS.values(), ids=BREAKS)
def test_the_link_that_is_broken_is_named_first(
    facts: dict[str, Any], probes: dict[str, Any], check: str, code: int, todo: str
) -> None:
    findings = diagnose_attestation(replace(FACTS, **facts), replace(SOUND, **probes), now=NOW)
    assert [finding.check for finding in findings] == CHECKS
    first = next(finding for finding in findings if finding.state == "failed")
    assert first.check == check
    assert todo in first.todo
    assert exit_code(findings) == code


@pytest.mark.parametrize(
    ("facts", "probes", "check", "unasked"),
    [
        ({"tdx_guest": False, "reports": False}, {}, "confidential machine", CHECKS[1:-1]),
        ({"reports": False, "configfs": False}, {}, "configfs", CHECKS[2:-1]),
        ({"reports": False}, {}, "TSM reports", CHECKS[3:-1]),
        ({}, {"kind": broken(AttesterError("no"))}, "report provider", CHECKS[4:-1]),
        ({}, {"quote": broken(AttesterError("no"))}, "quote", CHECKS[7:-1]),
        ({}, {"endorse": broken(EndorsementError("no"))}, "endorsements", ["verification"]),
    ],
)
def test_what_depends_on_a_broken_link_is_not_asked(
    facts: dict[str, Any], probes: dict[str, Any], check: str, unasked: list[str]
) -> None:
    found = states(diagnose_attestation(replace(FACTS, **facts), replace(SOUND, **probes), now=NOW))
    assert found[check] == "failed"
    assert [name for name, state in found.items() if state == "not asked"] == unasked


def test_a_broken_service_alone_leaves_carried_endorsements_to_be_verified() -> None:
    probes = replace(SOUND, service=broken(NetworkError("cannot be reached")))
    found = states(diagnose_attestation(FACTS, probes, now=NOW))
    assert (found["vendor's service"], found["endorsements"], found["verification"]) == ("failed", "ok", "ok")
    assert found["clock"] == "ok"  # not before the newest endorsement


def test_offline_asks_no_service() -> None:
    probes = replace(SOUND, offline=True, service=broken(AssertionError))  # type: ignore[arg-type]
    found = states(diagnose_attestation(FACTS, probes, now=NOW))
    assert found["vendor's service"] == "not asked"
    assert found["verification"] == "ok"


def test_simulated_evidence_is_never_shown_as_more() -> None:
    findings = diagnose_attestation(FACTS, SOUND, now=NOW)
    said = next(finding.found for finding in findings if finding.check == "verification")
    assert said.startswith("SIMULATED root: nothing is protected")


@pytest.mark.parametrize(("kind", "checks"), [("snp", ["measurement registers", "firmware log"])])
def test_what_a_kind_does_not_have_is_not_asked(kind: Any, checks: list[str]) -> None:
    probes = replace(
        SOUND, kind=lambda: kind, registers=broken(AssertionError), firmware_log=broken(AssertionError)
    )  # type: ignore[arg-type]
    found = states(diagnose_attestation(replace(FACTS, tdx_guest=False, snp_guest=True), probes, now=NOW))
    assert [found[check] for check in checks] == ["not asked", "not asked"]


def test_gramine_has_a_link_of_its_own() -> None:
    facts = replace(FACTS, gramine=True, tdx_guest=False, reports=False, configfs=False)
    probes = replace(SOUND, kind=lambda: "sgx")
    found = states(diagnose_attestation(facts, probes, now=NOW))
    assert found["attestation type"] == "ok"
    assert "configfs" not in found


@pytest.mark.parametrize("release", ["", "6", "six.seven", "6.x", "99999999999999.1", "6.7-rc1", "6.7.0"])
def test_any_release_of_a_kernel_is_survived(release: str) -> None:
    findings = diagnose_attestation(replace(FACTS, reports=False, kernel=release), SOUND, now=NOW)
    assert exit_code(findings) == EXIT_INTERNAL


class TestGathering:
    def machine(self, tmp_path: Path) -> tuple[Places, Path]:
        for folder in ("proc/driver/nvidia", "dev", "reports"):
            (tmp_path / folder).mkdir(parents=True)
        (tmp_path / "proc/cpuinfo").write_text("processor\t: 0\nflags\t\t: fpu vme\nbugs\t:\n")
        (tmp_path / "proc/mounts").write_text("sysfs /sys sysfs rw 0 0\n")
        return Places(gramine=tmp_path / "gramine", reports=tmp_path / "reports"), tmp_path

    def test_an_ordinary_machine_is_no_guest(self, tmp_path: Path) -> None:
        places, root = self.machine(tmp_path)
        facts = gather(places, root=root)
        seen = [
            name for name in ("gramine", "tdx_guest", "snp_guest", "configfs", "gpus") if getattr(facts, name)
        ]
        assert seen == []
        assert facts.reports

    @pytest.mark.parametrize(
        ("path", "content", "fact"),
        [
            ("proc/cpuinfo", "flags : fpu tdx_guest vme\n", "tdx_guest"),
            ("dev/tdx_guest", "", "tdx_guest"),
            ("dev/sev-guest", "", "snp_guest"),
            ("proc/mounts", "none /sys/kernel/config configfs rw 0 0\n", "configfs"),
            ("proc/driver/nvidia/version", "550", "gpus"),
        ],
    )
    def test_each_fact_is_seen(self, path: str, content: str, fact: str, tmp_path: Path) -> None:
        places, root = self.machine(tmp_path)
        (root / path).write_text(content)
        assert getattr(gather(places, root=root), fact)

    def test_a_machine_without_proc_is_survived(self, tmp_path: Path) -> None:
        assert not gather(
            Places(reports=tmp_path / "r", gramine=tmp_path / "g"), root=tmp_path / "no"
        ).tdx_guest
