"""The SEV-SNP report as Trustee's guests write it: member by member, numbers for bytes. Back into AMD's 1184 bytes.
Pure.

The members are those of the ``sev`` crate, version 7. What it leaves out is reserved and zero; if that is not so, or
anything else differs from what the chip signed, the signature over the bytes does not verify.
"""

from __future__ import annotations

from typing import Final

from cloister.encoding import Record
from cloister.errors import FormatError
from cloister.evidence.snp import REPORT_SIZE

Bytes = list[int]
_SIGNATURE_PART: Final = 72
_CPUID: Final = 24
_RESERVED_BEFORE_SIGNATURE: Final = 152


class Tcb(Record, frozen=True, kw_only=True):
    """Security versions; ``fmc`` from Turin on."""

    bootloader: int
    tee: int
    snp: int
    microcode: int
    fmc: int | None = None


class Version(Record, frozen=True, kw_only=True):
    """Of firmware."""

    major: int
    minor: int
    build: int


class Signature(Record, frozen=True, kw_only=True):
    """Little-endian, 72 bytes each."""

    r: Bytes
    s: Bytes


class ReportFields(Record, frozen=True, kw_only=True):
    """The report of version 2, 3 or 5."""

    version: int
    guest_svn: int
    policy: int
    family_id: Bytes
    image_id: Bytes
    vmpl: int
    sig_algo: int
    current_tcb: Tcb
    plat_info: int
    key_info: int
    report_data: Bytes
    measurement: Bytes
    host_data: Bytes
    id_key_digest: Bytes
    author_key_digest: Bytes
    report_id: Bytes
    report_id_ma: Bytes
    reported_tcb: Tcb
    cpuid_fam_id: int | None = None
    cpuid_mod_id: int | None = None
    cpuid_step: int | None = None
    chip_id: Bytes
    committed_tcb: Tcb
    current: Version
    committed: Version
    launch_tcb: Tcb
    launch_mit_vector: int | None = None
    current_mit_vector: int | None = None
    signature: Signature

    @property
    def signing_key(self) -> str:
        """Type of the certificate that the report says it is signed by."""
        return {0: "VCEK", 1: "VLEK"}.get(self.key_info >> 2 & 7, "")


def encode_report(report: ReportFields) -> bytes:
    """AMD's layout (ABI specification 56860, table 23). Raises :class:`~cloister.errors.FormatError`."""
    cpuid = (report.cpuid_fam_id, report.cpuid_mod_id, report.cpuid_step)
    data = b"".join(
        (
            _number(report.version, 4),
            _number(report.guest_svn, 4),
            _number(report.policy, 8),
            _fixed(report.family_id, 16),
            _fixed(report.image_id, 16),
            _number(report.vmpl, 4),
            _number(report.sig_algo, 4),
            _tcb(report.current_tcb),
            _number(report.plat_info, 8),
            _number(report.key_info, 4),
            bytes(4),
            _fixed(report.report_data, 64),
            _fixed(report.measurement, 48),
            _fixed(report.host_data, 32),
            _fixed(report.id_key_digest, 48),
            _fixed(report.author_key_digest, 48),
            _fixed(report.report_id, 32),
            _fixed(report.report_id_ma, 32),
            _tcb(report.reported_tcb),
            b"".join(_number(part or 0, 1) for part in cpuid).ljust(_CPUID, b"\0"),
            _fixed(report.chip_id, 64),
            _tcb(report.committed_tcb),
            _version(report.current),
            _version(report.committed),
            _tcb(report.launch_tcb),
            _number(report.launch_mit_vector or 0, 8),
            _number(report.current_mit_vector or 0, 8),
            bytes(_RESERVED_BEFORE_SIGNATURE),
            _fixed(report.signature.r, _SIGNATURE_PART),
            _fixed(report.signature.s, _SIGNATURE_PART),
        )
    )
    return data.ljust(REPORT_SIZE, b"\0")


def _number(value: int, size: int) -> bytes:
    try:
        return value.to_bytes(size, "little")
    except OverflowError:
        raise FormatError("a number of the SEV-SNP report does not fit its field") from None


def _fixed(values: Bytes, size: int) -> bytes:
    try:
        data = bytes(values)
    except ValueError:
        raise FormatError("the SEV-SNP report has a number over a byte") from None
    if len(data) != size:
        raise FormatError(f"a field of the SEV-SNP report has {len(data)} bytes, not {size}")
    return data


def _tcb(tcb: Tcb) -> bytes:
    if tcb.fmc is None:
        parts = (tcb.bootloader, tcb.tee, 0, 0, 0, 0, tcb.snp, tcb.microcode)
    else:
        parts = (tcb.fmc, tcb.bootloader, tcb.tee, tcb.snp, 0, 0, 0, tcb.microcode)
    return b"".join(_number(part, 1) for part in parts)


def _version(version: Version) -> bytes:
    return b"".join(_number(part, 1) for part in (version.build, version.minor, version.major, 0))
