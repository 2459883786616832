"""`cloister owner page`: a page about a broker, served on the owner's or auditor's own machine and to nobody else."""

from __future__ import annotations

import json
import os
import tempfile
import threading
import time
import webbrowser
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cloister.cli.owner_options import (
    BrokerOption,
    Es256Option,
    JsonOption,
    KeyOption,
    ManifestOption,
    OriginOption,
    PolicyOption,
    SshOption,
)

if TYPE_CHECKING:
    from cloister.appraisal.policy import Policy
    from cloister.broker.audit import Entry


def command(
    broker: BrokerOption,
    policy: PolicyOption = None,
    manifest: ManifestOption = None,
    origin: OriginOption = None,
    key: KeyOption = None,
    es256: Es256Option = None,
    ssh: SshOption = None,
    host: Annotated[
        str, typer.Option("--host", help="An address of this machine itself; every other is refused.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="0 takes a free one.")] = 8097,
    no_browser: Annotated[bool, typer.Option("--no-browser", help="Only print the page's address.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Serve a page here: what a verified broker holds, its rules in words, who received what, and its log, proven."""
    from cloister.channel.transport import wall_clock
    from cloister.cli.owner_options import open_owner, signer_of
    from cloister.cli.serving import run_server, take_port
    from cloister.client.guard import Guard, Secrets, require_loopback
    from cloister.client.heads import default_heads
    from cloister.client.owners_page import create_owners_page
    from cloister.client.owners_watch import Watch

    address = require_loopback(host)
    signer = signer_of(key, es256, ssh)
    listener = take_port(address, port)
    with listener:
        client, channel = open_owner(broker, policy=policy, manifest=manifest, signer=signer)
        with channel:
            watch = Watch(
                client,
                channel,
                address=broker.rstrip("/"),
                origin=_origin(origin, manifest),
                signing=signer is not None,
                heads=default_heads(dict(os.environ), Path.home()),
                now=wall_clock,
            )
            bound = listener.getsockname()[1]
            guard = Guard(create_owners_page(watch, evidence_report), Secrets.draw(), port=bound)
            shown = f"[{address}]" if ":" in address else address
            url = f"http://{shown}:{bound}{guard.entrance}"
            listener.listen()  # before the browser asks; the server takes over what waits
            with opened(url, wanted=not no_browser):
                # Once, and to whoever started it: the address opens the page one time.
                typer.echo(json.dumps({"page": url}) if as_json else f"open once: {url}")
                run_server(guard, listener, name="owners' page", as_json=as_json)


def evidence_report(entry: Entry, evidence: bytes, policy: Policy | None) -> str:
    """What `cloister verify` says of an entry's evidence as of the entry's time, as one HTML page. It fetches nothing.

    Raises :class:`~cloister.errors.CloisterError` if it is no evidence.
    """
    from cloister.appraisal.asked import Asked
    from cloister.appraisal.examination import examine
    from cloister.appraisal.given import Given
    from cloister.cli.endorsements_at_hand import at_hand
    from cloister.cli.report_html import html_of
    from cloister.cli.report_words import Origin, report_of
    from cloister.client.owners_evidence import bundle_of
    from cloister.evidence.recognise import recognise

    subject = recognise(bundle_of(evidence))
    given, told = at_hand(subject, Given(), offline=True, pccs=None, now=entry.time, cache=None)
    examination = examine(subject, Asked(now=entry.time, given=given, policy=policy))
    origin = Origin(
        source=f"evidence {entry.evidence}, of entry {entry.number} of the broker's log",
        endorsements=told,
        clock=int(time.time()),
        policy=_policy_words(entry, policy),
    )
    report = report_of(examination, origin)
    # The report's own word for another time than now is an option of `cloister verify`.
    sections = tuple(
        replace(
            section,
            lines=tuple(
                replace(line, meaning="the time of the entry, not now", tone="")
                if line.name == "verified as of"
                else line
                for line in section.lines
            ),
        )
        for section in report.sections
    )
    todo = report.todo
    if examination.verdict == "matches":
        todo = (
            "the broker checked the nonce of that session; it is not kept, so freshness is the broker's word"
        )
    return html_of(
        replace(report, sections=sections, todo=todo), title=f"entry {entry.number}, {entry.event}"
    )


def _policy_words(entry: Entry, policy: Policy | None) -> str:
    if policy is not None:
        return f"as the entry names it: {policy.digest}"
    return f"{entry.policy}, which no signed document here has" if entry.policy else ""


def _origin(origin: str | None, manifest: Path | None) -> str | None:
    """What is pinned; nothing where neither was given, which shows a broker in laptop mode only."""
    from cloister.cli.owner_options import origin_for

    return None if origin is None and manifest is None else origin_for(origin, manifest)


@contextmanager
def opened(url: str, *, wanted: bool) -> Iterator[None]:
    """A browser at ``url``, by way of a private file: a command line can be read by everybody on this machine."""
    if not wanted:
        yield
        return
    with tempfile.TemporaryDirectory(prefix="cloister-page-") as folder:
        file = Path(folder) / "open.html"
        file.touch(mode=0o600)
        file.write_text(
            '<!doctype html><meta charset="utf-8"><meta name="referrer" content="no-referrer"><title>Cloister</title>'
            f'<meta http-equiv="refresh" content="0;url={escape(url)}">'
        )
        threading.Thread(target=webbrowser.open, args=(file.as_uri(),), daemon=True).start()
        yield
