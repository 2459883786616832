"""A device's measurements against the reference manifests of its driver and VBIOS, index by index.

A measurement is equal when it is one of the values that a manifest accepts at its index; a value that a manifest wants
and the report lacks differs. Two manifests that speak of one index contradict each other's purpose and are refused.
Measurements that no manifest speaks of are NVIDIA's to leave open, and prove nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from cloister.endorsements.rim import Golden, Rim
from cloister.errors import VerificationError
from cloister.evidence.spdm import SpdmReport

NVDEC0_INDEX: Final = 35
"""Not measured where the report says that this decoder is off: NVIDIA's verifiers leave it out then."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """What equals and what does not."""

    matched: int
    differing: tuple[str, ...]
    """By index and name, such as ``index 9 (VBIOS HashedMeasurement_9)``."""
    rims: tuple[str, ...]
    """Ids of the manifests."""


def compare(report: SpdmReport, rims: Sequence[Rim], *, nvdec0_disabled: bool) -> Comparison:
    """Compare ``report`` with every active measurement of ``rims``.

    Raises :class:`~cloister.errors.VerificationError` where two manifests have one index.
    """
    goldens: dict[int, tuple[str, Golden]] = {}
    for rim in rims:
        part = "VBIOS" if rim.is_vbios else "driver"
        for golden in rim.measurements:
            if golden.index in goldens:
                raise VerificationError(
                    f"two reference manifests have a measurement at index {golden.index}",
                    todo="they do not belong together",
                )
            goldens[golden.index] = (part, golden)
    # SPDM counts from 1, manifests from 0.
    measured = {measurement.index - 1: measurement.value for measurement in report.measurements}
    matched = 0
    differing: list[str] = []
    for index, (part, golden) in sorted(goldens.items()):
        if index == NVDEC0_INDEX and nvdec0_disabled:
            continue
        if measured.get(index) in golden.values:
            matched += 1
        else:
            differing.append(f"index {index} ({part} {golden.name})")
    return Comparison(matched, tuple(differing), ())
