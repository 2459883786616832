"""`cloister verify`: is this evidence genuine, and is it what a policy asks for? Of what is sealed: sealed_verify.py.

FILE is any format that evidence/recognise.py knows, told by its content; a URL is a Cloister service, which is asked
over a fresh nonce. Exit codes: 0 genuine or accepted, 3 not genuine, 5 genuine but against the policy, 4 a network
failure, 2 a wrong question.
"""

from __future__ import annotations

import hashlib
import json
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cloister.cli.sealed_options import KeyFileIfAnyOption, KeyOption, SignersOption, VersionOption
from cloister.errors import PolicyError, UsageError

if TYPE_CHECKING:
    from cloister.appraisal.policy import Policy

FileArgument = Annotated[
    str,
    typer.Argument(
        metavar="FILE|URL|SEALED",
        help="Evidence, told by its content; - for standard input; a service; or what is sealed.",
    ),
]
PolicyOption = Annotated[Path | None, typer.Option("--policy", help="The appraisal policy (TOML).")]
EndorsementsOption = Annotated[
    list[str] | None,
    typer.Option(
        "--endorsements", metavar="FILE", help="Collateral, certificates, CRLs, RIMs; may be repeated."
    ),
]
EventLogOption = Annotated[
    str | None, typer.Option("--event-log", metavar="FILE", help="The log that belongs to a quote.")
]
NonceOption = Annotated[
    str | None, typer.Option("--nonce", metavar="HEX", help="The nonce that the evidence answers, 32 bytes.")
]
AtOption = Annotated[
    str | None,
    typer.Option(
        "--at", metavar="TIME", help="Verify as of this time: 2026-03-01, …T12:00Z or Unix seconds."
    ),
]
HtmlOption = Annotated[
    Path | None, typer.Option("--html", metavar="FILE", help="Also write the report as one page.")
]
OfflineOption = Annotated[
    bool, typer.Option("--offline", help="Fetch nothing: use what is given, carried along or cached.")
]
PccsOption = Annotated[
    str | None, typer.Option("--pccs", metavar="URL", help="Fetch Intel's collateral from this PCCS.")
]
CacheOption = Annotated[
    Path | None,
    typer.Option("--cache", metavar="DIR", help="Cache of endorsements; default as `cloister endorsements`."),
]
EarOption = Annotated[
    list[str] | None,
    typer.Option("--ear", metavar="KEY", help="Public key of a verifier whose EAR tokens count (PEM)."),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]


def command(
    source: FileArgument,
    policy: PolicyOption = None,
    endorsements: EndorsementsOption = None,
    event_log: EventLogOption = None,
    nonce: NonceOption = None,
    at: AtOption = None,
    html: HtmlOption = None,
    offline: OfflineOption = False,
    pccs: PccsOption = None,
    cache: CacheOption = None,
    ear: EarOption = None,
    signer: SignersOption = None,
    key_file: KeyFileIfAnyOption = None,
    key: KeyOption = None,
    minimum_version: VersionOption = 1,
    as_json: JsonOption = False,
) -> None:
    """Verify evidence: a table of numbered checks, what it says, and what to do about a failure.

    Or what is sealed: of a sealed directory its signature, files and digests; with --key-file every segment.
    """
    from cloister.cli.sealed_verify import is_sealed, verify_sealed

    if is_sealed(source):
        if any((policy, endorsements, event_log, nonce, at, html, offline, pccs, cache, ear)):
            raise UsageError("what is sealed is no evidence", todo="give --signer and --key-file only")
        verify_sealed(
            Path(source),
            signer=signer,
            key_file=key_file,
            key=key,
            minimum_version=minimum_version,
            as_json=as_json,
        )
        return
    if signer or key_file or key or minimum_version > 1:
        raise UsageError("evidence has no signer or key of its own to give", todo="is it a sealed directory?")
    from cloister.appraisal.asked import Asked
    from cloister.appraisal.examination import examine
    from cloister.appraisal.given import gather
    from cloister.channel.transport import fresh_nonce
    from cloister.cli.endorsements_at_hand import at_hand
    from cloister.cli.evidence_input import parse_nonce, read_input, read_logs, recognise_files
    from cloister.cli.report_words import Origin, inert, report_of
    from cloister.cli.service_evidence import ask_service, is_address
    from cloister.evidence.recognise import recognise

    clock = int(time.time())
    now = clock if at is None else parse_time(at)
    loaded, policy_sha256 = _policy(policy)
    given = gather(recognise_files(endorsements))
    event, firmware = read_logs(event_log)
    drawn = parse_nonce(nonce)
    if is_address(source):
        if drawn is not None or at is not None:
            raise UsageError(
                "a service is asked over a fresh nonce, now",
                todo="leave --nonce and --at out, or give a file",
            )
        drawn = fresh_nonce()
        data = ask_service(source, drawn)
    else:
        data = read_input(source)
    subject = recognise(data)
    if is_address(source) and subject.kind != "bundle":
        raise UsageError(
            f"the service answered with {subject.what}, not with evidence", todo="is it a Cloister service?"
        )
    given, told = at_hand(
        subject, given, offline=offline, pccs=pccs, now=None if at is None else now, cache=cache
    )
    examination = examine(
        subject,
        Asked(
            now=now,
            given=given,
            policy=loaded,
            nonce=drawn,
            event_log=event,
            firmware_log=firmware,
            token_keys=tuple(read_input(name) for name in ear or ()),
        ),
    )
    origin = Origin(
        source=inert(source),
        endorsements=told,
        clock=clock,
        policy=inert(str(policy)) if policy else "",
        policy_file_sha256=policy_sha256,
    )
    report = report_of(examination, origin)
    if html is not None:
        from cloister.cli.report_html import html_of, write_html

        write_html(html, html_of(report, title=origin.source))
    if as_json:
        from cloister.cli.report_json import json_of

        typer.echo(json.dumps(json_of(examination, origin), indent=2))
    else:
        from cloister.cli.report_text import console, show_report

        show_report(report, console())
        if html is not None:
            sys.stdout.write(f"\nreport: {inert(str(html))}\n")
    if examination.exit_code:
        raise typer.Exit(examination.exit_code)


def parse_time(text: str) -> int:
    """Unix seconds of ISO 8601 text (UTC where it names no zone) or of a number.

    Raises :class:`~cloister.errors.UsageError`.
    """
    try:
        if text.isascii() and text.isdigit():
            seconds = int(text[:16])
        else:
            moment = datetime.fromisoformat(text)
            seconds = int((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp())
    except (ValueError, OverflowError):
        seconds = -1
    if not 0 <= seconds < 1 << 34:
        raise UsageError(
            "--at is no time", todo="give 2026-03-01, 2026-03-01T12:00:00Z, or seconds since 1970-01-01"
        )
    return seconds


def _policy(path: Path | None) -> tuple[Policy | None, str]:
    if path is None:
        return None, ""
    from cloister.appraisal.document import MAX_POLICY
    from cloister.appraisal.policy import load_policy
    from cloister.cli.evidence_input import read_input

    data = read_input(str(path), limit=MAX_POLICY)
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError:
        raise PolicyError(f"{path} is not UTF-8 text", todo="is it a policy?") from None
    return load_policy(text, name=str(path)), hashlib.sha256(data).hexdigest()
