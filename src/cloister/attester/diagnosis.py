"""The links between this machine and evidence that a relying party believes, in order, and the one that is broken.

Pure: what the machine is like comes in as :class:`Facts`, what has to be tried as :class:`Probes`, functions that
answer with what they found or raise the error that serving would meet. A link whose predecessor failed is *not
asked*: the first failure is the one to mend. Nothing is repaired or decided here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal

from cloister.attester import RawDeviceEvidence, RawEvidence
from cloister.errors import AttesterError, CloisterError, EndorsementError
from cloister.evidence.bundle import TeeKind
from cloister.verifier.claims import Claims

State = Literal["ok", "failed", "not asked"]
CLOCK_TOLERANCE: Final = 300
"""Seconds between this clock and a service's before it counts as wrong."""
REPORTS_KERNEL: Final = (6, 7)
REGISTERS_KERNEL: Final = (6, 16)


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What a person may choose for a check. Every room's checks get all of it and take what concerns them."""

    offline: bool = False
    """Nothing may be fetched."""
    pccs: str | None = None
    """Address of a PCCS, instead of Intel's own service."""
    ca_file: Path | None = None
    """Certificates (PEM) that vouch for the PCCS's TLS."""
    allow_http: bool = False
    """Plain http also beyond this machine."""
    simulated_root: str | None = None
    """SHA-256 (hexadecimal) of a simulated root that the verification accepts instead of the vendors'."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One link."""

    check: str
    state: State
    found: str
    """What was found, or why it was not asked; one line."""
    todo: str = ""
    """What to do where it failed."""
    exit_code: int = 0
    """That of the error where it failed: its kind."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What can be seen of a machine without asking its TEE for anything."""

    gramine: bool
    """``/dev/attestation/attestation_type`` exists."""
    tdx_guest: bool
    """The processor says so, or its guest driver's device is there."""
    snp_guest: bool
    configfs: bool
    """Mounted on ``/sys/kernel/config``."""
    reports: bool
    """``/sys/kernel/config/tsm/report`` exists."""
    kernel: str
    """Its release, such as ``6.16.3-cloud-amd64``."""
    user: int
    """Effective user id."""
    gpus: bool
    """NVIDIA's driver is loaded."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Probes:
    """What has to be tried. Each raises a :class:`~cloister.errors.CloisterError` where it fails."""

    kind: Callable[[], TeeKind]
    """Asks the provider, or Gramine, what it is."""
    quote: Callable[[], tuple[RawEvidence, float]]
    """A quote, and how many seconds it took."""
    registers: Callable[[], str]
    """The measurement registers of a TD can be read, and RTMR3 is fit for a launch."""
    firmware_log: Callable[[], int]
    """Bytes of the log that replays; 0 where there is none."""
    service: Callable[[TeeKind], tuple[str, int | None]]
    """Reaches the vendor's service: its address, and the time in Unix seconds by its Date header."""
    endorse: Callable[[RawEvidence], bytes]
    """Endorsements for a quote, fetched or carried."""
    verify: Callable[[RawEvidence, bytes], Claims]
    devices: Callable[[], RawDeviceEvidence]
    offline: bool = False
    """Nothing may be fetched."""


@dataclass(slots=True)
class _Walk:
    """Links as they are asked."""

    findings: list[Finding] = field(default_factory=list)

    def ok(self, check: str, found: str) -> None:
        self.findings.append(Finding(check, "ok", found))

    def failed(self, check: str, error: CloisterError) -> None:
        self.findings.append(Finding(check, "failed", error.what, error.todo, error.exit_code))

    def skip(self, check: str, why: str) -> None:
        self.findings.append(Finding(check, "not asked", why))


def diagnose_attestation(facts: Facts, probes: Probes, *, now: int) -> tuple[Finding, ...]:
    """Every link of this machine. ``now`` is this machine's clock, in Unix seconds."""
    walk = _Walk()
    kind = _tee(walk, facts, probes)
    evidence = _evidence(walk, kind, probes)
    _registers(walk, kind, probes)
    _vendor(walk, kind, evidence, probes, now)
    _devices(walk, facts, probes)
    return tuple(walk.findings)


def exit_code(findings: Sequence[Finding]) -> int:
    """0, or that of the first link that failed."""
    return next((finding.exit_code for finding in findings if finding.state == "failed"), 0)


def _tee(walk: _Walk, facts: Facts, probes: Probes) -> TeeKind | None:
    rest = ["configfs", "TSM reports", "report provider"]
    guests = [
        name for name, there in (("Intel TDX", facts.tdx_guest), ("AMD SEV-SNP", facts.snp_guest)) if there
    ]
    if facts.gramine:
        walk.ok("confidential machine", "Gramine on Intel SGX")
        rest = ["attestation type"]
    elif guests:
        walk.ok("confidential machine", f"a guest of {' and '.join(guests)}")
    elif facts.reports:
        walk.ok("confidential machine", "the kernel has TSM reports")
    else:
        walk.failed(
            "confidential machine",
            AttesterError(
                "this is no TEE, or its guest driver is missing: neither Gramine nor a guest of TDX or SEV-SNP",
                todo="use a confidential VM; in one, `modprobe tdx_guest` (Intel TDX) or `modprobe sev-guest` (AMD)",
            ),
        )
        for check in rest:
            walk.skip(check, "there is no TEE")
        return None
    for link in (_configfs, _reports):
        if not facts.gramine and not link(walk, facts):
            for check in rest[len(walk.findings) - 1 :]:
                walk.skip(check, f"{walk.findings[-1].check} failed")
            return None
    try:
        kind = probes.kind()
    except CloisterError as error:
        walk.failed(rest[-1], error)
        return None
    walk.ok(rest[-1], f"{kind.upper()}, asked as user {facts.user}")
    return kind


def _configfs(walk: _Walk, facts: Facts) -> bool:
    if not facts.configfs and not facts.reports:
        walk.failed(
            "configfs",
            AttesterError(
                "configfs is not mounted on /sys/kernel/config",
                todo="`mount -t configfs none /sys/kernel/config`; in a container, mount the host's there",
            ),
        )
        return False
    walk.ok("configfs", "mounted")
    return True


def _reports(walk: _Walk, facts: Facts) -> bool:
    if not facts.reports:
        old = _release(facts.kernel) < REPORTS_KERNEL
        walk.failed(
            "TSM reports",
            AttesterError(
                f"there is no /sys/kernel/config/tsm/report in kernel {facts.kernel[:64]}",
                todo="use kernel 6.7 or later"
                if old
                else "load the guest driver: `modprobe tdx_guest` or `modprobe sev-guest` (CONFIG_TSM_REPORTS)",
            ),
        )
        return False
    walk.ok("TSM reports", f"kernel {facts.kernel[:64]}")
    return True


def _evidence(walk: _Walk, kind: TeeKind | None, probes: Probes) -> RawEvidence | None:
    if kind is None:
        walk.skip("quote", "nothing could make one")
        return None
    try:
        evidence, seconds = probes.quote()
    except CloisterError as error:
        walk.failed("quote", error)
        return None
    walk.ok("quote", f"{len(evidence.quote)} bytes in {seconds:.2f} s, over the report data that was written")
    return evidence


def _registers(walk: _Walk, kind: TeeKind | None, probes: Probes) -> None:
    if kind != "tdx":
        why = "there is no quote" if kind is None else f"{kind.upper()} has none"
        walk.skip("measurement registers", why)
        walk.skip("firmware log", why)
        return
    try:
        walk.ok("measurement registers", probes.registers())
    except CloisterError as error:
        walk.failed("measurement registers", error)
    try:
        size = probes.firmware_log()
    except CloisterError as error:
        walk.failed("firmware log", error)
        return
    if size:
        walk.ok("firmware log", f"{size} bytes that replay")
    else:
        walk.skip("firmware log", "this machine has none (CCEL): policies cannot ask for firmware events")


def _vendor(
    walk: _Walk, kind: TeeKind | None, evidence: RawEvidence | None, probes: Probes, now: int
) -> None:
    checks = ["vendor's service", "clock", "endorsements", "verification"]
    if kind is None or evidence is None or kind not in ("tdx", "sgx", "snp"):
        for check in checks:
            walk.skip(check, "there is no quote")
        return
    date = None
    if probes.offline:
        walk.skip("vendor's service", "asked not to (--offline)")
    else:
        try:
            address, date = probes.service(kind)
            walk.ok("vendor's service", address)
        except CloisterError as error:
            walk.failed("vendor's service", error)
    try:
        endorsements = probes.endorse(evidence)
    except CloisterError as error:
        _clock(walk, date, None, now)
        walk.failed("endorsements", error)
        walk.skip("verification", "there are no endorsements")
        return
    try:
        claims = probes.verify(evidence, endorsements)
    except CloisterError as error:
        _clock(walk, date, None, now)
        walk.ok("endorsements", f"{len(endorsements)} bytes")
        walk.failed("verification", error)
        return
    _clock(walk, date, claims.issued_at, now)
    walk.ok(
        "endorsements", f"{len(endorsements)} bytes, good until {claims.collateral_expires} (Unix seconds)"
    )
    status = claims.tcb_status or "no TCB status by this vendor"
    advisories = f", advisories {', '.join(claims.advisory_ids)}" if claims.advisory_ids else ""
    simulated = "SIMULATED root: nothing is protected; " if claims.simulated else ""
    walk.ok("verification", f"{simulated}{status}{advisories}")


def _clock(walk: _Walk, date: int | None, issued_at: int | None, now: int) -> None:
    """``date`` is what a service said, ``issued_at`` the newest issue date of verified endorsements."""
    todo = "set the clock (chrony, systemd-timesyncd); in a VM, ask for a paravirtual clock"
    if date is not None and abs(date - now) > CLOCK_TOLERANCE:
        side = "behind" if date > now else "ahead of"
        walk.failed(
            "clock",
            EndorsementError(f"this clock is {abs(date - now)} s {side} the vendor's service", todo=todo),
        )
    elif issued_at is not None and issued_at > now + CLOCK_TOLERANCE:
        walk.failed(
            "clock",
            EndorsementError(f"this clock is {issued_at - now} s behind the newest endorsement", todo=todo),
        )
    elif date is None and issued_at is None:
        walk.skip("clock", "there is nothing to compare it with")
    else:
        known = (
            f"{now - date:+d} s against the vendor's service"
            if date is not None
            else "not before the newest endorsement"
        )
        walk.ok("clock", known)


def _devices(walk: _Walk, facts: Facts, probes: Probes) -> None:
    if not facts.gpus:
        walk.skip("GPUs", "NVIDIA's driver is not loaded")
        return
    try:
        collected = probes.devices()
    except CloisterError as error:
        walk.failed("GPUs", error)
    else:
        walk.ok("GPUs", f"in confidential mode, {len(collected.evidence)} bytes of evidence")


def _release(text: str) -> tuple[int, int]:
    """Major and minor of a kernel release; (0, 0) where it has no such form."""
    parts = text.split(".")
    if len(parts) < 2 or not parts[0].isdigit():
        return (0, 0)
    minor = "".join(character for character in parts[1][:4] if character.isdigit())
    return (int(parts[0][:4]), int(minor or 0))
