"""Attesters: inside the TEE, collect evidence over 64 bytes of report data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from cloister.evidence.bundle import TeeKind


@dataclass(frozen=True, slots=True)
class RawEvidence:
    """What a TEE hands out for one report data; fields as in the evidence bundle."""

    tee: TeeKind
    quote: bytes
    event_log: bytes = b""
    firmware_log: bytes = b""
    endorsements: bytes = b""


class Attester(Protocol):
    """One method: a quote over ``report_data`` (64 bytes). Raises :class:`~cloister.errors.AttesterError`."""

    def quote(self, report_data: bytes) -> RawEvidence: ...


@dataclass(frozen=True, slots=True)
class RawDeviceEvidence:
    """What the GPUs and switches of a machine hand out for one nonce."""

    evidence: bytes
    """As evidence/nvidia.py encodes it."""
    endorsements: bytes = b""
    """As endorsements/nvidia.py has them, or empty."""


class DeviceAttester(Protocol):
    """One method: every device's report over ``nonce`` (32 bytes). Raises :class:`~cloister.errors.AttesterError`."""

    def collect(self, nonce: bytes) -> RawDeviceEvidence: ...
