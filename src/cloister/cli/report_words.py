"""An examination in words: the sections that the text report, the HTML page and the JSON object share.

Everything that came out of evidence goes through :func:`inert` here, once, so that no renderer can forget it: what
steers a terminal (escapes, bidirectional overrides, line breaks) becomes a visible escape. Markup is the renderers'
business: neither rich's nor HTML's is interpreted in these strings.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal

from cloister.appraisal.examination import VERDICTS, Examination, Row
from cloister.endorsements.roots import AMD_ROOTS, INTEL_ROOT, NVIDIA_DEVICE_ROOT
from cloister.errors import AppraisalRefused
from cloister.verifier.claims import Claims, DeviceClaims

MAX_TEXT: Final = 4096
"""Characters of one value."""
MAX_LINES: Final = 512
"""Lines of one section."""
NO_END: Final = 253402300799
"""9999-12-31 23:59:59 UTC, Unix seconds."""
Tone = Literal["", "good", "warn", "bad"]

TEES: Final[Mapping[str, str]] = {
    "tdx": "Intel TDX: a trust domain (a virtual machine whose memory the host cannot read)",
    "sgx": "Intel SGX: an enclave (a part of a process whose memory nobody else can read)",
    "snp": "AMD SEV-SNP: a guest (a virtual machine whose memory the host cannot read)",
    "az-snp-vtpm": "AMD SEV-SNP on Azure: a guest, attested through its virtual TPM",
    "tpm": "TPM 2.0: a machine that measured what it booted; its memory is not hidden from its owner",
}
STATUSES: Final[Mapping[str, tuple[Tone, str]]] = {
    "UpToDate": ("good", "firmware and configuration are the newest that Intel asks for"),
    "SWHardeningNeeded": ("warn", "up to date; the workload itself has to defend against the advisories"),
    "ConfigurationNeeded": ("warn", "up to date; a setting of the platform leaves it open to the advisories"),
    "ConfigurationAndSWHardeningNeeded": (
        "warn",
        "up to date; a setting of the platform and the workload itself have to defend against the advisories",
    ),
    "OutOfDate": ("bad", "firmware with known weaknesses: the advisories can be used against it; update it"),
    "OutOfDateConfigurationNeeded": (
        "bad",
        "firmware with known weaknesses, and a setting that leaves it open",
    ),
    "TDRelaunchAdvised": (
        "warn",
        "the TDX module was updated after this launch: launch the trust domain again",
    ),
    "TDRelaunchAdvisedConfigurationNeeded": (
        "warn",
        "the TDX module was updated after this launch, and a setting leaves the platform open",
    ),
    "Revoked": ("bad", "Intel no longer vouches for this platform"),
}
MEASUREMENTS: Final[Mapping[str, str]] = {
    "mrtd": "what the trust domain started from: its virtual firmware",
    "rtmr0": "the firmware's configuration",
    "rtmr1": "boot loader and kernel",
    "rtmr2": "kernel command line and initial file system",
    "rtmr3": "what the launcher measured: the workload",
    "mrenclave": "the enclave's code and initial data",
    "mrsigner": "the key that signed the enclave",
    "measurement": "what the guest started from: its virtual firmware",
}
HARDWARE: Final[Mapping[str, str]] = {
    "ppid": "the processor, by Intel's platform provisioning id",
    "pck_sha256": "the processor, by the SHA-256 of its certified key",
    "chip_id": "the chip, by AMD's id",
    "ek_sha256": "the TPM, by the SHA-256 of its endorsement key",
}
SIMULATED: Final = "SIMULATED TEE: no hardware protects this workload; never use it for real data"
_ROOTS: Final = {root.sha256: root.name for root in (INTEL_ROOT, *AMD_ROOTS, NVIDIA_DEVICE_ROOT)}


@dataclass(frozen=True, slots=True)
class Line:
    """One named value. All three texts are inert."""

    name: str
    value: str
    meaning: str = ""
    tone: Tone = ""


@dataclass(frozen=True, slots=True)
class Section:
    """Lines under one heading."""

    title: str
    lines: tuple[Line, ...]


@dataclass(frozen=True, slots=True)
class Origin:
    """Where things came from, as the command knows it."""

    source: str
    """File name or address, as the person wrote it."""
    endorsements: str
    """``carried along``, ``given``, ``fetched`` …, in words."""
    clock: int
    """The time of this machine, Unix seconds."""
    policy: str = ""
    """The policy's file name; empty without one."""
    policy_file_sha256: str = ""
    """Of the file, as `sha256sum` prints it."""


@dataclass(frozen=True, slots=True)
class Report:
    """What is shown, in this order. Every string is inert."""

    verdict: str
    headline: str
    tone: Tone
    banner: str
    """The warning about simulation; empty for hardware."""
    problem: str
    todo: str
    rows: tuple[Row, ...]
    sections: tuple[Section, ...]


def inert(text: str, *, limit: int = MAX_TEXT) -> str:
    """``text`` with everything that is not printable as a visible escape, in at most about ``limit`` characters."""
    shown = text[:limit]
    if not shown.isprintable():
        shown = "".join(char if char.isprintable() else _escape(char) for char in shown)
    return shown if len(text) <= limit else f"{shown}… ({len(text)} characters)"


def _escape(char: str) -> str:
    code = ord(char)
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def moment(seconds: int) -> str:
    """A UTC time for people."""
    try:
        return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(seconds))
    except (OverflowError, ValueError, OSError):
        return f"{seconds} (Unix seconds)"


def _end(seconds: int) -> str:
    """When something ends; certificates without an end name the last second that X.509 can (RFC 5280, 4.1.2.5)."""
    return "never: its certificates name no end" if seconds >= NO_END else moment(seconds)


def line(name: str, value: object, meaning: str = "", tone: Tone = "") -> Line:
    """A line with inert texts; ``bytes`` are shown in hexadecimal, mappings and sequences are not taken."""
    text = value.hex() if isinstance(value, bytes) else str(value)
    return Line(inert(name, limit=128), inert(text) or "(empty)", inert(meaning, limit=512), tone)


def section(title: str, lines: list[Line] | tuple[Line, ...]) -> Section:
    """A section, bounded: what is left out is counted."""
    kept = tuple(lines[:MAX_LINES])
    if len(lines) > MAX_LINES:
        kept += (line("…", f"{len(lines) - MAX_LINES} more are not shown"),)
    return Section(inert(title, limit=128), kept)


def report_of(examination: Examination, origin: Origin) -> Report:
    """Everything that a reader is shown."""
    tone: Tone = "good"
    if examination.verdict == "refused":
        tone = "bad"
    elif examination.verdict == "genuine" or examination.simulated:
        tone = "warn"
    sections = [_examined(examination, origin)]
    if examination.claims is not None:
        sections += _claims(examination.claims, examination)
    if examination.facts:
        sections.append(
            section("What it says", [line(name, value) for name, value in examination.facts.items()])
        )
    sections += [_device(number, device) for number, device in enumerate(examination.devices)]
    return Report(
        verdict=examination.verdict,
        headline=_headline(examination),
        tone=tone,
        banner=SIMULATED if examination.simulated else "",
        problem=inert(str(examination.error.what), limit=1024) if examination.error else "",
        todo=inert(examination.error.todo, limit=1024) if examination.error else _next(examination),
        rows=tuple(
            Row(row.number, row.name, row.state, tuple(inert(text, limit=1024) for text in row.outcomes))
            for row in examination.rows
        ),
        sections=tuple(section for section in sections if section.lines),
    )


def _headline(examination: Examination) -> str:
    if isinstance(examination.error, AppraisalRefused) and examination.claims is not None:
        return "refused: genuine, but not what the policy allows"
    return VERDICTS[examination.verdict]


def _next(examination: Examination) -> str:
    if examination.subject.kind == "rim":
        return "these are reference values, which a device's report is compared with; they are no evidence"
    if examination.claims is None and examination.devices:
        return "devices alone: nothing here says in whose machine they are; a Cloister bundle binds them to a TEE"
    if examination.verdict == "genuine":
        return "genuine says who signed, not what runs: give --policy to have the measurements judged"
    if examination.verdict == "matches":
        return "recorded evidence could be old: ask the service itself (its URL), or give the --nonce it answered"
    return ""


def _examined(examination: Examination, origin: Origin) -> Section:
    now = examination.now
    off = abs(now - origin.clock) > 60
    lines = [
        line("source", origin.source),
        line("format", examination.subject.what),
        line("evidence SHA-256", examination.evidence_sha256),
        line("policy", origin.policy or "none given"),
    ]
    if examination.policy_digest:
        lines.append(line("policy digest", examination.policy_digest, "of the policy's canonical form"))
    if origin.policy_file_sha256:
        lines.append(line("policy file SHA-256", origin.policy_file_sha256))
    lines.append(line("endorsements", origin.endorsements))
    told = "NOT NOW: the time that was given with --at" if off else "this machine's clock"
    lines.append(line("verified as of", moment(now), told, "warn" if off else ""))
    return section("What was examined", lines)


def _claims(claims: Claims, examination: Examination) -> list[Section]:
    root = _ROOTS.get(
        claims.root_sha256, "a simulated root" if claims.simulated else "a root that the policy names"
    )
    facts = [
        line("kind", TEES.get(claims.tee, claims.tee), "", "bad" if claims.simulated else ""),
        line("vouched for by", root, f"SHA-256 {claims.root_sha256}", "bad" if claims.simulated else "good"),
        line("debug", "on" if claims.debug else "off", "", "bad" if claims.debug else "good"),
        *(line(name, value, HARDWARE.get(name, "")) for name, value in sorted(claims.hardware.items())),
    ]
    firmware = []
    if claims.tcb_status is not None:
        tone, meaning = STATUSES.get(claims.tcb_status, ("warn", "a status that is not known here"))
        firmware.append(line("status", claims.tcb_status, meaning, tone))
    elif claims.tee in ("snp", "az-snp-vtpm"):
        for name, meaning in (
            (
                "reported_tcb",
                "security versions of the chip's firmware; AMD gives them no status: compare its bulletins",
            ),
            ("current_version", "of the SEV firmware"),
        ):
            if name in claims.details:
                firmware.append(line(name, claims.details[name], meaning))
    for advisory in claims.advisory_ids:
        firmware.append(
            line(
                "advisory", advisory, "a published weakness of this platform; its vendor's site describes it"
            )
        )
    if claims.tcb_evaluation_number is not None:
        firmware.append(
            line("evaluation number", claims.tcb_evaluation_number, "how new Intel's judgement is")
        )
    firmware += [
        line("endorsements issued", moment(claims.issued_at)),
        line("endorsements end", _end(claims.collateral_expires), "after this, fetch them again"),
    ]
    if claims.details.get("revocation"):
        unchecked = claims.details["revocation"] != "checked"
        meaning = (
            "nobody looked whether the vendor withdrew these keys: give or fetch its CRL" if unchecked else ""
        )
        firmware.append(
            line("revocation", claims.details["revocation"], meaning, "warn" if unchecked else "good")
        )
    judged = "judged by the policy" if examination.policy_digest else "shown, not judged"
    measured = [
        line(name, value, MEASUREMENTS.get(name, "a register of the TPM" if name.startswith("pcr") else ""))
        for name, value in claims.measurements.items()
    ]
    bound = [line("report data", claims.report_data, _readable(claims.report_data))]
    events = [line(name, _payload(payload), "launch event") for name, payload in claims.events.items()]
    events += [
        line(
            f"{'pcr' if claims.tee in ('tpm', 'az-snp-vtpm') else 'rtmr'}{event.register}",
            event.kind + (f" ({event.name})" if event.name else ""),
            _payload(event.data[:64])
            if event.vouched
            else f"digest {event.digest.hex()[:32]}…; the data is not vouched for",
        )
        for event in claims.measured_events
    ]
    details = [line(name, value) for name, value in claims.details.items()]
    return [
        section("What this is", facts),
        section("Firmware", firmware),
        section(f"Measurements ({judged})", measured),
        section("What the evidence binds", bound),
        section("Events that replay to the measurements", events),
        section("Every further field", details),
    ]


def _device(number: int, device: DeviceClaims) -> Section:
    differing = ", ".join(device.differing) or "none"
    lines = [
        line("architecture", device.architecture),
        line(
            "vouched for by",
            _ROOTS.get(device.root_sha256, "a simulated root"),
            f"SHA-256 {device.root_sha256}",
            "bad" if device.simulated else "good",
        ),
        line("identity", device.identity, "SHA-256 of the key that its certificate names"),
        line("driver", device.driver_version),
        line("VBIOS", device.vbios_version),
        line(
            "reference manifests",
            ", ".join(device.rims) or "none at hand: its measurements were not compared",
            "",
            "" if device.rims else "warn",
        ),
        line("measurements that match", device.matched),
        line("measurements that differ", differing, "", "bad" if device.differing else ""),
        line("revocation", device.revocation, "", "good" if device.revocation == "checked" else "warn"),
        line("endorsements end", _end(device.expires)),
        *(line(name, value) for name, value in device.details.items()),
    ]
    return section(f"{'GPU' if device.kind == 'gpu' else 'Switch'} {number}", lines)


def _readable(data: bytes) -> str:
    """Text, where the bytes are text padded with zeros."""
    text = data.rstrip(b"\0")
    if not data.strip(b"\0"):
        return "all zeros: it binds nothing"
    if text and all(0x20 <= byte < 0x7F for byte in text):
        return f"the text {text.decode('ascii')!r}"
    return ""


def _payload(data: bytes) -> str:
    readable = _readable(data)
    return f"{data.hex()} ({readable})" if readable and data.strip(b"\0") else data.hex()
