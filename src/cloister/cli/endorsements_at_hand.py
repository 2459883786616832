"""Which endorsements `cloister verify` goes by: those given, else those that came along, else fetched ones.

What is fetched is verified as everything else is; where it came from is only said to the reader. A service that does
not answer is a network failure, not a verdict about the evidence.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from cloister.appraisal.given import Given
from cloister.evidence.bundle import TeeKind

if TYPE_CHECKING:
    import httpx2

    from cloister.evidence.recognise import Recognised

_KINDS: dict[str, TeeKind] = {
    "snp-report": "snp",
    "hcl-report": "snp",
    "azure-evidence": "az-snp-vtpm",
    "tpm-quote": "tpm",
}
_VENDORS = {"tdx": "intel", "sgx": "intel", "snp": "snp", "az-snp-vtpm": "snp"}


@dataclass(frozen=True, slots=True)
class _Wanted:
    """Whom endorsements are wanted for, and what the evidence carries already."""

    tee: TeeKind | None = None
    evidence: bytes = b""
    carried: bool = False
    devices: bytes = b""
    """In the form of evidence/nvidia.py."""
    devices_carried: bool = False


def at_hand(
    subject: Recognised,
    given: Given,
    *,
    offline: bool,
    pccs: str | None,
    transport: httpx2.BaseTransport | None = None,
) -> tuple[Given, str]:
    """``given``, completed, and in words where the endorsements of ``subject`` come from.

    Raises :class:`~cloister.errors.NetworkError`, :class:`~cloister.errors.EndorsementError` and
    :class:`~cloister.errors.EvidenceError` from fetching.
    """
    wanted = _wanted(subject, given)
    tee, told = wanted.tee, []
    lacks_cpu = tee is not None and not given.of(tee) and not wanted.carried
    lacks_devices = bool(wanted.devices) and not given.nvidia and not wanted.devices_carried
    fetched_cpu = lacks_cpu and tee in _VENDORS and not offline
    fetched_devices = lacks_devices and not offline
    if tee is not None:
        told.append(_said(bool(given.of(tee)), wanted.carried, fetched_cpu))
    if wanted.devices:
        told.append(f"of the devices: {_said(bool(given.nvidia), wanted.devices_carried, fetched_devices)}")
    if fetched_cpu or fetched_devices:
        from cloister.endorsements.fetch import Fetcher
        from cloister.endorsements.services import Services

        services = Services(intel=pccs.rstrip("/")) if pccs else Services()
        with Fetcher(services=services, transport=transport) as fetcher:
            if fetched_cpu and tee is not None:
                document = fetcher.endorsements(tee, wanted.evidence)
                intel = _VENDORS[tee] == "intel"
                given = replace(given, intel=document) if intel else replace(given, snp=document)
            if fetched_devices:
                given = replace(given, nvidia=fetcher.device_endorsements(wanted.devices))
    return given, ", ".join(told) or "none needed"


def _said(given: bool, carried: bool, fetched: bool) -> str:
    return "given" if given else "carried along" if carried else "fetched" if fetched else "none"


def _wanted(subject: Recognised, given: Given) -> _Wanted:
    from cloister.appraisal.examined_devices import device_form
    from cloister.errors import CloisterError
    from cloister.evidence.bundle import parse_bundle
    from cloister.evidence.hcl import parse_hcl
    from cloister.evidence.quote import parse_quote

    kind, data = subject.kind, subject.data
    try:
        if kind == "bundle":
            bundle = parse_bundle(data)
            return _Wanted(
                tee=bundle.tee,
                evidence=bundle.quote,
                carried=bool(bundle.endorsements),
                devices=bundle.device_evidence,
                devices_carried=bool(bundle.device_endorsements),
            )
        if kind in ("nvidia-evidence", "spdm-report"):
            return _Wanted(devices=device_form(subject, given))
        if kind == "hcl-report":
            data = parse_hcl(data).snp_report
        tee = parse_quote(data).tee if kind == "intel-quote" else _KINDS.get(kind)
    except CloisterError:
        return _Wanted()  # malformed: the examination says so, and nobody is asked about it
    return _Wanted(tee=tee, evidence=data)
