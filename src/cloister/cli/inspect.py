"""`cloister inspect`: what stands in a file of evidence or endorsements, field by field, without trusting any of it.

Everything it prints could have been written by anybody: it says so in its first line, and in JSON in a field of its
own. To know whether evidence is genuine, verify it.
"""

from __future__ import annotations

import json
from typing import Annotated, Final

import typer

NOTICE: Final = (
    "NOTHING HERE IS VERIFIED: parsed only; anybody could have written it. To check it: cloister verify"
)
TRUST: Final = "none: parsed only"
FORMAT: Final = "cloister/inspection/v1"


def command(
    source: Annotated[str, typer.Argument(metavar="FILE", help="Told by its content; - for standard input.")],
    full: Annotated[bool, typer.Option("--full", help="Show long values and long lists whole.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Show every field of evidence or endorsements, without trusting them."""
    from cloister.cli.evidence_input import read_input
    from cloister.cli.inspection import inspect
    from cloister.cli.report_words import inert
    from cloister.evidence.recognise import recognise

    subject = recognise(read_input(source))
    sections = inspect(subject, full=full)
    if as_json:
        document = {
            "format": FORMAT,
            "trust": TRUST,
            "source": source,
            "kind": subject.kind,
            "what": subject.what,
            "sections": [
                {
                    "title": section.title,
                    "fields": [
                        {"name": line.name, "value": line.value, "meaning": line.meaning}
                        for line in section.lines
                    ],
                }
                for section in sections
            ],
        }
        typer.echo(json.dumps(document, indent=2))
        return
    from rich.text import Text

    from cloister.cli.report_text import console, flush, show_section

    out = console()
    with out.capture() as capture:
        out.print(Text(NOTICE, "bold yellow"), soft_wrap=True)
        out.print(Text(f"{inert(source)}: {subject.what}"), soft_wrap=True)
        for section in sections:
            show_section(section, out)
    flush(capture.get())
