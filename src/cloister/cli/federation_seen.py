"""A federated run on this machine's own page, and as one file: what `cloister federation status --page --report` do."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Final

import typer

from cloister.errors import NetworkError

if TYPE_CHECKING:
    from cloister.federated.progress import Fact

PAUSE: Final = 1.0
PATIENCE: Final = 600.0
"""Seconds that an aggregator may not answer before one stops watching: it may be started again."""


def coming(
    look: Callable[[], tuple[Fact, ...]],
    *,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> Iterator[Fact]:
    """Facts as they come, until the run has ended. Raises NetworkError once the aggregator was silent for too long."""
    from cloister.federated.progress import Ended

    shown, heard = 0, clock()
    while True:
        try:
            facts = look()
            heard = clock()
        except NetworkError:
            if clock() - heard > PATIENCE:
                raise
            facts = ()
        for fact in facts[shown:]:
            yield fact
            if isinstance(fact, Ended):
                return
        shown = max(shown, len(facts))
        sleep(PAUSE)


def write_report(path: Path, facts: tuple[Fact, ...]) -> None:
    """One HTML file. Raises UsageError where it cannot be written."""
    from cloister.federated.report.document import report_html
    from cloister.manifest.storage import write_whole

    write_whole(path, report_html(facts, now=int(time.time())).encode(), replace=True)


def serve_page(look: Callable[[], tuple[Fact, ...]], *, port: int, as_json: bool) -> None:
    """The run as a page on this machine and for whoever started it, until a signal."""
    from cloister.cli.serving import run_server, take_port
    from cloister.client.federation_page import create_federation_page
    from cloister.client.guard import Guard, Secrets
    from cloister.federated.report.document import live_run, report_html, report_style

    page = create_federation_page(
        lambda: live_run(look(), now=int(time.time())),
        lambda: report_html(look(), now=int(time.time())),
        style=report_style(),
    )
    listener = take_port("127.0.0.1", port)
    with listener:
        bound = listener.getsockname()[1]
        guard = Guard(page, Secrets.draw(), port=bound)
        url = f"http://127.0.0.1:{bound}{guard.entrance}"
        listener.listen()
        typer.echo(json.dumps({"page": url}) if as_json else f"open once: {url}")
        run_server(guard, listener, name="federation's page", as_json=as_json)
