"""The SGX enclave report (384 bytes), as it stands in quotes of version 3 and in every quote's QE report.

Layout: Intel SGX SDM volume 3D, table "REPORT structure", first 384 bytes (the report body). Integers are
little-endian. Reserved bytes that are not zero are refused: they would mean something this reader does not know.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from cloister.errors import EvidenceError
from cloister.evidence.reader import Reader, bit_names

REPORT_SIZE = 384
ATTRIBUTE_DEBUG = 1 << 1
"""ATTRIBUTES.DEBUG: the enclave's memory can be read from outside."""
ATTRIBUTES: Final = {
    0: "INIT",
    1: "DEBUG",
    2: "MODE64BIT",
    4: "PROVISION_KEY",
    5: "EINITTOKEN_KEY",
    6: "CET",
    7: "KSS",
    10: "AEX_NOTIFY",
}
"""Bits of ATTRIBUTES (the first eight bytes) by the names that policies use."""
MISC_SELECT: Final = {0: "EXINFO", 1: "CPINFO"}
"""Bits of MISCSELECT: what an exception writes into the enclave's state save area."""
XFRM_REQUIRED: Final = 0x3
"""x87 and SSE: the processor demands them."""
XFRM_KNOWN: Final = 0x000E_1AFF
"""x87, SSE, AVX, MPX (3, 4), AVX-512 (5 to 7), PKRU (9), CET (11, 12), AMX (17, 18), APX (19)."""


@dataclass(frozen=True, slots=True)
class SgxReport:
    """One enclave's report body. ``bytes`` have the sizes of the layout above."""

    cpu_svn: bytes
    misc_select: bytes
    isv_ext_prod_id: bytes
    attributes: bytes
    mrenclave: bytes
    mrsigner: bytes
    config_id: bytes
    isv_prod_id: int
    isv_svn: int
    config_svn: int
    isv_family_id: bytes
    report_data: bytes

    @property
    def debug(self) -> bool:
        return bool(self.attributes[0] & ATTRIBUTE_DEBUG)

    @property
    def attribute_names(self) -> frozenset[str]:
        """The attributes that are set, by name; ``bit N`` for one that has none here."""
        return bit_names(self.attributes[:8], ATTRIBUTES)

    @property
    def misc_select_names(self) -> frozenset[str]:
        """The same for MISCSELECT."""
        return bit_names(self.misc_select, MISC_SELECT)

    @property
    def xfrm(self) -> bytes:
        """The last eight bytes of ATTRIBUTES: which extended processor state the enclave may use."""
        return self.attributes[8:]


def parse_report(data: bytes, *, what: str = "SGX report") -> SgxReport:
    """Decode exactly 384 bytes. Raises :class:`~cloister.errors.EvidenceError`."""
    if len(data) != REPORT_SIZE:
        raise EvidenceError(f"the {what} is {len(data)} bytes long, not {REPORT_SIZE}")
    reader = Reader(data, what)
    cpu_svn = reader.take(16)
    misc_select = reader.take(4)
    reader.zeros(12)
    isv_ext_prod_id = reader.take(16)
    attributes = reader.take(16)
    mrenclave = reader.take(32)
    reader.zeros(32)
    mrsigner = reader.take(32)
    reader.zeros(32)
    config_id = reader.take(64)
    isv_prod_id = reader.u16()
    isv_svn = reader.u16()
    config_svn = reader.u16()
    reader.zeros(42)
    isv_family_id = reader.take(16)
    report_data = reader.take(64)
    reader.end()
    return SgxReport(
        cpu_svn=cpu_svn,
        misc_select=misc_select,
        isv_ext_prod_id=isv_ext_prod_id,
        attributes=attributes,
        mrenclave=mrenclave,
        mrsigner=mrsigner,
        config_id=config_id,
        isv_prod_id=isv_prod_id,
        isv_svn=isv_svn,
        config_svn=config_svn,
        isv_family_id=isv_family_id,
        report_data=report_data,
    )
