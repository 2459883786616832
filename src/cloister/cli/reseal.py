"""``cloister reseal``: put what is sealed under another key without touching a body, and give files other paths."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cloister.cli.sealed_options import (
    JsonOption,
    KeyFileIfAnyOption,
    KeyOption,
    SignersOption,
    VersionOption,
)

if TYPE_CHECKING:
    from cloister.sealing.index import Index
    from cloister.sealing.reseal import Rotation
    from cloister.sealing.signing import SigningKey


def command(
    sealed: Annotated[
        str, typer.Argument(help="A sealed directory, a sealed tree, or one sealed file.", metavar="SEALED")
    ],
    key_file: KeyFileIfAnyOption = None,
    key: KeyOption = None,
    new_key: Annotated[
        str | None, typer.Option("--new-key", help="Key URI of the new key.", metavar="URI")
    ] = None,
    new_key_file: Annotated[
        Path | None, typer.Option("--new-key-file", help="Your copy of the key at that URI.")
    ] = None,
    rename: Annotated[
        list[str] | None,
        typer.Option("--rename", help="Give a file another path; repeatable.", metavar="OLD=NEW"),
    ] = None,
    sign_key: Annotated[
        Path | None, typer.Option("--sign-key", help="Your signing key; --rename needs it.")
    ] = None,
    signer: SignersOption = None,
    minimum_version: VersionOption = 1,
    as_json: JsonOption = False,
) -> None:
    """Rotate the key of what is sealed, in place: headers are rewritten, bodies are not. Or rename files.

    Interrupted, the same command finishes it. The old key still opens copies that somebody made before.
    """
    from cloister.cli.sealed_options import counted, kind_of, refuse_pointless
    from cloister.errors import UsageError

    rotate = _wanted(key_file, new_key, new_key_file)
    if not rotate and not rename:
        raise UsageError(
            "nothing is to be done", todo="give --key-file, --new-key and --new-key-file, or --rename"
        )
    if "://" in sealed:
        raise UsageError(
            "only local files can be resealed: an object store cannot write into an object",
            todo="reseal the local copy, or seal anew",
        )
    path = Path(sealed)
    kind = kind_of(path)
    refuse_pointless(kind, signer, minimum_version)
    if kind != "directory" and rename:
        raise UsageError("only files of a sealed directory are renamed in its index", todo="use `mv`")
    facts: dict[str, Any] = {"kind": kind}
    lines: list[str] = []
    if kind == "directory":
        signing_key = _signing_key(sign_key, needed=bool(rename))
        index = _open(path, signer, signing_key, minimum_version)
    if rotate:
        done = _rotate(
            path, kind, index if kind == "directory" else None, key_file, key, str(new_key), new_key_file
        )
        facts |= {
            "key": new_key,
            "rewrapped": done.rewrapped,
            "finished": done.finished,
            "unchanged": done.there,
        }
        parts = [f"{counted(done.rewrapped)} put under {new_key}"]
        if done.finished:
            parts.append(f"{done.finished} finished of an interrupted run")
        if done.there:
            parts.append(f"{done.there} under it already")
        lines.append(", ".join(parts))
    if rename:
        assert signing_key is not None  # noqa: S101 -- for the type checker
        index, count = _rename(path, index, rename, signing_key)
        lines.append(f"{counted(count)} renamed: version {index.version}")
        facts |= {"renamed": count}
    if kind == "directory":
        facts |= {"version": index.version, "index_digest": index.digest.hex(), "signer": index.signer.hex()}
        lines.append(f"index digest  {index.digest.hex()}")
    typer.echo(json.dumps(facts) if as_json else "\n".join(lines))


def _wanted(key_file: Path | None, new_key: str | None, new_key_file: Path | None) -> bool:
    from cloister.errors import UsageError

    given = [option is not None for option in (key_file, new_key, new_key_file)]
    if any(given[1:]) and not all(given):
        raise UsageError(
            "a rotation takes the old key and the new one",
            todo="give --key-file, --new-key and --new-key-file",
        )
    return all(given)


def _signing_key(path: Path | None, *, needed: bool) -> SigningKey | None:
    from cloister.errors import UsageError
    from cloister.sealing.signing import SigningKey

    if path is None and needed:
        raise UsageError("a renamed file is a new index, which has to be signed", todo="give --sign-key")
    return None if path is None else SigningKey.load(path)


def _open(
    path: Path, signer: list[str] | None, signing_key: SigningKey | None, minimum_version: int
) -> Index:
    from cloister.cli.sealed_options import accepted_signers
    from cloister.sealing.index import open_index

    signers = [] if signing_key is None else [signing_key.public_key]
    if signer or not signers:
        signers += accepted_signers(signer)
    return open_index(path, signers=signers, minimum_version=minimum_version, resealing=True)


def _rotate(
    path: Path,
    kind: str,
    index: Index | None,
    key_file: Path | None,
    key: str | None,
    new_uri: str,
    new_key_file: Path | None,
) -> Rotation:
    from cloister.cli.sealed_options import key_at_hand
    from cloister.sealing.key_file import read_key
    from cloister.sealing.reseal import reseal_directory, reseal_file, reseal_tree

    keys = key_at_hand(key_file, key)
    assert new_key_file is not None  # noqa: S101 -- for the type checker
    new_kek = read_key(new_key_file)
    if index is not None:
        return reseal_directory(path, index, keys, new_uri=new_uri, new_kek=new_kek)
    if kind == "tree":
        return reseal_tree(path, keys, new_uri=new_uri, new_kek=new_kek)
    return reseal_file(path, keys, new_uri=new_uri, new_kek=new_kek)


def _rename(path: Path, index: Index, wanted: list[str], signing_key: SigningKey) -> tuple[Index, int]:
    from cloister.errors import UsageError
    from cloister.sealing.rename import rename_files

    paths: dict[str, str] = {}
    for text in wanted:
        old, sign, new = text.partition("=")
        if not sign or not old or not new or old in paths:
            raise UsageError("--rename is OLD=NEW, once for each file", todo="write --rename a/b=a/c")
        # Interrupted and run again: what is done already stays done.
        if old in index.files or new not in index.files:
            paths[old] = new
    return rename_files(path, index, paths, signing_key=signing_key), len(paths)
