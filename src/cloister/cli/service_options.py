"""What every command is told that talks to a sealed service."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

UrlArgument = Annotated[str, typer.Argument(metavar="URL", help="Address of the sealed service.")]
PolicyOption = Annotated[
    Path | None, typer.Option("--policy", help="The appraisal policy (TOML) that the service has to meet.")
]
ManifestOption = Annotated[
    Path | None, typer.Option("--manifest", help="Instead: an anchor that pins owners and a workload.")
]
ServiceKeyOption = Annotated[
    Path | None,
    typer.Option("--service-key-file", help="The API key that the service asks for (mode 0600)."),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def key_headers(file: Path | None) -> dict[str, str]:
    """Header fields with the API key of this private file. Raises :class:`UsageError`."""
    from cloister.cli.api_key_file import read_api_key

    return {"authorization": f"Bearer {read_api_key(file)}"} if file else {}
