"""``cloister mount``: an owner looks into a sealed directory, or works in a sealed tree, on the owner's own machine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def command(
    sealed: Annotated[Path, typer.Argument(help="The sealed directory or sealed tree.", metavar="SEALED")],
    mountpoint: Annotated[Path, typer.Argument(help="An empty folder.", metavar="MOUNTPOINT")],
    key_file: Annotated[Path, typer.Option("--key-file", help="Your copy of the key.")],
    signer: Annotated[
        list[str] | None,
        typer.Option(
            "--signer", help="Public key that may have signed a sealed directory, hexadecimal; repeatable."
        ),
    ] = None,
    write: Annotated[bool, typer.Option("--write", help="Write into a sealed tree.")] = False,
    new: Annotated[bool, typer.Option("--new", help="Make a sealed tree that is not there yet.")] = False,
    key: Annotated[
        str | None, typer.Option("--key", help="The new tree's key URI, kbs:///repository/type/tag.")
    ] = None,
    minimum_version: Annotated[int, typer.Option(min=1, help="Refuse older versions.")] = 1,
    as_json: Annotated[bool, typer.Option("--json", help="Print what happens as JSON.")] = False,
) -> None:
    """Mount sealed files; they are there until Ctrl-C or SIGTERM."""
    from cloister.cli.mounting import make_tree, mount_until_told, what_to_mount
    from cloister.sealing.key_file import KeyFile

    keys = KeyFile.load(key_file, key)
    if new:
        make_tree(sealed, key, keys)
    spec = what_to_mount(
        sealed,
        mountpoint,
        keys,
        signers=signer or [],
        writable=write or new,
        minimum_version=minimum_version,
    )
    mount_until_told(spec, minimum_version=minimum_version, as_json=as_json)
