"""Sections for `cloister inspect`: each format by its own reader, each field by its name. Nothing is verified.

A part that cannot be read is named with the reason, and the rest is still shown; a file whose outermost form cannot
be read is an error. Long values and lists are cut with a count, unless everything was asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

from cloister.cli.inspection_fields import Fields, certificate_lines, list_lines
from cloister.cli.report_words import Line, Section, line
from cloister.encoding import b64url_decode, parse_json
from cloister.errors import CloisterError, FormatError, UsageError
from cloister.evidence.recognise import Recognised, recognise

MAX_NESTING: Final = 3
"""Documents within documents."""


def inspect(subject: Recognised, *, full: bool) -> list[Section]:
    """Everything that ``subject`` says. Raises :class:`~cloister.errors.CloisterError` where its form cannot be read."""
    return _Inspector(Fields(full=full)).sections(subject, depth=0)


class _Inspector:
    """One inspection; ``fields`` turns values into lines."""

    def __init__(self, fields: Fields) -> None:
        self._fields = fields

    def sections(self, subject: Recognised, *, depth: int) -> list[Section]:
        readers: dict[str, Callable[[Recognised, int], list[Section]]] = {
            "intel-quote": self._quote,
            "snp-report": self._snp,
            "hcl-report": self._hcl,
            "azure-evidence": self._azure,
            "tpm-quote": self._tpm,
            "bundle": self._bundle,
            "nvidia-evidence": self._devices,
            "spdm-report": self._spdm,
            "rim": self._rim,
            "event-log": self._tcg_log,
            "dstack-log": self._dstack_log,
            "launch-log": self._launch_log,
            "intel-collateral": self._collateral,
            "snp-endorsements": self._snp_endorsements,
            "certificates": self._certificates,
            "crl": self._certificates,
            "ocsp": self._opaque,
            "public-key": self._opaque,
            "ear-token": self._token,
        }
        if subject.kind == "policy":
            raise UsageError("this is a policy", todo="`cloister policy explain` says what it means")
        return readers.get(subject.kind, self._json)(subject, depth)

    def _nested(self, title: str, data: bytes, depth: int) -> list[Section]:
        """A part that has a format of its own; what it cannot be read as is said, not raised."""
        if not data:
            return []
        try:
            if depth >= MAX_NESTING:
                raise FormatError("it is nested too deep")
            found = self.sections(recognise(data), depth=depth + 1)
        except CloisterError as error:
            return [
                self._section(title, [line("cannot be read", error.what), *self._fields.of("bytes", data)])
            ]
        return [Section(f"{title}: {part.title}"[:128], part.lines) for part in found]

    def _section(self, title: str, lines: Sequence[Line]) -> Section:
        return self._fields.section(title, lines)

    def _quote(self, subject: Recognised, depth: int) -> list[Section]:
        from cloister.evidence.quote import parse_quote

        quote = parse_quote(subject.data)
        signature = quote.signature
        sections = [
            self._section("Header", self._fields.of("", quote.header)),
            self._section("Report", self._fields.of("", quote.report)),
            self._section("Quoting enclave's report", self._fields.of("", signature.qe_report)),
            self._section(
                "Signature",
                [
                    *self._fields.of("signature", signature.signature),
                    *self._fields.of("attestation_key", signature.attestation_key),
                    *self._fields.of("qe_report_signature", signature.qe_report_signature),
                    *self._fields.of("qe_auth_data", signature.qe_auth_data),
                ],
            ),
            self._section("Certificates", certificate_lines(signature.certificates)),
        ]
        for name, data in subject.parts.items():
            if name == "event_log":
                sections += self._nested("Event log beside it", data, depth)
            else:
                sections.append(self._section(f"{name} beside it", self._fields.of(name, data)))
        return sections

    def _snp(self, subject: Recognised, depth: int) -> list[Section]:
        from cloister.evidence.snp import parse_report

        return [self._section("Report", self._fields.of("", parse_report(subject.data)))]

    def _hcl(self, subject: Recognised, depth: int) -> list[Section]:
        from cloister.evidence.hcl import parse_hcl

        report = parse_hcl(subject.data)
        return [
            self._section("HCL report", self._fields.of("", report)),
            *self._nested("SEV-SNP report", report.snp_report, depth),
        ]

    def _azure(self, subject: Recognised, depth: int) -> list[Section]:
        from cloister.evidence.hcl import parse_evidence

        report, quote = parse_evidence(subject.data)
        return [
            self._section("HCL report", self._fields.of("", report)),
            *self._nested("SEV-SNP report", report.snp_report, depth),
            self._section("vTPM quote", self._fields.of("", quote)),
        ]

    def _tpm(self, subject: Recognised, depth: int) -> list[Section]:
        from cloister.evidence.tpm import parse_quote

        return [self._section("TPM quote", self._fields.of("", parse_quote(subject.data)))]

    def _bundle(self, subject: Recognised, depth: int) -> list[Section]:
        from cloister.evidence.bundle import parse_bundle

        bundle = parse_bundle(subject.data)
        sections = [
            self._section(
                "Bundle", [line("tee", bundle.tee), *self._fields.of("nonce_proof", bundle.nonce_proof)]
            ),
            *self._nested("Quote", bundle.quote, depth),
        ]
        try:
            material = parse_json(bundle.key_material, what="key material")
            sections.append(self._section("Key material", self._fields.of("", material)))
        except FormatError:
            sections.append(self._section("Key material", self._fields.of("bytes", bundle.key_material)))
        for title, data in (
            ("Launch event log", bundle.event_log),
            ("Firmware log", bundle.firmware_log),
            ("Device evidence", bundle.device_evidence),
            ("Endorsements", bundle.endorsements),
            ("Device endorsements", bundle.device_endorsements),
        ):
            sections += self._nested(title, data, depth)
        return sections

    def _devices(self, subject: Recognised, depth: int) -> list[Section]:
        from cloister.appraisal.examined_devices import device_form
        from cloister.appraisal.given import Given
        from cloister.evidence.nvidia import parse_device_evidence

        sections = []
        for number, device in enumerate(parse_device_evidence(device_form(subject, Given())).devices):
            title = f"{'GPU' if device.kind == 'gpu' else 'Switch'} {number}"
            sections += self._nested(title, device.report, depth)
            sections.append(self._section(f"{title}: certificates", certificate_lines(device.certificates)))
        return sections

    def _spdm(self, subject: Recognised, depth: int) -> list[Section]:
        from cloister.evidence.spdm import parse_report

        report = parse_report(subject.data)
        measured = [
            line(f"measurement {one.index}", one.value, f"type {one.kind:#04x}")
            for one in report.measurements
        ]
        opaque = [entry for name, value in report.opaque for entry in self._fields.of(f"field {name}", value)]
        lines = [
            line("nonce", report.nonce, "the requester's"),
            line("response nonce", report.response_nonce, "the device's own"),
            line("certificate slot", report.slot),
            *self._fields.of("parameters", report.parameters),
            *self._fields.of("signature", report.signature),
        ]
        return [
            self._section("SPDM report", lines),
            self._section("Measurements", measured),
            self._section("Opaque fields", opaque),
        ]

    def _rim(self, subject: Recognised, depth: int) -> list[Section]:
        from cloister.endorsements.rim import read_rim, rim_certificates

        rim = read_rim(subject.data)
        values = [
            line(f"index {one.index}", ", ".join(value.hex() for value in one.values), one.name)
            for one in rim.measurements
        ]
        about = [
            line(name, getattr(rim, name)) for name in ("label", "product", "edition", "version", "tag_id")
        ]
        return [
            self._section("Manifest", about),
            self._section("Reference values", values),
            self._section("Certificates", certificate_lines(rim_certificates(subject.data))),
        ]

    def _tcg_log(self, subject: Recognised, depth: int) -> list[Section]:
        from cloister.evidence.tcg_log import parse_tcg_log

        try:
            events = parse_tcg_log(subject.data, algorithm="sha384", registers="rtmr")
            return [self._section("Events (RTMRs)", self._fields.events(events, "rtmr"))]
        except CloisterError:
            events = parse_tcg_log(subject.data, algorithm="sha256", registers="pcr")
            return [self._section("Events (PCRs)", self._fields.events(events, "pcr"))]

    def _dstack_log(self, subject: Recognised, depth: int) -> list[Section]:
        from cloister.evidence.dstack_log import parse_dstack_log

        return [self._section("Events (RTMRs)", self._fields.events(parse_dstack_log(subject.data), "rtmr"))]

    def _launch_log(self, subject: Recognised, depth: int) -> list[Section]:
        from cloister.evidence.eventlog import parse_event_log

        events = parse_event_log(subject.data)
        return [self._section("Launch events", [line(event.name, event.payload) for event in events])]

    def _collateral(self, subject: Recognised, depth: int) -> list[Section]:
        from cloister.endorsements.intel import parse_collateral

        collateral = parse_collateral(subject.data)
        sections = []
        for name in ("tcb_info", "qe_identity"):
            text = getattr(collateral, name)
            try:
                value: Any = parse_json(text, what=name)
            except FormatError:
                value = text
            sections.append(self._section(name, self._fields.of("", value)))
        for name in ("pck_crl_issuer_chain", "tcb_info_issuer_chain", "qe_identity_issuer_chain"):
            sections += self._nested(name, getattr(collateral, name).encode(), depth)
        for name in ("root_ca_crl", "pck_crl"):
            sections += self._nested(name, bytes.fromhex(getattr(collateral, name)), depth)
        return sections

    def _snp_endorsements(self, subject: Recognised, depth: int) -> list[Section]:
        from cloister.endorsements.amd import parse_snp_endorsements

        found = parse_snp_endorsements(subject.data)
        chain = certificate_lines((found.signing_key, found.intermediate, found.root))
        return [self._section("Certificates", chain), *self._nested("Revocation list", found.crl, depth)]

    def _certificates(self, subject: Recognised, depth: int) -> list[Section]:
        sections = []
        if subject.certificates:
            sections.append(self._section("Certificates", certificate_lines(subject.certificates)))
        for der in subject.crls:
            sections.append(self._section("Revocation list", list_lines(der)))
        return sections

    def _token(self, subject: Recognised, depth: int) -> list[Section]:
        header, payload, signature = subject.data.decode("ascii").split(".")
        parts = [("Header", header), ("Payload", payload)]
        sections = [
            self._section(
                name, self._fields.of("", parse_json(b64url_decode(text, what=name.lower()), what=name))
            )
            for name, text in parts
        ]
        return [*sections, self._section("Signature", self._fields.of("base64url", signature))]

    def _opaque(self, subject: Recognised, depth: int) -> list[Section]:
        return [self._section(subject.what, self._fields.of("bytes", subject.data))]

    def _json(self, subject: Recognised, depth: int) -> list[Section]:
        return [self._section(subject.what, self._fields.of("", parse_json(subject.data, what=subject.what)))]
