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
    device_evidence: bytes = b""
    endorsements: bytes = b""


class Attester(Protocol):
    """One method: a quote over ``report_data`` (64 bytes). Raises :class:`~cloister.errors.AttesterError`."""

    def quote(self, report_data: bytes) -> RawEvidence: ...
