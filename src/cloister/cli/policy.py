"""`cloister policy`: check a policy, read it in words, or start one from evidence.

A draft from evidence holds ``DECIDE`` wherever evidence cannot decide; `check` refuses it, line by line, until a person
has. Exit codes: 0 it is a policy, 2 it is none, and for evidence those of `cloister verify`.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cloister.errors import EXIT_USAGE, PolicyError, UsageError

if TYPE_CHECKING:
    from cloister.appraisal.explain import Section

app = typer.Typer(no_args_is_help=True, help="Check a policy, read it in words, or start one from evidence.")

JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
_MARKS = {"required": "+", "accepted": "!", "not checked": "?", "never": "x"}


@app.command("check")
def check(
    files: Annotated[list[Path], typer.Argument(metavar="FILE...", help="Policies (TOML).")],
    as_json: JsonOption = False,
) -> None:
    """Say in one line what each policy accepts, or at which line it is wrong or undecided."""
    found = [_checked(path) for path in files]
    if as_json:
        typer.echo(json.dumps({"policies": found}, indent=2))
    else:
        for one in found:
            for line in one["refusals"]:
                typer.echo(line, err=True)
            if one["accepted"]:
                typer.echo(f"{one['file']}: {one['summary']}; digest {one['digest']}")
    if not all(one["accepted"] for one in found):
        raise typer.Exit(EXIT_USAGE)


@app.command("explain")
def explain(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A policy (TOML).")],
    as_json: JsonOption = False,
) -> None:
    """Say in words what a policy requires, what it leaves unchecked, and what that risks."""
    from cloister.appraisal.explain import explain as in_words
    from cloister.appraisal.explain import summary
    from cloister.appraisal.policy import read_policy

    policy = read_policy(file)
    sections = in_words(policy)
    if as_json:
        document = {
            "file": str(file),
            "digest": policy.digest,
            "summary": summary(policy),
            "sections": [_plain(section) for section in sections],
        }
        typer.echo(json.dumps(document, indent=2))
        return
    typer.echo(f"{file}: {summary(policy)}")
    typer.echo(f"digest {policy.digest}")
    typer.echo(
        "+ required   ! accepted, a relaxation   ? not checked   x never accepted, whatever is written"
    )
    for section in sections:
        typer.echo(f"\n{section.title}")
        for one in section.statements:
            typer.echo(f"  {_MARKS[one.kind]} {_inert(one.text)}")
            if one.risk:
                typer.echo(f"      risk: {one.risk}")


@app.command("from-evidence")
def from_evidence(
    evidence: Annotated[
        str,
        typer.Argument(metavar="EVIDENCE", help="Evidence, told by its content; - for standard input."),
    ],
    endorsements: Annotated[
        list[str] | None,
        typer.Option(
            "--endorsements", metavar="FILE", help="Collateral, certificates, CRLs, RIMs; may be repeated."
        ),
    ] = None,
    event_log: Annotated[
        str | None, typer.Option("--event-log", metavar="FILE", help="The log that belongs to a quote.")
    ] = None,
    nonce: Annotated[
        str | None, typer.Option("--nonce", metavar="HEX", help="The nonce that a bundle answers, 32 bytes.")
    ] = None,
    at: Annotated[
        str | None,
        typer.Option(
            "--at", metavar="TIME", help="Verify as of this time: 2026-03-01, …T12:00Z or Unix seconds."
        ),
    ] = None,
    simulated_root: Annotated[
        str | None, typer.Option("--simulated-root", metavar="SHA256", help="The root of a SIMULATED TEE.")
    ] = None,
    simulated_device_root: Annotated[
        str | None,
        typer.Option("--simulated-device-root", metavar="SHA256", help="The root of SIMULATED GPUs."),
    ] = None,
    simulated_rim_root: Annotated[
        str | None,
        typer.Option(
            "--simulated-rim-root", metavar="SHA256", help="The root of SIMULATED reference manifests."
        ),
    ] = None,
    tpm_root: Annotated[
        str | None, typer.Option("--tpm-root", metavar="SHA256", help="The root of a TPM's key.")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", help="Write there, where nothing is yet, instead of standard output."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Draft a policy from evidence: pinned to what was measured, with a DECIDE wherever you have to decide."""
    from cloister.appraisal.document import parse_document
    from cloister.appraisal.draft_observed import draft_for_review
    from cloister.appraisal.given import gather
    from cloister.appraisal.observation import NamedRoots, observe
    from cloister.cli.evidence_input import parse_nonce, read_input, read_logs, recognise_files
    from cloister.cli.verify import parse_time
    from cloister.evidence.recognise import recognise

    now = int(time.time()) if at is None else parse_time(at)
    launch, firmware = read_logs(event_log)
    claims = observe(
        recognise(read_input(evidence)),
        roots=NamedRoots(simulated_root, simulated_device_root, simulated_rim_root, tpm_root),
        now=now,
        given=gather(recognise_files(endorsements)),
        nonce=parse_nonce(nonce),
        event_log=launch,
        firmware_log=firmware,
    )
    text = draft_for_review(claims, title=_title(claims.tee, claims.simulated, now, fresh=nonce is not None))
    name = str(out) if out else "the draft"
    marks = parse_document(text, name=name).marks
    if out is not None:
        _write(out, text)
    if as_json:
        decisions = [{"line": one.line, "field": one.field, "question": one.note} for one in marks]
        typer.echo(
            json.dumps(
                {"tee": claims.tee, "simulated": claims.simulated, "draft": text, "decisions": decisions}
            )
        )
    elif out is None:
        typer.echo(text, nl=False)
    else:
        typer.echo(f"{name}: {len(marks)} decisions are yours; then run `cloister policy check {name}`")


def _checked(path: Path) -> dict[str, Any]:
    from cloister.appraisal.document import parse_document
    from cloister.appraisal.explain import summary
    from cloister.appraisal.policy import load_policy, read_policy_text

    one: dict[str, Any] = {"file": str(path), "accepted": False, "refusals": []}
    try:
        text = read_policy_text(path)
        marks = parse_document(text, name=str(path)).marks
        if marks:
            one["refusals"] = [
                f"policy: {path}:{mark.line}: {mark.field} is not decided; {mark.note}" for mark in marks
            ]
            return one
        policy = load_policy(text, name=str(path))
    except PolicyError as error:
        one["refusals"] = [str(error)]
        return one
    return {
        **one,
        "accepted": True,
        "digest": policy.digest,
        "tees": list(policy.tees),
        "simulated": policy.roots.simulated is not None,
        "summary": summary(policy),
    }


def _plain(section: Section) -> dict[str, Any]:
    statements = [
        {"kind": one.kind, "field": one.field, "text": one.text, **({"risk": one.risk} if one.risk else {})}
        for one in section.statements
    ]
    return {"title": section.title, "statements": statements}


def _title(tee: str, simulated: bool, now: int, *, fresh: bool) -> str:
    from cloister.cli.report_words import moment

    lines = [
        f"Draft from genuine {tee} evidence, verified as of {moment(now)}.",
        "A start for review, not a recommendation.",
        "Genuine is not wanted: compare each digest with what you built before you trust it.",
        'Each "DECIDE: ..." is yours to replace; until then no command accepts this file.',
    ]
    if not fresh:
        lines.append("The evidence was not held against a nonce: it may be old, or somebody else's.")
    if simulated:
        lines.append("SIMULATED TEE: no hardware protects what this policy accepts.")
    return "\n".join(lines)


def _write(path: Path, text: str) -> None:
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        raise UsageError(
            f"{path} exists, and a policy is not overwritten", todo="choose another name"
        ) from None
    except OSError as error:
        raise UsageError(f"cannot write {path}: {error.strerror}", todo="check --out") from None


def _inert(text: str) -> str:
    """Names come out of the file: nothing of them steers a terminal."""
    return "".join(char if char.isprintable() else "?" for char in text)
