"""Which endorsements `cloister verify` goes by: those given, else those that came along, else fetched ones.

What is fetched is verified as everything else is; where it came from is only said to the reader. A service that does
not answer is a network failure, not a verdict about the evidence.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from cloister.appraisal.given import Given
from cloister.errors import CloisterError, EndorsementError, NetworkError
from cloister.evidence.bundle import TeeKind

if TYPE_CHECKING:
    import httpx2

    from cloister.endorsements.fetch import Fetcher
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
    now: int | None,
    cache: Path | None,
    transport: httpx2.BaseTransport | None = None,
) -> tuple[Given, str]:
    """``given``, completed, and in words where the endorsements of ``subject`` come from.

    ``offline`` takes them from the ``cache`` (its default folder if None) alone. ``now`` is the time that was asked
    for, None for the clock's: for another time nothing is kept, so that the cache holds what is true today.
    Raises :class:`~cloister.errors.NetworkError`, :class:`~cloister.errors.EndorsementError` and
    :class:`~cloister.errors.EvidenceError` from fetching.
    """
    wanted = _wanted(subject, given)
    told = []
    if wanted.tee is not None and (given.of(wanted.tee) or wanted.carried):
        told.append("given" if given.of(wanted.tee) else "carried along")
    if wanted.devices and (given.nvidia or wanted.devices_carried):
        told.append(f"of the devices: {'given' if given.nvidia else 'carried along'}")
    lacks_cpu = wanted.tee is not None and not given.of(wanted.tee) and not wanted.carried
    lacks_devices = bool(wanted.devices) and not given.nvidia and not wanted.devices_carried
    if not lacks_cpu and not lacks_devices:
        return given, ", ".join(told) or "none needed"
    with _fetcher(offline=offline, pccs=pccs, now=now, cache=cache, transport=transport) as fetcher:
        source = "from the cache" if offline else "fetched"
        if lacks_cpu and wanted.tee is not None:
            document = b""
            if wanted.tee in _VENDORS:
                document = _asked(partial(fetcher.endorsements, wanted.tee, wanted.evidence), offline)
            intel = _VENDORS.get(wanted.tee) == "intel"
            given = replace(given, intel=document) if intel else replace(given, snp=document)
            told.append(source if document else "none")
        if lacks_devices:
            document = _asked(partial(fetcher.device_endorsements, wanted.devices), offline)
            given = replace(given, nvidia=document)
            told.append(f"of the devices: {source if document else 'none'}")
    return given, ", ".join(told)


def _fetcher(
    *,
    offline: bool,
    pccs: str | None,
    now: int | None,
    cache: Path | None,
    transport: httpx2.BaseTransport | None,
) -> Fetcher:
    from cloister.cli.endorsements import default_cache
    from cloister.endorsements.cache import Cache
    from cloister.endorsements.fetch import Fetcher
    from cloister.endorsements.services import Services

    return Fetcher(
        cache=Cache(cache or default_cache()) if now is None or offline else None,
        services=Services(intel=pccs.rstrip("/")) if pccs else Services(),
        offline=offline,
        transport=transport,
        clock=time.time if now is None else lambda: float(now),
    )


def _asked(ask: Callable[[], bytes], offline: bool) -> bytes:
    """What the cache lacks is no failure of this step: the examination says what is missing."""
    try:
        return ask()
    except EndorsementError:
        if offline:
            return b""
        raise
    except NetworkError as error:
        todo = "try again later, give --endorsements, or say --offline to go on with what is at hand"
        raise NetworkError(error.what, todo=todo) from None


def _wanted(subject: Recognised, given: Given) -> _Wanted:
    from cloister.appraisal.examined_devices import device_form
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
