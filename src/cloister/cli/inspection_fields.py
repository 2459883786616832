"""Values as named lines: dataclasses, records, JSON and bytes, with the meanings of the bits that vendors define.

Sources of the bits: Intel TDX module base specification (TDATTRIBUTES, XFAM), Intel SDM volume 3D (ATTRIBUTES), AMD
SEV-SNP ABI specification 56860 (POLICY, PLATFORM_INFO).
"""

from __future__ import annotations

import hashlib
import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Any, Final

import msgspec
from cryptography import x509

from cloister.cli.report_words import MEASUREMENTS, Line, Section, inert, line, moment
from cloister.evidence.measured import MeasuredEvent

CUT: Final = 160
"""Characters of a value, unless everything is asked for."""
CUT_LINES: Final = 96
"""Lines of a section, likewise."""
MAX_LINES: Final = 20_000
MAX_DEPTH: Final = 12

_XFAM: Final = {
    0: "x87", 1: "SSE", 2: "AVX", 3: "MPX", 4: "MPX", 5: "AVX-512", 6: "AVX-512", 7: "AVX-512", 8: "PT", 9: "PKRU",
    11: "CET user", 12: "CET supervisor", 14: "UINTR", 15: "LBR", 17: "AMX", 18: "AMX",
}  # fmt: skip
_TD_ATTRIBUTES: Final = {
    0: "DEBUG (readable from outside)", 27: "LASS", 28: "SEPT_VE_DISABLE", 29: "MIGRATABLE", 30: "PKS", 31: "KL",
    62: "TPA", 63: "PERFMON",
}  # fmt: skip
_SGX_ATTRIBUTES: Final = {
    0: "INIT", 1: "DEBUG (readable from outside)", 2: "MODE64BIT", 4: "PROVISIONKEY", 5: "EINITTOKEN_KEY", 6: "CET",
    7: "KSS", 10: "AEXNOTIFY",
    **{64 + bit: name for bit, name in _XFAM.items()},
}  # fmt: skip
_SNP_POLICY: Final = {
    16: "SMT allowed", 17: "(always set)", 18: "MIGRATE_MA", 19: "DEBUG (readable from outside)", 20: "SINGLE_SOCKET",
    21: "CXL allowed", 22: "MEM_AES_256_XTS", 23: "RAPL_DIS", 24: "CIPHERTEXT_HIDING", 25: "PAGE_SWAP_DISABLE",
}  # fmt: skip
_SNP_PLATFORM: Final = {
    0: "SMT_EN", 1: "TSME_EN", 2: "ECC_EN", 3: "RAPL_DIS", 4: "CIPHERTEXT_HIDING_DRAM", 5: "ALIAS_CHECK_COMPLETE",
    7: "TIO_EN",
}  # fmt: skip
_BITS: Final[Mapping[tuple[str, str], Mapping[int, str]]] = {
    ("TdReport", "td_attributes"): _TD_ATTRIBUTES,
    ("TdReport", "xfam"): _XFAM,
    ("SgxReport", "attributes"): _SGX_ATTRIBUTES,
    ("SnpReport", "policy"): _SNP_POLICY,
    ("SnpReport", "platform_info"): _SNP_PLATFORM,
}
_MEANINGS: Final[Mapping[tuple[str, str], str]] = {
    ("QuoteHeader", "tee_type"): "0 is SGX, 129 is TDX",
    ("QuoteHeader", "attestation_key_type"): "2 is ECDSA P-256",
    ("QuoteHeader", "qe_vendor_id"): "whose quoting enclave",
    ("SnpReport", "vmpl"): "privilege level that asked; 0 is the highest",
    ("SnpReport", "signed"): "the bytes that the signature covers",
    ("TdReport", "mr_signer_seam"): "zeros: the TDX module is Intel's own",
    ("TdReport", "mr_service_td"): "zeros: bound to no service TD",
}


class Fields:
    """Turns values into lines; ``full`` shows them whole."""

    def __init__(self, *, full: bool) -> None:
        self._full = full

    def section(self, title: str, lines: Sequence[Line]) -> Section:
        """A section, cut with a count."""
        most = MAX_LINES if self._full else CUT_LINES
        kept = tuple(lines[:most])
        if len(lines) > most:
            kept += (line("…", f"{len(lines) - most} more" + ("" if self._full else "; --full shows them")),)
        return Section(inert(title, limit=128), kept)

    def of(self, name: str, value: Any, *, depth: int = 0) -> list[Line]:
        """Lines for ``value``: fields of structures by dotted names, in order."""
        if depth > MAX_DEPTH:
            return [line(name, "nested too deep to show")]
        kind, named = _parts(value)
        if named is not None:
            return self._structure(name, kind, named, depth)
        if isinstance(value, (list, tuple)):  # of plain values
            value = ", ".join(str(item) for item in value) or "empty"
        return [self._line(name or "value", value)]

    def events(self, events: Sequence[MeasuredEvent], registers: str) -> list[Line]:
        """One line for each event of a log."""
        found = []
        for event in events:
            shown = event.data if self._full else event.data[:48]
            cut = "…" if len(shown) < len(event.data) else ""
            readable = "".join(chr(byte) if 0x20 <= byte < 0x7F else "." for byte in shown)
            vouched = (
                "the digest covers the data" if event.vouched else "the digest does not vouch for the data"
            )
            name = f" ({event.name})" if event.name else ""
            found.append(
                line(
                    f"{registers}{event.register}",
                    f"{event.kind}{name}: {readable}{cut}",
                    f"digest {event.digest.hex()}; {vouched}",
                )
            )
        return found

    def _structure(self, name: str, kind: str, named: list[tuple[str, Any]], depth: int) -> list[Line]:
        found: list[Line] = []
        for field, value in named[:MAX_LINES]:
            dotted = f"{name}.{field}" if name else field
            meaning = _meaning(kind, field, value)
            lines = self.of(dotted, value, depth=depth + 1)
            if meaning and len(lines) == 1:
                lines = [Line(lines[0].name, lines[0].value, inert(meaning, limit=512))]
            found += lines
            if len(found) > MAX_LINES:
                break
        return found or [line(name or "value", "empty")]

    def _line(self, name: str, value: object) -> Line:
        text = value.hex() if isinstance(value, bytes) else "absent" if value is None else str(value)
        if not self._full and len(text) > CUT:
            size = f"{len(value)} bytes" if isinstance(value, bytes) else f"{len(text)} characters"
            return line(name, f"{text[:CUT]}… ({size}; --full shows them)")
        shown = line(name, value if isinstance(value, bytes) else text)
        return Line(shown.name, inert(text, limit=1 << 21) or "(empty)") if self._full else shown


def _parts(value: Any) -> tuple[str, list[tuple[str, Any]] | None]:
    """The name of a structure's kind, and its fields; None for what is shown in one line."""
    kind = type(value).__name__
    if is_dataclass(value) and not isinstance(value, type):
        return kind, [(field.name, getattr(value, field.name)) for field in fields(value)]
    if isinstance(value, msgspec.Struct):
        return kind, [(field, getattr(value, field)) for field in value.__struct_fields__]
    if isinstance(value, Mapping):
        return "", [(str(key), item) for key, item in value.items()]
    if isinstance(value, (list, tuple)):
        plain = all(isinstance(item, (str, int, float, bool)) for item in value) and len(value) <= 32
        return "", None if plain else [(str(number), item) for number, item in enumerate(value)]
    return "", None


def _meaning(kind: str, field: str, value: object) -> str:
    bits = _BITS.get((kind, field))
    if bits is None:
        return _MEANINGS.get((kind, field)) or (
            MEASUREMENTS.get(field, "") if kind in ("TdReport", "SgxReport") else ""
        )
    number = int.from_bytes(value, "little") if isinstance(value, bytes) else value
    if not isinstance(number, int):
        return ""
    abi = ""
    if (kind, field) == ("SnpReport", "policy"):  # the lowest 16 bits are a version
        abi, number = f"ABI at least {number >> 8 & 0xFF}.{number & 0xFF}; ", number >> 16 << 16
    names = [bits.get(bit, f"bit {bit}") for bit in range(number.bit_length()) if number >> bit & 1]
    return abi + (", ".join(dict.fromkeys(names)) or "none set")


def certificate_lines(ders: Sequence[bytes]) -> list[Line]:
    """Who each certificate names and who issued it; a certificate that cannot be read is named by its digest."""
    found: list[Line] = []
    for number, der in enumerate(ders):
        digest = hashlib.sha256(der).hexdigest()
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # genuine VCEKs have the serial number 0
                certificate = x509.load_der_x509_certificate(der)
                subject, issuer = certificate.subject.rfc4514_string(), certificate.issuer.rfc4514_string()
                serial = certificate.serial_number
                begin = int(certificate.not_valid_before_utc.timestamp())
                end = int(certificate.not_valid_after_utc.timestamp())
                extensions = ", ".join(_extension(one) for one in certificate.extensions)
        except Exception as error:  # cryptography has several of its own
            found.append(line(f"{number}", f"cannot be read ({type(error).__name__})", f"SHA-256 {digest}"))
            continue
        found += [
            line(f"{number} subject", subject),
            line(f"{number} issuer", "itself" if issuer == subject else issuer),
            line(f"{number} validity", f"{moment(begin)} to {moment(end)}"),
            line(f"{number} serial", f"{serial:x}"),
            line(f"{number} SHA-256", digest),
            line(f"{number} extensions", extensions or "none"),
        ]
    return found


def list_lines(der: bytes) -> list[Line]:
    """A revocation list."""
    from cloister.endorsements.x509 import common_name, read_revocation_list

    found = read_revocation_list(der)
    shown = [f"{serial:x}" for serial in sorted(found.revoked)[:64]]
    return [
        line("issuer", common_name(found.issuer)),
        line("this update", moment(found.this_update)),
        line("next update", moment(found.next_update)),
        line("revoked", len(found.revoked), ", ".join(shown)),
        line("SHA-256", hashlib.sha256(der).hexdigest()),
    ]


def _extension(extension: x509.Extension[Any]) -> str:
    name = re.sub(r"[^\w -]", "", extension.oid._name)
    shown = extension.oid.dotted_string if name in ("", "Unknown OID") else name
    return f"{shown} (critical)" if extension.critical else shown
