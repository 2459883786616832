"""The SGX enclave report (384 bytes), as it stands in quotes of version 3 and in every quote's QE report.

Layout: Intel SGX SDM volume 3D, table "REPORT structure", first 384 bytes (the report body). Integers are
little-endian. Reserved bytes that are not zero are refused: they would mean something this reader does not know.
"""

from __future__ import annotations

from dataclasses import dataclass

from cloister.errors import EvidenceError
from cloister.evidence.reader import Reader

REPORT_SIZE = 384
ATTRIBUTE_DEBUG = 1 << 1
"""ATTRIBUTES.DEBUG: the enclave's memory can be read from outside."""


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
