"""Intel's quotes, byte for byte: SGX version 3, TDX versions 4 and 5, with ECDSA P-256 attestation keys.

Layout: Intel SGX ECDSA Quote Library API reference, appendix A ("Quote Format") for version 3, and Intel TDX
DCAP Quoting Library API, appendix A for versions 4 and 5. Every length must meet the next exactly. The
certificate chain must be three certificates in canonical PEM, because the bytes outside their DER are signed by
nobody. Behind a TDX quote up to 128 zero bytes are allowed: version 4 quotes come padded to the size of version 5.
Nothing is verified here, and what is refused here never reaches the verifier.
"""

from __future__ import annotations

import base64
import binascii
from dataclasses import dataclass
from functools import lru_cache

from cloister.errors import EvidenceError
from cloister.evidence import sgx, tdx
from cloister.evidence.bundle import TeeKind
from cloister.evidence.reader import Reader
from cloister.evidence.sgx import SgxReport
from cloister.evidence.tdx import TdReport

MAX_QUOTE = 32 * 1024
MAX_PADDING = 128
HEADER_SIZE = 48
ATTESTATION_KEY_ECDSA_P256 = 2
TEE_TYPE_SGX = 0x00000000
TEE_TYPE_TDX = 0x00000081
INTEL_QE_VENDOR = bytes.fromhex("939a7233f79c4ca9940a0db3957f0607")
BODY_TD10 = 2
BODY_TD15 = 3
CERTIFICATE_CHAIN_PEM = 5
CERTIFICATE_QE_REPORT = 6
CHAIN_LENGTH = 3

_BEGIN = b"-----BEGIN CERTIFICATE-----\n"
_END = b"-----END CERTIFICATE-----\n"


@dataclass(frozen=True, slots=True)
class QuoteHeader:
    """The 48 bytes in front of each quote."""

    version: int
    attestation_key_type: int
    tee_type: int
    qe_svn: int
    pce_svn: int
    qe_vendor_id: bytes
    user_data: bytes


@dataclass(frozen=True, slots=True)
class QuoteSignature:
    """What follows the body: who signed it, and what vouches for the signer."""

    signature: bytes
    """ECDSA P-256 over header and body, r ‖ s, 64 bytes."""
    attestation_key: bytes
    """x ‖ y, 64 bytes."""
    qe_report: SgxReport
    qe_report_signature: bytes
    qe_auth_data: bytes
    certificates: tuple[bytes, ...]
    """DER: PCK certificate, its CA, the root; nothing checked yet."""


@dataclass(frozen=True, slots=True)
class Quote:
    """One parsed quote. ``encoded`` is exactly the quote, without padding."""

    header: QuoteHeader
    report: SgxReport | TdReport
    signature: QuoteSignature
    encoded: bytes

    @property
    def tee(self) -> TeeKind:
        return "tdx" if isinstance(self.report, TdReport) else "sgx"

    @property
    def debug(self) -> bool:
        return self.report.debug

    @property
    def report_data(self) -> bytes:
        return self.report.report_data

    @property
    def measurements(self) -> dict[str, bytes]:
        """Raw digests by the names that claims use."""
        if isinstance(self.report, TdReport):
            return {name: getattr(self.report, name) for name in ("mrtd", "rtmr0", "rtmr1", "rtmr2", "rtmr3")}
        return {"mrenclave": self.report.mrenclave, "mrsigner": self.report.mrsigner}


def parse_quote(data: bytes) -> Quote:
    """Decode a quote. Raises :class:`~cloister.errors.EvidenceError`, whatever the bytes are."""
    if len(data) > MAX_QUOTE:
        raise EvidenceError(f"the quote is {len(data)} bytes long, over its bound of {MAX_QUOTE}")
    reader = Reader(data, "quote")
    header = _header(reader)
    report = _report(reader, header)
    signature_data = reader.take(reader.u32())
    size = reader.position
    padding = data[size:]
    if header.version < 4 or len(padding) > MAX_PADDING or padding.strip(b"\0"):
        reader.end()  # only TDX quotes may be padded, with zeros
    return Quote(
        header=header,
        report=report,
        signature=_signature(signature_data, header),
        encoded=data[:size],
    )


def _header(reader: Reader) -> QuoteHeader:
    header = QuoteHeader(
        version=reader.u16(),
        attestation_key_type=reader.u16(),
        tee_type=reader.u32(),
        qe_svn=reader.u16(),
        pce_svn=reader.u16(),
        qe_vendor_id=reader.take(16),
        user_data=reader.take(20),
    )
    tee_type = {3: TEE_TYPE_SGX, 4: TEE_TYPE_TDX, 5: TEE_TYPE_TDX}.get(header.version)
    if tee_type is None or header.tee_type != tee_type:
        raise EvidenceError(
            f"a quote of version {header.version} for TEE type {header.tee_type:#x} is not read here",
            todo="supported are SGX version 3 and TDX versions 4 and 5",
        )
    if header.attestation_key_type != ATTESTATION_KEY_ECDSA_P256:
        raise EvidenceError(
            f"attestation key type {header.attestation_key_type} is not ECDSA P-256",
            todo="EPID and other key types are not supported",
        )
    if header.qe_vendor_id != INTEL_QE_VENDOR:
        raise EvidenceError("the quote comes from another vendor's quoting enclave than Intel's")
    if header.version != 3 and (header.qe_svn or header.pce_svn):
        raise EvidenceError("a TDX quote's header has reserved bytes that are not zero")
    return header


def _report(reader: Reader, header: QuoteHeader) -> SgxReport | TdReport:
    if header.version == 3:
        return sgx.parse_report(reader.take(sgx.REPORT_SIZE))
    if header.version == 4:
        return tdx.parse_report(reader.take(tdx.TD10_SIZE))
    body, size = reader.u16(), reader.u32()
    expected = {BODY_TD10: tdx.TD10_SIZE, BODY_TD15: tdx.TD15_SIZE}.get(body)
    if expected is None or size != expected:
        raise EvidenceError(f"a version 5 quote with a body of type {body} and {size} bytes is not read here")
    return tdx.parse_report(reader.take(size))


def _signature(data: bytes, header: QuoteHeader) -> QuoteSignature:
    reader = Reader(data, "quote's signature data")
    signature, key = reader.take(64), reader.take(64)
    if header.version != 3:
        # From version 4 on, the QE report and everything behind it is wrapped once more.
        kind, size = reader.u16(), reader.u32()
        if kind != CERTIFICATE_QE_REPORT or size != reader.remaining:
            raise EvidenceError(
                f"the quote's certification data (type {kind}, {size} bytes) is not a QE report"
            )
    qe_report = sgx.parse_report(reader.take(sgx.REPORT_SIZE), what="QE report")
    qe_report_signature = reader.take(64)
    qe_auth_data = reader.take(reader.u16())
    kind, size = reader.u16(), reader.u32()
    if kind != CERTIFICATE_CHAIN_PEM:
        raise EvidenceError(
            f"the quote names its PCK certificate by type {kind} instead of carrying the chain",
            todo="configure the quote provider to embed the PCK certificate chain (type 5)",
        )
    chain = reader.take(size)
    reader.end()
    return QuoteSignature(
        signature=signature,
        attestation_key=key,
        qe_report=qe_report,
        qe_report_signature=qe_report_signature,
        qe_auth_data=qe_auth_data,
        certificates=parse_chain(chain),
    )


@lru_cache(maxsize=64)
def parse_chain(chain: bytes) -> tuple[bytes, ...]:
    """Three certificates, DER, from canonical PEM (RFC 7468, strict) with at most one NUL behind it.

    One encoding per chain: a byte that no signature covers cannot be changed either. Chains are remembered: a
    machine's quotes all carry the same one.
    Raises :class:`~cloister.errors.EvidenceError`.
    """
    certificates = []
    for block in chain.removesuffix(b"\0").split(_BEGIN)[1:]:
        body = block.partition(_END)[0]
        try:
            certificates.append(base64.b64decode(body.replace(b"\n", b""), validate=True))
        except (binascii.Error, ValueError):
            raise EvidenceError("a certificate in the quote is not base64") from None
    if len(certificates) != CHAIN_LENGTH:
        raise EvidenceError(f"the quote carries {len(certificates)} certificates, not {CHAIN_LENGTH}")
    if encode_chain(certificates) != chain.removesuffix(b"\0"):
        raise EvidenceError("the quote's certificate chain is not canonical PEM (RFC 7468)")
    return tuple(certificates)


def encode_chain(certificates: list[bytes] | tuple[bytes, ...]) -> bytes:
    """Canonical PEM of DER certificates: lines of 64, one line feed behind each."""
    return b"".join(_BEGIN + _lines(der) + _END for der in certificates)


def _lines(der: bytes) -> bytes:
    text = base64.b64encode(der)
    return b"".join(text[at : at + 64] + b"\n" for at in range(0, len(text), 64))
