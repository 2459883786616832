"""Quotes, byte by byte: SGX v3 and TDX v4, and TDX v5 with a TD 1.0 or 1.5 report. Little-endian throughout.

Source: Intel, "TDX DCAP: Quote Generation Library and Quote Verification Library", appendix A.3 and A.4 (v4, v5),
and "SGX ECDSA Quote Library Reference", appendix A (v3). Only layouts; who may sign what is decided elsewhere.
"""

from __future__ import annotations

import enum
import hashlib
import struct
from collections.abc import Mapping
from typing import Final

from cryptography.hazmat.primitives.asymmetric import ec

from cloister.attester.simulation.chain import Chain, public_point, sign_raw
from cloister.attester.simulation.collateral import QE_PRODUCT
from cloister.attester.simulation.hardware import (
    ISV_PROD_ID,
    ISV_SVN,
    MR_SEAM,
    QE_MRENCLAVE,
    QE_MRSIGNER,
    Hardware,
)
from cloister.errors import AttesterError
from cloister.evidence.binding import REPORT_DATA_SIZE
from cloister.evidence.bundle import TeeKind

QE_VENDOR_ID: Final = bytes.fromhex("939a7233f79c4ca9940a0db3957f0607")
"""Intel's quoting enclave vendor id. It identifies the format; verifiers refuse any other."""

ENCLAVE_REPORT_SIZE: Final = 384
TD_REPORT10_SIZE: Final = 584
TD_REPORT15_SIZE: Final = 648

TD_DEBUG: Final = 1 << 0
TD_SEPT_VE_DISABLE: Final = 1 << 28
SGX_INIT: Final = 1 << 0
SGX_DEBUG: Final = 1 << 1
SGX_MODE64: Final = 1 << 2
SGX_PROVISION_KEY: Final = 1 << 4
_XFRM: Final = 0xE7
_XFAM: Final = 0x602E7

_ECDSA_P256: Final = 2
_TEE_TYPE: Final[dict[TeeKind, int]] = {"sgx": 0x00, "tdx": 0x81}
_CERTIFICATION_PCK_CHAIN: Final = 5
_CERTIFICATION_QE_REPORT: Final = 6


class Layout(enum.Enum):
    """Form of a quote: header version and, for version 5, body type."""

    SGX_V3 = (3, 0)
    TDX_V4 = (4, 0)
    TDX_V5_TD10 = (5, 2)
    TDX_V5_TD15 = (5, 3)

    @property
    def version(self) -> int:
        return self.value[0]

    @property
    def body_type(self) -> int:
        return self.value[1]

    @property
    def kind(self) -> TeeKind:
        return "sgx" if self is Layout.SGX_V3 else "tdx"


def header(layout: Layout, hardware: Hardware) -> bytes:
    """The 48-byte quote header; for version 5 with the 6-byte body descriptor behind it."""
    # QE and PCE SVN stand here only in SGX quotes; TDX leaves the four bytes reserved.
    qe_svn, pce_svn = (hardware.qe_svn, hardware.pce_svn) if layout is Layout.SGX_V3 else (0, 0)
    head = struct.pack(
        "<HHIHH16s16s4x",
        layout.version,
        _ECDSA_P256,
        _TEE_TYPE[layout.kind],
        qe_svn,
        pce_svn,
        QE_VENDOR_ID,
        hardware.qe_id,
    )
    if layout.body_type:
        size = TD_REPORT15_SIZE if layout is Layout.TDX_V5_TD15 else TD_REPORT10_SIZE
        head += struct.pack("<HI", layout.body_type, size)
    return head


def enclave_report(
    *,
    cpu_svn: bytes,
    flags: int,
    mrenclave: bytes,
    mrsigner: bytes,
    isv_prod_id: int,
    isv_svn: int,
    report_data: bytes,
) -> bytes:
    """The 384-byte SGX report body (MISCSELECT 0)."""
    return struct.pack(
        "<16sI28xQQ32s32x32s96xHH60x64s",
        cpu_svn,
        0,
        flags,
        _XFRM,
        mrenclave,
        mrsigner,
        isv_prod_id,
        isv_svn,
        report_data,
    )


def td_report(
    layout: Layout,
    hardware: Hardware,
    measurements: Mapping[str, bytes],
    *,
    attributes: int,
    report_data: bytes,
) -> bytes:
    """The 584-byte TD 1.0 report body, or for ``TDX_V5_TD15`` the 648 bytes of TD 1.5."""
    # MRSIGNERSEAM (48) and SEAMATTRIBUTES (8) are zero for the vendor's module; MRCONFIGID, MROWNER
    # and MROWNERCONFIG (48 each) are not used.
    body = struct.pack(
        "<16s48s48x8xQQ48s144x48s48s48s48s64s",
        hardware.tee_tcb_svn,
        MR_SEAM,
        attributes,
        _XFAM,
        *(measurements[name] for name in ("mrtd", "rtmr0", "rtmr1", "rtmr2", "rtmr3")),
        report_data,
    )
    if layout is Layout.TDX_V5_TD15:
        body += hardware.current_tee_tcb_svn + bytes(48)  # TEE_TCB_SVN_2, MRSERVICETD
    return body


class QuotingEnclave:
    """Signs reports with an attestation key that the processor's PCK key vouches for.

    Everything but the report's own signature is made once, so that a quote costs one P-256 signature.
    """

    __slots__ = ("_head", "_key", "_layout", "_tail")

    def __init__(
        self,
        layout: Layout,
        chain: Chain,
        hardware: Hardware,
        attestation_key: ec.EllipticCurvePrivateKey,
        *,
        auth_data: bytes = bytes(range(32)),
    ) -> None:
        self._layout = layout
        self._key = attestation_key
        self._head = header(layout, hardware)
        point = public_point(attestation_key)
        report = qe_report(layout.kind, hardware, point, auth_data)
        self._tail = point + certification(layout, chain, report, auth_data)

    def quote(self, body: bytes) -> bytes:
        """The whole quote over a report ``body``."""
        signed = self._head + body
        authentication = sign_raw(self._key, signed) + self._tail
        return signed + struct.pack("<I", len(authentication)) + authentication


def qe_report(kind: TeeKind, hardware: Hardware, attestation_point: bytes, auth_data: bytes) -> bytes:
    """The quoting enclave's own report: its report data is SHA-256(attestation key ‖ auth data) and zeros."""
    return enclave_report(
        cpu_svn=hardware.cpu_svn,
        flags=SGX_INIT | SGX_MODE64 | SGX_PROVISION_KEY,
        mrenclave=QE_MRENCLAVE,
        mrsigner=QE_MRSIGNER,
        isv_prod_id=QE_PRODUCT[kind],
        isv_svn=hardware.qe_svn,
        report_data=hashlib.sha256(attestation_point + auth_data).digest() + bytes(32),
    )


def certification(layout: Layout, chain: Chain, report: bytes, auth_data: bytes) -> bytes:
    """QE report, its signature by the PCK key, auth data and PCK chain (type 5); since v4 wrapped as type 6."""
    pems = chain.pck_pem
    inner = (
        report
        + sign_raw(chain.pck.key, report)
        + struct.pack("<H", len(auth_data))
        + auth_data
        + struct.pack("<HI", _CERTIFICATION_PCK_CHAIN, len(pems))
        + pems
    )
    if layout is Layout.SGX_V3:
        return inner
    return struct.pack("<HI", _CERTIFICATION_QE_REPORT, len(inner)) + inner


def report_body(
    layout: Layout, hardware: Hardware, measurements: Mapping[str, bytes], *, debug: bool, report_data: bytes
) -> bytes:
    """What the processor says of a workload. ``report_data`` is exactly 64 bytes, else :class:`AttesterError`."""
    if len(report_data) != REPORT_DATA_SIZE:
        raise AttesterError(
            f"report data is {len(report_data)} bytes long, not {REPORT_DATA_SIZE}",
            todo="hash what you want to bind; nothing is padded or truncated here",
        )
    if layout is Layout.SGX_V3:
        return enclave_report(
            cpu_svn=hardware.cpu_svn,
            flags=SGX_INIT | SGX_MODE64 | (SGX_DEBUG if debug else 0),
            mrenclave=measurements["mrenclave"],
            mrsigner=measurements["mrsigner"],
            isv_prod_id=ISV_PROD_ID,
            isv_svn=ISV_SVN,
            report_data=report_data,
        )
    attributes = TD_SEPT_VE_DISABLE | (TD_DEBUG if debug else 0)
    return td_report(layout, hardware, measurements, attributes=attributes, report_data=report_data)
