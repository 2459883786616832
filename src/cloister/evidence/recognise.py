"""What is this file? Told by its content alone, never by its name: which format, and where the parts are.

Recognising is not parsing: a match says which reader to call, and that reader refuses what is not exactly of its
form. Text (hexadecimal, base64, PEM, a JSON document that carries a quote) is unwrapped once, never twice. What two
formats could claim is refused with both names; what none claims is refused with a line that says what is read.
Nothing here is verified, and nothing is larger than 1 MiB.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final, Literal

from cloister.encoding import b64url_decode, parse_json
from cloister.errors import EvidenceError, FormatError
from cloister.evidence.quote import INTEL_QE_VENDOR
from cloister.evidence.snp import REPORT_SIZE

MAX_INPUT: Final = 1 << 20
"""Bytes of a file."""
MAX_BLOCKS: Final = 64
"""Blocks of one PEM file."""

MAX_ITEMS: Final = 4096
"""Entries of one JSON list."""

Kind = Literal[
    "intel-quote", "snp-report", "hcl-report", "azure-evidence", "tpm-quote", "bundle", "trustee-request",
    "nvidia-evidence", "spdm-report", "rim", "event-log", "dstack-log", "launch-log",
    "intel-collateral", "intel-tcb-info", "intel-qe-identity",
    "snp-endorsements", "nvidia-endorsements", "tpm-endorsements", "endorsement-bundle",
    "certificates", "crl", "ocsp", "public-key", "ear-token", "ear-claims", "policy",
]  # fmt: skip

WORDS: Final[Mapping[Kind, str]] = {
    "intel-quote": "Intel quote",
    "snp-report": "SEV-SNP attestation report",
    "hcl-report": "Azure HCL report (SEV-SNP report and vTPM key)",
    "azure-evidence": "Azure vTPM evidence (HCL report and TPM quote)",
    "tpm-quote": "TPM 2.0 quote",
    "bundle": "Cloister evidence bundle",
    "trustee-request": "Trustee verification request",
    "nvidia-evidence": "NVIDIA device evidence",
    "spdm-report": "SPDM measurement report of an NVIDIA device, without its certificates",
    "rim": "reference integrity manifest (RIM)",
    "event-log": "TCG event log",
    "dstack-log": "dstack event log",
    "launch-log": "Cloister launch event log",
    "intel-collateral": "Intel collateral (dcap-qvl's JSON)",
    "intel-tcb-info": "Intel TCB info",
    "intel-qe-identity": "Intel QE identity",
    "snp-endorsements": "SEV-SNP endorsements",
    "nvidia-endorsements": "NVIDIA endorsements",
    "tpm-endorsements": "TPM endorsements",
    "endorsement-bundle": "exported endorsements",
    "certificates": "X.509 certificates",
    "crl": "certificate revocation list",
    "ocsp": "OCSP response",
    "public-key": "public key",
    "ear-token": "EAR attestation result (JWT)",
    "ear-claims": "claims of an EAR attestation result, without a signature",
    "policy": "Cloister appraisal policy",
}
_PRIVATE: Final = "keep it to yourself; no command here reads it as evidence"
_READ: Final = (
    "read are quotes of Intel SGX and TDX, reports of SEV-SNP (also Azure's HCL form), NVIDIA evidence and RIMs, "
    "TPM quotes, event logs, EAR tokens, endorsements and Cloister's own bundles, raw, in hexadecimal, base64 or JSON"
)


@dataclass(frozen=True, slots=True)
class Recognised:
    """One file: which reader it is for. Nothing of it is trusted."""

    kind: Kind
    data: bytes
    """What the reader of that kind takes: unwrapped from text, otherwise unchanged."""
    encoding: str = "raw"
    """How it came, in words, such as ``hexadecimal``."""
    parts: Mapping[str, bytes] = field(default_factory=dict)
    """Companions that came in the same document, such as ``event_log`` or ``report_data``."""
    certificates: tuple[bytes, ...] = ()
    """DER, in the order of the file."""
    crls: tuple[bytes, ...] = ()
    """DER."""
    source_tee: str = ""
    """The kind of TEE that the document claims, where it does."""

    @property
    def what(self) -> str:
        """In words."""
        return WORDS[self.kind] if self.encoding == "raw" else f"{WORDS[self.kind]}, {self.encoding}"


def recognise(data: bytes) -> Recognised:
    """Which format ``data`` is. Raises :class:`~cloister.errors.EvidenceError` for unknown or ambiguous content,
    :class:`~cloister.errors.FormatError` for JSON that is not strict."""
    if len(data) > MAX_INPUT:
        raise EvidenceError(
            f"the input is over {MAX_INPUT} bytes long",
            todo="no evidence is: give the report, quote or bundle alone",
        )
    if not data.strip():
        raise EvidenceError("the input is empty", todo=_READ)
    found = _binary(data)
    if not found:
        with contextlib.suppress(UnicodeDecodeError):
            found = _text(data.decode("utf-8-sig").strip(" \t\r\n\0"))
    return _only(found)


def _only(found: list[Recognised]) -> Recognised:
    if not found:
        raise EvidenceError("the input is of no format that is known here", todo=_READ)
    if len({candidate.kind for candidate in found}) > 1:
        names = " and ".join(sorted({WORDS[candidate.kind] for candidate in found}))
        raise EvidenceError(f"the input could be each of: {names}", todo="give the part that is meant")
    return found[0]


def _binary(data: bytes) -> list[Recognised]:
    """By magic numbers where the format has them, by exact length and version where it has none."""
    found: list[Recognised] = []
    # Quote header: vendor id of Intel's quoting enclave behind version, key type, TEE type and two SVNs.
    if data[12:28] == INTEL_QE_VENDOR:
        found.append(Recognised("intel-quote", data))
    if len(data) == REPORT_SIZE and int.from_bytes(data[:4], "little") in range(1, 16):
        found.append(Recognised("snp-report", data))
    if data.startswith(b"HCLA"):
        # The TPM's NV index is larger than the report, and padded with zeros.
        size = int.from_bytes(data[8:12], "little")
        found.append(Recognised("hcl-report", data if data[size:].strip(b"\0") else data[:size]))
    # SPDM 1.1: GET_MEASUREMENTS (37 bytes) and the MEASUREMENTS that answers it.
    if data[:2] == b"\x11\xe0" and data[37:39] == b"\x11\x60":
        found.append(Recognised("spdm-report", data))
    # The first event of a crypto-agile log (TCG PC Client PFP, TCG_EfiSpecIDEvent).
    if data[32:48] == b"Spec ID Event03\0":
        found.append(Recognised("event-log", data))
    if data[:1] == b"\x30":
        found += _der(data)
    return found


def _der(data: bytes) -> list[Recognised]:
    """X.509 objects by the tag behind their first SEQUENCEs; their readers decode them."""
    outer = _sequence(data)
    if outer is None or outer[1] != len(data):
        return []
    if data[outer[0] : outer[0] + 2] == b"\x0a\x01":  # OCSPResponse: an ENUMERATED status first
        return [Recognised("ocsp", data, "DER")]
    inner = _sequence(data[outer[0] :])
    tag = data[outer[0] + inner[0] : outer[0] + inner[0] + 1] if inner else b""
    if tag == b"\xa0":  # TBSCertificate: [0] version
        return [Recognised("certificates", data, "DER", certificates=(data,))]
    if tag == b"\x02":  # TBSCertList: INTEGER version
        return [Recognised("crl", data, "DER", crls=(data,))]
    return []


def _sequence(data: bytes) -> tuple[int, int] | None:
    """Where the content of a DER SEQUENCE begins and ends, with a length of two bytes or in the long form."""
    if data[:1] != b"\x30" or len(data) < 2:
        return None
    size = data[1] & 0x7F if data[1] & 0x80 else 0
    if size > 3:
        return None
    begin = 2 + size
    length = int.from_bytes(data[2:begin]) if size else data[1]
    return begin, begin + length


def _text(text: str) -> list[Recognised]:
    if text[:1] in ("{", "["):
        return _json(text)
    if text.startswith("<"):
        return _xml(text)
    if "-----BEGIN " in text:
        return _pem(text)
    if re.search(r"^format *= *['\"]cloister/policy/", text, re.MULTILINE):
        return [Recognised("policy", text.encode())]
    if _is_token(text):
        return [Recognised("ear-token", text.encode())]
    return _encoded(text)


def _encoded(text: str) -> list[Recognised]:
    """Hexadecimal or base64 of something binary; of text never: what is wrapped twice is not read."""
    found = []
    compact = re.sub(r"\s+", "", text)
    for name, decode in (("hexadecimal", _unhex), ("base64", _unbase64)):
        data = decode(compact)
        if data:
            found += [replace(candidate, encoding=f"{name} text") for candidate in _binary(data)]
    return found


def _unhex(text: str) -> bytes:
    try:
        return binascii.unhexlify(text.removeprefix("0x"))
    except (binascii.Error, ValueError):
        return b""


def _unbase64(text: str) -> bytes:
    try:
        raw = text.replace("-", "+").replace("_", "/").rstrip("=")
        return base64.b64decode(raw + "=" * (-len(raw) % 4), validate=True)
    except (binascii.Error, ValueError):
        return b""


def _is_token(text: str) -> bool:
    """Compact JWS (RFC 7515): three base64url parts, the first a header with an algorithm."""
    header, *rest = text.split(".")
    if len(rest) != 2 or not re.fullmatch(r"[A-Za-z0-9_.-]+", text):
        return False
    try:
        table = parse_json(b64url_decode(header, what="header"), what="header", limit=64 * 1024)
    except FormatError:
        return False
    return isinstance(table, dict) and "alg" in table


def _xml(text: str) -> list[Recognised]:
    """The root element's name, without parsing: the reader of RIMs does that, with its own bounds."""
    prolog = r"\s*(?:<\?xml[^>]{0,200}\?>\s*)?(?:<!--[^>]{0,2000}-->\s*){0,4}"
    if re.match(prolog + r"<(?:[\w.-]{1,40}:)?SoftwareIdentity[\s>]", text):
        return [Recognised("rim", text.encode())]
    return []


def _pem(text: str) -> list[Recognised]:
    blocks = re.findall(r"-----BEGIN ([A-Z0-9 ]{1,40})-----([A-Za-z0-9+/=\s]*)-----END \1-----", text)
    if not 1 <= len(blocks) <= MAX_BLOCKS:
        raise EvidenceError(f"the PEM text has {len(blocks)} blocks, not 1 to {MAX_BLOCKS}")
    certificates, crls, keys = [], [], []
    for label, body in blocks:
        if "PRIVATE" in label:
            raise EvidenceError("the input holds a private key", todo=_PRIVATE)
        der = _unbase64(re.sub(r"\s+", "", body))
        kinds = [candidate.kind for candidate in _der(der)]
        if label in ("CERTIFICATE", "X509 CERTIFICATE") and kinds == ["certificates"]:
            certificates.append(der)
        elif label == "X509 CRL" and kinds == ["crl"]:
            crls.append(der)
        elif label == "PUBLIC KEY":
            keys.append(der)
        else:
            raise EvidenceError(f"the PEM block {label!r} is damaged or of a kind that is not read here")
    if keys and not certificates and not crls:
        return [Recognised("public-key", text.encode(), "PEM")]
    kind: Kind = "certificates" if certificates else "crl"
    return [Recognised(kind, text.encode(), "PEM", certificates=tuple(certificates), crls=tuple(crls))]


_BY_FORMAT: Final[tuple[tuple[str, Kind], ...]] = (
    ("cloister/evidence/", "bundle"),
    ("cloister/launch-events/", "launch-log"),
    ("cloister/tpm-quote/", "tpm-quote"),
    ("cloister/azure", "azure-evidence"),
    ("cloister/device-evidence/", "nvidia-evidence"),
    ("cloister/nvidia", "nvidia-evidence"),
    ("cloister/endorsements/snp/", "snp-endorsements"),
    ("cloister/endorsements/nvidia/", "nvidia-endorsements"),
    ("cloister/endorsements/tpm/", "tpm-endorsements"),
    ("cloister/endorsement", "endorsement-bundle"),
)
"""The first prefix that fits."""


def _json(text: str) -> list[Recognised]:
    value = parse_json(text, what="the input", limit=MAX_INPUT)
    data = text.encode()
    if isinstance(value, list):
        if not 1 <= len(value) <= MAX_ITEMS or not all(isinstance(item, dict) for item in value):
            return []
        names = set.intersection(*(set(item) for item in value))
        if {"certificate", "evidence"} <= names:
            return [Recognised("nvidia-evidence", data)]
        return [Recognised("dstack-log", data)] if {"imr", "event_type", "digest"} <= names else []
    return _object(value, data)


def _object(table: dict[str, Any], data: bytes) -> list[Recognised]:
    found: list[Recognised] = []
    names = set(table)
    form = table.get("format")
    if isinstance(form, str):
        found += [Recognised(kind, data) for prefix, kind in _BY_FORMAT if form.startswith(prefix)][:1]
    if {"tcb_info", "qe_identity", "pck_crl", "root_ca_crl"} <= names:
        found.append(Recognised("intel-collateral", data))
    if {"tcbInfo", "signature"} == names:
        found.append(Recognised("intel-tcb-info", data))
    if {"enclaveIdentity", "signature"} == names:
        found.append(Recognised("intel-qe-identity", data))
    if {"certificate", "evidence"} <= names and form is None:
        found.append(Recognised("nvidia-evidence", b"[" + data + b"]", "one device"))
    if "eat_profile" in names and "submods" in names:
        found.append(Recognised("ear-claims", data))
    if "kty" in names and "d" in names:
        raise EvidenceError("the input holds a private key", todo=_PRIVATE)
    if "kty" in names or (names == {"keys"} and isinstance(table["keys"], list)):
        found.append(Recognised("public-key", data, "JWK"))
    if isinstance(table.get("verification_requests"), list):
        found.append(_trustee(table["verification_requests"]))
    if isinstance(table.get("quote"), str) and form is None:
        found += _quote_report(table)
    return found


def _trustee(requests: list[Any]) -> Recognised:
    """One request to a Trustee verifier: evidence of a kind that it names, JSON in base64url."""
    if len(requests) != 1 or not isinstance(requests[0], dict):
        raise EvidenceError(
            f"the document holds {len(requests)} verification requests", todo="give one document for each"
        )
    tee, evidence = requests[0].get("tee"), requests[0].get("evidence")
    if not isinstance(tee, str) or not isinstance(evidence, str):
        raise EvidenceError("the verification request has no tee or no evidence")
    inner = parse_json(_unbase64(evidence), what="the evidence in the request", limit=MAX_INPUT)
    found = _quote_report(inner) if isinstance(inner, dict) and isinstance(inner.get("quote"), str) else []
    if not found:
        raise EvidenceError(
            f"the verification request carries {tee[:40]!r} evidence in a form that is not read here",
            todo="give the report or quote itself",
        )
    return replace(_only(found), encoding="from a Trustee verification request", source_tee=tee[:40])


def _quote_report(table: dict[str, Any]) -> list[Recognised]:
    """A quote in JSON, as dstack, tappd and the Confidential Containers attesters write it."""
    quotes = [decode("".join(table["quote"].split())) for decode in (_unhex, _unbase64)]
    found = [candidate for quote in quotes for candidate in _binary(quote) if candidate.kind == "intel-quote"]
    parts: dict[str, bytes] = {}
    for name in ("event_log", "cc_eventlog", "vm_config"):
        value = table.get(name)
        if isinstance(value, str) and value:
            # Text as it stands, or a binary log in base64.
            parts["event_log" if name == "cc_eventlog" else name] = (
                value.encode() if value.lstrip()[:1] in ("[", "{") else _unbase64(value)
            )
    claimed = table.get("report_data")
    if isinstance(claimed, str) and (value := _unhex(claimed)):
        parts["report_data"] = value
    return [replace(candidate, encoding="in JSON", parts=parts) for candidate in found[:1]]
