"""`cloister audit`: what a broker did, proven: list, prove, verify, export. For owners, auditors and operators."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cloister.cli.owner_options import (
    BrokerOption,
    Es256Option,
    JsonOption,
    KeyOption,
    ManifestOption,
    PolicyOption,
    SshOption,
)
from cloister.cli.result_line import say
from cloister.errors import UsageError

if TYPE_CHECKING:
    from cloister.broker.audit import Entry
    from cloister.broker.owner_client import OwnerClient

app = typer.Typer(
    no_args_is_help=True, help="The broker's log: who received what, and that nobody rewrote it."
)

HeadOption = Annotated[
    Path | None, typer.Option("--head", help="A head of `cloister audit head --out`: the log must extend it.")
]
LogKeyOption = Annotated[
    str | None, typer.Option("--log-key", metavar="HEX", help="The log's public key that you noted before.")
]


@app.command("head")
def show_head(
    broker: BrokerOption,
    out: Annotated[Path | None, typer.Option("--out", help="Keep the head here, for --head later.")] = None,
    policy: PolicyOption = None,
    manifest: ManifestOption = None,
    as_json: JsonOption = False,
) -> None:
    """The newest tree head, its signature checked. Keep it: a log that was cut or rewritten does not extend it."""
    from cloister.broker.tree_head import encode_signed_head

    with _open(broker, policy, manifest, None, None, None) as client:
        head, answer = client.head()
    if out is not None:
        _write(out, [encode_signed_head(answer.signed) + b"\n"])
    facts = {
        "log": head.log,
        "log_key": answer.log_key,
        "size": head.size,
        "root": head.root,
        "time": head.time,
    }
    facts["cosignatures"] = len(answer.cosigned.cosignatures) if answer.cosigned else 0
    say(as_json, f"{head.size} entries, root {head.root}, log key {answer.log_key}", facts)


@app.command("list")
def list_entries(
    broker: BrokerOption,
    resource: Annotated[
        str | None, typer.Option("--resource", metavar="KBS_URI", help="Only of this.")
    ] = None,
    event: Annotated[
        str | None, typer.Option("--event", help="Only these: release, attestation, rule …")
    ] = None,
    last: Annotated[int, typer.Option("--last", min=1, max=100_000, help="How many, the newest.")] = 50,
    policy: PolicyOption = None,
    manifest: ManifestOption = None,
    key: KeyOption = None,
    es256: Es256Option = None,
    ssh: SshOption = None,
    as_json: JsonOption = False,
) -> None:
    """The newest entries, the oldest of them first."""
    from cloister.broker.audit import parse_entry

    with _open(broker, policy, manifest, key, es256, ssh) as client:
        size = client.head()[0].size
        start = max(0, size - last)
        found = [parse_entry(body, start + at) for at, body in enumerate(client.entries(start, size))]
    shown = [one for one in found if (resource in (None, one.resource)) and (event in (None, one.event))]
    if as_json:
        import msgspec

        typer.echo(json.dumps([msgspec.to_builtins(one) for one in shown]))
        return
    for one in shown:
        typer.echo(entry_line(one))


@app.command()
def prove(
    number: Annotated[int, typer.Argument(min=0, help="The entry's number.")],
    broker: BrokerOption,
    policy: PolicyOption = None,
    manifest: ManifestOption = None,
    key: KeyOption = None,
    es256: Es256Option = None,
    ssh: SshOption = None,
    as_json: JsonOption = False,
) -> None:
    """One entry, with a Merkle proof that it is in the log of the newest head."""
    from cloister.broker.tree_head import parse_head

    with _open(broker, policy, manifest, key, es256, ssh) as client:
        entry, signed = client.proven(number)
    head = parse_head(signed.head)
    if as_json:
        import msgspec

        typer.echo(json.dumps({"entry": msgspec.to_builtins(entry), "size": head.size, "root": head.root}))
        return
    typer.echo(entry_line(entry))
    typer.echo(f"proven: entry {number} of {head.size} under root {head.root}")


@app.command()
def export(
    broker: BrokerOption,
    out: Annotated[Path, typer.Option("--out", help="The file to make.")],
    policy: PolicyOption = None,
    manifest: ManifestOption = None,
    key: KeyOption = None,
    es256: Es256Option = None,
    ssh: SshOption = None,
    as_json: JsonOption = False,
) -> None:
    """The whole log under its newest head, in one file that `cloister audit verify` checks without the broker."""
    from rich.console import Console
    from rich.progress import Progress

    from cloister.broker.audit_proof import export_lines
    from cloister.broker.tree_head import verify_head

    with _open(broker, policy, manifest, key, es256, ssh) as client:
        _, answer = client.head()
        # What witnesses have seen is worth more than the last few entries.
        signed = answer.cosigned or answer.signed
        head = verify_head(signed, log_key=bytes.fromhex(answer.log_key))
        with Progress(console=Console(stderr=True), transient=True) as progress:
            task = progress.add_task("audit entries", total=head.size)

            def entries() -> Iterator[bytes]:
                for body in client.entries(0, head.size):
                    progress.advance(task)
                    yield body

            _write(out, export_lines(bytes.fromhex(answer.log_key), signed, entries()))
    facts = {"file": str(out), "entries": head.size, "root": head.root}
    say(as_json, f"{out}: {head.size} entries under root {head.root}", facts)


@app.command()
def verify(
    file: Annotated[
        Path | None,
        typer.Argument(help="What `cloister audit export` wrote; without it, ask --broker.", metavar="FILE"),
    ] = None,
    broker: Annotated[
        str | None, typer.Option("--broker", metavar="URL", help="The broker's address.")
    ] = None,
    head: HeadOption = None,
    log_key: LogKeyOption = None,
    policy: PolicyOption = None,
    manifest: ManifestOption = None,
    as_json: JsonOption = False,
) -> None:
    """Check a log: an export as a whole, or that a running broker's log extends a head that you kept."""
    if (file is None) == (broker is None):
        raise UsageError("name an export, or a broker", todo="FILE, or --broker URL with --head FILE")
    if broker is not None:
        if head is None:
            raise UsageError(
                "say what the log has to extend", todo="give --head of an earlier `cloister audit head`"
            )
        _verify_broker(broker, head, policy, manifest, as_json)
        return
    assert file is not None  # noqa: S101 -- one of both, above
    _verify_file(file, head, log_key, manifest, as_json)


def _verify_broker(
    broker: str, head: Path, policy: Path | None, manifest: Path | None, as_json: bool
) -> None:
    from cloister.broker.tree_head import parse_head

    kept = parse_head(_read_head(head).head)
    with _open(broker, policy, manifest, None, None, None) as client:
        newest = client.extends(kept)
    facts = {"from": kept.size, "size": newest.size, "root": newest.root}
    say(
        as_json,
        f"the log grew from {kept.size} to {newest.size} entries, and nothing before was touched",
        facts,
    )


def _verify_file(
    file: Path, head: Path | None, log_key: str | None, manifest: Path | None, as_json: bool
) -> None:
    from cloister.broker.audit_proof import bounded_lines, verify_export
    from cloister.cli.owner_options import read_manifest_file
    from cloister.manifest.manifest import Witnesses
    from cloister.manifest.owner_key import parse_public_key

    named = read_manifest_file(manifest).witnesses if manifest is not None else "none"
    keys, threshold = {}, 0
    if isinstance(named, Witnesses):
        keys = {name: parse_public_key(text) for name, text in named.keys.items()}
        threshold = named.threshold
    expected = None if log_key is None else _key(log_key)
    extends = None if head is None else _read_head(head)
    try:
        with file.open("rb") as source:
            summary = verify_export(
                bounded_lines(source), log_key=expected, witnesses=keys, threshold=threshold, extends=extends
            )
    except OSError as error:
        raise UsageError(f"cannot read {file} ({error.strerror})") from None
    facts = {
        "entries": summary.size,
        "root": summary.root,
        "log_key": summary.log_key.hex(),
        "witnesses": sorted(summary.witnesses),
    }
    line = f"{summary.size} entries, root {summary.root}, signed by log key {summary.log_key.hex()}"
    if threshold:
        line += f", co-signed by {', '.join(sorted(summary.witnesses))}"
    if expected is None and extends is None:
        line += "; nothing was pinned: compare the log key with one that you know (--log-key)"
    say(as_json, line, facts)


def _read_head(path: Path) -> Any:
    from cloister.broker.tree_head import MAX_SIGNED_HEAD, parse_signed_head

    try:
        with path.open("rb") as file:
            data = file.read(MAX_SIGNED_HEAD + 1)
    except OSError as error:
        raise UsageError(f"cannot read {path} ({error.strerror})", todo="check --head") from None
    return parse_signed_head(data.removesuffix(b"\n"))


def _key(text: str) -> bytes:
    from cloister.encoding import from_hex
    from cloister.errors import FormatError

    try:
        return from_hex(text, 32, what="--log-key")
    except FormatError as error:
        raise UsageError(error.what, todo="it is the log_key of `cloister audit head --json`") from None


def _open(
    broker: str,
    policy: Path | None,
    manifest: Path | None,
    key: Path | None,
    es256: Path | None,
    ssh: Path | None,
) -> OwnerClient:
    from cloister.cli.owner_options import open_owner, signer_of

    return open_owner(broker, policy=policy, manifest=manifest, signer=signer_of(key, es256, ssh))[0]


def entry_line(entry: Entry) -> str:
    """One line for a person."""
    from datetime import UTC, datetime

    moment = datetime.fromtimestamp(entry.time, UTC).strftime("%Y-%m-%d %H:%M:%S")
    parts = [
        f"{entry.number:>7}  {moment}  {entry.event} {entry.outcome}",
        entry.resource,
        f"to {entry.workload}" if entry.workload else "",
        f"for {entry.purpose}" if entry.purpose else "",
        "SIMULATED" if entry.simulated else "",
        f"by {', '.join(entry.signers)}" if entry.signers else "",
        entry.reason,
    ]
    return "  ".join(part for part in parts if part)


def _write(path: Path, lines: Iterable[bytes]) -> None:
    draft = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with draft.open("xb") as file:
            for line in lines:
                file.write(line)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
    except OSError as error:
        raise UsageError(f"cannot write {path} ({error.strerror})") from None
    finally:
        draft.unlink(missing_ok=True)
