"""What genuine evidence says, whatever vendor signed it. Claims are facts, not permission: see appraisal."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from cloister.evidence.bundle import TeeKind


@dataclass(frozen=True, slots=True)
class Check:
    """One numbered step of a verification or appraisal, for people to read."""

    number: int
    name: str
    """What was checked, in a few words, such as ``certificate chain``."""
    outcome: str
    """What was found, such as ``Intel SGX Root CA``; never ``ok``."""


@dataclass(frozen=True, slots=True)
class Claims:
    """Verified statements of one TEE. Times are Unix seconds; measurements are raw digests by their names."""

    tee: TeeKind
    root_sha256: str
    """SHA-256 (hexadecimal) of the DER root certificate the chain ended in."""
    simulated: bool
    """The root is not a hardware vendor's: nothing protects this workload."""
    measurements: Mapping[str, bytes]
    """``mrtd``, ``rtmr0`` … ``rtmr3`` (48 bytes each) for TDX; ``mrenclave``, ``mrsigner`` (32) for SGX."""
    report_data: bytes
    debug: bool
    tcb_status: str
    """CamelCase as Intel names it: ``UpToDate``, ``SWHardeningNeeded``, ``OutOfDate`` …"""
    advisory_ids: tuple[str, ...]
    tcb_evaluation_number: int
    """The lower of the TCB info's and the QE identity's ``tcbEvaluationDataNumber``."""
    issued_at: int
    """Newest issue date among the collateral: a floor under ``now``."""
    collateral_expires: int
    """Earliest ``nextUpdate`` / ``notAfter`` among the collateral and chain."""
    events: Mapping[str, bytes] = field(default_factory=dict)
    """Launch events that replayed to a measured register: name -> payload."""
    details: Mapping[str, str] = field(default_factory=dict)
    """Further vendor fields by name, in text, such as ``isv_svn``, ``ppid``, ``td_attributes``."""
    checks: tuple[Check, ...] = ()
