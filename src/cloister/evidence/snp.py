"""The SEV-SNP attestation report. SKELETON: the dataclass is the contract; parse_report is to be written."""

from __future__ import annotations

from dataclasses import dataclass

REPORT_SIZE = 1184


@dataclass(frozen=True, slots=True)
class TcbVersion:
    """Security versions of a chip's firmware; ``fmc`` exists from Turin on."""

    bootloader: int
    tee: int
    snp: int
    microcode: int
    fmc: int | None = None


@dataclass(frozen=True, slots=True)
class SnpReport:
    """One guest's report. ``bytes`` have the sizes of AMD's table 23 (ABI specification 56860)."""

    version: int
    guest_svn: int
    policy: int
    family_id: bytes
    image_id: bytes
    vmpl: int
    current_tcb: TcbVersion
    platform_info: int
    author_key_enabled: bool
    mask_chip_key: bool
    signing_key: str
    """``vcek`` or ``vlek``."""
    report_data: bytes
    measurement: bytes
    host_data: bytes
    id_key_digest: bytes
    author_key_digest: bytes
    report_id: bytes
    report_id_ma: bytes
    reported_tcb: TcbVersion
    product: str | None
    """``milan``, ``genoa``, ``turin`` by CPUID (from version 3 on); None where the report does not say."""
    chip_id: bytes
    committed_tcb: TcbVersion
    current_version: tuple[int, int, int]
    """Firmware: major, minor, build."""
    committed_version: tuple[int, int, int]
    launch_tcb: TcbVersion
    launch_mitigations: int | None
    current_mitigations: int | None
    """Mitigation vectors, from version 5 on."""
    signature: bytes
    """r ‖ s, 48 bytes each, big-endian."""
    signed: bytes
    """The 672 bytes in front of the signature."""

    @property
    def debug(self) -> bool:
        return bool(self.policy >> 19 & 1)


def parse_report(data: bytes) -> SnpReport:
    """Decode exactly 1184 bytes. Raises :class:`~cloister.errors.EvidenceError`."""
    raise NotImplementedError
