"""What a signed document says, who signed it and who is missing: for a terminal, or as JSON."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from cloister.errors import ManifestError

if TYPE_CHECKING:
    from cloister.manifest.manifest import Manifest
    from cloister.manifest.signatures import Demand, Document, Standing
    from cloister.manifest.signed import Signed


def show_document(file: Path, signed: Signed, base: Manifest | None, *, as_json: bool) -> None:
    """Print it; ``base`` is a manifest's predecessor, or for rules and orders the manifest in force."""
    from cloister.manifest.manifest import Manifest
    from cloister.manifest.signatures import demands, in_words, read_document, standings

    kind, document = read_document(signed)
    if base is not None and base.application != document.application:
        raise ManifestError(f"the manifest is of {base.application}, the {kind} of {document.application}")
    owners: dict[str, str] = {}
    if isinstance(document, Manifest):
        owners |= document.owners
    if base is not None:
        owners |= base.owners  # their keys are the ones that count
    standing = standings(kind, signed, owners)
    wanted = demands(document, standing, base)
    if as_json:
        typer.echo(json.dumps(_plain(file, kind, signed, document, standing, wanted), indent=2))
        return
    typer.echo(f"{file}: a {kind}, digest {signed.digest}")
    for line in in_words(document):
        typer.echo(f"  {line}")
    for one in standing:
        who = one.name or f"a key that is not named here ({one.key})"
        typer.echo(f"signed by {who}" + (f", and DOES NOT HOLD: {one.refusal}" if one.refusal else ""))
    if not standing:
        typer.echo("signed by nobody yet")
    for demand in wanted:
        still = f"missing: {', '.join(demand.missing)}" if demand.missing else "complete"
        typer.echo(f"{demand.what} needs {demand.quorum}: {still}")
    if not wanted:
        typer.echo("who has to sign is told with --manifest FILE, the manifest in force")


def _plain(
    file: Path,
    kind: str,
    signed: Signed,
    document: Document,
    standing: list[Standing],
    wanted: list[Demand],
) -> dict[str, object]:
    from cloister.manifest.signatures import in_words

    return {
        "file": str(file),
        "kind": kind,
        "digest": signed.digest,
        "version": document.version,
        "words": in_words(document),
        "signatures": [{"name": one.name, "key": one.key, "refusal": one.refusal} for one in standing],
        "needs": [
            {
                "what": demand.what,
                "owners": list(demand.quorum.owners),
                "threshold": demand.quorum.threshold,
                "missing": list(demand.missing),
            }
            for demand in wanted
        ],
    }
