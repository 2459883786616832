"""``cloister unseal``: an owner opens a sealed directory with the owner's own copy of the key."""

from __future__ import annotations

import contextlib
import json
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, NoReturn

import typer


def command(
    directory: Annotated[Path, typer.Argument(help="The sealed directory.", metavar="DIR")],
    key_file: Annotated[Path, typer.Option("--key-file", help="Your copy of the key.")],
    signer: Annotated[
        list[str], typer.Option("--signer", help="Public key that may have signed, hexadecimal; repeatable.")
    ],
    out: Annotated[Path, typer.Option("--out", help="New folder for the files in the clear.")],
    key: Annotated[
        str | None, typer.Option("--key", help="Use the key file for this URI only.", metavar="URI")
    ] = None,
    minimum_version: Annotated[int, typer.Option(min=1, help="Refuse older versions of the tree.")] = 1,
    workers: Annotated[int | None, typer.Option(min=1, max=64, help="Threads; one for each CPU.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the outcome as JSON.")] = False,
) -> None:
    """Unseal a directory: verify its signed index and every byte, then write the files in the clear."""
    from cloister.cli.sealing_progress import progress_bar
    from cloister.encoding import from_hex
    from cloister.errors import FormatError, UsageError
    from cloister.sealing.directory import unseal_directory
    from cloister.sealing.index import open_index
    from cloister.sealing.key_file import KeyFile

    try:
        signers = [from_hex(text, 32, what="--signer") for text in signer]
    except FormatError as error:
        raise UsageError(error.what, todo="copy it from `cloister keys show`") from None
    index = open_index(directory, signers=signers, minimum_version=minimum_version)
    keys = KeyFile.load(key_file, key)
    with _ended_like_ctrl_c(), progress_bar("unsealing", quiet=as_json) as progress:
        unseal_directory(directory, index, keys, out, workers=workers, progress=progress)
    outcome = {
        "out": str(out),
        "files": len(index.files),
        "bytes": index.size,
        "version": index.version,
        "index_digest": index.digest.hex(),
        "signer": index.signer.hex(),
    }
    if as_json:
        typer.echo(json.dumps(outcome))
        return
    files = "1 file" if len(index.files) == 1 else f"{len(index.files)} files"
    typer.echo(f"unsealed {files}, {index.size:,} bytes, into {out} (version {index.version})")


@contextlib.contextmanager
def _ended_like_ctrl_c() -> Iterator[None]:
    """A closed terminal or a stopped service ends the process too, and must leave no plaintext either."""

    def interrupt(*_: object) -> NoReturn:
        raise KeyboardInterrupt

    before = {number: signal.getsignal(number) for number in (signal.SIGHUP, signal.SIGTERM)}
    for number, handler in before.items():
        if handler is not signal.SIG_IGN:  # as under `nohup`
            signal.signal(number, interrupt)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
