"""Azure's evidence of a confidential guest: the paravisor's report (HCL) and a quote of its vTPM.

The report holds the guest's SEV-SNP report and the runtime data, whose SHA-256 is that report's report data and
which names the vTPM's attestation key (learn.microsoft.com: guest attestation for confidential VMs, "Attestation
report format"). Runtime data is Azure's JSON: unknown members are allowed there, and only the key is read.
Reports of other hardware (TDX) are refused: see docs/limitations.md.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any, Final, Literal, cast

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from cloister.encoding import Record, b64url_decode, decode_json, encode_json, parse_json
from cloister.errors import EvidenceError, FormatError
from cloister.evidence.reader import Reader
from cloister.evidence.snp import REPORT_SIZE
from cloister.evidence.tpm import MAX_QUOTE, TpmQuote, TpmQuoteWire, read_quote

FORMAT: Final = "cloister/azure-snp-vtpm/v1"
SIGNATURE: Final = b"HCLA"
HEADER_SIZE: Final = 32
REQUEST_SIZE: Final = 20
"""The fixed part of the runtime data's header."""
MAX_HCL = 16 * 1024
HEADER_VERSIONS: Final = (1, 2)
REQUEST_AK: Final = 2
"""The kind of request that the report was made for: the attestation key's."""
REPORT_TYPE_SNP: Final = 2
HASH_SHA256: Final = 1
AK_NAME: Final = "HCLAkPub"
EK_NAME: Final = "HCLEkPub"


class AzureWire(Record, frozen=True, kw_only=True):
    """The JSON form; ``bytes`` are standard base64."""

    format: Literal["cloister/azure-snp-vtpm/v1"] = FORMAT
    hcl_report: bytes
    """What the vTPM's NV index 0x01400001 holds, without the zeros behind its end."""
    quote: TpmQuoteWire


@dataclass(frozen=True, slots=True)
class HclReport:
    """The parsed report. Nothing in it is trusted before the SEV-SNP report was verified."""

    snp_report: bytes
    """1184 bytes."""
    runtime_data: bytes
    """The exact bytes that the SEV-SNP report's report data hashes."""
    ak: rsa.RSAPublicKey
    """The vTPM's attestation key."""
    ek_sha256: str | None
    """SHA-256 (hexadecimal) of the vTPM's endorsement key's SubjectPublicKeyInfo, where the data names it."""
    vm_configuration: dict[str, str]
    """Azure's statements on the guest, such as ``secure-boot``, in text; sealed by the same digest."""

    @property
    def digest(self) -> bytes:
        """What the first half of the SEV-SNP report's report data must be; the second half is zeros."""
        return hashlib.sha256(self.runtime_data).digest()


def parse_evidence(data: bytes) -> tuple[HclReport, TpmQuote]:
    """Decode the JSON form (docs/spec/tpm.md). Raises :class:`~cloister.errors.EvidenceError`."""
    try:
        wire = decode_json(data, AzureWire, what="Azure evidence", limit=MAX_QUOTE + 2 * MAX_HCL)
    except FormatError as error:
        raise EvidenceError(error.what, todo="it was truncated or is of another format") from None
    return parse_hcl(wire.hcl_report), read_quote(wire.quote)


def encode_evidence(*, hcl_report: bytes, quote: TpmQuoteWire) -> bytes:
    """The canonical wire form."""
    return encode_json(AzureWire(hcl_report=hcl_report, quote=quote))


def parse_hcl(data: bytes) -> HclReport:
    """Decode a report of exactly its stated size. Raises :class:`~cloister.errors.EvidenceError`."""
    if len(data) > MAX_HCL:
        raise EvidenceError(f"the HCL report is {len(data)} bytes long, over its bound of {MAX_HCL}")
    reader = Reader(data, "HCL report")
    if reader.take(4) != SIGNATURE:
        raise EvidenceError("this is not an HCL report", todo="read NV index 0x01400001 of Azure's vTPM")
    # Nobody signs the header: it only locates the rest, and is held to what Azure writes there.
    header, size, request, status = (reader.u32() for _ in range(4))
    if header not in HEADER_VERSIONS or request != REQUEST_AK or status != 0:
        raise EvidenceError(
            f"the HCL report's header (version {header}, request {request}, status {status}) is not known here"
        )
    reader.zeros(HEADER_SIZE - 20)
    snp_report = reader.take(REPORT_SIZE)
    data_size, version, kind, hash_type, length = (reader.u32() for _ in range(5))
    if version != 1:
        raise EvidenceError(f"runtime data of version {version} is not known here")
    if kind != REPORT_TYPE_SNP:
        raise EvidenceError(
            f"the HCL report carries hardware evidence of type {kind}, not SEV-SNP ({REPORT_TYPE_SNP})",
            todo="Azure's TDX guests are not supported in this form",
        )
    if hash_type != HASH_SHA256:
        raise EvidenceError(f"the runtime data is hashed by type {hash_type}, not SHA-256")
    runtime_data = reader.take(length)
    reader.end()
    if data_size != REQUEST_SIZE + length or size != len(data):
        raise EvidenceError(
            f"the HCL report states sizes {size} and {data_size}, it has {len(data)} and {REQUEST_SIZE + length}"
        )
    keys, configuration = _runtime(runtime_data)
    ak = _jwk(keys, AK_NAME)
    if ak is None:
        raise EvidenceError(f"the runtime data names no {AK_NAME}")
    ek = _jwk(keys, EK_NAME)
    digest = None if ek is None else hashlib.sha256(_spki(ek)).hexdigest()
    return HclReport(snp_report, runtime_data, ak, digest, configuration)


def _runtime(data: bytes) -> tuple[list[Any], dict[str, str]]:
    try:
        document = parse_json(data, what="the runtime data", limit=MAX_HCL)
    except FormatError as error:
        raise EvidenceError(error.what) from None
    table = cast(dict[str, Any], document) if isinstance(document, dict) else {}
    keys = table.get("keys")
    configuration = table.get("vm-configuration")
    if not isinstance(keys, list):
        raise EvidenceError("the runtime data holds no list of keys")
    known = cast(dict[str, Any], configuration) if isinstance(configuration, dict) else {}
    plain = {
        name: str(value).lower() if isinstance(value, bool) else str(value)
        for name, value in known.items()
        if isinstance(value, str | int | bool)
    }
    return keys, plain


def _jwk(keys: list[Any], name: str) -> rsa.RSAPublicKey | None:
    found = [key for key in keys if isinstance(key, dict) and key.get("kid") == name]
    if not found:
        return None
    if len(found) > 1:
        raise EvidenceError(f"the runtime data names {name} twice")
    key = cast(dict[str, Any], found[0])
    n, e = key.get("n"), key.get("e")
    if key.get("kty") != "RSA" or not isinstance(n, str) or not isinstance(e, str):
        raise EvidenceError(f"{name} is not an RSA key")
    try:
        modulus = int.from_bytes(b64url_decode(n, what=f"n of {name}"), "big")
        exponent = int.from_bytes(b64url_decode(e, what=f"e of {name}"), "big")
        if modulus.bit_length() not in (2048, 3072, 4096):
            raise EvidenceError(f"{name} has {modulus.bit_length()} bits, not 2048, 3072 or 4096")
        return rsa.RSAPublicNumbers(exponent, modulus).public_key()
    except FormatError as error:
        raise EvidenceError(error.what) from None
    except (ValueError, OverflowError, UnsupportedAlgorithm) as error:
        raise EvidenceError(f"{name} is no RSA key ({error})") from None


def _spki(key: rsa.RSAPublicKey) -> bytes:
    return key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
