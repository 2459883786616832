"""`cloister endorsements`: what vendors sign about hardware: fetch it, look at it, carry it to a site without a network.

Nothing here verifies or trusts: endorsements are checked against the evidence and a root when somebody appraises it.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cloister.errors import UsageError

if TYPE_CHECKING:
    from cloister.cli.endorsements_parts import Subject
    from cloister.endorsements.asking import Entry
    from cloister.endorsements.cache import Cache
    from cloister.endorsements.fetch import Fetcher

app = typer.Typer(
    no_args_is_help=True,
    help="Fetch what vendors sign about hardware, look at it, carry it to a site without a network.",
)

JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
OutOption = Annotated[Path, typer.Option("--out", help="New or replaced file.")]


@app.callback()
def options(
    context: typer.Context,
    cache: Annotated[
        Path | None,
        typer.Option("--cache", help="Folder of the cache; default: cloister/endorsements in yours."),
    ] = None,
    offline: Annotated[bool, typer.Option("--offline", help="Answer from the cache alone.")] = False,
    refresh: Annotated[
        bool, typer.Option("--refresh", help="Ask again, also for what the cache has.")
    ] = False,
    pcs: Annotated[str, typer.Option("--pcs", metavar="URL", help="Intel's PCS, or a PCCS.")] = "",
    root_crl: Annotated[
        str, typer.Option("--root-crl", metavar="URL", help="The whole address of Intel's root's list.")
    ] = "",
    early: Annotated[
        bool, typer.Option("--early", help="Intel's newest TCB evaluation, before its grace time.")
    ] = False,
    evaluation: Annotated[
        int | None, typer.Option("--evaluation", help="Intel's TCB evaluation with this number.")
    ] = None,
    kds: Annotated[str, typer.Option("--kds", metavar="URL", help="AMD's KDS, or a mirror.")] = "",
    rim: Annotated[str, typer.Option("--rim", metavar="URL", help="NVIDIA's RIM service, or a mirror.")] = "",
    ocsp: Annotated[
        str, typer.Option("--ocsp", metavar="URL", help="NVIDIA's OCSP responder, or a mirror.")
    ] = "",
    no_ocsp: Annotated[
        bool, typer.Option("--no-ocsp", help="Do not ask whether NVIDIA's certificates were revoked.")
    ] = False,
    ca_file: Annotated[
        Path | None, typer.Option("--ca-file", help="Certificates (PEM) that vouch for a mirror's TLS.")
    ] = None,
    proxy: Annotated[str | None, typer.Option("--proxy", metavar="URL", help="HTTP proxy.")] = None,
    allow_http: Annotated[
        bool, typer.Option("--allow-http", help="Plain http also beyond this machine.")
    ] = False,
) -> None:
    """Where to ask, and where to keep."""
    from cloister.endorsements.services import Services

    given = {"intel": pcs, "intel_root_crl": root_crl, "amd": kds, "nvidia_rim": rim, "nvidia_ocsp": ocsp}
    chosen: dict[str, Any] = {name: value.removesuffix("/") for name, value in given.items() if value}
    if "intel" in chosen:  # as PCCS addresses are written in many configurations
        chosen["intel"] = chosen["intel"].removesuffix("/sgx/certification/v4")
    if no_ocsp:
        chosen["nvidia_ocsp"] = None
    if early:
        chosen["intel_update"] = "early"
    if context.invoked_subcommand is None:
        return
    context.obj = {
        "cache": cache or default_cache(),
        "services": Services(**chosen, intel_evaluation_number=evaluation, allow_http=allow_http),
        "offline": offline,
        "refresh": refresh,
        "ca_file": ca_file,
        "proxy": proxy,
    }


@app.command("fetch")
def fetch(
    context: typer.Context,
    evidence: Annotated[Path, typer.Argument(metavar="EVIDENCE", help="A quote, report or evidence bundle.")],
    out: OutOption,
    devices_out: Annotated[
        Path | None, typer.Option("--devices-out", help="The same for the devices of a bundle.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Write the endorsements that EVIDENCE needs, as a bundle carries them and `cloister verify` takes them."""
    from cloister.cli.endorsements_parts import end_of

    subject = _subject(evidence)
    if subject.tee is not None and subject.device_evidence and devices_out is None:
        raise UsageError("the bundle has devices as well", todo="name a file with --devices-out")
    with _fetcher(context, quiet=as_json) as fetcher:
        documents = _fetch(fetcher, subject)
    written = []
    for (kind, fetched), path in zip(documents, (out, devices_out or out), strict=False):
        _write(path, fetched.document)
        ends = end_of(kind, fetched.document)
        written.append({"file": str(path), "kind": kind, "bytes": len(fetched.document), "ends": ends})
    if as_json:
        typer.echo(json.dumps({"written": written}))
    for row in [] if as_json else written:
        typer.echo(f"{row['file']}: {row['kind']} endorsements, valid until {_day(row['ends'])}")


@app.command("export")
def export(
    context: typer.Context,
    out: OutOption,
    evidence: Annotated[
        list[Path] | None,
        typer.Argument(metavar="[EVIDENCE]...", help="What they are for; without any, all of the cache."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Write one file with everything that EVIDENCE needs, for a site without a network."""
    from cloister.cli.endorsements_parts import sound
    from cloister.endorsements.airgap import encode_bundle

    entries: dict[tuple[str, str], Entry] = {}
    if evidence:
        subjects = [_subject(path) for path in evidence]
        with _fetcher(context, quiet=as_json) as fetcher:
            for subject in subjects:
                for _, fetched in _fetch(fetcher, subject):
                    entries |= {(entry.vendor, entry.key): entry for entry in fetched.entries}
    else:
        now = time.time()
        kept = sound(_cache(context).entries())
        entries = {(entry.vendor, entry.key): entry for entry, ends in kept if ends > now}
    data = encode_bundle(entries.values(), created_at=int(time.time()))
    _write(out, data)
    ends = min(ends for _, ends in sound(entries.values()))
    if as_json:
        typer.echo(
            json.dumps({"file": str(out), "entries": len(entries), "bytes": len(data), "first_end": ends})
        )
    else:
        typer.echo(f"{out}: {len(entries)} endorsements; the first ends on {_day(ends)}")


@app.command("import")
def import_(
    context: typer.Context,
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE", help="What `export` wrote.")],
    as_json: JsonOption = False,
) -> None:
    """Put an exported file's endorsements into the cache."""
    from dataclasses import replace

    from cloister.endorsements.airgap import parse_bundle
    from cloister.endorsements.plans import part_ends

    cache, now = _cache(context), int(time.time())
    taken, older, ended = 0, 0, 0
    for entry in parse_bundle(_read(bundle)):
        have = cache.read(entry.vendor, entry.key)
        if part_ends(entry.vendor, entry.key, entry.content) <= now:
            ended += 1
        elif have is not None and entry.fetched_at <= have.fetched_at <= now:
            older += 1
        else:
            cache.write(replace(entry, fetched_at=min(entry.fetched_at, now)))
            taken += 1
    if as_json:
        typer.echo(
            json.dumps({"cache": str(cache.directory), "taken": taken, "not_newer": older, "ended": ended})
        )
    else:
        typer.echo(f"{cache.directory}: {taken} taken, {older} not newer than here, {ended} ended already")


@app.command("show")
def show(
    context: typer.Context,
    bundle: Annotated[
        Path | None, typer.Argument(metavar="[BUNDLE]", help="What `export` wrote; without it, the cache.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """List what the cache, or an exported file, holds and until when."""
    from rich.console import Console
    from rich.table import Table

    from cloister.cli.endorsements_parts import rows_of
    from cloister.endorsements.airgap import parse_bundle

    entries = _cache(context).entries() if bundle is None else parse_bundle(_read(bundle))
    rows = rows_of(entries)
    if as_json:
        typer.echo(json.dumps({"source": str(bundle or _cache(context).directory), "endorsements": rows}))
        return
    table = Table("endorsement", "bytes", "fetched", "valid until", box=None)
    now = time.time()
    for row in rows:
        until = _day(row["ends"]) if row["ends"] > now else f"{_day(row['ends'])} (ended)"
        table.add_row(row["name"], str(row["bytes"]), _day(row["fetched_at"]), until)
    console = Console(highlight=False)
    console.print(table if rows else "nothing is there", markup=False)


def _subject(path: Path) -> Subject:
    from cloister.cli.endorsements_parts import subject_of

    return subject_of(_read(path))


def _fetch(fetcher: Fetcher, subject: Subject) -> Sequence[tuple[str, Any]]:
    found: list[tuple[str, Any]] = []
    if subject.tee is not None:
        found.append((subject.tee, fetcher.collect(subject.tee, subject.evidence)))
    if subject.device_evidence:
        found.append(("nvidia", fetcher.collect_devices(subject.device_evidence)))
    return found


def _cache(context: typer.Context) -> Cache:
    from cloister.endorsements.cache import Cache

    return Cache(context.obj["cache"])


def _fetcher(context: typer.Context, *, quiet: bool) -> AbstractContextManager[Fetcher]:
    from cloister.cli.endorsements_parts import make_fetcher

    given = context.obj
    return make_fetcher(
        cache=_cache(context),
        services=given["services"],
        offline=given["offline"],
        refresh=given["refresh"],
        ca_file=given["ca_file"],
        proxy=given["proxy"],
        quiet=quiet,
    )


def default_cache() -> Path:
    named = Path(os.environ.get("XDG_CACHE_HOME", ""))
    return (named if named.is_absolute() else Path.home() / ".cache") / "cloister" / "endorsements"


def _read(path: Path) -> bytes:
    from cloister.endorsements.airgap import MAX_BUNDLE

    try:
        with path.open("rb") as file:
            data = file.read(MAX_BUNDLE + 1)
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}", todo="check the path") from None
    if len(data) > MAX_BUNDLE:
        raise UsageError(f"{path} is over {MAX_BUNDLE} bytes long")
    return data


def _write(path: Path, data: bytes) -> None:
    try:
        path.write_bytes(data)
    except OSError as error:
        raise UsageError(f"cannot write {path}: {error.strerror}", todo="check --out") from None


def _day(seconds: Any) -> str:
    from cloister.endorsements.answers import day

    return day(int(seconds))
