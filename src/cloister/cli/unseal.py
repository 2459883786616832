"""``cloister unseal``: an owner opens what is sealed with the owner's own copy of the key."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from cloister.cli.interruption import ended_like_ctrl_c
from cloister.cli.sealed_options import (
    JsonOption,
    KeyFileOption,
    KeyOption,
    SealedArgument,
    SignersOption,
    VersionOption,
    WorkersOption,
)


def command(
    sealed: SealedArgument,
    key_file: KeyFileOption,
    out: Annotated[
        Path, typer.Option("--out", help="New folder for the files in the clear; of a file the file.")
    ],
    signer: SignersOption = None,
    key: KeyOption = None,
    minimum_version: VersionOption = 1,
    workers: WorkersOption = None,
    as_json: JsonOption = False,
) -> None:
    """Unseal a directory, a tree or a file: verify its signed index and every byte, then write it in the clear."""
    from cloister.cli.sealed_options import accepted_signers, counted, key_at_hand, kind_of, refuse_pointless
    from cloister.cli.sealing_progress import progress_bar

    kind = kind_of(sealed)
    refuse_pointless(kind, signer, minimum_version)
    facts: dict[str, Any] = {"out": str(out)}
    version = ""
    with ended_like_ctrl_c(), progress_bar("unsealing", quiet=as_json) as progress:
        if kind == "tree":
            from cloister.cli.sealed_tree import unseal_tree

            keys = key_at_hand(key_file, key)
            files, size, head = unseal_tree(sealed, keys, minimum_version, out, progress=progress)
            facts |= head
            version = f" (version {head['version']})"
        elif kind == "file":
            from cloister.cli.sealed_stream import unseal_to_file

            keys = key_at_hand(key_file, key)
            files, size = 1, unseal_to_file(sealed, out, keys, workers=workers, progress=progress)
        else:
            from cloister.sealing.directory import unseal_directory
            from cloister.sealing.index import open_index

            index = open_index(sealed, signers=accepted_signers(signer), minimum_version=minimum_version)
            keys = key_at_hand(key_file, key)
            unseal_directory(sealed, index, keys, out, workers=workers, progress=progress)
            files, size, version = len(index.files), index.size, f" (version {index.version})"
            facts |= {
                "version": index.version,
                "index_digest": index.digest.hex(),
                "signer": index.signer.hex(),
            }
    facts |= {"files": files, "bytes": size, **progress.facts()}
    line = f"unsealed {counted(files)}, {size:,} bytes, into {out}{version}: {progress}"
    typer.echo(json.dumps(facts) if as_json else line)
