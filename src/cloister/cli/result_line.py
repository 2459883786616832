"""The last line of a command: what was done, for a reader or as JSON."""

from __future__ import annotations

import json
from typing import Any

import typer


def say(as_json: bool, line: str, facts: dict[str, Any]) -> None:
    """Print ``line``, or ``facts`` as one line of JSON."""
    typer.echo(json.dumps(facts) if as_json else line)
