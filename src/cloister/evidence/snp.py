"""The SEV-SNP attestation report, versions 2, 3 and 5 (AMD, "SEV Secure Nested Paging Firmware ABI", 56860).

Decodes exactly 1184 bytes; nothing is believed yet. Reserved bytes and bits, unknown versions, processors, policies
and signature algorithms are refused, because what they would mean is not known here. docs/spec/snp.md has the table.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final, Literal

from cloister.errors import EvidenceError
from cloister.evidence.reader import Reader

REPORT_SIZE = 1184
SIGNED_SIZE = 672
VERSIONS: Final = (2, 3, 5)
MAX_VMPL: Final = 3
SignerName = Literal["vcek", "vlek"]

POLICY_BITS: Final[Mapping[str, int]] = MappingProxyType(
    {
        "smt": 16,
        "migrate_ma": 18,
        "debug": 19,
        "single_socket": 20,
        "cxl_allow": 21,
        "mem_aes_256_xts": 22,
        "rapl_dis": 23,
        "ciphertext_hiding": 24,
        "page_swap_disable": 25,
    }
)
"""Guest policy (ABI table 10): what the guest's owner allows or demands. Bits 0 to 15 are the least ABI version."""
PLATFORM_BITS: Final[Mapping[str, int]] = MappingProxyType(
    {
        "smt_en": 0,
        "tsme_en": 1,
        "ecc_en": 2,
        "rapl_dis": 3,
        "ciphertext_hiding_dram_en": 4,
        "alias_check_complete": 5,
        "tio_en": 7,
    }
)
"""PLATFORM_INFO (ABI table 24): what the machine does."""

_POLICY_ONE = 17
_SIGNERS: Final[Mapping[int, SignerName]] = MappingProxyType({0: "vcek", 1: "vlek"})
_UNSIGNED = 7
_ECDSA_P384_SHA384 = 1
_SCALAR, _SCALAR_FIELD = 48, 72
_MILAN, _TURIN = 0x19, 0x1A


@dataclass(frozen=True, slots=True)
class TcbVersion:
    """Security versions of a chip's firmware, 0 to 255 each; ``fmc`` exists from Turin on."""

    bootloader: int
    tee: int
    snp: int
    microcode: int
    fmc: int | None = None

    def __str__(self) -> str:
        fmc = "" if self.fmc is None else f"fmc {self.fmc}, "
        return (
            f"{fmc}bootloader {self.bootloader}, tee {self.tee}, snp {self.snp}, microcode {self.microcode}"
        )


@dataclass(frozen=True, slots=True)
class SnpReport:
    """One guest's report. ``bytes`` have the sizes of AMD's table 23 (ABI specification 56860)."""

    version: int
    guest_svn: int
    policy: int
    family_id: bytes
    image_id: bytes
    vmpl: int
    """0 (most privileged) to 3."""
    current_tcb: TcbVersion
    platform_info: int
    author_key_enabled: bool
    mask_chip_key: bool
    """The firmware does not use the VCEK: only a VLEK can have signed."""
    signing_key: SignerName
    report_data: bytes
    measurement: bytes
    host_data: bytes
    id_key_digest: bytes
    author_key_digest: bytes
    report_id: bytes
    report_id_ma: bytes
    """Of the migration agent; all ones without any."""
    reported_tcb: TcbVersion
    """Which the VCEK or VLEK is derived from; the host may choose it as low as it likes."""
    product: str | None
    """``milan``, ``genoa``, ``turin`` by CPUID (from version 3 on); None where the report does not say."""
    cpuid: tuple[int, int, int] | None
    """Family, model and stepping, extended parts included; None in version 2."""
    chip_id: bytes
    """64 bytes; zeros where the host masks it. Turin's has 8 bytes and zeros."""
    committed_tcb: TcbVersion
    """Below which the firmware cannot be rolled back."""
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
        return "debug" in self.policy_flags

    @property
    def minimum_abi(self) -> tuple[int, int]:
        """The lowest firmware ABI (major, minor) that the guest's policy allows."""
        return self.policy >> 8 & 0xFF, self.policy & 0xFF

    @property
    def policy_flags(self) -> frozenset[str]:
        """Names of the guest policy's bits that are set (:data:`POLICY_BITS`)."""
        return frozenset(name for name, bit in POLICY_BITS.items() if self.policy >> bit & 1)

    @property
    def platform_flags(self) -> frozenset[str]:
        """Names of PLATFORM_INFO's bits that are set (:data:`PLATFORM_BITS`)."""
        return frozenset(name for name, bit in PLATFORM_BITS.items() if self.platform_info >> bit & 1)

    @property
    def chip_id_masked(self) -> bool:
        """The host had the chip's identity left out."""
        return not self.chip_id.strip(b"\0")


def parse_report(data: bytes, *, product: str | None = None) -> SnpReport:
    """Decode exactly 1184 bytes. Raises :class:`~cloister.errors.EvidenceError`.

    Version 2 does not say which processor it is of, and Turin lays its TCB out differently: ``product`` (of the
    endorsements) decides then. Without it the form of chip id and TCBs does: good enough to look, not to judge.
    """
    if len(data) != REPORT_SIZE:
        raise EvidenceError(
            f"an SEV-SNP report is {REPORT_SIZE} bytes long, not {len(data)}", todo="pass it unchanged"
        )
    reader = Reader(data, "SEV-SNP report")
    version = reader.u32()
    if version not in VERSIONS:
        raise EvidenceError(
            f"SEV-SNP report version {version} is not known", todo=f"versions {_listed(VERSIONS)} are"
        )
    guest_svn = reader.u32()
    policy = _bits(reader, {**POLICY_BITS, "reserved": _POLICY_ONE}, "policy", low=16)
    if not policy >> _POLICY_ONE & 1:
        raise EvidenceError("the SEV-SNP report's policy has bit 17 clear, which is always set")
    family_id, image_id = reader.take(16), reader.take(16)
    vmpl = reader.u32()
    if vmpl > MAX_VMPL:
        # The host can ask for a report too, and gets one with VMPL 0xffffffff: it says nothing of the guest's keys.
        raise EvidenceError(
            f"the SEV-SNP report is of VMPL {vmpl:#x}: the guest did not ask for it",
            todo="quote in the guest",
        )
    algorithm = reader.u32()
    if algorithm != _ECDSA_P384_SHA384:
        raise EvidenceError(
            f"the SEV-SNP report has signature algorithm {algorithm}, not ECDSA P-384 with SHA-384"
        )
    current_tcb = reader.take(8)
    platform_info = _bits(reader, PLATFORM_BITS, "platform information")
    flags = reader.u32()
    signing_key = _signer(flags)
    reader.zeros(4)
    report_data, measurement, host_data = reader.take(64), reader.take(48), reader.take(32)
    id_key_digest, author_key_digest = reader.take(48), reader.take(48)
    report_id, report_id_ma = reader.take(32), reader.take(32)
    reported_tcb = reader.take(8)
    cpuid = None
    if version >= 3:
        family, model, stepping = reader.take(3)
        cpuid = family, model, stepping
    reader.zeros(21 if cpuid else 24)
    chip_id = reader.take(64)
    committed_tcb = reader.take(8)
    current_version, committed_version = _version(reader), _version(reader)
    launch_tcb = reader.take(8)
    launch_mitigations = current_mitigations = None
    if version >= 5:
        launch_mitigations, current_mitigations = _u64(reader), _u64(reader)
    reader.zeros(SIGNED_SIZE - reader.position)
    signature = _scalar(reader) + _scalar(reader)
    reader.zeros(reader.remaining)
    own = _product(cpuid) if cpuid else None
    tcbs = (current_tcb, reported_tcb, committed_tcb, launch_tcb)
    layout = own or product or ("turin" if _like_turin(chip_id, tcbs) else "milan")
    return SnpReport(
        version=version,
        guest_svn=guest_svn,
        policy=policy,
        family_id=family_id,
        image_id=image_id,
        vmpl=vmpl,
        current_tcb=tcb_version(current_tcb, layout),
        platform_info=platform_info,
        author_key_enabled=bool(flags & 1),
        mask_chip_key=bool(flags >> 1 & 1),
        signing_key=signing_key,
        report_data=report_data,
        measurement=measurement,
        host_data=host_data,
        id_key_digest=id_key_digest,
        author_key_digest=author_key_digest,
        report_id=report_id,
        report_id_ma=report_id_ma,
        reported_tcb=tcb_version(reported_tcb, layout),
        product=own,
        cpuid=cpuid,
        chip_id=chip_id,
        committed_tcb=tcb_version(committed_tcb, layout),
        current_version=current_version,
        committed_version=committed_version,
        launch_tcb=tcb_version(launch_tcb, layout),
        launch_mitigations=launch_mitigations,
        current_mitigations=current_mitigations,
        signature=signature,
        signed=data[:SIGNED_SIZE],
    )


def tcb_version(data: bytes, product: str) -> TcbVersion:
    """TCB_VERSION (8 bytes) as ``product`` lays it out (ABI tables 3 and 4). Raises :class:`EvidenceError`."""
    if product == "turin":
        found = TcbVersion(fmc=data[0], bootloader=data[1], tee=data[2], snp=data[3], microcode=data[7])
        reserved = data[4:7]
    else:
        found = TcbVersion(bootloader=data[0], tee=data[1], snp=data[6], microcode=data[7])
        reserved = data[2:6]
    if reserved.strip(b"\0"):
        raise EvidenceError(
            f"the SEV-SNP report has a TCB version {data.hex()} with reserved bytes that are not zero",
            todo=f"it was read as {product} writes it",
        )
    return found


def _signer(flags: int) -> SignerName:
    if flags >> 5:
        raise EvidenceError(f"the SEV-SNP report has flags {flags:#x}, of which bits 5 to 31 are reserved")
    number = flags >> 2 & 7
    if number == _UNSIGNED:
        raise EvidenceError("the SEV-SNP report is not signed", todo="the host switched signing off")
    if number not in _SIGNERS:
        raise EvidenceError(f"the SEV-SNP report was signed by an unknown kind of key ({number})")
    return _SIGNERS[number]


def _bits(reader: Reader, known: Mapping[str, int], what: str, *, low: int = 0) -> int:
    """Eight bytes of flags of which only ``known`` ones, and those below ``low``, may be set."""
    value = _u64(reader)
    allowed = (1 << low) - 1 | sum(1 << bit for bit in known.values())
    if value & ~allowed:
        raise EvidenceError(f"the SEV-SNP report's {what} {value:#x} has reserved bits {value & ~allowed:#x}")
    return value


def _product(cpuid: tuple[int, int, int]) -> str:
    """From the combined family and model (AMD, "VCEK Certificate and KDS Interface", 57230, product names)."""
    family, model, _ = cpuid
    if family == _MILAN and model <= 0x0F:
        return "milan"
    if family == _MILAN and (0x10 <= model <= 0x1F or 0xA0 <= model <= 0xAF):
        return "genoa"  # with Bergamo and Siena, which have Genoa's keys
    if family == _TURIN and model <= 0x11:
        return "turin"
    raise EvidenceError(
        f"the SEV-SNP report is of an unknown processor (family {family:#x}, model {model:#x})",
        todo="Milan, Genoa with Bergamo and Siena, and Turin are known",
    )


def _like_turin(chip_id: bytes, tcbs: tuple[bytes, ...]) -> bool:
    short = bool(chip_id[:8].strip(b"\0")) and not chip_id[8:].strip(b"\0")
    return short or any(tcb[2:6].strip(b"\0") for tcb in tcbs)


def _version(reader: Reader) -> tuple[int, int, int]:
    build, minor, major = reader.take(3)
    reader.zeros(1)
    return major, minor, build


def _scalar(reader: Reader) -> bytes:
    """One half of a signature: 72 bytes little-endian, of which P-384 needs 48."""
    field = reader.take(_SCALAR_FIELD)
    if field[_SCALAR:].strip(b"\0"):
        raise EvidenceError("the SEV-SNP report's signature is longer than P-384 makes it")
    return field[:_SCALAR][::-1]


def _u64(reader: Reader) -> int:
    return int.from_bytes(reader.take(8), "little")


def _listed(values: tuple[int, ...]) -> str:
    return ", ".join(str(value) for value in values)
