"""What a federation says, who signed it and who is missing: for a terminal, or as JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from cloister.federated.agreement import AgreedFederation
    from cloister.federated.federation import Federation
    from cloister.manifest.signatures import Standing
    from cloister.manifest.signed import Signed


@dataclass(frozen=True, slots=True)
class Shown:
    """A document with what can be told of it."""

    signed: Signed
    federation: Federation
    before: Federation | None
    """Its predecessor, if that was shown."""
    standing: list[Standing]
    missing: tuple[str, ...]
    """Parties without a signature that holds."""
    agreed: AgreedFederation | None
    """If it can be in force: all signed, and what it follows was shown."""

    @property
    def refused(self) -> bool:
        """Whether a signature stands there that keeps it from ever being in force."""
        return any(one.refusal or not one.name for one in self.standing)


def look(signed: Signed, previous: Sequence[Signed]) -> Shown:
    """Read it, after the versions ``previous`` (in any order, from 1 on). Raises :class:`~cloister.errors.ManifestError`."""
    from cloister.errors import QuorumMissing, SignatureRefused
    from cloister.federated.agreement import agree_first, agree_successor
    from cloister.federated.federation import read_federation
    from cloister.manifest.signatures import standings

    federation, _ = read_federation(signed.document)
    predecessor = _in_force(previous)
    agreed: AgreedFederation | None = None
    try:
        if predecessor is not None:
            agreed = agree_successor(signed, predecessor=predecessor)
        elif federation.version == 1:
            agreed = agree_first(signed, digest=signed.digest)
    except (QuorumMissing, SignatureRefused):
        pass  # told by name below
    standing = standings("federation", signed, {name: one.key for name, one in federation.parties.items()})
    signers = {one.name for one in standing if one.name and not one.refusal}
    return Shown(
        signed=signed,
        federation=federation,
        before=None if predecessor is None else predecessor.federation,
        standing=standing,
        missing=tuple(sorted(federation.parties.keys() - signers)),
        agreed=agreed,
    )


def say_words(shown: Shown) -> None:
    """What it says, and what it changes."""
    from cloister.federated.words import changes_in_words, federation_in_words

    for line in federation_in_words(shown.federation):
        typer.echo(f"  {line}")
    if shown.before is not None:
        typer.echo(f"what changes since version {shown.before.version}:")
        for line in changes_in_words(shown.before, shown.federation):
            typer.echo(f"  {line}")
    elif shown.federation.version > 1:
        typer.echo("what changes is told with --previous FILE, for each version from 1 on")


def say_standing(shown: Shown) -> None:
    """Who signed, who has to, and whether it is in force."""
    found = shown.federation
    for one in shown.standing:
        who = one.name or f"a key that is no party's ({one.key})"
        typer.echo(f"signed by {who}" + (f", and DOES NOT HOLD: {one.refusal}" if one.refusal else ""))
    if not shown.standing:
        typer.echo("signed by nobody yet")
    which = f"version {found.version} of {found.name}"
    if shown.missing:
        typer.echo(f"still to sign: {', '.join(shown.missing)}")
    if shown.refused:
        typer.echo(f"NOT IN FORCE: {which} needs the signatures of its parties, and no other")
    elif shown.agreed is not None:
        typer.echo(f"{which} is signed by all its parties: it is in force")
    elif not shown.missing:
        typer.echo(
            f"{which} is signed by all its parties: it is in force where the document {found.previous} was; "
            "--previous FILE, for each version from 1 on, checks that"
        )


def show_federation(file: Path, shown: Shown, *, as_json: bool) -> None:
    """Print all of it."""
    if as_json:
        typer.echo(json.dumps(_plain(file, shown), indent=2))
        return
    typer.echo(f"{file}: a federation, digest {shown.signed.digest}")
    say_words(shown)
    say_standing(shown)


def _plain(file: Path, shown: Shown) -> dict[str, Any]:
    from cloister.federated.words import changes_in_words, federation_in_words

    found, before = shown.federation, shown.before
    return {
        "file": str(file),
        "kind": "federation",
        "name": found.name,
        "version": found.version,
        "digest": shown.signed.digest,
        "words": federation_in_words(found),
        "changes": None if before is None else changes_in_words(before, found),
        "signatures": [{"name": one.name, "key": one.key, "refusal": one.refusal} for one in shown.standing],
        "missing": list(shown.missing),
        "in_force": shown.agreed is not None,
    }


def _in_force(chain: Sequence[Signed]) -> AgreedFederation | None:
    from cloister.federated.agreement import agree_first, agree_successor
    from cloister.federated.federation import read_federation

    ordered = sorted(chain, key=lambda signed: read_federation(signed.document)[0].version)
    if not ordered:
        return None
    agreed = agree_first(ordered[0], digest=ordered[0].digest)
    for signed in ordered[1:]:
        agreed = agree_successor(signed, predecessor=agreed)
    return agreed
