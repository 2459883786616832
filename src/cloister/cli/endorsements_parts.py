"""What `cloister endorsements` is made of: whom a file is about, rows to show, a fetcher with a progress bar."""

from __future__ import annotations

import ssl
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2

from cloister.endorsements.asking import Entry
from cloister.endorsements.cache import Cache
from cloister.endorsements.fetch import Fetcher
from cloister.endorsements.plans import device_document_ends, document_ends, part_ends
from cloister.endorsements.services import Services
from cloister.errors import EndorsementError, EvidenceError, UsageError
from cloister.evidence.bundle import TeeKind, parse_bundle
from cloister.evidence.hcl import parse_hcl
from cloister.evidence.nvidia import encode_device_evidence, parse_device_evidence, parse_sdk_evidence
from cloister.evidence.quote import parse_quote
from cloister.evidence.recognise import recognise


@dataclass(frozen=True, slots=True)
class Subject:
    """Whom endorsements are wanted about."""

    tee: TeeKind | None
    """None for devices alone."""
    evidence: bytes = b""
    device_evidence: bytes = b""


def subject_of(data: bytes) -> Subject:
    """The evidence in a file, recognised by its content. Raises :class:`~cloister.errors.CloisterError`."""
    found = recognise(data)
    match found.kind:
        case "intel-quote":
            return Subject(parse_quote(found.data).tee, found.data)
        case "snp-report":
            return Subject("snp", found.data)
        case "hcl-report":
            return Subject("snp", parse_hcl(found.data).snp_report)
        case "azure-evidence":
            return Subject("az-snp-vtpm", found.data)
        case "bundle":
            bundle = parse_bundle(found.data)
            return Subject(bundle.tee, bundle.quote, bundle.device_evidence)
        case "nvidia-evidence":
            return Subject(None, device_evidence=_devices(found.data))
        case _:
            raise EvidenceError(
                f"this is no evidence that vendors endorse, but: {found.what}",
                todo="give a quote, a report, device evidence or an evidence bundle",
            )


def rows_of(entries: Iterable[Entry]) -> list[dict[str, Any]]:
    """What to show of each. Times are Unix seconds."""
    return [
        {
            "name": f"{entry.vendor}/{entry.key}",
            "bytes": len(entry.content),
            "fetched_at": entry.fetched_at,
            "ends": ends,
        }
        for entry, ends in sound(entries)
    ]


def sound(entries: Iterable[Entry]) -> list[tuple[Entry, int]]:
    """Those that are what their names say, with their ends: a cache may hold what another release wrote."""
    found: list[tuple[Entry, int]] = []
    for entry in entries:
        with suppress(EndorsementError):
            found.append((entry, part_ends(entry.vendor, entry.key, entry.content)))
    return found


def end_of(kind: str, document: bytes) -> int:
    """Unix seconds at which a fetched document ends."""
    if kind == "nvidia":
        return device_document_ends(document)
    return document_ends("snp" if kind in ("snp", "az-snp-vtpm") else "tdx", document)


@contextmanager
def make_fetcher(
    *,
    cache: Cache,
    services: Services,
    offline: bool,
    refresh: bool,
    ca_file: Path | None,
    proxy: str | None,
    quiet: bool,
) -> Iterator[Fetcher]:
    """A fetcher as the command line asked for it. Raises :class:`~cloister.errors.UsageError`."""
    with ExitStack() as stack:
        progress = None if quiet or offline else stack.enter_context(_progress())
        yield stack.enter_context(
            Fetcher(
                cache=cache,
                services=services,
                transport=_transport(ca_file, proxy),
                offline=offline,
                refresh=refresh,
                progress=progress,
            )
        )


def _devices(data: bytes) -> bytes:
    """Our own form of device evidence, from it or from what NVIDIA's SDK writes."""
    evidence = parse_sdk_evidence(data) if data.lstrip()[:1] == b"[" else parse_device_evidence(data)
    return encode_device_evidence(evidence)


def _transport(ca_file: Path | None, proxy: str | None) -> httpx2.BaseTransport | None:
    if ca_file is None and proxy is None:
        return None
    try:
        verify = True if ca_file is None else ssl.create_default_context(cafile=str(ca_file))
        return httpx2.HTTPTransport(verify=verify, proxy=proxy, trust_env=False)
    except (OSError, ssl.SSLError, ValueError, httpx2.InvalidURL) as error:
        raise UsageError(
            f"--ca-file or --proxy cannot be used ({type(error).__name__})", todo="check both"
        ) from None


@contextmanager
def _progress() -> Iterator[Callable[[int, int, str], None] | None]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    console = Console(stderr=True)
    if not console.is_terminal:
        yield None
        return
    columns = (TextColumn("fetching"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}"))
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("", total=None)
        yield lambda done, needed, what: bar.update(task, completed=done, total=needed, description=what)
