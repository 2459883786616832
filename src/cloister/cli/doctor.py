"""`cloister doctor`: what is wrong with this machine, link by link, and what to do.

The checks are offered by the rooms through the entry point group ``cloister.doctor``; none is known by name here.
The exit code is 0 where nothing failed, else that of the first failure's kind: 1 the TEE does not work, 3 its quote
or endorsements do not verify or the clock is off, 4 a service cannot be reached.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cloister.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from importlib.metadata import EntryPoint

    from cloister.attester.diagnosis import Finding

GROUP = "cloister.doctor"
_STYLES = {"ok": "green", "failed": "bold red", "not asked": "dim"}


def command(
    topic: Annotated[
        str | None, typer.Argument(metavar="[TOPIC]", help="One topic, such as attestation; all by default.")
    ] = None,
    pccs: Annotated[
        str | None, typer.Option("--pccs", metavar="URL", help="Ask this PCCS instead of Intel's service.")
    ] = None,
    ca_file: Annotated[
        Path | None, typer.Option("--ca-file", help="Certificates (PEM) that vouch for the PCCS's TLS.")
    ] = None,
    allow_http: Annotated[
        bool, typer.Option("--allow-http", help="Allow plain http beyond this machine.")
    ] = False,
    offline: Annotated[bool, typer.Option("--offline", help="Fetch nothing.")] = False,
    simulated_root: Annotated[
        str | None,
        typer.Option(
            "--simulated-root", metavar="HEX", help="Verify under this simulated root. Protects nothing."
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> int:
    """Check this machine link by link and say what to do about the first that is broken."""
    from cloister.attester.diagnosis import Options, exit_code

    options = Options(
        offline=offline, pccs=pccs, ca_file=ca_file, allow_http=allow_http, simulated_root=simulated_root
    )
    findings: dict[str, Sequence[Finding]] = {}
    for entry in _topics(topic):
        findings[entry.name] = entry.load()(options)
    if as_json:
        typer.echo(json.dumps(_document(findings)))
    else:
        _show(findings)
    return next((code for found in findings.values() if (code := exit_code(found))), 0)


def _topics(topic: str | None) -> list[EntryPoint]:
    from importlib.metadata import entry_points

    known = sorted(entry_points(group=GROUP), key=lambda entry: entry.name)
    if topic is None:
        return known
    chosen = [entry for entry in known if entry.name == topic]
    if not chosen:
        raise UsageError(
            f"there is no topic {topic[:64]!r}", todo=f"known are: {', '.join(entry.name for entry in known)}"
        )
    return chosen


def _document(findings: dict[str, Sequence[Finding]]) -> dict[str, object]:
    rows = [
        {"topic": topic, "check": one.check, "state": one.state, "found": one.found, "todo": one.todo}
        for topic, found in findings.items()
        for one in found
    ]
    first = next((row for row in rows if row["state"] == "failed"), None)
    return {"at": int(time.time()), "findings": rows, "first_failure": first and first["check"]}


def _show(findings: dict[str, Sequence[Finding]]) -> None:
    from rich.console import Console

    console = Console(highlight=False)
    for topic, found in findings.items():
        console.print(topic, style="bold", markup=False)
        for one in found:
            console.print(f"  {one.state:<10}", style=_STYLES[one.state], end="", markup=False)
            console.print(f"{one.check}: {_printable(one.found)}", markup=False, soft_wrap=True)
            if one.state == "failed" and one.todo:
                console.print(f"            → {_printable(one.todo)}", markup=False, soft_wrap=True)
    failed = [one for found in findings.values() for one in found if one.state == "failed"]
    console.print(
        f"{len(failed)} failed; mend “{failed[0].check}” first" if failed else "nothing failed",
        style="bold",
        markup=False,
    )


def _printable(text: str) -> str:
    return "".join(character if character.isprintable() else "?" for character in text)
