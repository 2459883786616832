"""What genuine evidence says, whatever vendor signed it. Claims are facts, not permission: see appraisal."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from cloister.evidence.bundle import TeeKind
from cloister.evidence.measured import MeasuredEvent
from cloister.evidence.sgx import SgxReport
from cloister.evidence.snp import SnpReport
from cloister.evidence.tdx import TdReport
from cloister.evidence.tpm import TpmQuote
from cloister.verifier.trail import Check

Report = SgxReport | TdReport | SnpReport | TpmQuote


@dataclass(frozen=True, slots=True)
class DeviceClaims:
    """Verified statements of one GPU or switch. Times are Unix seconds."""

    kind: Literal["gpu", "nvswitch"]
    architecture: str
    """Lower case, as NVIDIA names it: ``hopper``, ``blackwell``, ``ls10``."""
    identity: str
    """SHA-256 (hexadecimal) of the device certificate's SubjectPublicKeyInfo (not of the report key's, which firmware
    updates change): one per device, for allow-lists."""
    root_sha256: str
    """SHA-256 (hexadecimal) of the DER root certificate the chain ended in."""
    simulated: bool
    driver_version: str
    vbios_version: str
    matched: int
    """Measurements that equal a reference value of the driver's or VBIOS's RIM."""
    differing: tuple[str, ...]
    """Names (``index 9 (VBIOS …)``) of the measurements that equal none; an appraisal refuses any."""
    rims: tuple[str, ...]
    """Ids of the RIM documents it was compared with; empty where none were at hand."""
    revocation: Literal["checked", "not checked"]
    issued_at: int
    expires: int
    details: Mapping[str, str] = field(default_factory=dict)
    """Every further field of the report, in text."""


@dataclass(frozen=True, slots=True)
class Claims:
    """Verified statements of one TEE. Times are Unix seconds; measurements are raw digests by their names."""

    tee: TeeKind
    root_sha256: str
    """SHA-256 (hexadecimal) of the DER root certificate the chain ended in."""
    simulated: bool
    """The root is not a hardware vendor's: nothing protects this workload."""
    report: Report
    """The parsed structure whose signature was verified: appraisal judges its fields."""
    measurements: Mapping[str, bytes]
    """``mrtd``, ``rtmr0`` … ``rtmr3`` (48 bytes each) for TDX; ``mrenclave``, ``mrsigner`` (32) for SGX;
    ``measurement`` (48) for SEV-SNP; ``pcr0`` … (32) for a TPM."""
    report_data: bytes
    """What the evidence binds: 64 bytes, or for a TPM quote the 32 bytes of its qualifying data."""
    debug: bool
    tcb_status: str | None
    """CamelCase as Intel names it: ``UpToDate``, ``SWHardeningNeeded`` …; None where the vendor gives no status."""
    advisory_ids: tuple[str, ...]
    tcb_evaluation_number: int | None
    """The lower of the TCB info's and the QE identity's ``tcbEvaluationDataNumber``; None outside Intel."""
    issued_at: int
    """Newest issue date among the endorsements: a floor under ``now``."""
    collateral_expires: int
    """Earliest ``nextUpdate`` / ``notAfter`` among the endorsements and chain."""
    hardware: Mapping[str, str] = field(default_factory=dict)
    """Who the machine is, for allow-lists, lower-case hexadecimal: ``ppid``, ``pck_sha256`` (of the PCK
    certificate's SubjectPublicKeyInfo), ``chip_id``, ``ek_sha256``."""
    events: Mapping[str, bytes] = field(default_factory=dict)
    """Named events that replayed to a measured register: name -> payload, covered by the event's digest."""
    measured_events: tuple[MeasuredEvent, ...] = ()
    """Every event of a firmware log that replayed to the measured registers."""
    devices: tuple[DeviceClaims, ...] = ()
    details: Mapping[str, str] = field(default_factory=dict)
    """Further vendor fields by name, in text, such as ``isv_svn``, ``fmspc``, ``td_attributes``."""
    checks: tuple[Check, ...] = ()
