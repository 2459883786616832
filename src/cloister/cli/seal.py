"""``cloister seal``: seal a directory under one key, with a signed index; or standard input into one sealed file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from cloister.cli.sealing_progress import Phase
    from cloister.sealing.index import Index
    from cloister.sealing.resume import Resumption

STREAM = "-"


def command(
    source: Annotated[
        str, typer.Argument(help="The folder to seal; - seals standard input.", metavar="DIR|-")
    ],
    key: Annotated[str, typer.Option("--key", help="Key URI, kbs:///repository/type/tag.")],
    key_file: Annotated[Path, typer.Option("--key-file", help="Your copy of the key at that URI.")],
    sign_key: Annotated[
        Path | None, typer.Option("--sign-key", help="Your signing key; a directory needs it.")
    ] = None,
    out: Annotated[
        str | None,
        typer.Option("--out", help="New folder for the sealed files, or a URL; of - the new file."),
    ] = None,
    create_keys: Annotated[
        bool, typer.Option("--create-keys", help="Make the key files that are not there yet.")
    ] = False,
    after: Annotated[
        Path | None, typer.Option("--after", help="The sealed directory that this is a new version of.")
    ] = None,
    verify: Annotated[
        bool, typer.Option("--verify/--no-verify", help="Read back what was sealed, and open it.")
    ] = True,
    restart: Annotated[
        bool, typer.Option("--restart", help="Throw away what an interrupted run had sealed.")
    ] = False,
    workers: Annotated[int | None, typer.Option(min=1, max=64, help="Threads; one for each CPU.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the outcome as JSON.")] = False,
) -> None:
    """Seal a directory: encrypt every file under one key, sign an index of them, read all of it back.

    Interrupted, it keeps what it sealed beside --out, and the same command goes on there.
    """
    from cloister.errors import FormatError, UsageError
    from cloister.sealing.index import open_index
    from cloister.sealing.key_file import create_key, key_fingerprint, read_key
    from cloister.sealing.signing import SigningKey
    from cloister.sealing.uri import parse_key_uri

    try:
        uri = str(parse_key_uri(key))
    except FormatError as error:
        raise UsageError(error.what, todo=error.todo) from None
    if source == STREAM and (sign_key, after) != (None, None):
        raise UsageError("one sealed file has no index to sign", todo="leave --sign-key and --after out")
    if source != STREAM and (sign_key is None or out is None):
        missing = "--sign-key" if sign_key is None else "--out"
        raise UsageError(f"a directory is sealed with {missing}", todo="`cloister seal --help` shows how")
    kek = create_key(key_file) if create_keys and not key_file.exists() else read_key(key_file)
    facts = {"key": uri, "key_fingerprint": key_fingerprint(kek)}
    if source == STREAM:
        from cloister.cli.sealed_stream import seal_standard_input

        seal_standard_input(out, uri, kek, verify=verify, as_json=as_json, facts=facts)
        return
    assert sign_key is not None and out is not None  # noqa: S101, PT018 -- for the type checker
    create = create_keys and not sign_key.exists()
    signing_key = SigningKey.create(sign_key) if create else SigningKey.load(sign_key)
    older = None if after is None else open_index(after, signers=[signing_key.public_key])
    settings: dict[str, Any] = {
        "key_uri": uri, "kek": kek, "signing_key": signing_key, "after": older, "workers": workers, "verify": verify,
    }  # fmt: skip
    if "://" in out:
        index, sealing, verifying = _to_store(Path(source), out, settings, quiet=as_json)
        kept = 0
    else:
        from cloister.sealing.resume import Resumption

        resumption = Resumption(
            source=Path(source),
            key_uri=uri,
            key_fingerprint=facts["key_fingerprint"],
            signing_key=signing_key,
            restart=restart,
            told=None if as_json else _tell_what_was_kept,
        )
        index, sealing, verifying = _to_folder(Path(source), Path(out), settings, resumption, quiet=as_json)
        kept = len(resumption.found)
    outcome = {
        "out": out, "files": len(index.files), "bytes": index.size, "version": index.version,
        "index_digest": index.digest.hex(), "signer": index.signer.hex(), **facts, "kept": kept, **sealing.facts(),
        "verified": verify, **(verifying.facts("verify_") if verify else {}),
    }  # fmt: skip
    if as_json:
        typer.echo(json.dumps(outcome))
        return
    from cloister.cli.sealed_options import counted

    files = counted(len(index.files))
    typer.echo(f"sealed {files}, {index.size:,} bytes, into {out} (version {index.version}): {sealing}")
    if verify:
        typer.echo(f"read back and verified: {verifying}")
    typer.echo(f"index digest  {index.digest.hex()}")
    typer.echo(f"signer        {index.signer.hex()}")
    typer.echo(f"next: cloister broker put {uri} --file {key_file} --state DIR --passphrase-file FILE")


def _to_folder(
    source: Path, out: Path, settings: dict[str, Any], resumption: Resumption, *, quiet: bool
) -> tuple[Index, Phase, Phase]:
    from cloister.cli.sealing_progress import progress_bars
    from cloister.errors import CloisterError, SealingError
    from cloister.sealing.seal import seal_directory

    try:
        with progress_bars("sealing", "verifying", quiet=quiet) as (sealing, verifying):
            index = seal_directory(
                source, out, **settings, staging=resumption, progress=sealing, verifying=verifying
            )
    except CloisterError as error:
        if resumption.left:
            # What was sealed and does not open any more was changed on the disk: going on would find it again.
            again = "throw away what is sealed so far with --restart"
            todo = again if isinstance(error, SealingError) else _what_is_left(resumption)
            raise type(error)(error.what, todo=todo) from None
        raise
    except KeyboardInterrupt:
        if resumption.left and not quiet:
            typer.echo(_what_is_left(resumption), err=True)
        raise
    return index, sealing, verifying


def _to_store(source: Path, url: str, settings: dict[str, Any], *, quiet: bool) -> tuple[Index, Phase, Phase]:
    from cloister.cli.sealing_progress import progress_bars
    from cloister.errors import NetworkError
    from cloister.sealing.upload import store_at, upload_directory

    store, place = store_at(url)
    try:
        with progress_bars("sealing", "verifying", quiet=quiet) as (sealing, verifying):
            index = upload_directory(source, store, place, **settings, progress=sealing, verifying=verifying)
    except OSError as error:
        raise NetworkError(
            f"cannot write to {url.partition('://')[0]}://: {error.strerror or type(error).__name__}"
        ) from None
    return index, sealing, verifying


def _tell_what_was_kept(files: int, size: int) -> None:
    from cloister.cli.sealed_options import counted

    typer.echo(f"{counted(files)}, {size:,} bytes, were sealed by the run before and are kept")


def _what_is_left(resumption: Resumption) -> str:
    from cloister.cli.sealed_options import counted

    return f"{counted(resumption.left)} sealed so far: run the same command again to go on"
