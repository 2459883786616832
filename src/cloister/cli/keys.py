"""``cloister keys``: make the owner's key files, and show what of them is public."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(help="Make and show the keys of an owner.", no_args_is_help=True)


@app.command()
def new(
    file: Annotated[Path, typer.Argument(help="The file to make; it must not exist.", metavar="FILE")],
    signing: Annotated[
        bool, typer.Option("--signing", help="A key that signs indexes, not one that files are sealed under.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the outcome as JSON.")] = False,
) -> None:
    """Make a key file, readable by you alone."""
    from cloister.sealing.key_file import create_key
    from cloister.sealing.signing import SigningKey

    if signing:
        SigningKey.create(file)
    else:
        create_key(file)
    _show(file, as_json=as_json, made=True)


@app.command()
def show(
    file: Annotated[Path, typer.Argument(help="A key file.", metavar="FILE")],
    as_json: Annotated[bool, typer.Option("--json", help="Print the outcome as JSON.")] = False,
) -> None:
    """Show a key's public half, or for a key-encryption key its fingerprint; never the key."""
    _show(file, as_json=as_json)


def _show(file: Path, *, as_json: bool, made: bool = False) -> None:
    from cloister.sealing.key_file import SIGNING_KIND, key_fingerprint, read_key, read_kind
    from cloister.sealing.signing import SigningKey

    kind = read_kind(file)
    if kind == SIGNING_KIND:
        name, value = "public_key", SigningKey.load(file).public_key.hex()
    else:
        name, value = "fingerprint", key_fingerprint(read_key(file))
    if as_json:
        typer.echo(json.dumps({"file": str(file), "kind": kind, name: value}))
    else:
        if made:
            typer.echo(f"{file}: {kind}, {name.replace('_', ' ')}")
        # Shown alone, so that `--index-signer $(cloister keys show index.key)` can be typed.
        typer.echo(value)
