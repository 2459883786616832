"""``cloister seal``: seal a directory under one key, with a signed index."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer


def command(
    directory: Annotated[Path, typer.Argument(help="The folder to seal.", metavar="DIR")],
    key: Annotated[str, typer.Option("--key", help="Key URI, kbs:///repository/type/tag.")],
    key_file: Annotated[Path, typer.Option("--key-file", help="Your copy of the key at that URI.")],
    sign_key: Annotated[Path, typer.Option("--sign-key", help="Your signing key.")],
    out: Annotated[Path, typer.Option("--out", help="New folder for the sealed files.")],
    create_keys: Annotated[
        bool, typer.Option("--create-keys", help="Make the key files that are not there yet.")
    ] = False,
    after: Annotated[
        Path | None, typer.Option("--after", help="The sealed directory that this is a new version of.")
    ] = None,
    workers: Annotated[int | None, typer.Option(min=1, max=64, help="Threads; one for each CPU.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the outcome as JSON.")] = False,
) -> None:
    """Seal a directory: encrypt every file under one key, and sign an index of them."""
    from cloister.cli.sealing_progress import progress_bar
    from cloister.errors import FormatError, UsageError
    from cloister.sealing.directory import seal_directory
    from cloister.sealing.index import open_index
    from cloister.sealing.key_file import create_key, key_fingerprint, read_key
    from cloister.sealing.signing import SigningKey
    from cloister.sealing.uri import parse_key_uri

    try:
        uri = parse_key_uri(key)
    except FormatError as error:
        raise UsageError(error.what, todo=error.todo) from None
    kek = create_key(key_file) if create_keys and not key_file.exists() else read_key(key_file)
    create = create_keys and not sign_key.exists()
    signing_key = SigningKey.create(sign_key) if create else SigningKey.load(sign_key)
    older = None if after is None else open_index(after, signers=[signing_key.public_key])
    with progress_bar("sealing", quiet=as_json) as progress:
        index = seal_directory(
            directory,
            out,
            key_uri=str(uri),
            kek=kek,
            signing_key=signing_key,
            after=older,
            workers=workers,
            progress=progress,
        )
    outcome = {
        "out": str(out),
        "files": len(index.files),
        "bytes": index.size,
        "version": index.version,
        "index_digest": index.digest.hex(),
        "signer": index.signer.hex(),
        "key": str(uri),
        "key_fingerprint": key_fingerprint(kek),
    }
    if as_json:
        typer.echo(json.dumps(outcome))
        return
    files = "1 file" if len(index.files) == 1 else f"{len(index.files)} files"
    typer.echo(f"sealed {files}, {index.size:,} bytes, into {out} (version {index.version})")
    typer.echo(f"index digest  {index.digest.hex()}")
    typer.echo(f"signer        {index.signer.hex()}")
    typer.echo(f"next: cloister broker put {uri} --file {key_file} --state DIR --passphrase-file FILE")
