"""`cloister receipt`: what a workload signed about its answers, checked offline by who was not there.

Exit codes: 0 it holds, 2 usage, 3 it does not hold, or its evidence does not verify, 5 the policy refuses the workload.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cloister.errors import UsageError

if TYPE_CHECKING:
    from cloister.appraisal.policy import Policy
    from cloister.channel.manifest_anchor import Anchored
    from cloister.channel.receipt_check import Checked
    from cloister.channel.receipt_file import ReceiptFile

MAX_CONTENT = 64 << 20
app = typer.Typer(no_args_is_help=True, help="Check and share the signed receipts of answers.")

FileArgument = Annotated[
    Path, typer.Argument(metavar="FILE", help="As `cloister chat --receipts` keeps them.")
]


@app.command()
def verify(
    file: FileArgument,
    policy: Annotated[
        list[Path] | None,
        typer.Option("--policy", help="Policy that the workload had to meet; of several, one."),
    ] = None,
    manifest: Annotated[
        Path | None,
        typer.Option(
            "--manifest", help="Instead: an anchor against which the manifest in the receipt has to hold."
        ),
    ] = None,
    request: Annotated[
        Path | None, typer.Option("--request", help="The body of the request, byte by byte: was it this one?")
    ] = None,
    response: Annotated[
        Path | None, typer.Option("--response", help="The body of the answer, byte by byte: was it this one?")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Check a receipt with nothing but itself and a policy or an anchor: evidence, signature, and what was said if given."""
    from cloister.channel.receipt_check import check_content, check_file
    from cloister.manifest.storage import read_bounded

    found = _read(file)
    checked = check_file(found, _accepts(policy or [], manifest))
    said = {
        name: None if path is None else read_bounded(path, limit=MAX_CONTENT, what=f"the {name}")
        for name, path in (("request", request), ("response", response))
    }
    if request is not None or response is not None:
        check_content(found, checked.receipt, request=said["request"], response=said["response"])
    _show(checked, [name for name, data in said.items() if data is not None], as_json=as_json)


@app.command()
def share(
    file: FileArgument,
    out: Annotated[Path, typer.Option("--out", help="Where to write it; must not exist.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Copy a receipt without its salt: it still verifies, and nobody can guess from it what was said."""
    from cloister.manifest.storage import write_whole

    write_whole(out, _read(file).shared().encode(), replace=False)
    typer.echo(json.dumps({"shared": str(out)}) if as_json else f"{out}: without what opens its commitments")


def _accepts(policies: list[Path], manifest: Path | None) -> Sequence[Policy] | Anchored:
    from dataclasses import replace

    from cloister.appraisal.policy import read_policy
    from cloister.channel.manifest_anchor import Anchored, read_anchor

    if bool(policies) == (manifest is not None):
        raise UsageError(
            "a workload is accepted by a policy or by a manifest",
            todo="pass --policy, or --manifest with an anchor",
        )
    if manifest is None:
        return [read_policy(one) for one in policies]
    # What was seen since does not make an answer of then another one: only the anchor's own floor counts.
    return Anchored(replace(read_anchor(manifest), floor_file=None))


def receipt_keeper(folder: Path) -> Callable[[ReceiptFile], None]:
    """Keeps receipts in this folder, which is made; each in a file of its request's id, mode 0600. Raises UsageError."""
    from cloister.channel.receipts import parse_receipt
    from cloister.manifest.storage import write_whole

    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        raise UsageError(f"{folder} cannot be made ({error.strerror})", todo="check --receipts") from None

    def keep(file: ReceiptFile) -> None:
        identity = parse_receipt(file.receipt, file.signature).receipt.request_id
        write_whole(folder / f"{identity}.receipt", file.encode(), replace=False, mode=0o600)

    return keep


def _read(path: Path) -> ReceiptFile:
    from cloister.channel.receipt_file import MAX_FILE, parse_file
    from cloister.manifest.storage import read_bounded

    return parse_file(read_bounded(path, limit=MAX_FILE, what="the receipt"))


def _show(checked: Checked, compared: list[str], *, as_json: bool) -> None:
    receipt, result = checked.receipt, checked.result
    times = {name: _time(getattr(receipt, name)) for name in ("began", "ended")}
    events = {name: payload.hex() for name, payload in result.claims.events.items()}
    facts: dict[str, object] = {
        "request_id": receipt.request_id,
        **times,
        "appraised_as_of": _time(checked.result.verified_at),
        "tee": result.claims.tee,
        "simulated": result.claims.simulated,
        "model_index": events.get("cloister.model-index"),
        "policy": result.policy_digest,
        "manifest": receipt.manifest_sha256,
        "manifest_version": None if checked.manifest is None else checked.manifest.version,
        "passages": len(receipt.passages),
        "compared": compared,
    }
    if as_json:
        typer.echo(json.dumps({"verified": True, **facts}))
        return
    if result.claims.simulated:
        typer.secho("SIMULATED TEE: nothing was protected.", fg="white", bg="red", bold=True, err=True)
    for name, value in facts.items():
        if value not in (None, [], False):
            shown = ", ".join(value) if isinstance(value, list) else value
            typer.echo(f"{name.replace('_', ' '):16} {shown}")
    typer.echo(
        "the receipt holds, if its evidence came at that time: its holder says so, and the workload's clock"
    )


def _time(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
