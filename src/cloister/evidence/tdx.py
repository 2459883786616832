"""The TDX reports (TDREPORT bodies) that quotes of version 4 and 5 carry.

Layout: Intel TDX DCAP Quoting Library API, appendix "TD Quote Body": 584 bytes for TDX 1.0, and 64 bytes more
(a second TEE_TCB_SVN and MRSERVICETD) for TDX 1.5. No other body is read. Names of attributes: Intel TDX module 1.5 ABI
specification, table "ATTRIBUTES", spelled as Linux does (arch/x86/include/asm/shared/tdx.h).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from cloister.errors import EvidenceError
from cloister.evidence.reader import Reader, bit_names

TD10_SIZE = 584
TD15_SIZE = 648
ATTRIBUTE_DEBUG = 0xFF
"""TDATTRIBUTES bits 7:0, "TUD": any of them set makes the TD's memory or state readable from outside."""
ATTRIBUTES: Final = {
    0: "DEBUG",
    4: "HGS_PLUS_PROF",
    5: "PERF_PROF",
    6: "PMT_PROF",
    16: "ICSSD",
    27: "LASS",
    28: "SEPT_VE_DISABLE",
    29: "MIGRATABLE",
    30: "PKS",
    31: "KL",
    62: "TPA",
    63: "PERFMON",
}
"""Bits of TDATTRIBUTES by the names that policies use."""
XFAM_REQUIRED: Final = 0x3
"""x87 and SSE: the TDX module demands them."""
XFAM_KNOWN: Final = 0x000E_DBE7
"""x87, SSE, AVX, AVX-512 (5 to 7), PT (8), PKU (9), CET (11, 12), ULI (14), LBR (15), AMX (17, 18), APX (19)."""


@dataclass(frozen=True, slots=True)
class TdReport:
    """One trust domain's report. The two last fields exist for TDX 1.5 only."""

    tee_tcb_svn: bytes
    mr_seam: bytes
    mr_signer_seam: bytes
    seam_attributes: bytes
    td_attributes: bytes
    xfam: bytes
    mrtd: bytes
    mr_config_id: bytes
    mr_owner: bytes
    mr_owner_config: bytes
    rtmr0: bytes
    rtmr1: bytes
    rtmr2: bytes
    rtmr3: bytes
    report_data: bytes
    tee_tcb_svn2: bytes | None = None
    mr_service_td: bytes | None = None

    @property
    def debug(self) -> bool:
        return bool(self.td_attributes[0] & ATTRIBUTE_DEBUG)

    @property
    def attribute_names(self) -> frozenset[str]:
        """The attributes that are set, by name; ``bit N`` for one that has none here."""
        return bit_names(self.td_attributes, ATTRIBUTES)

    @property
    def service_td(self) -> bytes:
        """MRSERVICETD, all zeros where the report has none."""
        return self.mr_service_td if self.mr_service_td is not None else bytes(48)


def parse_report(data: bytes) -> TdReport:
    """Decode exactly 584 or 648 bytes. Raises :class:`~cloister.errors.EvidenceError`."""
    if len(data) not in (TD10_SIZE, TD15_SIZE):
        raise EvidenceError(f"the TD report is {len(data)} bytes long, not {TD10_SIZE} or {TD15_SIZE}")
    reader = Reader(data, "TD report")
    tee_tcb_svn = reader.take(16)
    mr_seam = reader.take(48)
    mr_signer_seam = reader.take(48)
    seam_attributes = reader.take(8)
    td_attributes = reader.take(8)
    xfam = reader.take(8)
    mrtd = reader.take(48)
    mr_config_id = reader.take(48)
    mr_owner = reader.take(48)
    mr_owner_config = reader.take(48)
    rtmr0, rtmr1, rtmr2, rtmr3 = (reader.take(48) for _ in range(4))
    report_data = reader.take(64)
    extended = len(data) == TD15_SIZE
    tee_tcb_svn2 = reader.take(16) if extended else None
    mr_service_td = reader.take(48) if extended else None
    reader.end()
    return TdReport(
        tee_tcb_svn=tee_tcb_svn,
        mr_seam=mr_seam,
        mr_signer_seam=mr_signer_seam,
        seam_attributes=seam_attributes,
        td_attributes=td_attributes,
        xfam=xfam,
        mrtd=mrtd,
        mr_config_id=mr_config_id,
        mr_owner=mr_owner,
        mr_owner_config=mr_owner_config,
        rtmr0=rtmr0,
        rtmr1=rtmr1,
        rtmr2=rtmr2,
        rtmr3=rtmr3,
        report_data=report_data,
        tee_tcb_svn2=tee_tcb_svn2,
        mr_service_td=mr_service_td,
    )
