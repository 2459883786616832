"""`cloister chat --web`: the page of a verified service, served on the user's own machine and to nobody else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from cloister.channel.receipt_file import Shown


def serve_page(
    url: str,
    *,
    policy: Path | None,
    manifest: Path | None,
    service_key: str | None,
    host: str,
    port: int,
    open_browser: bool,
    as_json: bool,
) -> None:
    """Serve the page until Ctrl-C. Raises what `connect` raises, UsageError and NetworkError."""
    from cloister.channel.transport import prepare
    from cloister.cli.interruption import ended_like_ctrl_c
    from cloister.cli.owner_page import opened
    from cloister.cli.proxy import verified
    from cloister.cli.serving import run_server, take_port
    from cloister.client.chat_page import Receipts, create_chat_page
    from cloister.client.guard import CHANGES, Guard, Secrets, require_loopback
    from cloister.client.proxy import Proxy
    from cloister.client.proxy_door import Door

    address = require_loopback(host)
    origin, verification = prepare(url, policy, manifest=manifest)
    receipts = Receipts()
    listener = take_port(address, port)
    try:
        with listener, ended_like_ctrl_c():
            listener.listen()  # before the browser asks; the server takes over what waits
            sealed = verified(origin, verification, receipts=receipts)
            proxy = Proxy(origin, sealed, Door.of_page(), service_key=service_key, told=_tell)
            page = create_chat_page(
                origin, sealed, proxy, receipts, lambda shown: report(shown, str(origin), policy)
            )
            bound = listener.getsockname()[1]
            guard = Guard(page, Secrets.draw(), port=bound, methods=CHANGES)
            shown = f"[{address}]" if ":" in address else address
            entrance = f"http://{shown}:{bound}{guard.entrance}"
            with opened(entrance, wanted=open_browser):
                # Once, and to whoever started it: the address opens the page one time.
                typer.echo(json.dumps({"page": entrance}) if as_json else f"open once: {entrance}")
                run_server(guard, listener, name="chat page", as_json=as_json)
    except KeyboardInterrupt:
        raise typer.Exit from None  # Ctrl-C and SIGTERM are how it ends


def report(shown: Shown, source: str, policy: Path | None) -> str:
    """What was verified, as one HTML page that loads nothing. Raises CloisterError."""
    from cloister.appraisal.asked import Asked
    from cloister.appraisal.examination import examine
    from cloister.appraisal.given import Given
    from cloister.appraisal.policy import read_policy
    from cloister.cli.endorsements_at_hand import at_hand
    from cloister.cli.report_html import html_of
    from cloister.cli.report_words import Origin, report_of
    from cloister.evidence.recognise import recognise

    subject = recognise(shown.evidence)
    given, told = at_hand(subject, Given(), offline=True, pccs=None, now=shown.verified_at, cache=None)
    judged = None if policy is None else read_policy(policy)
    asked = Asked(now=shown.verified_at, given=given, policy=judged, nonce=shown.nonce)
    origin = Origin(
        source=source,
        endorsements=told,
        clock=shown.verified_at,
        policy="" if policy is None else str(policy),
    )
    return html_of(report_of(examine(subject, asked), origin), title=source)


def _tell(line: str) -> None:
    typer.echo(line, err=True)
